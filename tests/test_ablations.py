"""What the model writes under several ablations at once is what it writes under each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from educe.activations.project import Ablation, ablating, as_perturbation, plain
from educe.forward import generation
from educe.forward.forced import Forced
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Ablations
from educe.rows import Row

LAYER, LIMIT = 1, 12
PROMPTS = ["Hello, who is there?", "No one asks for this."]
WIDTH = 32


def ablations() -> list[Ablation]:
    """Return directions that are taken away in each form."""
    draw = torch.Generator().manual_seed(0)
    first, second, third, mean = (torch.randn(1, WIDTH, generator=draw) for _ in range(4))
    away = plain(third, 20 * mean[0])
    across = second - second @ away.read.T.float() @ away.read.float()
    # What it takes away is another direction than the one it looks for.
    slanted = Ablation(away.read, away.read + 3 * across, mean[0])
    return [plain(first), plain(second, -8 * mean[0]), away, slanted]


def theta() -> Tensor:
    return torch.cat([as_perturbation(one) for one in ablations()])


def alone(lm: LanguageModel, ablation: Ablation | None) -> str:
    """Return what is written without a direction, by hooks that know of no batch."""
    prompts = lm.encode(PROMPTS)
    if ablation is None:
        (done,) = generate(lm, prompts, [Row(0, 0)], max_new_tokens=LIMIT)
    else:
        with ablating(lm, ablation, [LAYER]):
            (done,) = generate(lm, prompts, [Row(0, 0)], max_new_tokens=LIMIT)
    return done[0].text


def together(lm: LanguageModel) -> list[str]:
    """Return what is written under nothing and under each ablation, in one batch."""
    rows = [Row(i, 0) for i in range(len(ablations()) + 1)]
    kind = Ablations(LAYER, WIDTH)
    done = generate(lm, lm.encode(PROMPTS), rows, theta(), kind=kind, max_new_tokens=LIMIT)
    texts = {c.row: c.text for batch in done for c in batch}
    return [texts[row] for row in rows]


def test_each_row_is_what_is_written_under_it_alone(tiny_lm: LanguageModel) -> None:
    wanted = [alone(tiny_lm, one) for one in (None, *ablations())]
    assert len(set(wanted)) == len(wanted)
    assert together(tiny_lm) == wanted


def test_rows_that_go_on_keep_their_change(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unperturbed row and others end early; those after them must not take their changes."""
    text = alone(tiny_lm, None)
    ends = {tiny_lm.tokenizer(text[at])["input_ids"][0] for at in (1, 2)}
    monkeypatch.setattr(generation, "end_tokens", lambda lm: ends)
    wanted = [alone(tiny_lm, one) for one in (None, *ablations())]
    assert len(wanted[0]) < min(2, LIMIT)
    assert max(map(len, wanted[1:])) > len(wanted[0])
    assert together(tiny_lm) == wanted


def test_several_read_several_texts_as_each_does_alone(tiny_lm: LanguageModel) -> None:
    forced = Forced(tiny_lm, tiny_lm.encode(PROMPTS), [[5, 6, 7], [8, 9, 3]], before=LAYER)
    found = forced.each(theta(), Ablations(LAYER, WIDTH), forced.divergence)
    for one, values in zip(ablations(), found, strict=True):
        with ablating(tiny_lm, one, [LAYER]):
            read = forced.under(torch.no_grad())
        torch.testing.assert_close(values, forced.divergence(read)[0].cpu(), rtol=1e-4, atol=1e-6)


def test_a_radius_is_how_much_of_it_is_taken_away(tiny_lm: LanguageModel) -> None:
    kind, draw = Ablations(LAYER, WIDTH), torch.Generator().manual_seed(0)
    unit = kind.draw(3, draw)
    torch.testing.assert_close(kind.normalised(unit), unit)
    torch.testing.assert_close(kind.normalised(kind.scaled(unit, 7.0)), unit)
    h = torch.randn(5, WIDTH, generator=draw)
    for radius, left in ((0.0, 1.0), (1.0, 0.0), (2.0, -1.0)):
        read, write, _ = kind.scaled(unit[:1], radius).split(WIDTH, dim=1)
        after = h - (h @ read.T) * write
        torch.testing.assert_close(after @ read.T, left * (h @ read.T), atol=1e-5, rtol=1e-4)
