"""What the model writes under several changes at once is what it writes under each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from educe.activations.project import Ablation, ablating, plain
from educe.activations.written import written
from educe.forward import generation
from educe.forward.generation import generate
from educe.kinds import Vectors
from educe.model import LanguageModel
from educe.rows import Row

LAYER, LIMIT = 1, 12
PROMPTS = ["Hello, who is there?", "No one asks for this."]


def changes() -> list[Tensor | Ablation | None]:
    """Return vectors that are added, and directions that are taken away in each form."""
    draw = torch.Generator().manual_seed(0)
    first, second, third, mean = (torch.randn(1, 32, generator=draw) for _ in range(4))
    away = plain(third, 20 * mean[0])
    across = second - second @ away.read.T.float() @ away.read.float()
    # What it takes away is another direction than the one it looks for.
    slanted = Ablation(away.read, away.read + 3 * across, mean[0])
    return [None, 9 * first, plain(first), -9 * second, away, slanted]


def alone(lm: LanguageModel, change: Tensor | Ablation | None, positions: str) -> str:
    """Return what is written under one change, by ways that share nothing with a batch of them."""
    prompts = lm.encode(PROMPTS)
    if isinstance(change, Ablation):
        with ablating(lm, change, [LAYER]):
            (done,) = generate(lm, prompts, [Row(0, 0)], max_new_tokens=LIMIT)
    elif change is None:
        (done,) = generate(lm, prompts, [Row(0, 0)], max_new_tokens=LIMIT)
    else:
        kind = Vectors(LAYER, lm.width, positions)
        (done,) = generate(lm, prompts, [Row(0, 0)], change, kind=kind, max_new_tokens=LIMIT)
    return done[0].text


@pytest.mark.parametrize("positions", ["all", "prompt", "last:1"])
def test_each_row_is_what_is_written_under_it_alone(tiny_lm: LanguageModel, positions: str) -> None:
    wanted = [alone(tiny_lm, change, positions) for change in changes()]
    assert len(set(wanted)) == len(wanted)
    prompts = tiny_lm.encode(PROMPTS)
    found = written(tiny_lm, prompts, LAYER, changes(), positions=positions, limit=LIMIT)
    assert found == wanted


def test_rows_that_go_on_keep_their_change(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unperturbed row and others end early; those after them must not take their changes."""
    text = alone(tiny_lm, None, "all")
    ends = {tiny_lm.tokenizer(text[at])["input_ids"][0] for at in (1, 2)}
    monkeypatch.setattr(generation, "_end_tokens", lambda lm: ends)
    wanted = [alone(tiny_lm, change, "all") for change in changes()]
    assert len(wanted[0]) < min(2, LIMIT)
    assert max(map(len, wanted[1:])) > len(wanted[0])
    prompts = tiny_lm.encode(PROMPTS)
    assert written(tiny_lm, prompts, LAYER, changes(), positions="all", limit=LIMIT) == wanted
