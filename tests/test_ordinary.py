"""Ordinary text, against divergences computed one sequence and one token at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import PositionsError, PromptError
from educe.forward.benign import Ordinary, ordinary_prompts
from educe.model.language import LanguageModel
from educe.model.prompts import read_prompts
from educe.perturbation.kinds import TokenNoise, Vectors, WeightNoise, Within, adapters
from educe.scores.side_effect import side_effects

PROMPTS = tiny.ragged([7, 15, 1, 4])
SOURCE, TOKENS = 1, 6
ROW = 15 + TOKENS - 1  # tokens of a row


@pytest.fixture(scope="module")
def ordinary(tiny64: LanguageModel) -> Ordinary:
    return Ordinary(tiny64, tiny64.pad(PROMPTS), before=SOURCE, tokens=TOKENS)


def vectors(n: int = 3, *, size: float = 4.0) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randn(n, 32, generator=draw, dtype=torch.float64)
    return size * drawn / drawn.norm(dim=1, keepdim=True)


@torch.no_grad()
def by_itself(hf: Any, vector: Tensor, positions: str, ends: set[int]) -> list[list[float]]:
    """KL(unperturbed ‖ perturbed) at each token of what the unperturbed model writes, in nats."""
    found = []
    for ids in PROMPTS:
        answer = tiny.greedy(hf, ids, TOKENS - 1, ends=ends)
        text = [*ids, *answer]
        at = tiny.chosen(positions, len(ids), len(answer))
        plain, moved = (
            tiny.run(hf, text, source=SOURCE, vector=v, at=at)[0][len(ids) - 1 :].log_softmax(-1)
            for v in (torch.zeros_like(vector), vector)
        )
        found.append((plain.exp() * (plain - moved)).sum(-1).tolist())
    return found


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last:2"])
def test_each_token_is_that_of_the_text_alone(
    tiny64: LanguageModel, ordinary: Ordinary, positions: str
) -> None:
    theta = vectors()
    kl = ordinary.kl(theta, Vectors(SOURCE, 32, positions))
    assert kl.shape == (3, len(PROMPTS), TOKENS)
    for line, vector in zip(kl, theta, strict=True):
        expected = by_itself(tiny64.hf, vector, positions, {tiny.TOKENS["eos_token_id"]})
        for j, each in enumerate(expected):
            assert ordinary.counted[j].tolist() == [True] * len(each) + [False] * (
                TOKENS - len(each)
            )
            np.testing.assert_allclose(line[j, : len(each)], each, rtol=1e-6, atol=1e-10)
            assert not line[j, len(each) :].any()
    assert kl.max() > 0.01


def test_an_answer_counts_up_to_its_end(tiny64: LanguageModel, ordinary: Ordinary) -> None:
    """An ending token among those the model writes, so that answers are of several lengths."""
    answers = [tiny.greedy(tiny64.hf, ids, TOKENS - 1, ends=()) for ids in PROMPTS]
    end = answers[1][2]
    config = tiny64.unwrapped.generation_config
    before, config.eos_token_id = config.eos_token_id, [end]
    try:
        ended = Ordinary(tiny64, tiny64.pad(PROMPTS), before=SOURCE, tokens=TOKENS)
    finally:
        config.eos_token_id = before
    lengths = [a.index(end) if end in a else TOKENS - 1 for a in answers]
    assert lengths[1] <= 2
    assert len(set(lengths)) > 1
    assert ended.counted.sum(1).tolist() == [n + 1 for n in lengths]  # that it ends is one
    theta, kind = vectors(1), Vectors(SOURCE, 32)
    found = ended.kl(theta, kind)[0]
    each = by_itself(tiny64.hf, theta[0], "all", {end})
    expected = torch.tensor([kl for line in each for kl in line], dtype=torch.float64)
    torch.testing.assert_close(found[ended.counted], expected, rtol=1e-6, atol=1e-10)
    damage = ended.damage(theta, kind)
    assert float(damage.mean) == pytest.approx(float(expected.mean()))
    assert float(damage.high) == pytest.approx(np.quantile(expected, 0.95))
    value, _ = ended.value_and_grad(theta, kind)
    assert float(value) == pytest.approx(float(expected.mean()))


def test_a_file_has_other_prompts_than_are_bundled(tmp_path: Path) -> None:
    assert len(ordinary_prompts()) == len(set(ordinary_prompts())) >= 10
    rows = [
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
        {"instruction": "Name a tree.", "input": "", "output": "oak"},
        {"instruction": "Name a fish."},
        "Say so.",
        [{"role": "user", "content": "Hi."}],
    ]
    expected = ["Translate.\n\nHaus", "Name a tree.", "Name a fish.", "Say so.", rows[4]]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "plain.txt").write_text("One.\n\nTwo.\n")
    assert ordinary_prompts(str(tmp_path / "alpaca.json")) == expected
    assert ordinary_prompts(str(tmp_path / "alpaca.jsonl")) == expected
    assert ordinary_prompts(str(tmp_path / "plain.txt")) == ["One.", "Two."]


@pytest.mark.parametrize("raw", ["[", "{}", '{"instruction": 5}', '[{"instruction": 5}]', "[]"])
def test_a_list_of_no_prompts_is_reported(tmp_path: Path, raw: str) -> None:
    (tmp_path / "a.json").write_text(raw)
    with pytest.raises(PromptError, match=r"a\.json"):
        read_prompts(tmp_path / "a.json")


# -- at zero, and near it --------------------------------------------------------------------------


def kinds(lm: LanguageModel) -> dict[str, Any]:
    rows = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(1)))[0].T
    return {
        "vectors": Vectors(SOURCE, 32),
        "within": Within(SOURCE, rows),
        "adapters": adapters(lm, first=SOURCE + 1, blocks=2),
        "token-noise": TokenNoise(SOURCE, 32, (3, 4)),
        "weight-noise": WeightNoise(SOURCE + 1, 2, (3, 4)),
    }


@pytest.mark.parametrize("name", ["vectors", "within", "adapters", "token-noise", "weight-noise"])
def test_at_radius_zero_it_is_zero_and_grows_with_the_square(
    tiny64: LanguageModel, ordinary: Ordinary, name: str
) -> None:
    kind = kinds(tiny64)[name]
    unit = kind.draw(2, torch.Generator().manual_seed(0)).double()
    assert not ordinary.kl(kind.scaled(unit, 0.0), kind).any()
    assert not ordinary.damage(kind.scaled(unit, 0.0), kind).high.any()
    small, smaller = (ordinary.damage(kind.scaled(unit, r), kind).mean for r in (1e-3, 1e-4))
    assert (small > 0).all()
    torch.testing.assert_close(small / smaller, torch.full((2,), 100.0).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["vectors", "within", "adapters", "token-noise", "weight-noise"])
def test_the_gradient_is_that_of_the_mean(lm_of: Callable[..., LanguageModel], name: str) -> None:
    lm = lm_of("gpt2", torch.float64)  # Llama's norms are computed in float32
    ordinary = Ordinary(lm, lm.pad(PROMPTS), before=SOURCE, tokens=TOKENS)
    kind = kinds(lm)[name]
    draw = torch.Generator().manual_seed(0)
    theta = kind.scaled(kind.draw(2, draw).double(), 0.5)
    value, gradient = ordinary.value_and_grad(theta, kind)
    torch.testing.assert_close(value, ordinary.damage(theta, kind).mean)
    along = torch.randn(theta.shape, generator=draw, dtype=torch.float64)
    up, down = (ordinary.damage(theta + s * along, kind).mean for s in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * along).sum(1), (up - down) / 2e-5, rtol=1e-5, atol=0)


def test_perturbations_do_not_depend_on_their_batch(
    ordinary: Ordinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta, kind = vectors(5), Vectors(SOURCE, 32)
    theta[2] = 0
    kl, (value, gradient) = ordinary.kl(theta, kind), ordinary.value_and_grad(theta, kind)
    for together in (1, 3, 7):
        monkeypatch.setattr(ordinary._forced._chunker, "most", together * ROW)
        torch.testing.assert_close(ordinary.kl(theta, kind), kl)
        again = ordinary.value_and_grad(theta, kind)
        torch.testing.assert_close(again, (value, gradient))
    assert not gradient[2].any()
    assert len(ordinary.kl(theta[:0], kind)) == 0


def test_memory_that_runs_out_halves_the_batch(
    tiny64: LanguageModel, ordinary: Ordinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta, kind = vectors(4), Vectors(SOURCE, 32)
    expected, forward, sizes = ordinary.kl(theta, kind), tiny64.forward, []

    def small(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(ordinary._forced._chunker, "most", 16 * ROW)
    monkeypatch.setattr(tiny64, "forward", small)
    torch.testing.assert_close(ordinary.kl(theta, kind), expected)
    assert max(sizes) == 16
    assert sizes.count(2) == 8


def test_the_first_token_is_the_side_effect(tiny_lm: LanguageModel) -> None:
    theta, kind, batch = vectors().float(), Vectors(SOURCE, 32), tiny_lm.pad(PROMPTS)
    first = Ordinary(tiny_lm, batch, before=SOURCE, tokens=TOKENS).kl(theta, kind)[:, :, 0]
    scores = [score.value for score in side_effects(tiny_lm, batch, theta, kind=kind)]
    assert scores == pytest.approx(first.mean(1).tolist(), rel=1e-4)


def test_positions_that_spare_all_of_it_are_an_error(
    lm_of: Callable[..., LanguageModel], ordinary: Ordinary
) -> None:
    with pytest.raises(PositionsError, match="leave the first 6 tokens as they are"):
        ordinary.kl(vectors(), Vectors(SOURCE, 32, "at:50"))
