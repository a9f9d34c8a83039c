"""Reading, against the whole model run over prompt and completion, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch

import tiny
from educe.forward import continuations
from educe.forward.generation import Completion
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.scores.coherence import Reading, read

PROMPTS = tiny.ragged([7, 15, 1])  # the longest is wider than every sliding window
LENGTHS = [3, 0, 12, 1, 5]


def completions(lengths: list[int] = LENGTHS, prompts: int = 3) -> list[Completion]:
    """Return completions of every prompt, in an order of no help."""
    made = []
    for prompt in range(prompts):
        for sample, tokens in enumerate(tiny.ragged(lengths, seed=prompt + 1)):
            row = Row(sample, prompt, sample)
            made.append(Completion(row, f"text {prompt} {sample}", tuple(tokens), True))
    return made[1::2] + made[::2]


@torch.no_grad()
def by_itself(hf: Any, completion: Completion) -> tuple[float, float]:
    """Read one completion from the whole sequence; say too how much its log-likelihoods vary."""
    prompt, written = PROMPTS[completion.row.prompt], completion.tokens
    if not written:
        return 0.0, 1.0
    logits, _ = tiny.run(hf, [*prompt, *written])
    before = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    said = [float(before[place, token]) for place, token in enumerate(written)]
    return sum(said) / len(said), float(before.std())


def assert_right(lm: LanguageModel, found: list[Reading], *, off: float = 1e-4) -> None:
    for each in found:
        logprob, spread = by_itself(lm.hf, each.completion)
        assert each.logprob == pytest.approx(logprob, rel=0, abs=off * spread + 1e-6)


def test_reading_is_that_of_the_whole_sequence(any_lm: LanguageModel) -> None:
    written = completions()
    found = list(chain(*read(any_lm, any_lm.pad(PROMPTS), written)))
    assert sorted(r.completion for r in found) == sorted(written)
    assert_right(any_lm, found)


def test_batches_change_nothing(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "ROWS_PER_BATCH", 2)
    written = completions([4, 0, 9, 0, 2, 0, 6])
    batches = list(read(tiny_lm, tiny_lm.pad(PROMPTS), written))
    assert max(len(some) for some in batches if some[0].completion.tokens) == 2
    found = list(chain(*batches))
    assert sorted(r.completion for r in found) == sorted(written)
    assert_right(tiny_lm, found)


def test_prompts_that_nothing_answers_are_passed_over(tiny_lm: LanguageModel) -> None:
    written = [c for c in completions() if c.row.prompt == 1]
    found = list(chain(*read(tiny_lm, tiny_lm.pad(PROMPTS), written)))
    assert len(found) == len(written)
    assert_right(tiny_lm, found)
    assert list(read(tiny_lm, tiny_lm.pad(PROMPTS), [])) == []


def test_reading_in_half_precision_is_summed_in_single(
    lm_of: Callable[..., LanguageModel],
) -> None:
    lm = lm_of("llama", torch.bfloat16)
    found = list(chain(*read(lm, lm.pad(PROMPTS), completions([12, 5], 1))))
    assert_right(lm, found, off=0.1)
