"""Direction: whether a string changes the stream as a perturbation does, whatever the size.

    loss(s) = 1 - cos( P Δ_ℓ(s), P Δ_ℓ(θ) )

``Δ_ℓ`` is the change of the stream leaving layer ``ℓ``, in the mean over prompts and over their
last tokens. ``P`` leaves out the direction in which natural strings change it in the mean, whatever
they say. Activations under a perturbation are almost surely those of no text (arXiv 2604.09839),
and its norm was chosen by who searched: so directions are compared, and sizes are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from educe.forward.inserted import Opening
from educe.inversion.places import Place, Seen
from educe.inversion.targets import NOTHING, Target

#: A change is none that is less than this share of the stream's norm.
LEAST = 1e-4


class Ground(NamedTuple):
    """What changes of the stream leaving a layer are measured against.

    Attributes:
        layer: The layer.
        strings: Natural strings.
        plain: The stream without a string, at each place, in the mean over the last tokens.
        natural: What natural strings change in it, at each place.
        common: The direction in which they do in the mean, of norm one.
    """

    layer: int
    strings: Int[Tensor, "n k"]
    plain: Float[Tensor, "p d"]
    natural: Float[Tensor, "p n d"]
    common: Float[Tensor, "d"]

    @classmethod
    def of(cls, openings: Sequence[Opening], strings: Int[Tensor, "n k"], layer: int) -> Ground:
        """Read natural strings at some places."""
        read = partial(streams, openings, layer=layer)
        plain = read(NOTHING)[:, 0]
        change = read(strings) - plain[:, None]
        return cls(layer, strings, plain, change, normalize(change.mean((0, 1)), dim=0))

    @property
    def size(self) -> float:
        """How much a natural string changes the stream: the median norm."""
        return float(self.natural.mean(0).norm(dim=1).median())

    def at(self, places: Sequence[int]) -> Ground:
        """Return the same at some of the places."""
        some = list(places)
        return self._replace(plain=self.plain[some], natural=self.natural[some])

    def apart(self, change: Float[Tensor, "*r d"]) -> Float[Tensor, "*r d"]:
        """Return changes less what is common."""
        common = self.common.to(change)
        return change - (change @ common)[..., None] * common

    @property
    def least(self) -> float:
        """The norm of a change that is none."""
        return LEAST * float(self.plain.norm(dim=1).mean())


@dataclass(frozen=True)
class Direction(Target):
    """A direction in which a string should change the stream.

    Attributes:
        goals: The direction, at each place the same.
        ground: What changes are measured against, at the places.
        effect: How large the wanted change is.
    """

    ground: Ground
    effect: float

    @property
    def layer(self) -> int:  # type: ignore[override]
        """The layer whose stream is looked at."""
        return self.ground.layer

    def at_one(self, place: int) -> Self:
        """Return the same target at one of its places alone."""
        return replace(super().at_one(place), ground=self.ground.at([place]))

    @property
    def natural(self) -> Float[Tensor, "n"]:
        """The loss of natural strings; what they change was read already."""
        return self.losses(self.ground.apart(self.ground.natural)).mean(0)

    def at(self, place: int, seen: Seen) -> Float[Tensor, "r d"]:
        """Return the changes at a place, less what is common."""
        assert seen.stream is not None
        plain = self.ground.plain[place].to(seen.stream)
        return self.ground.apart(seen.stream.mean(1) - plain)

    def losses(self, seen: Float[Tensor, "p n d"]) -> Float[Tensor, "p n"]:
        """Return the part of each place in the loss of the mean change."""
        size = seen.mean(0).norm(dim=1).clamp_min(self.ground.least)
        return 1 - seen @ self.goals[0].to(seen) / size


@torch.no_grad()
def streams(
    openings: Sequence[Opening], strings: Int[Tensor, "n k"], *, layer: int
) -> Float[Tensor, "p n d"]:
    """Return the stream behind strings at some places, in the mean over the last tokens."""

    def of(own: Tensor, seen: Seen) -> Tensor:
        assert seen.stream is not None
        return seen.stream.mean(1)

    return torch.stack([Place(opening).each(strings, of, layer) for opening in openings])
