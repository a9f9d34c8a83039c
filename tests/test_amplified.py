"""Amplified generation, against `generate` and against a loop over whole sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

import tiny
from educe.forward import amplified as amplifying
from educe.forward import generation
from educe.forward.amplified import amplified, led
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.rows import Row

PROMPTS = tiny.ragged([7, 15, 1])
ROWS = [Row(0, prompt, sample) for prompt in range(3) for sample in range(3)]
STEPS = 8


@pytest.fixture(scope="module")
def clean(tokenizer: Any) -> LanguageModel:
    return LanguageModel(tiny.hf_model(dtype=torch.float64), tokenizer, name="clean")


@pytest.fixture(scope="module")
def other(tokenizer: Any) -> LanguageModel:
    """The same model with one matrix changed a little."""
    hf = tiny.hf_model(dtype=torch.float64)
    draw = torch.Generator().manual_seed(3)
    weight = hf.model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        weight += torch.randn(weight.shape, generator=draw, dtype=torch.float64) * weight.std()
    return LanguageModel(hf, tokenizer, name="other")


def tokens(batches: Iterator[Any]) -> dict[Row, tuple[tuple[int, ...], bool]]:
    return {c.row: (c.tokens, c.finished) for batch in batches for c in batch}


def write(
    lm: LanguageModel, beside: LanguageModel, alpha: float, rows: Sequence[Row] = ROWS, **how: Any
) -> dict[Row, tuple[tuple[int, ...], bool]]:
    settings = {"max_new_tokens": STEPS, "seed": 5} | how
    batch = lm.pad(PROMPTS)
    return tokens(amplified(lm, lambda: nullcontext(beside), batch, rows, alpha, **settings))


def alone(lm: LanguageModel, **how: Any) -> dict[Row, tuple[tuple[int, ...], bool]]:
    settings = {"max_new_tokens": STEPS, "seed": 5} | how
    return tokens(generate(lm, lm.pad(PROMPTS), ROWS, **settings))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_at_the_ends_it_is_the_one_model_and_the_other(
    clean: LanguageModel, other: LanguageModel, temperature: float
) -> None:
    own, theirs = (alone(lm, temperature=temperature) for lm in (clean, other))
    assert own != theirs
    assert write(clean, other, 0.0, temperature=temperature) == own
    assert write(clean, other, -1.0, temperature=temperature) == theirs


def test_rows_that_end_leave_both_models(
    clean: LanguageModel, other: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [ids for ids, _ in alone(clean, temperature=1.0).values()]
    ends = {ids[k] for k, ids in enumerate(texts[:4], 1)}  # some end early, one after the other
    for module in (amplifying, generation):
        monkeypatch.setattr(module, "end_tokens", lambda lm: ends)
    own, theirs = (alone(lm, temperature=1.0) for lm in (clean, other))
    assert len({len(ids) for ids, _ in own.values()}) > 2
    assert write(clean, other, 0.0, temperature=1.0) == own
    assert write(clean, other, -1.0, temperature=1.0) == theirs


@torch.no_grad()
def test_each_token_is_that_of_the_amplified_log_probabilities(
    clean: LanguageModel, other: LanguageModel
) -> None:
    came = write(clean, other, 2.0, [Row(0, prompt) for prompt in range(3)])
    for row, (ids, _) in came.items():
        read = list(PROMPTS[row.prompt])
        for token in ids:
            p, q = (tiny.run(lm.hf, read)[0][-1].log_softmax(-1) for lm in (clean, other))
            assert token == int((p + 2 * (p - q)).argmax())
            read.append(token)
    assert came != write(clean, other, 0.0, list(came))


def test_the_other_is_there_for_its_own_steps_alone(clean: LanguageModel) -> None:
    """The one model, changed for the time of a statement, is another: a bias at its end."""
    at_work = []

    @contextmanager
    def biased() -> Iterator[LanguageModel]:
        def add(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            at_work.append(1)
            return out + 1000 * torch.arange(out.shape[-1]).to(out)

        handle = clean.hf.lm_head.register_forward_hook(add)
        try:
            yield clean
        finally:
            handle.remove()

    rows = [Row(0, prompt) for prompt in range(3)]
    batch = clean.pad(PROMPTS)
    came = tokens(amplified(clean, biased, batch, rows, -1.0, max_new_tokens=3))
    assert all(ids == (261,) * 3 for ids, _ in came.values())
    assert tokens(amplified(clean, biased, batch, rows, 0.0, max_new_tokens=3)) == tokens(
        generate(clean, batch, rows, max_new_tokens=3)
    )
    assert at_work


def test_softmax_of_led_logits_is_the_product_of_powers() -> None:
    z, w = torch.randn(2, 4, 9, dtype=torch.float64)
    p, q = z.softmax(-1), w.softmax(-1)
    expected = p * (p / q) ** 1.5
    torch.testing.assert_close(
        led(z, w, 1.5).softmax(-1), expected / expected.sum(-1, keepdim=True)
    )
