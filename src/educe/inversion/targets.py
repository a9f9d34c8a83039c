"""Targets: what a string should do, as a loss of what the model makes of it.

    likelihood  - mean over tokens t of  log p(y_t | x + s, y_<t)                            in nats

in the mean over prompts ``x``, where ``s`` is the string and ``y`` a text that is wanted.
`educe.inversion.direction` has the change of the stream, `educe.inversion.said` that of what the
model says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import EffectError
from educe.forward.inserted import Opening
from educe.inversion.places import Place, Seen, table
from educe.model.language import LanguageModel

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
        goals: What the model should do at each: here, the tokens of a text ``[m]`` to say.

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

    def at_one(self, place: int) -> Self:
        """Return the same target at one of its places alone."""
        one = slice(place, place + 1)
        return replace(self, places=self.places[one], goals=self.goals[one])

    def at(self, place: int, seen: Seen) -> Float[Tensor, "r w"]:
        """Return what the losses of strings are computed from at a place: here these themselves."""
        assert seen.answer is not None
        goal = self.goals[place].to(seen.answer.device)
        said = seen.answer.gather(-1, goal.expand(len(seen.answer), -1)[..., None])
        return -said.mean(1)

    def losses(self, seen: Float[Tensor, "p n w"]) -> Float[Tensor, "p n"]:
        """Return the loss at each place from what `at` has of all."""
        return seen[..., 0]

    def each(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "p n"]:
        """Return the loss of strings at each place."""
        return self._over(strings)[0]

    def loss(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Return the mean loss of strings of one length over the places."""
        return self.each(strings).mean(0)

    def fluent(self, strings: Int[Tensor, "n k"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Return the mean loss of strings, and how unlikely they are, in nats a token."""
        losses, nll = self._over(strings, fluency=True)
        return losses.mean(0), nll.mean(0)

    def _over(
        self, strings: Tensor, *, fluency: bool = False
    ) -> tuple[Float[Tensor, "p n"], Float[Tensor, "p n"]]:
        """Return the loss of strings at each place, and how unlikely they are there."""
        if not len(strings):
            none = torch.zeros(len(self.places), 0, dtype=torch.float64)
            return none, none
        found = []
        for i, place in enumerate(self.places):

            def of(own: Tensor, seen: Seen, i: int = i) -> Tensor:
                kept = self.at(i, seen)
                return torch.cat([kept, unlikely(own, seen).to(kept)[:, None]], 1)

            found.append(place.each(strings, of, self.layer, fluency=fluency).double())
        both = torch.stack(found)
        return self.losses(both[..., :-1]), both[..., -1]

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
        x.requires_grad_()
        with torch.enable_grad():
            read = [p.read(strings, self.layer, embedded=x, fluency=fluency) for p in self.places]
            seen = torch.stack([self.at(i, one) for i, one in enumerate(read)])
            loss = self.losses(seen).mean(0)
            nll = torch.stack([unlikely(strings, one) for one in read]).mean(0)
        if not bool(torch.isfinite(loss).all()):
            raise EffectError("the loss of a string is NaN or infinite: use a wider dtype")
        (steep,) = torch.autograd.grad(loss.sum(), x, retain_graph=fluency)
        fluent = torch.zeros(0, 0, 0)
        if fluency:  # by the embeddings, which a string of one token does not need, and as itself
            (smooth,) = torch.autograd.grad(nll.sum(), x, allow_unused=True)
            own = [one.string.detach() for one in read if one.string is not None]
            fluent = -torch.stack(own).mean(0) / strings.shape[1]
            fluent += 0 if smooth is None else smooth @ rows.T
        return Slope(loss.detach(), nll.detach(), steep, steep @ rows.T, fluent)


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
