"""Ordinary: what a perturbation does to ordinary text, token by token, and its gradient.

The unperturbed model answers ordinary prompts; its answer ``y``, the most likely token each time,
is forced on the perturbed one. At each of its first tokens

    KL_t(θ) = KL( p(· | x, y_<t) ‖ p_θ(· | x, y_<t) )                                   in nats

Forced, so that a token early in the answer that turns out otherwise is not counted again at each
that follows. The blocks that no perturbation reaches run once, whatever is asked afterwards.

`educe.judge.side_effect` is this with an answer of one token; the 95th percentile over the first 20
is what discussions of fuzzing budget, and the mean, with its gradient, is what a search can keep
small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Bool, Float
from torch import Tensor

from educe import positions as where
from educe.errors import EffectError, PositionsError
from educe.forward.chunks import TOKENS_PER_CHUNK
from educe.forward.generation import generate
from educe.kinds import Kind, Row
from educe.model import LanguageModel
from educe.prompts import read_prompts
from educe.rendering import PromptBatch

BUNDLED = "bundled"

#: Tokens of an answer that are looked at.
TOKENS = 20

#: The share of the tokens that change less than the *high* side effect.
HIGH = 0.95


def ordinary_prompts(source: str = BUNDLED) -> list[Any]:
    """Return the bundled ordinary prompts, plain requests of many kinds, or those of a file.

    Args:
        source: ``bundled``, or a file (see `educe.prompts`).

    Raises:
        PromptError: The file cannot be read or holds something else.
    """
    if source != BUNDLED:
        return read_prompts(Path(source))
    text = files("educe").joinpath("ordinary.txt").read_text(encoding="utf-8")
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
        before: The last layer that no perturbation reaches (`educe.kinds.Kind.before`).
        tokens: The most tokens of each answer; that the answer ends is one of them.

    Attributes:
        counted: Tokens that the answers have, ``[prompts, tokens]``; answers that end have fewer.
        plain: Log-probabilities of the unperturbed model, ``[prompts, tokens, vocabulary]``.
    """

    def __init__(
        self, lm: LanguageModel, batch: PromptBatch, *, before: int, tokens: int = TOKENS
    ) -> None:
        self.lm, self.batch, self.before = lm, batch, before
        answers: list[tuple[int, ...]] = [()] * len(batch)
        rows = [Row(-1, j) for j in range(len(batch))] if tokens > 1 else []
        for some in generate(lm, batch, rows, max_new_tokens=tokens - 1):
            for completion in some:
                answers[completion.row.prompt] = completion.tokens
        forced = batch.ids.new_zeros(len(batch), tokens - 1)
        for line, answer in enumerate(answers):
            forced[line, : len(answer)] = torch.tensor(answer, dtype=forced.dtype)
        lengths = torch.tensor([len(answer) for answer in answers])
        self.counted: Bool[Tensor, "p m"] = torch.arange(tokens) <= lengths[:, None]
        self._ids = torch.cat([batch.ids, forced], 1)
        written = self.counted[:, 1:].to(batch.mask)
        self._mask = torch.cat([batch.mask, written], 1)
        self._together = max(1, TOKENS_PER_CHUNK.get(lm.device.type, 2048) // self._ids.shape[1])
        streams, plain = [], []
        for some in torch.arange(len(batch)).split(self._together):
            with lm.watching([before]) as seen:
                logits = lm.forward(self._ids[some], self._mask[some], last=tokens)
            streams.append(seen[before])
            plain.append(self._wide(logits).log_softmax(-1))
        self._start, self.plain = torch.cat(streams), torch.cat(plain)

    @property
    def tokens(self) -> int:
        """How many tokens of each answer are looked at."""
        return self.counted.shape[1]

    def kl(self, theta: Float[Tensor, "n s"], kind: Kind) -> Float[Tensor, "n p m"]:
        """Return the divergence at each token of each answer, on the processor.

        Zero at tokens that an answer does not have, and for perturbations of size zero.

        Raises:
            PositionsError: The positions leave all of these tokens as they are.
            EffectError: A divergence is NaN or infinite.
        """
        found = torch.zeros(len(theta), *self.counted.shape, dtype=self._work_dtype)

        def run(items: list[int], prompts: list[int]) -> None:
            with torch.no_grad():
                kl = self._divergence(theta[items], kind, items, prompts)
            found[torch.tensor(items)[:, None], prompts] = kl.cpu()

        self._over(theta, kind, run)
        return _finite(found)

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
        value, gradient = theta.new_zeros(len(theta)), torch.zeros_like(theta)
        tokens = int(self.counted.sum())

        def run(items: list[int], prompts: list[int]) -> None:
            with torch.enable_grad():
                own = theta[items].detach().clone().requires_grad_()
                mean = self._divergence(own, kind, items, prompts).sum((1, 2)) / tokens
                (slope,) = torch.autograd.grad(mean.sum(), own)
            value[items] += mean.detach().to(value)
            gradient[items] += slope

        self._over(theta, kind, run)
        return _finite(value), _finite(gradient)

    # -- the pass ----------------------------------------------------------------------------

    @property
    def _work_dtype(self) -> torch.dtype:
        return torch.float64 if self.lm.dtype == torch.float64 else torch.float32

    def _wide(self, logits: Tensor) -> Tensor:
        return logits.to(self._work_dtype)

    def _at(self, positions: str) -> Bool[Tensor, "p t"]:
        """Return which tokens of prompt and answer are perturbed."""
        answer = self._mask[:, self.batch.ids.shape[1] :].bool()
        at = torch.cat([self.batch.at(positions), answer & where.in_generated(positions)], 1)
        if not at.any():
            many = f"{self.tokens} tokens as they are" if self.tokens > 1 else "token as it is"
            raise PositionsError(f"positions {positions!r} leave the first {many}")
        return at

    def _over(self, theta: Tensor, kind: Kind, run: Callable[[list[int], list[int]], None]) -> None:
        """Run perturbations on prompts, as many rows at a time as fit into memory.

        What scaling to nothing leaves as it is, is no perturbation, and its zero is exact.
        """
        self._at(kind.positions)
        moving = (kind.scaled(theta, 0.0) != theta).any(1).nonzero()[:, 0].tolist()
        prompts = list(range(len(self.batch)))
        work = [(some, prompts) for some in _split(moving, 1 if kind.alone else len(moving))][::-1]
        while work:
            items, some = work.pop()
            rows = len(items) * len(some)
            halves = _halves(items, some)
            if halves and rows > self._together:
                work += halves
                continue
            try:
                run(items, some)
            except RuntimeError as error:
                if not halves or not should_reduce_batch_size(error):
                    raise
                self._together = rows // 2
                work += halves

    def _divergence(
        self, theta: Tensor, kind: Kind, items: Sequence[int], prompts: Sequence[int]
    ) -> Float[Tensor, "n p m"]:
        lm, n, some = self.lm, len(theta), torch.tensor(prompts)
        start = self._start[some]
        stream = start.expand(n, *start.shape)
        last = self.batch.ids.shape[1]
        added = kind.added(theta.to(start), items, range(-last, self.tokens - 1))
        if added is not None:
            at = self._at(kind.positions)[some].to(start)
            stream = stream + added.to(start) * at[None, :, :, None]
        with lm.starting(self.before, stream.flatten(0, 1)), kind.changing(lm, theta, items):
            logits = lm.forward(
                self._ids[some].repeat(n, 1),
                self._mask[some].repeat(n, 1),
                last=self.tokens,
                differentiable=theta.requires_grad,
            )
        moved = self._wide(logits).log_softmax(-1).unflatten(0, (n, -1))
        known = self.plain[some.to(self.plain.device)]
        # Never below zero, which rounding would make of a divergence that is none.
        kl = (known.exp() * (known - moved)).sum(-1).clamp(min=0)
        return kl * self.counted[some].to(kl)


def _split(items: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(items), max(1, size)):
        yield items[first : first + size]


def _halves(items: list[int], prompts: list[int]) -> list[tuple[list[int], list[int]]]:
    """Return two halves of some rows, by perturbations where there are several."""
    if len(items) > 1:
        middle = len(items) // 2
        return [(items[middle:], prompts), (items[:middle], prompts)]
    middle = len(prompts) // 2
    return [(items, prompts[middle:]), (items, prompts[:middle])] if middle else []


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise EffectError(
            "the divergence on ordinary text, or its gradient, is NaN or infinite: use a smaller "
            "radius, or a wider dtype"
        )
    return values
