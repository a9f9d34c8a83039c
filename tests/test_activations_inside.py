"""Search inside a subspace: against projected search and dense decompositions of a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from educe import files
from educe.activations.inside import described, parse, within
from educe.activations.subspace import Moments, Subspace, of_moments, of_rows, random_subspace
from educe.errors import MethodError
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.methods import control, search
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors, Within
from educe.perturbation.set import PerturbationSet
from educe.run.preparing import WITHIN
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from toy_slice import ToySlice, cosines, linear, normal, with_singular_values

WIDTH, RANK = 12, 4
METHODS = ("dct", "dct-linear", "dct-quadratic", "melbo", "power", "random")


def subspace(rank: int = RANK) -> Subspace:
    """Return a subspace whose directions have very different variances."""
    spread = torch.diag(3.0 ** -torch.arange(WIDTH, dtype=torch.float64))
    rows = normal(100, WIDTH) @ spread @ torch.linalg.qr(normal(WIDTH, WIDTH, seed=5)).Q
    return of_moments(Moments.of(rows)).top(rank)


def inside(matrix: Tensor, kind: Within) -> Any:
    """Return the slice ``Δ(θ) = matrix Aᵀ θ`` for coefficients."""
    toy = ToySlice(lambda theta: theta @ kind.rows.double() @ matrix.T, WIDTH)
    toy.kind = kind
    return toy


MATRIX = with_singular_values([float(i) for i in range(WIDTH, 0, -1)])


def test_power_on_coefficients_is_the_decomposition_of_the_projected_map() -> None:
    known = subspace()
    found = search(inside(MATRIX, within(known, 1)), "power", n=2 * RANK, radius=1.0)
    vectors = found.directions.double() @ known.basis
    projector = known.basis.T @ known.basis
    value, right = torch.linalg.svd(MATRIX @ projector)[1:]
    assert torch.allclose(
        cosines(vectors[::2], right[:RANK]).diagonal(), torch.ones(1).double(), atol=1e-5
    )
    assert torch.allclose(found.scores["singular_value"][::2].double(), value[:RANK], rtol=1e-4)


def test_search_on_coefficients_is_search_projected_where_both_are_exact() -> None:
    """Power on the whole stream of a map that was projected, against power on coefficients."""
    known = subspace()
    projected = linear(MATRIX @ known.basis.T @ known.basis)
    whole = search(projected, "power", n=2 * RANK, radius=1.0)
    some = search(inside(MATRIX, within(known, 1)), "power", n=2 * RANK, radius=1.0)
    vectors = some.directions.double() @ known.basis
    signs = (vectors * whole.directions.double()).sum(1)
    torch.testing.assert_close(signs.abs(), torch.ones(2 * RANK, dtype=torch.float64))
    torch.testing.assert_close(some.scores["effect"], whole.scores["effect"])


def test_a_whitened_ball_is_an_ellipsoid_with_the_spread_of_the_activations() -> None:
    known = subspace()
    kind = within(known, 1, ball="whitened")
    found = search(inside(MATRIX, kind), "power", n=2, radius=2.0)
    vector = found.theta.double()[:1] @ kind.rows.double()
    rms = known.variance.mean().sqrt()
    length = ((vector @ known.basis.T).square() / known.variance).sum().sqrt()
    assert float(length) == pytest.approx(2 / float(rms), rel=1e-5)
    scaled = MATRIX @ known.basis.T @ torch.diag(known.variance.sqrt() / rms)
    best = torch.linalg.svd(scaled).S[0]
    assert float(found.scores["effect"][0]) == pytest.approx(2 * float(best), rel=1e-4)
    draw = torch.Generator().manual_seed(0)
    drawn = kind.draw(4000, draw) @ kind.rows
    assert float(drawn.square().sum(1).mean()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ball", ["plain", "whitened"])
def test_every_method_stays_inside_and_keeps_its_radius(
    tiny_lm: LanguageModel, method: str, ball: Any
) -> None:
    known = of_rows(normal(40, 32), rank=6)
    kind = within(known, 1, ball=ball)
    part = Slice(tiny_lm, tiny_lm.encode(["Hello there."]), source=1, target=3).on(kind)
    found = search(part, method, n=4, radius=1.5, seed=1)
    assert found.kind == kind
    torch.testing.assert_close(found.theta.norm(dim=1), torch.full((4,), 1.5))
    vectors = found.theta.double() @ kind.rows.double()
    outside = vectors - vectors @ known.basis.T @ known.basis
    assert float(outside.norm() / vectors.norm()) < 1e-6
    if ball == "plain":
        torch.testing.assert_close(vectors.norm(dim=1).float(), torch.full((4,), 1.5))
    whole = Slice(tiny_lm, tiny_lm.encode(["Hello there."]), source=1, target=3)
    effect = whole.effect(vectors.float()).norm(dim=1)
    torch.testing.assert_close(effect, found.scores["effect"], rtol=1e-4, atol=1e-4)
    matched = control(part, found, seed=7)
    assert matched.kind == kind
    assert matched.method == "random"


def test_vectors_of_a_subspace_write_what_the_same_vectors_write(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    kind = within(of_rows(normal(40, 32), rank=3), 1, positions="last:2")
    batch = tiny_lm.encode(["Hello there.", "Good morning to you."])
    theta = 6 * kind.draw(3, torch.Generator().manual_seed(0))
    texts = []
    for some, of in ((theta, kind), (theta @ kind.rows, Vectors(1, 32, "last:2"))):
        written = generate(tiny_lm, batch, rows_of(3, 2), some, kind=of, max_new_tokens=6)
        texts.append({c.row: c.tokens for done in written for c in done})
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) > 2


def test_a_set_within_a_subspace_comes_back_from_its_file(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    kind = within(of_rows(normal(40, 32), rank=3), 1)
    part = Slice(tiny_lm, tiny_lm.encode(["Hello there."]), source=1, target=3).on(kind)
    found = search(part, "random", n=2, radius=1.0)
    found.save(tmp_path / "set.safetensors")
    back = PerturbationSet.load(tmp_path / "set.safetensors")
    assert back.kind == kind
    assert hash(back.kind) == hash(kind)
    assert torch.equal(back.theta, found.theta)
    other = within(of_rows(normal(40, 32, seed=3), rank=3), 1)
    assert back.kind != other
    assert back.kind != Vectors(1, 32)


@pytest.mark.parametrize("method", ["lora", "noise", "tokens"])
def test_methods_that_look_for_something_else_are_refused(
    tiny_lm: LanguageModel, method: str
) -> None:
    kind = within(of_rows(normal(40, 32), rank=6), 1)
    part = Slice(tiny_lm, tiny_lm.encode(["Hello there."]), source=1, target=3).on(kind)
    with pytest.raises(MethodError, match="cannot search inside a subspace"):
        search(part, method, n=4, radius=1.5)


@pytest.mark.parametrize(
    ("method", "n"), [("dct", 7), ("power", 13), ("dct-linear", 13), ("dct-quadratic", 13)]
)
def test_no_more_directions_than_the_subspace_has(
    tiny_lm: LanguageModel, method: str, n: int
) -> None:
    kind = within(of_rows(normal(40, 32), rank=6), 1)
    part = Slice(tiny_lm, tiny_lm.encode(["Hello there."]), source=1, target=3).on(kind)
    with pytest.raises(MethodError, match="6"):
        search(part, method, n=n, radius=1.5)


# -- how it is asked for ---------------------------------------------------------------------------


def test_a_subspace_is_asked_for_by_rank_and_source() -> None:
    assert parse("64") == ("bundled", 64)
    assert parse("random:8") == ("random", 8)
    assert parse("hub:some/name:16") == ("hub:some/name", 16)
    for wrong in ("", "0", "prompts", "prompts:", "x:-3", "3.5"):
        with pytest.raises(MethodError, match="give a rank"):
            parse(wrong)


def test_the_span_of_the_prompts_alone_and_a_random_one(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.encode(["Hello there."])
    with tiny_lm.watching([1]) as streams:
        tiny_lm.forward(batch.ids, batch.mask)
    rows = streams[1][0, 1:].double()
    found = described(tiny_lm, batch, 1, "prompts:5")
    right = torch.linalg.svd(rows - rows.mean(0))[2][:5]
    torch.testing.assert_close(found.basis.T @ found.basis, right.T @ right, rtol=0, atol=1e-5)
    with pytest.raises(MethodError, match="ask for 1 to"):
        described(tiny_lm, batch, 1, "prompts:40")


def test_the_corpus_gives_its_top_directions_and_random_ones_share_its_chance(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(
        "\n\n".join(f"Note {i}: the {i * 7} birds flew to the {i}th tree." for i in range(30))
    )
    batch = tiny_lm.encode(["Hello there."])
    top = described(tiny_lm, batch, 1, f"{file}:6")
    assert top.basis.shape == (6, 32)
    assert (top.variance.diff() <= 0).all()
    moments = Moments(1, top.mean, top.basis.T @ torch.diag(top.variance) @ top.basis)
    drawn = random_subspace(moments, 6, torch.Generator().manual_seed(0))
    assert drawn.share(moments) < top.share(moments)


def test_a_run_searches_inside_and_resumes_with_the_same_subspace(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    settings = Settings(
        prompts=("Hello there, how are you?",),
        source=1,
        target=3,
        n=2,
        radius="1.0",
        baseline=4,
        max_new_tokens=3,
        within="prompts:4",
        ball="whitened",
    )
    with begin(tmp_path / "run", settings) as run:
        discover_behaviours(run, lm=tiny_lm)
        sets = {
            arm: PerturbationSet.load(run.tensors / f"{arm}-0.safetensors")
            for arm in ("found", "control")
        }
        assert run.note("facts")["kind"] == "within"
    rows = files.read_tensors(tmp_path / "run" / WITHIN)[0]["rows"]
    for some in sets.values():
        assert isinstance(some.kind, Within)
        assert torch.equal(some.kind.rows, rows)
    files.write_tensors(tmp_path / "run" / WITHIN, {"rows": 2 * rows}, {})
    for file in (tmp_path / "run" / "tensors").glob("*-0.safetensors"):
        file.unlink()
    with Run.open(tmp_path / "run") as run:
        run.database.execute("DELETE FROM perturbations")
        discover_behaviours(run, lm=tiny_lm)
        again = PerturbationSet.load(run.tensors / "found-0.safetensors")
    assert torch.equal(again.kind.rows, 2 * rows), "what is kept is used"


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="leave within out"):
        Settings(prompts=("a",), within="4", given="x.safetensors").check()
    with pytest.raises(MethodError, match="needs a subspace"):
        Settings(prompts=("a",), ball="whitened").check()
    with pytest.raises(MethodError, match="give a rank"):
        Settings(prompts=("a",), within="some").check()
