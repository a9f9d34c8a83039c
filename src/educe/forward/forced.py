"""Forced: what a model makes of texts that are given (teacher forcing).

A text is a prompt ``x`` and a continuation ``y``. At each token of the continuation

    log p_θ(y_t | x, y_<t)                                       its log-likelihood, in nats
    KL( p(· | x, y_<t) ‖ p_θ(· | x, y_<t) )                      the divergence, in nats

and the stream leaving any layer. `Forced` is for one continuation of each prompt and many
perturbations, of any kind, or any other change: the blocks that none of these reaches run once. The
unperturbed model reads many continuations in `educe.forward.continuations`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from educe.errors import EffectError, LayerError
from educe.forward.chunks import Chunk, Chunker, Result
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation import positions as where
from educe.perturbation.kinds import Kind

#: No change of the model.
UNCHANGED = nullcontext()


class Read(NamedTuple):
    """What a model makes of some texts.

    Attributes:
        texts: Which: a row for each perturbation, or one row for all.
        logprobs: Log-probabilities of every token at each token of a continuation, as
            `Forced.counted` has them, ``[perturbations, texts, tokens, vocabulary]``.
        streams: The stream leaving some layers, ``[perturbations, texts, all tokens, width]``.
    """

    texts: Int[Tensor, "#n p"]
    logprobs: Float[Tensor, "n p m v"]
    streams: dict[int, Float[Tensor, "n p t d"]]


Measure = Callable[[Read], Float[Tensor, "n p m"]]


class Forced:
    """Texts that a model reads again and again while it is changed above some layer.

    Args:
        lm: The model.
        batch: The prompts.
        continuations: Tokens that follow each. The last one is predicted and not read: any will do
            where it is not asked how likely it is.
        before: The last layer that nothing changes: blocks up to it run once.
        counted: Which of the last tokens to predict count, ``[texts, tokens]``; by default those of
            the continuations.

    Attributes:
        ids: What is read, ``[texts, all tokens]``.
        mask: 1 where that is a token, 0 where it is padding.
        counted: Which predictions count.
    """

    def __init__(
        self,
        lm: LanguageModel,
        batch: PromptBatch,
        continuations: Sequence[Sequence[int]],
        *,
        before: int,
        counted: Bool[Tensor, "p m"] | None = None,
    ) -> None:
        self.lm, self.batch, self.before = lm, batch, before
        follows = torch.nn.utils.rnn.pad_sequence([torch.tensor(c) for c in continuations], True)
        there = torch.arange(follows.shape[1]) < torch.tensor([[len(c)] for c in continuations])
        self.counted: Bool[Tensor, "p m"] = there if counted is None else counted.cpu()
        self._whole = torch.cat([batch.ids, follows.to(batch.ids)], 1)
        self.ids = self._whole[:, :-1]
        self.mask = torch.cat([batch.mask, there[:, 1:].to(batch.mask)], 1)
        self._chunker = Chunker.of(lm.device)

        def run(chunk: Chunk) -> Tensor:
            texts = slice(chunk.start, chunk.stop)
            with lm.watching([before]) as streams:
                lm.forward(self.ids[texts], self.mask[texts])
            return streams[before]

        self._start = torch.cat([s for _, s in self._chunker.grid(run, 1, *self.ids.shape)])

    @property
    def following(self) -> Int[Tensor, "p m"]:
        """The tokens that come where there is a prediction."""
        return self._whole[:, -self.counted.shape[1] :]

    @cached_property
    def plain(self) -> Float[Tensor, "p m v"]:
        """Log-probabilities without any change."""

        def run(chunk: Chunk) -> Tensor:
            with torch.no_grad():
                return self._run(torch.arange(chunk.start, chunk.stop)[None]).logprobs[0]

        return torch.cat([part for _, part in self._chunker.grid(run, 1, *self.ids.shape)])

    def at(self, positions: str) -> Bool[Tensor, "p t"]:
        """Return which tokens of the texts some positions mean (see
        `educe.perturbation.positions`).
        """
        written = self.mask[:, self.batch.ids.shape[1] :].bool()
        return torch.cat([self.batch.at(positions), written & where.in_generated(positions)], 1)

    # -- what can be measured ------------------------------------------------------------------

    def likelihood(self, read: Read) -> Float[Tensor, "n p m"]:
        """Return the log-likelihood of each token of the continuations; zero where none counts."""
        said = self.following[read.texts].to(read.logprobs.device)
        said = said.expand(len(read.logprobs), -1, -1)
        return self._only(read, read.logprobs.gather(-1, said[..., None])[..., 0])

    def divergence(self, read: Read) -> Float[Tensor, "n p m"]:
        """Return the divergence from the unperturbed model at each token; zero where none counts.

        Never below zero, which rounding would make of a divergence that is none.
        """
        known = self.plain[read.texts].to(read.logprobs.device)
        return self._only(read, (known.exp() * (known - read.logprobs)).sum(-1).clamp(min=0))

    def _only(self, read: Read, values: Tensor) -> Tensor:
        return values * self.counted[read.texts].to(values)

    # -- measuring it --------------------------------------------------------------------------

    def under(self, change: AbstractContextManager[Any], layers: Sequence[int] = ()) -> Read:
        """Return what the model makes of all texts, in one pass, while it is changed.

        Args:
            change: Changes it; see `perturbing`.
            layers: Layers whose stream is returned.
        """
        with torch.no_grad():
            return self._run(torch.arange(len(self.ids))[None], change, layers)

    def each(
        self,
        theta: Float[Tensor, "n s"],
        kind: Kind,
        measure: Measure,
        texts: Int[Tensor, "#n p"] | None = None,
    ) -> Float[Tensor, "n p m"]:
        """Return a measure for each token of each text, on the processor.

        Args:
            theta: Perturbations.
            kind: Their kind.
            measure: `likelihood`, `divergence`, or what else can be told of `Read`.
            texts: Which texts each perturbation reads; by default all.

        Raises:
            LayerError: The perturbations reach blocks that run once.
        """
        texts = self._all(texts)

        def run(chunk: Chunk) -> Tensor:
            with torch.no_grad():
                return measure(self._perturbed(theta[_rows(chunk)], kind, texts, chunk)).cpu()

        shape = len(theta), texts.shape[1], self.counted.shape[1]
        found = torch.zeros(shape, dtype=self._work_dtype)
        for chunk, values in self._over(theta, kind, texts, run):
            found[_rows(chunk), chunk.start : chunk.stop] = values
        return found

    def read(
        self, theta: Float[Tensor, "1 s"], kind: Kind, layers: Sequence[int] = ()
    ) -> Iterator[Read]:
        """Read the texts under one perturbation, some at a time.

        Args:
            theta: The perturbation.
            kind: Its kind.
            layers: Layers whose stream is returned.

        Raises:
            LayerError: The perturbation reaches blocks that run once.
        """
        texts = self._all(None)

        def run(chunk: Chunk) -> Read:
            with torch.no_grad():
                return self._perturbed(theta, kind, texts, chunk, layers)

        for _, read in self._over(theta, kind, texts, run):
            yield read

    def value_and_grad(
        self,
        theta: Float[Tensor, "n s"],
        kind: Kind,
        measure: Measure,
        texts: Int[Tensor, "#n p"] | None = None,
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return the mean of a measure over the tokens that count, and its exact gradient.

        The arguments are those of `each`.
        """
        texts = self._all(texts)
        tokens = self.counted[texts].sum((1, 2)).to(theta).expand(len(theta))

        def run(chunk: Chunk) -> Tensor:
            own = theta[_rows(chunk)].detach().clone().requires_grad_()
            with torch.enable_grad():
                total = measure(self._perturbed(own, kind, texts, chunk)).sum((1, 2))
                mean = total.to(own) / tokens[_rows(chunk)]
                (slope,) = torch.autograd.grad(mean.sum(), own)
            return torch.cat([mean.detach()[:, None], slope], 1)

        joined = theta.new_zeros(len(theta), 1 + theta.shape[1])
        for chunk, part in self._over(theta, kind, texts, run):
            joined[_rows(chunk)] += part
        return joined[:, 0], joined[:, 1:]

    # -- the pass ------------------------------------------------------------------------------

    @property
    def _work_dtype(self) -> torch.dtype:
        return torch.float64 if self.lm.dtype == torch.float64 else torch.float32

    def _all(self, texts: Tensor | None) -> Tensor:
        return torch.arange(len(self.ids))[None] if texts is None else texts

    def _over(
        self, theta: Tensor, kind: Kind, texts: Tensor, run: Callable[[Chunk], Result]
    ) -> Iterator[tuple[Chunk, Result]]:
        if kind.before < self.before:
            raise LayerError(
                f"{kind.name} that act after block {kind.before} change blocks up to "
                f"{self.before}, which run once here"
            )
        n, p = len(theta), texts.shape[1]
        return self._chunker.grid(run, n, p, self.ids.shape[1], alone=kind.alone)

    def _perturbed(
        self,
        own: Tensor,
        kind: Kind,
        texts: Tensor,
        chunk: Chunk,
        layers: Sequence[int] = (),
    ) -> Read:
        """Let the perturbations of a chunk, ``own``, read its texts."""
        texts = (texts[_rows(chunk)] if len(texts) > 1 else texts)[:, chunk.start : chunk.stop]
        last = self.batch.ids.shape[1]
        change = perturbing(
            self.lm,
            kind,
            own,
            items=range(chunk.first, chunk.last),
            places=range(-last, self.ids.shape[1] - last),
            at=self.at(kind.positions)[texts],
        )
        return self._run(texts, change, layers, n=len(own), differentiable=own.requires_grad)

    def _run(
        self,
        texts: Int[Tensor, "#n p"],
        change: AbstractContextManager[Any] = UNCHANGED,
        layers: Sequence[int] = (),
        *,
        n: int = 1,
        differentiable: bool = False,
    ) -> Read:
        rows = texts.expand(n, -1).flatten()
        with (
            self.lm.starting(self.before, self._start[rows]),
            change,
            self.lm.watching(layers) as streams,
        ):
            logits = self.lm.forward(
                self.ids[rows],
                self.mask[rows],
                last=self.counted.shape[1],
                differentiable=differentiable,
            )
        logprobs = logits.to(self._work_dtype).log_softmax(-1)
        return Read(
            texts,
            logprobs.unflatten(0, (n, -1)),
            {layer: stream.unflatten(0, (n, -1)) for layer, stream in streams.items()},
        )


