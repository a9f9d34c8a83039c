"""Ordinary: what a perturbation does to ordinary text, token by token, and its gradient.

The unperturbed model answers ordinary prompts; its answer ``y``, the most likely token each time,
is forced on the perturbed one. At each of its first tokens

    KL_t(θ) = KL( p(· | x, y_<t) ‖ p_θ(· | x, y_<t) )                                   in nats

Forced, so that a token early in the answer that turns out otherwise is not counted again at each
that follows. The blocks that no perturbation reaches run once, whatever is asked afterwards.

`educe.scores.side_effect` is this with an answer of one token; the 95th percentile over the first
20 is what discussions of fuzzing budget, and the mean, with its gradient, is what a search can keep
small.
"""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import PositionsError
from educe.forward.forced import Forced, finite
from educe.forward.generation import generate
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.model.prompts import read_prompts
from educe.perturbation.kinds import Kind
from educe.rows import Row

BUNDLED = "bundled"

#: Tokens of an answer that are looked at.
TOKENS = 20

WHAT = "the divergence on ordinary text"

#: The share of the tokens that change less than the *high* side effect.
HIGH = 0.95


def ordinary_prompts(source: str = BUNDLED) -> list[Any]:
    """Return the bundled ordinary prompts, plain requests of many kinds, or those of a file.

    Args:
        source: ``bundled``, or a file (see `educe.model.prompts`).

    Raises:
        PromptError: The file cannot be read or holds something else.
    """
    if source != BUNDLED:
        return read_prompts(Path(source))
    text = files("educe.forward").joinpath("benign.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


class Damage(NamedTuple):
    """What perturbations do to ordinary text, in nats a token."""

    mean: Float[Tensor, "n"]  #: over all tokens of all answers
    high: Float[Tensor, "n"]  #: the 95th percentile


class Ordinary:
    """The answers of the unperturbed model to ordinary prompts, forced on perturbed ones.

    Args:
        lm: The model.
        batch: Ordinary prompts.
        before: The last layer that no perturbation reaches
        (`educe.perturbation.kinds.Kind.before`).
        tokens: The most tokens of each answer; that the answer ends is one of them.

    Attributes:
        counted: Tokens that the answers have, ``[prompts, tokens]``; answers that end have fewer.
    """

    def __init__(
        self, lm: LanguageModel, batch: PromptBatch, *, before: int, tokens: int = TOKENS
    ) -> None:
        self.lm, self.batch, self.tokens = lm, batch, tokens
        answers: list[tuple[int, ...]] = [()] * len(batch)
        rows = [Row(0, j) for j in range(len(batch))] if tokens > 1 else []
        for some in generate(lm, batch, rows, max_new_tokens=tokens - 1):
            for completion in some:
                answers[completion.row.prompt] = completion.tokens
        # What comes after an answer is predicted too; whatever that is.
        self._forced = Forced(lm, batch, [(*answer, 0) for answer in answers], before=before)
        self.counted = self._forced.counted

    def __reduce__(self) -> tuple[Any, ...]:
        # Whoever gets it lets its own model answer anew.
        made = partial(Ordinary, before=self._forced.before, tokens=self.tokens)
        return made, (self.lm, self.batch)

    def kl(self, theta: Float[Tensor, "n s"], kind: Kind) -> Float[Tensor, "n p m"]:
        """Return the divergence at each token of each answer, on the processor.

        Zero at tokens that an answer does not have, and for perturbations of size zero.

        Raises:
            PositionsError: The positions leave all of these tokens as they are.
            EffectError: A divergence is NaN or infinite.
        """
        moving = self._moving(theta, kind)
        forced = self._forced
        some = forced.each(theta[moving], kind.select(moving), forced.divergence)
        found = some.new_zeros(len(theta), *self.counted.shape)
        found[moving] = finite(some, WHAT)
        return found

    def damage(self, theta: Float[Tensor, "n s"], kind: Kind) -> Damage:
        """Return mean and 95th percentile of the divergence over all tokens of all answers.

        Raises:
            PositionsError: The positions leave all of these tokens as they are.
            EffectError: A divergence is NaN or infinite.
        """
        each = self.kl(theta, kind)[:, self.counted]
        return Damage(each.mean(1), torch.quantile(each, HIGH, dim=1))

    def value_and_grad(
        self, theta: Float[Tensor, "n s"], kind: Kind
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return the mean divergence of each perturbation and its exact gradient.

        Raises:
            PositionsError: The positions leave all of these tokens as they are.
            EffectError: A value or gradient is NaN or infinite.
        """
        moving = self._moving(theta, kind)
        forced = self._forced
        value, gradient = theta.new_zeros(len(theta)), torch.zeros_like(theta)
        some = forced.value_and_grad(theta[moving], kind.select(moving), forced.divergence)
        value[moving], gradient[moving] = (finite(part, WHAT) for part in some)
        return value, gradient

    def _moving(self, theta: Tensor, kind: Kind) -> Tensor:
        """Return which are perturbations: what scaling to nothing leaves as it is, is none."""
        if not self._forced.at(kind.positions).any():
            many = f"{self.tokens} tokens as they are" if self.tokens > 1 else "token as it is"
            raise PositionsError(f"positions {kind.positions!r} leave the first {many}")
        return (kind.scaled(theta, 0.0) != theta).any(1).nonzero()[:, 0]
