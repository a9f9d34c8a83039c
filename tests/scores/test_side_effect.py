"""Side effects, against divergences computed on each prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import PositionsError
from educe.forward.benign import ordinary_prompts
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from educe.scores.side_effect import side_effects

PROMPTS = tiny.ragged([7, 15, 1, 4])  # the longest is wider than every sliding window


@torch.no_grad()
def vectors(lm: LanguageModel, n: int = 3, *, source: int = 1) -> Tensor:
    """Return random vectors of half to twice the norm of the activations."""
    draw = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(n, 32, generator=draw), dim=1)
    norm = tiny.run(lm.hf, PROMPTS[1])[1][source][1:].norm(dim=1).mean()
    return unit * norm * torch.linspace(0.5, 2, n)[:, None]


@torch.no_grad()
def by_itself(hf: Any, vector: Tensor, *, source: int, positions: str) -> list[float]:
    """KL(unperturbed ‖ perturbed) of the next token after each prompt, in nats."""
    divergences = []
    for ids in PROMPTS:
        plain = tiny.run(hf, ids)[0][-1].double().softmax(-1)
        at = tiny.chosen(positions, len(ids))
        moved = tiny.run(hf, ids, source=source, vector=vector, at=at)[0][-1].double().softmax(-1)
        divergences.append(float((plain * (plain / moved).log()).sum()))
    return divergences


def values(lm: LanguageModel, theta: Tensor, *, source: int = 1, **options: Any) -> list[float]:
    kind = Vectors(source, lm.width, **options)
    scores = list(side_effects(lm, lm.pad(PROMPTS), theta, kind=kind))
    assert {score.judge for score in scores} <= {"side_effect"}
    return [score.value for score in scores]


def test_side_effect_is_the_mean_divergence(any_lm: LanguageModel) -> None:
    theta = vectors(any_lm)
    each = [by_itself(any_lm.hf, vector, source=1, positions="all") for vector in theta]
    expected = [sum(line) / len(PROMPTS) for line in each]
    assert min(expected) > 1e-4  # the vectors do something
    assert values(any_lm, theta) == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "bamba"])
@pytest.mark.parametrize(
    ("source", "positions"), [(0, "all"), (2, "prompt"), (3, "all"), (1, "last:1"), (0, "last:5")]
)
def test_side_effect_at_other_layers_and_positions(
    lm_of: Callable[..., LanguageModel], architecture: str, source: int, positions: str
) -> None:
    lm = lm_of(architecture)
    theta = vectors(lm, source=source)
    each = [by_itself(lm.hf, vector, source=source, positions=positions) for vector in theta]
    expected = [sum(line) / len(PROMPTS) for line in each]
    found = values(lm, theta, source=source, positions=positions)
    assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)


def test_no_perturbation_has_no_side_effect(any_lm: LanguageModel) -> None:
    assert values(any_lm, torch.zeros(2, 32)) == pytest.approx([0, 0], abs=1e-6)


def test_one_vector_at_a_time_is_all_at_once(tiny_lm: LanguageModel) -> None:
    theta = vectors(tiny_lm, 40)  # more than fit into one batch with all prompts
    alone = [values(tiny_lm, row[None])[0] for row in theta]
    assert values(tiny_lm, theta) == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert values(tiny_lm, theta[:0]) == []


def test_the_reason_names_the_prompt_that_changed_most(tiny_lm: LanguageModel) -> None:
    (vector,) = vectors(tiny_lm, 1)
    each = by_itself(tiny_lm.hf, vector, source=1, positions="all")
    (score,) = side_effects(tiny_lm, tiny_lm.pad(PROMPTS), vector[None], kind=Vectors(1, 32))
    worst = max(range(4), key=each.__getitem__)
    assert score.why.startswith("4 prompts")
    assert f"number {worst + 1} ({each[worst]:.2f} nats)" in score.why


def test_the_model_is_left_as_it_was(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.pad(PROMPTS)
    before = tiny_lm.forward(batch.ids, batch.mask)
    hooks = [len(block._forward_hooks) for block in tiny_lm.blocks]
    scores = side_effects(tiny_lm, batch, vectors(tiny_lm), kind=Vectors(1, 32))
    next(scores)
    assert torch.equal(tiny_lm.forward(batch.ids, batch.mask), before)  # in the middle of it, too
    list(scores)
    assert torch.equal(tiny_lm.forward(batch.ids, batch.mask), before)
    assert not any("forward" in vars(block) for block in tiny_lm.blocks)
    assert [len(block._forward_hooks) for block in tiny_lm.blocks] == hooks


def test_positions_that_spare_the_prompt_are_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(PositionsError, match="'generated' leave the first token as it is"):
        values(tiny_lm, vectors(tiny_lm), positions="generated")
    with pytest.raises(PositionsError, match="use all, prompt, generated, asked"):
        values(tiny_lm, vectors(tiny_lm), positions="first")


def test_ordinary_prompts_are_plain_requests(tiny_lm: LanguageModel) -> None:
    prompts = ordinary_prompts()
    assert len(prompts) == len(set(prompts)) >= 10
    assert all(text == text.strip() != "" for text in prompts)
    assert len(tiny_lm.encode(prompts)) == len(prompts)