@contextmanager
def perturbing(
    lm: LanguageModel,
    kind: Kind,
    theta: Float[Tensor, "n s"],
    *,
    items: Sequence[int] = (0,),
    places: Sequence[int] | None = None,
    at: Bool[Tensor, "#n p t"] | None = None,
) -> Iterator[None]:
    """Perturb a model, for the time of a ``with`` statement, where it runs over whole texts.

    Args:
        lm: The model.
        kind: The kind of perturbation.
        theta: Perturbations; a batch has the rows of each one after the other.
        items: Which of the perturbations of this kind they are.
        places: The place of each token (see `Kind.added`); by default the last is at -1.
        at: Which tokens are perturbed; by default all.
    """

    def value(stream: Tensor) -> Tensor:
        rows = stream.unflatten(0, (len(theta), -1))
        added = kind.added(theta.to(stream), items, places or range(-stream.shape[1], 0))
        if added is None:
            return stream.new_zeros(())
        if at is not None:
            added = added * at.to(stream)[..., None]
        return added.expand_as(rows).flatten(0, 1)

    def tokens() -> Tensor | None:
        return None if at is None else at.expand(len(theta), -1, -1).flatten(0, 1)

    with kind.changing(lm, theta.to(lm.device), items, tokens), lm.adding(kind.before, value):
        yield


def _rows(chunk: Chunk) -> slice:
    return slice(chunk.first, chunk.last)


def finite(values: Tensor, what: str) -> Tensor:
    """Return values of a measure, or its gradients, as they are.

    Raises:
        EffectError: One is NaN or infinite.
    """
    if not torch.isfinite(values).all():
        raise EffectError(
            f"{what}, or its gradient, is NaN or infinite: use a smaller radius, or a wider dtype"
        )
    return values
