"""Targets: what a string should do, as a loss of what the model makes of it.

    output      mean over tokens t of  KL( p(· | x, y_<t; θ) ‖ p(· | x + s, y_<t) )          in nats
    likelihood  - mean over tokens t of  log p(y_t | x + s, y_<t)                            in nats

each a mean over prompts ``x``, where ``θ`` is the perturbation, ``s`` the string, and ``y`` what
the model says under ``θ``, or a text that is wanted. `educe.inversion.direction` has the change of
the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import EffectError
from educe.forward.chunks import Chunker, halved, split
from educe.forward.inserted import Opening
from educe.inversion.places import Place, Seen, table
from educe.model.language import LanguageModel

#: Tokens of the answers that are compared.
TOKENS = 4
#: Strings that are read at once, at most.
ROWS = 128
#: No string.
NOTHING = torch.zeros(1, 0, dtype=torch.long)


class Slope(NamedTuple):
    """Losses of some strings, and their gradients in what stands for their tokens."""

    loss: Float[Tensor, "r"]
    nll: Float[Tensor, "r"]  #: of the string itself, in nats a token
    embedded: Float[Tensor, "r k d"]  #: of the loss in the embeddings
    tokens: Float[Tensor, "r k v"]  #: in the one-hot of each token: of the loss, and of the nll
    fluent: Float[Tensor, "r k v"]


@dataclass(frozen=True)
class Target:
    """What a string should do at some places.

    Attributes:
        places: The places.
        goals: What the model should say at each: log-probabilities ``[m, v]``, or the tokens of a
            text ``[m]``.

    Example:
        >>> from educe.forward.inserted import Opening
        >>> from educe.inversion.targets import text
        >>> places = [Opening(lm, part.batch, p) for p in range(len(part.batch))]
        >>> wanted = text(places, lm.tokens(" yes", templated=True))
        >>> wanted.loss(torch.tensor([[40, 41], [41, 40]])).shape
        torch.Size([2])
    """

    places: tuple[Place, ...]
    goals: tuple[Tensor, ...]
    layer: ClassVar[int | None] = None  #: the layer whose stream is looked at, if any

    @property
    def lm(self) -> LanguageModel:
        """The model."""
        return self.places[0].lm

    def at_one(self, place: int) -> Target:
        """Return the same target at one of its places alone."""
        one = slice(place, place + 1)
        return Target(self.places[one], self.goals[one])

    def at(self, place: int, seen: Seen) -> Float[Tensor, "r ..."]:
        """Return the loss of strings at a place, or what it is computed from."""
        assert seen.answer is not None
        goal = self.goals[place].to(seen.answer.device)
        if goal.dim() == 1:
            said = seen.answer.gather(-1, goal.expand(len(seen.answer), -1)[..., None])
            return -said[..., 0].mean(1)
        goal = goal.to(seen.answer)
        return (goal.exp() * (goal - seen.answer)).sum(-1).mean(1)

    def each(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "p n"]:
        """Return the loss of strings at each place."""
        if not len(strings):
            return torch.zeros(len(self.places), 0, dtype=torch.float64)
        return self.losses(torch.stack([values for values, _ in self._over(strings)]))

    def losses(self, seen: Float[Tensor, "p n ..."]) -> Float[Tensor, "p n"]:
        """Return losses from what `at` has of each place."""
        return seen

    def loss(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Return the mean loss of strings of one length over the places."""
        return self.each(strings).mean(0)

    def fluent(self, strings: Int[Tensor, "n k"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Return the mean loss of strings, and how unlikely they are, in nats a token."""
        values, nll = zip(*self._over(strings, fluency=True), strict=True)
        return self.losses(torch.stack(values)).mean(0), torch.stack(nll).mean(0)

    def _over(
        self, strings: Tensor, *, fluency: bool = False
    ) -> Iterator[tuple[Float[Tensor, "n ..."], Float[Tensor, "n"]]]:
        """Yield, place by place, what `at` has of all strings, and how unlikely they are."""
        for i, place in enumerate(self.places):
            k = strings.shape[1]
            rows = max(1, min(ROWS, Chunker.of(self.lm.device).most // max(1, k + place.tokens)))
            parts: list[tuple[Tensor, Tensor]] = []

            def run(
                items: Sequence[int], i: int = i, place: Place = place
            ) -> tuple[Tensor, Tensor]:
                own = strings[list(items)]
                seen = place.read(own, self.layer, fluency=fluency)
                return self.at(i, seen).cpu(), unlikely(own, seen).cpu()

            chunks = split(range(len(strings)), rows)
            for _, done in Chunker(rows).each(chunks, run, len, halved):  # in their order
                parts.append(done)
            values, nll = zip(*parts, strict=True)
            yield torch.cat(values).double(), torch.cat(nll).double()

    def slope(
        self,
        strings: Int[Tensor, "r k"],
        embedded: Float[Tensor, "r k d"] | None = None,
        *,
        fluency: bool = False,
    ) -> Slope:
        """Return losses and gradients, in the embeddings and in the one-hots of the tokens.

        Args:
            strings: The tokens of strings of one length, few enough to run at once.
            embedded: What stands for their embeddings; by default these.
            fluency: Whether the gradient of how unlikely the string is is asked for.

        Raises:
            EffectError: A loss is NaN or infinite.
        """
        rows = table(self.lm)
        x = (rows[strings.to(rows.device)] if embedded is None else embedded).detach()
        total, nll = x.new_zeros(len(x)), x.new_zeros(len(x))
        steep, smooth = torch.zeros_like(x), torch.zeros_like(x)
        direct = x.new_zeros(*strings.shape, len(rows)) if fluency else None
        n = len(self.places)
        for i, place in enumerate(self.places):
            own = x.clone().requires_grad_()
            seen = place.read(strings, self.layer, embedded=own, fluency=fluency)
            with torch.enable_grad():
                value = self.at(i, seen)
                unfluent = unlikely(strings, seen)
            (g,) = torch.autograd.grad(value.sum(), own, retain_graph=fluency)
            steep += g / n
            if fluency and seen.string is not None and direct is not None:
                (g,) = torch.autograd.grad(unfluent.sum(), own, allow_unused=True)
                smooth += 0 if g is None else g / n
                direct -= seen.string.detach() / (n * strings.shape[1])
            total += value.detach() / n
            nll += unfluent.detach().to(nll) / n
        if not bool(torch.isfinite(total).all()):
            raise EffectError("the loss of a string is NaN or infinite: use a wider dtype")
        fluent = smooth @ rows.T + direct if direct is not None else torch.zeros(0, 0, 0)
        return Slope(total, nll, steep, steep @ rows.T, fluent)


def unlikely(strings: Int[Tensor, "r k"], seen: Seen) -> Float[Tensor, "r"]:
    """Return how unlikely strings are where they stand, in nats a token; zero if nobody asked."""
    if seen.string is None or not strings.shape[1]:
        return torch.zeros(len(strings))
    own = strings.to(seen.string.device)
    return -seen.string.gather(-1, own[..., None])[..., 0].mean(1)


def text(openings: Sequence[Opening], wanted: Sequence[int]) -> Target:
    """Return the target of a wanted text: its tokens as the answer to each prompt."""
    places = tuple(Place(opening, wanted) for opening in openings)
    return Target(places, tuple(torch.tensor(list(wanted)) for _ in openings))
