"""Coherence: is it text that the unperturbed model could have written?

    coherence = min(1, exp(ℓ - ℓ₀)) · variety

``ℓ`` is the mean log-likelihood of the completion's tokens under the unperturbed model, ``ℓ₀`` that
of its own most likely answers to ordinary prompts, so that its ordinary text scores 1 and text that
is a factor of e less likely a token scores 0.37. (Its answers to the prompt itself would be no
measure: a model that always says the same makes anything else look damaged.) Variety is the share
of distinct word pairs (of letter triples in a completion of one or two words), which falls when
text repeats itself. A completion of no word scores 0.

`read` runs the unperturbed model over texts that are known by their tokens, each prompt once;
`Coherence` judges answers that are known by their text alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from educe.forward.benign import ordinary_prompts
from educe.forward.chunks import split
from educe.forward.continuations import ROWS_PER_BATCH, continued
from educe.forward.generation import Completion, generate
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.scores import Answer, Score, Streaming
from educe.scores.traits import variety

#: The longest ordinary answer, in tokens.
ORDINARY_TOKENS = 32
#: Completions that `in_readings` puts together, in whole batches of `continued`.
READ_TOGETHER = 4 * ROWS_PER_BATCH


def coherence(text: str, logprob: float, ordinary: float) -> Score:
    """Score one completion.

    Args:
        text: The completion.
        logprob: Its mean log-likelihood a token under the unperturbed model.
        ordinary: The same of the unperturbed model's own answers to ordinary prompts.
    """
    fluent = math.exp(min(0.0, logprob - ordinary))
    varied = variety(text)
    why = f"{logprob:.1f} nats a token against {ordinary:.1f}; {varied:.0%} of word pairs distinct"
    return Score("coherence", fluent * varied, "coherent", why)


class Reading(NamedTuple):
    """What the unperturbed model makes of one completion."""

    completion: Completion
    logprob: float  #: mean log-likelihood a token, in nats; 0 for an empty completion


def read(
    lm: LanguageModel, batch: PromptBatch, completions: Sequence[Completion]
) -> Iterator[list[Reading]]:
    """Read completions with the unperturbed model, one list a batch.

    Args:
        lm: The model.
        batch: The prompts that the completions answer.
        completions: What to read.
    """
    empty = [Reading(c, 0.0) for c in completions if not c.tokens]
    if empty:
        yield empty
    said = [c for c in completions if c.tokens]
    prompts, tokens = [c.row.prompt for c in said], [c.tokens for c in said]
    for some in continued(lm, batch, prompts, tokens):
        own = [said[i] for i in some.items]
        logprob = some.logprobs.sum(1).cpu() / torch.tensor([len(c.tokens) for c in own])
        yield [Reading(c, float(lp)) for c, lp in zip(own, logprob, strict=True)]


def in_readings(completions: Sequence[Completion]) -> list[list[Completion]]:
    """Return completions as they are read together: some of one prompt, of similar length.

    They are cut where `read` would cut them, so each is read beside the same ones wherever.
    """
    of: dict[int, list[Completion]] = {}
    for c in sorted(completions, key=lambda c: (c.row.prompt, len(c.tokens))):
        of.setdefault(c.row.prompt, []).append(c)
    return [list(some) for own in of.values() for some in split(own, READ_TOGETHER)]


def ordinary_logprob(lm: LanguageModel, *, max_new_tokens: int = ORDINARY_TOKENS) -> float:
    """Return the mean log-likelihood a token of the model's most likely ordinary answers.

    Args:
        lm: The unperturbed model.
        max_new_tokens: The longest answer.
    """
    batch = lm.encode(ordinary_prompts())
    rows = [Row(0, j) for j in range(len(batch))]
    written = generate(lm, batch, rows, max_new_tokens=max_new_tokens)
    answers = [completion for some in written for completion in some]
    readings = [r.logprob for some in read(lm, batch, answers) for r in some if r.completion.tokens]
    return float(np.mean(readings or [0.0]))


class Coherence(Streaming):
    """The coherence of answers, as text that the unperturbed model could have written.

    An answer is turned into tokens again, which can be others than the model wrote.

    Args:
        lm: The unperturbed model.
    """

    name, higher_is = "coherence", "coherent"
    cost = "one pass of the unperturbed model over the answer"

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    @cached_property
    def identity(self) -> str:
        """The formula's name, and the model."""
        return f"coherence:{ORDINARY_TOKENS}:{self.lm.name}:{self.lm.digest[:16]}"

    @cached_property
    def _ordinary(self) -> float:
        return ordinary_logprob(self.lm)

    def stream(self, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
        """Score answers, as `educe.scores.Streaming` has it."""
        if not answers:
            return
        prompts = list(dict.fromkeys(answer.prompt for answer in answers))
        completions = [
            Completion(
                Row(0, prompts.index(answer.prompt), line),
                answer.text,
                tuple(self.lm.tokens(answer.text, templated=True)),
                True,
            )
            for line, answer in enumerate(answers)
        ]
        for some in read(self.lm, self.lm.encode(prompts), completions):
            yield [
                (r.completion.row.sample, coherence(r.completion.text, r.logprob, self._ordinary))
                for r in some
            ]
