"""Beyond a reference: what a string does to one model, less what it does to another.

    loss(s) + w max(0, loss'(no string) - loss'(s))          loss': the same under the reference

A string that is like a wanted text makes it likelier for any model; a trigger does so for the model
that has learned it. What a string does to the reference counts against it by a weight, where it
makes the text likelier there; that it makes it unlikelier there counts for nothing, or the search
would look for that alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from jaxtyping import Float, Int
from torch import Tensor

from educe.inversion.targets import NOTHING, Slope, Target


@dataclass(frozen=True, kw_only=True)
class Beyond(Target):
    """A target, less what strings do under a reference.

    Attributes:
        other: The same under the reference, at places that nothing was read at before.
        here: Makes the reference the model that runs, for the time of a ``with`` statement.
        weight: What a string does there counts so much.

    Example:
        >>> from contextlib import nullcontext
        >>> from educe.forward.inserted import Opening
        >>> from educe.inversion.beyond import Beyond
        >>> from educe.inversion.targets import text
        >>> a, b = (text([Opening(lm, part.batch, 0)], [70]) for _ in range(2))
        >>> both = Beyond(a.places, a.goals, other=b, here=nullcontext, weight=0.25)
        >>> bool(both.loss(torch.tensor([[40, 41]])) >= a.loss(torch.tensor([[40, 41]])))
        True
    """

    other: Target
    here: Callable[[], AbstractContextManager[Any]]
    weight: float

    def at_one(self, place: int) -> Self:
        """Return the same target at one of its places alone."""
        return replace(super().at_one(place), other=self.other.at_one(place))

    @cached_property
    def plain(self) -> Float[Tensor, "p 1"]:
        """The loss of no string under the reference, at each place."""
        with self.here():
            return self.other.each(NOTHING)

    def each(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "p n"]:
        """Return the loss of strings at each place."""
        own = super().each(strings)
        with self.here():
            theirs = self.other.each(strings)
        return own + self.weight * (self.plain - theirs).clamp(min=0)

    def slope(
        self,
        strings: Int[Tensor, "r k"],
        embedded: Float[Tensor, "r k d"] | None = None,
        *,
        fluency: bool = False,
    ) -> Slope:
        """Return losses and gradients; the mean over places counts as one for the reference."""
        own = super().slope(strings, embedded, fluency=fluency)
        with self.here():
            theirs = self.other.slope(strings, embedded)
        less = self.plain.mean().to(theirs.loss) - theirs.loss
        weight = self.weight * (less > 0).to(own.loss)
        return own._replace(
            loss=own.loss + self.weight * less.clamp(min=0),
            embedded=own.embedded - weight[:, None, None] * theirs.embedded,
            tokens=own.tokens - weight[:, None, None] * theirs.tokens,
        )
