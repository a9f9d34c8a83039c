"""Sets derived in memory, and perturbations of a run as a set, as the file had them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from educe import derive
from educe.derive.listing import deriving, taken
from educe.errors import MethodError, RunError
from educe.forward.slice import Slice
from educe.methods import search
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Within, adapters
from educe.run.fill import add_set
from educe.run.store import Run
from small_run import small_run
from toy_slice import normal


def test_vectors_are_what_is_added_and_have_the_effect_that_the_run_lists(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    folder = small_run(tmp_path / "run", tiny_lm, "dct", iterations=2)
    with Run.open(folder) as run, deriving(run, lm=tiny_lm) as work:
        part = work.part
        rows = normal(4, tiny_lm.width).float()  # of any length, as in a whitened ball
        inside = search(part.on(Within(part.source, rows)), "random", n=2, radius=1.5)
        inside.save(run.tensors / "found-w.safetensors")
        one, other = add_set(run, "found", "found-w.safetensors", inside, [0.0, 0.0])
        theta = taken(run, [other, 2, one, 1], vectors=True).theta
        listed = {p.id: p for p in run.perturbation_rows()}
    torch.testing.assert_close(theta[[2, 0]], inside.theta @ rows)
    torch.testing.assert_close(theta[[3, 1]].norm(dim=1), torch.full((2,), 2.0))
    effect = part.effect(theta[[3, 1]]).norm(dim=1)
    assert effect.tolist() == pytest.approx([listed[1].effect, listed[2].effect], rel=1e-4)


def test_adapters_are_no_vectors(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", tiny_lm, "random")
    part = Slice(tiny_lm, tiny_lm.pad(tiny.ragged([5])), source=1, target=3)
    with Run.open(folder) as run:
        made = search(part.on(adapters(tiny_lm, first=2, blocks=1)), "random", n=1, radius=1.0)
        made.save(run.tensors / "found-a.safetensors")
        (number,) = add_set(run, "found", "found-a.safetensors", made, [0.0])
        with pytest.raises(MethodError, match="these are adapters, which are no vectors"):
            taken(run, [1, number], vectors=True)
        with pytest.raises(MethodError, match="of several kinds"):
            taken(run, [1, number])


def test_an_unfinished_run_is_not_derived_from(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", tiny_lm, "random")
    with Run.open(folder) as run:
        with run.writing():
            run.database.execute("DELETE FROM meta WHERE key = 'seconds'")
        with pytest.raises(RunError, match="not finished: educe discover --resume first"):
            deriving(run, [1], tiny_lm).__enter__()


# -- in memory -------------------------------------------------------------------------------------


def test_scaled_and_flipped_have_the_effect_of_what_they_say(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.pad(tiny.ragged([5, 8])), source=1, target=3)
    found = search(part, "dct", n=3, radius=2.0)
    made = derive.scaled(found, [0.5, -2.0])
    assert made.scores["parent"].tolist() == [0, 0, 1, 1, 2, 2]
    assert "effect" not in made.scores
    expected = torch.stack([0.5 * found.theta, -2.0 * found.theta], 1).flatten(0, 1)
    torch.testing.assert_close(made.theta, expected)
    assert torch.equal(derive.flipped(found).theta, -found.theta)
    some = search(part.on(adapters(tiny64, first=2, blocks=1)), "random", n=2, radius=1.0)
    x = normal(1, 3, some.kind.inputs[0]).float().expand(2, -1, -1)
    (before,), (after,) = (some.kind.split(one.theta) for one in (some, derive.flipped(some)))
    torch.testing.assert_close(some.kind.written(after, x), -some.kind.written(before, x))


def test_what_is_inside_a_subspace_and_what_is_outside_are_the_vector(
    tiny64: LanguageModel,
) -> None:
    part = Slice(tiny64, tiny64.pad(tiny.ragged([5])), source=1, target=3)
    found = search(part, "random", n=3, radius=2.0)
    rows = normal(4, tiny64.width)
    inside, outside = (derive.projected(found, rows, away=away) for away in (False, True))
    torch.testing.assert_close(inside.theta + outside.theta, found.theta)
    assert float((outside.theta.double() @ rows.T).abs().max()) < 1e-5
    share = torch.linalg.lstsq(rows.T, found.theta.double().T).solution.T @ rows
    torch.testing.assert_close(inside.theta.double(), share, rtol=0, atol=1e-5)
    torch.testing.assert_close(inside.scores["share"], inside.radius / found.radius)
    with pytest.raises(MethodError, match="nothing of vector 1 lies outside"):
        derive.projected(found, found.theta[1:2], away=True)
