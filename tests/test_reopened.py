"""A run opened again: its slice and its vectors, as the search and the file had them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.kinds import Within, adapters
from educe.methods import search
from educe.model import LanguageModel
from educe.run.fill import add_set
from educe.run.reopened import slice_of, vectors
from educe.run.settings import encoded, stored
from educe.run.store import Run
from small_run import small_run
from toy_slice import normal


def test_vectors_are_what_is_added_and_have_the_effect_that_the_run_lists(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    folder = small_run(tmp_path / "run", tiny_lm, "dct", iterations=2)
    with Run.open(folder) as run:
        settings = stored(run)
        part = slice_of(run, tiny_lm, encoded(tiny_lm, settings, settings.prompts))
        rows = normal(4, tiny_lm.width).float()  # of any length, as in a whitened ball
        inside = search(part.on(Within(part.source, rows)), "random", n=2, radius=1.5)
        inside.save(run.tensors / "found-w.safetensors")
        one, other = add_set(run, "found", "found-w.safetensors", inside, [0.0, 0.0])
        theta = vectors(run, [other, 2, one, 1])
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
        with pytest.raises(MethodError, match=f"{number} is one of adapters, which are no vectors"):
            vectors(run, [1, number])
