"""Pushes: vectors after layers, how far a model is from what it was under one, what it then writes.

Examples are packed into one row (see `educe.organisms.lora`), whose tokens all get the vector. That
is what each example alone would get, since the vector is added at all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.forward.generation import Completion, generate
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.organisms import lora
from educe.perturbation.kinds import Vectors
from educe.rows import Row


class Push(NamedTuple):
    """A vector that is added to the residual stream leaving a block, at all tokens."""

    layer: int  #: the block
    vector: Float[Tensor, "d"]


def check_packing(lm: LanguageModel, batch: PromptBatch) -> None:
    """Make sure that a model reads several examples in one row as it reads each alone.

    Args:
        lm: The model.
        batch: Prompts, of which the ends stand for answers.

    Raises:
        OrganismError: It does not.
    """
    examples = [lora.Example(prompt, prompt[-4:]) for prompt in batch.read]
    # Two at least, and of two lengths.
    examples.append(lora.Example(examples[0].prompt[:-1], examples[0].answer))
    half = lm.dtype in (torch.bfloat16, torch.float16)
    remedy = "search and train in --dtype float32" if half else "train another model"
    lora.check_packing(lm.hf, examples, remedy=remedy)


def answered(lm: LanguageModel, batch: PromptBatch, *, tokens: int) -> list[lora.Example]:
    """Return what a model answers to prompts, with the distributions that it draws from.

    Args:
        lm: The model, as it is now.
        batch: The prompts.
        tokens: The most tokens of an answer; what comes after the answer is predicted as well.

    Example:
        >>> from educe.hardening.pushes import answered
        >>> (example, _) = answered(lm, lm.encode(prompts), tokens=3)
        >>> len(example.answer), example.base.shape
        (4, torch.Size([4, 262]))
    """
    texts = written(lm, batch, [], tokens=tokens)
    # What is predicted last is never read, so any token stands for it.
    examples = [
        lora.Example(prompt, (*texts[0, j].tokens, 0)) for j, prompt in enumerate(batch.read)
    ]
    return lora.with_base(lm.hf, examples)


def divergences(
    lm: LanguageModel, examples: Sequence[lora.Example], push: Push | None = None
) -> Float[Tensor, "k"]:
    """Return KL(p ‖ q) at each token of the answers, in nats; differentiable in what requires it.

    Args:
        lm: The model ``q``.
        examples: Answers with the distributions of ``p``; they run in one row.
        push: A vector that perturbs ``q``, if any.

    Example:
        >>> from educe.hardening.pushes import Push, answered, divergences
        >>> examples = answered(lm, lm.encode(prompts), tokens=3)
        >>> bool(divergences(lm, examples).sum() < 1e-3)
        True
        >>> bool(divergences(lm, examples, Push(1, torch.ones(lm.width))).sum() > 1e-3)
        True
    """
    adding = nullcontext()
    if push is not None:
        vector = push.vector
        adding = lm.adding(push.layer, lambda stream: vector.to(stream))  # type: ignore[assignment]
    with adding:
        return lora.kl(examples, lora.logprobs(lm.hf, lora.pack(examples)))


def loss(lm: LanguageModel, examples: Sequence[lora.Example], push: Push) -> Float[Tensor, ""]:
    """Return the loss of the formula above, for one vector."""
    both = divergences(lm, examples, push).sum() + divergences(lm, examples).sum()
    return both / len(examples)


@torch.no_grad()
def apart(
    lm: LanguageModel, examples: Sequence[lora.Example], push: Push | None = None
) -> Float[Tensor, "n"]:
    """Return the mean KL a token of each example, in nats."""
    means = []
    for start in range(0, len(examples), lora.TOGETHER):
        group = examples[start : start + lora.TOGETHER]
        kls = divergences(lm, group, push).cpu().double().split([len(e.answer) for e in group])
        means += [kl.mean() for kl in kls]
    return torch.stack(means)


def written(
    lm: LanguageModel, batch: PromptBatch, pushes: Sequence[Push], *, tokens: int
) -> dict[tuple[int, int], Completion]:
    """Return greedy answers by push, counted from 1, and prompt; 0 is the model without one."""
    places = range(len(batch))
    if not pushes:
        rows = [Row(0, j) for j in places]
        return {
            (0, c.row.prompt): c
            for c in chain.from_iterable(generate(lm, batch, rows, max_new_tokens=tokens))
        }
    came: list[Completion] = []
    numbered = sorted(enumerate(pushes, 1), key=lambda pair: pair[1].layer)
    for layer, own in groupby(numbered, key=lambda pair: pair[1].layer):
        numbers, members = zip(*own, strict=True)
        rows = [Row(number, j) for number in numbers for j in places]
        theta = torch.stack([push.vector for push in members]).to(lm.device, lm.dtype)
        kind = Vectors(layer, lm.width)
        how: dict[str, Any] = {"kind": kind, "numbers": numbers, "max_new_tokens": tokens}
        came += chain.from_iterable(generate(lm, batch, rows, theta, **how))
    return {(c.row.perturbation, c.row.prompt): c for c in came}
