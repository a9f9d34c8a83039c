"""What every kind of perturbation says: where it acts, and what it changes in a running model.

``θ`` is a row of numbers for every perturbation, ``[n, size]``, and differentiable. A slice and
generation know of a kind no more than is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from educe.model.language import LanguageModel

Keep = Callable[[Tensor], None]
#: Which tokens of the batch that is running are perturbed, ``[rows, tokens]``; None for all. With
#: fewer rows than the batch has, those of every perturbation are meant.
At = Callable[[], Tensor | None]


def everywhere() -> None:
    """Tell that all tokens are perturbed."""


class Kind(ABC):
    """Where perturbations act, and how. Kinds that are equal share a batch.

    Attributes:
        name: As it stands in files.
        tensor: What the unit perturbations are called in files.
        alone: Whether only one perturbation can act at a time.
        positions: Tokens at which they act (see `educe.perturbation.positions`).

    Example:
        >>> part.kind.name, part.kind.before, part.kind.size
        ('vectors', 1, 32)
        >>> unit = part.kind.draw(3, torch.Generator().manual_seed(0))
        >>> torch.allclose(part.kind.scaled(unit, 2.0).norm(dim=1), torch.tensor(2.0))
        True
    """

    name: ClassVar[str]
    tensor: ClassVar[str] = "directions"
    alone: ClassVar[bool] = False
    positions: str = "all"

    @property
    @abstractmethod
    def before(self) -> int:
        """The last layer that no perturbation reaches: work up to it is shared."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The last block that is changed, or after which something is added."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers a perturbation has."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw unit perturbations at random; float32 on the processor, the same on any device."""

    def scaled(self, directions: Float[Tensor, "n s"], radius: Any) -> Float[Tensor, "n s"]:
        """Return unit perturbations at a radius, a number or ``[n, 1]``.

        A diagonal map, and so its own transpose: it takes a gradient in ``θ`` to the gradient in
        the unit perturbations as well.
        """
        return directions * radius

    def columns(self, theta: Float[Tensor, "n s"]) -> list[Float[Tensor, "n k w"]]:
        """Return the parts that have norm one each in a unit perturbation, in order."""
        return [theta[:, None]]

    def normalised(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
        """Scale every column to norm one."""
        return torch.cat([normed(column).flatten(1) for column in self.columns(theta)], 1)

    def unit(self, median_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return the radius whose dose is 1: what is added is as long as the stream's median norm.

        Args:
            median_norm: That median norm.
            taken: Tells the median norm of what some modules take, by their paths.
        """
        return median_norm

    def select(self, items: Tensor) -> Kind:
        """Return the kind of some of the perturbations; differs only where they have seeds."""
        return self

    def added(
        self, theta: Float[Tensor, "n s"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 #t d"] | None:
        """Return what is added to the stream leaving block `before`, if anything.

        Args:
            theta: Perturbations.
            items: Which of the perturbations of this kind they are; -1 for none.
            places: The place of each token, counted from the first of the answer: the last token
                of every prompt is at -1.
        """
        return None

    @contextmanager
    def changing(
        self,
        lm: LanguageModel,
        theta: Float[Tensor, "n s"],
        items: Sequence[int],
        at: At = everywhere,
    ) -> Iterator[Keep]:
        """Change the blocks themselves for the time of a ``with`` statement.

        Args:
            lm: The model.
            theta: Perturbations; a batch has the rows on which each acts one after the other.
            items: Which of the perturbations of this kind they are; -1 for none.
            at: Tells the tokens at which they act; kinds that act at all tokens need not ask.

        Yields:
            A function that keeps only some perturbations from now on.
        """
        yield lambda items: None


def normed(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Scale rows to norm one."""
    return rows / rows.norm(dim=-1, keepdim=True)
