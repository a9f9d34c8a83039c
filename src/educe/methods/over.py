"""What a search makes large where it has several prompts.

With ``Δ_p(θ)`` the effect on prompt ``p`` alone and ``P`` prompts,

    mean     the effect averaged over prompts, Σ_p Δ_p / P: what moves them all the same way
    each     Δ_p, one search a prompt, with an equal share of the perturbations
    least    Δ_p of the prompt that the perturbation moves least: max over θ of min over p

``least`` follows a subgradient: at each step the gradient on the prompt of least effect alone. It
costs the effect on every prompt and the gradient on one, where ``mean`` costs the gradient on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.forward.slice.shift import Shift
from educe.methods.state import State
from educe.perturbation.kinds import Kind

Over = Literal["mean", "each", "least"]


class Ground(NamedTuple):
    """Where some of the perturbations are searched, and where those found are measured."""

    searched: Slice
    measured: Slice
    n: int


def grounds(part: Slice, over: Over, n: int) -> list[Ground]:
    """Return the slices on which ``n`` perturbations are searched.

    Raises:
        MethodError: There are fewer perturbations than prompts to share them.
    """
    if over == "mean":
        return [Ground(part, part, n)]
    if over == "least":
        return [Ground(Least(part), part, n)]
    parts = alone(part)
    if n < len(parts):
        raise MethodError(
            f"{n} perturbations cannot be shared among {len(parts)} prompts: ask for as many, or "
            "search over their mean"
        )
    return [Ground(one, one, len(range(i, n, len(parts)))) for i, one in enumerate(parts)]


def alone(part: Slice) -> list[Slice]:
    """Return a slice's counterparts on each of its prompts alone."""
    made = []
    for prompt in range(len(part.batch)):
        one = Slice(
            part.lm,
            part.batch.select([prompt]),
            source=part.source,
            target=part.target,
            positions=part.positions,
            readout=part.readout,
            tokens_per_chunk=part.tokens_per_chunk,
        )
        one.retain = part.retain
        made.append(one.on(part.kind))
    return made


class Least(Slice):
    """A slice on which each perturbation counts by the prompt that it moves least.

    It has values and gradients away from zero, where no prompt is moved least; a method that asks
    for those at zero, or for Jacobian products, is refused.
    """

    def __init__(self, part: Slice) -> None:
        self.__dict__.update(part.__dict__)
        self._alone = alone(part)

    def on(self, kind: Kind) -> Slice:
        """Return the same for perturbations of another kind."""
        return Least(super().on(kind))

    def effect(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n d"]:
        """Return the effect on the prompt of least effect."""
        return self._effect(theta)[0]

    def vjp(
        self, theta: Float[Tensor, "n s"], cotangent: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n s"]]:
        """Return the same effect, and its transposed Jacobian times ``cotangent``."""
        effect, least = self._effect(theta)
        gradient = torch.zeros_like(theta)
        for one, rows in self._shared(least):
            gradient[rows] = one.vjp(theta[rows], cotangent[rows])[1]
        return effect, gradient

    def value_and_grad(
        self, theta: Float[Tensor, "n s"], objective: Callable[[Shift], Float[Tensor, "n"]]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return an objective on the prompt where it is least, and its gradient there."""
        values = torch.stack([one.measure(theta, objective)[1] for one in self._alone])
        value, least = values.min(0)
        gradient = torch.zeros_like(theta)
        for one, rows in self._shared(least):
            gradient[rows] = one.value_and_grad(theta[rows], objective)[1]
        return value, gradient

    def _effect(self, theta: Float[Tensor, "n s"]) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]:
        if not theta.any(1).all():
            raise self._refused()
        effects = torch.stack([one.effect(theta) for one in self._alone])
        least = effects.norm(dim=2).argmin(0)
        return effects[least, torch.arange(len(theta), device=least.device)], least

    def _shared(self, least: Int[Tensor, "n"]) -> Iterator[tuple[Slice, Tensor]]:
        """Give each prompt the perturbations that count by it."""
        for i, one in enumerate(self._alone):
            rows = (least == i).nonzero()[:, 0]
            if len(rows):
                yield one.on(one.kind.select(rows)), rows

    def _summed(self, *args: Any, **kwargs: Any) -> Tensor:
        raise self._refused()

    def _refused(self) -> MethodError:
        return MethodError(
            "the least effect over prompts has no derivatives at zero and no Jacobian products: "
            "use dct from random directions, melbo, lora or cpe, without turning, or search over "
            "the mean"
        )


def joined(states: list[State]) -> State:
    """Return the states of all searches as one."""
    if len(states) == 1:
        return states[0]
    return State({f"{i}/{name}": t for i, s in enumerate(states) for name, t in s.items()})


def parted(state: State, searches: int) -> list[State]:
    """Return the state of each search (see `joined`)."""
    if searches == 1:
        return [state]
    states = [State() for _ in range(searches)]
    for name, tensor in state.items():
        i, own = name.split("/", 1)
        states[int(i)][own] = tensor
    return states


def together(found: list[State]) -> State:
    """Return what all searches found as one, without what belongs to no perturbation."""
    if len(found) == 1:
        return found[0]
    names = [n for n in found[0] if n in ("directions", "outputs") or n.startswith("score.")]
    return State({name: torch.cat([one[name] for one in found]) for name in names})
