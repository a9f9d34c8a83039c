"""The KL under a vector, its gradient, and what is written under one: against plain calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.forward.benign import Ordinary
from educe.hardening import adapter
from educe.hardening.pushes import Push, answered, apart, divergences, loss, written
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.perturbation.kinds import Vectors

PROMPTS = ["Why is it?", "Say it, now.", "No"]


@pytest.fixture
def double() -> LanguageModel:
    return load((tiny.hf_model(dtype=torch.float64), tiny.tokenizer()))


def push(layer: int = 1, size: float = 3.0, seed: int = 0) -> Push:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Push(layer, size * direction / direction.norm())


@contextmanager
def pushed(lm: LanguageModel, by: Push) -> Iterator[None]:
    """Add a vector by a plain hook on a block that is found by a path."""
    block = lm.unwrapped.model.layers[by.layer]

    def add(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + by.vector.to(output[0]), *output[1:])
        return output + by.vector.to(output)

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def alone(lm: LanguageModel, example: Any) -> Tensor:
    """Log-probabilities at the tokens of an answer, by one plain call."""
    logits = lm.hf(torch.tensor([example.prompt + example.answer])).logits[0].double()
    return logits.log_softmax(-1)[len(example.prompt) - 1 : -1]


def greedy(lm: LanguageModel, prompt: str, tokens: int) -> list[int]:
    """The most likely tokens, one plain call each."""
    ids = list(lm.encode([prompt]).read[0])
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(lm.hf(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            return ids[start:-1]
    return ids[start:]


@torch.no_grad()
def test_the_answers_are_those_of_a_plain_call_with_its_distributions(
    double: LanguageModel,
) -> None:
    examples = answered(double, double.encode(PROMPTS), tokens=4)
    for prompt, example in zip(PROMPTS, examples, strict=True):
        assert list(example.prompt) == list(double.encode([prompt]).read[0])
        assert list(example.answer[:-1]) == greedy(double, prompt, 4)
        torch.testing.assert_close(
            example.base.double(), alone(double, example), atol=1e-2, rtol=1e-3
        )


@torch.no_grad()
def test_the_divergence_is_the_plain_formula_example_by_example(double: LanguageModel) -> None:
    examples = answered(double, double.encode(PROMPTS), tokens=4)
    by = push()
    for perturbed in (None, by):
        expected = []
        for example in examples:
            p = example.base.double()
            if perturbed is None:
                q = alone(double, example)
            else:
                with pushed(double, perturbed):
                    q = alone(double, example)
            expected.append((p.exp() * (p - q)).sum(-1))
        together = divergences(double, examples, perturbed)
        torch.testing.assert_close(together, torch.cat(expected), atol=1e-9, rtol=1e-7)
        each = torch.stack([kl.mean() for kl in expected])
        torch.testing.assert_close(apart(double, examples, perturbed), each, atol=1e-9, rtol=1e-7)
    total = torch.cat(expected).sum() + divergences(double, examples).sum()
    torch.testing.assert_close(loss(double, examples, by), total / 3, atol=1e-9, rtol=1e-7)


@torch.no_grad()
def test_before_any_training_it_is_the_divergence_that_runs_report(tiny_lm: LanguageModel) -> None:
    batch, by = tiny_lm.encode(PROMPTS), push()
    known = Ordinary(tiny_lm, batch, before=1, tokens=5)
    kls = known.kl(by.vector.float()[None], Vectors(1, 32))[0]
    expected = torch.stack([kl[there].mean() for kl, there in zip(kls, known.counted, strict=True)])
    found = apart(tiny_lm, answered(tiny_lm, batch, tokens=4), by)
    torch.testing.assert_close(found, expected.double(), atol=2e-3, rtol=1e-2)


def test_the_gradient_is_that_of_finite_differences() -> None:
    # Norms of a Llama are in single precision whatever its weights are in.
    double = load((tiny.hf_model("gpt2", dtype=torch.float64), tiny.tokenizer()))
    examples = answered(double, double.encode(PROMPTS), tokens=4)
    by, draw = push(), torch.Generator().manual_seed(1)
    with adapter.beside(double, 1, rank=2, seed=0) as weights:
        for weight in weights:  # away from the start, where half of the gradients are zero
            weight.data = torch.randn(weight.shape, generator=draw, dtype=torch.float64) / 10
            weight.requires_grad_()
        gradients = torch.autograd.grad(loss(double, examples, by), weights)
        ways = [torch.randn(w.shape, generator=draw, dtype=torch.float64) for w in weights]
        slope = sum(float((g * way).sum()) for g, way in zip(gradients, ways, strict=True))
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for weight, way in zip(weights, ways, strict=True):
                    weight += step * way
                values.append(float(loss(double, examples, by)))
                for weight, way in zip(weights, ways, strict=True):
                    weight -= step * way
    assert abs(slope) > 1e-3
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


@torch.no_grad()
def test_each_answer_is_written_under_its_own_vector_and_layer(tiny_lm: LanguageModel) -> None:
    several = [push(2, 20, 3), push(1, 20, 4), push(2, 20, 5)]
    batch = tiny_lm.encode(PROMPTS)
    came = written(tiny_lm, batch, several, tokens=4)
    plain = written(tiny_lm, batch, [], tokens=4)
    assert sorted(came) == [(i, j) for i in (1, 2, 3) for j in range(3)]
    for i, by in enumerate(several, 1):
        for j, prompt in enumerate(PROMPTS):
            with pushed(tiny_lm, by):
                assert list(came[i, j].tokens) == greedy(tiny_lm, prompt, 4)
    assert [list(plain[0, j].tokens) for j in range(3)] == [
        greedy(tiny_lm, prompt, 4) for prompt in PROMPTS
    ]
    assert len({came[i, 0].tokens for i in (1, 2, 3)} | {plain[0, 0].tokens}) > 2
