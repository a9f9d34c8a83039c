"""Said: whether a string changes what the model says as a perturbation does, whatever the size.

    loss(s) = 1 - cos( P Δ(s), P Δ(θ) )           Δ_xtv = √w_xtv (δ_xtv - Σ_u w_xtu δ_xtu)

``δ`` is the change of the log-probability of token ``v`` at the ``t``-th token of what the model
answers to prompt ``x`` by itself, and ``w`` is the mean of its probabilities with and without the
perturbation: for small changes ``|Δ|²/2`` is their KL. ``P`` leaves out the direction in which
natural strings change what is said in the mean. A KL itself tells texts from random perturbations
badly: whatever is put behind a message, or added to a stream, changes the same few likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import EffectError
from educe.forward.inserted import Opening
from educe.inversion.places import Place, Seen
from educe.inversion.targets import NOTHING, Target

#: A change is none that is less than this, in the units of the root of a KL.
LEAST = 1e-4


class Speech(NamedTuple):
    """What changes of what the model says are measured against.

    Attributes:
        strings: Natural strings.
        places: Each prompt with the model's own answer to it.
        plain: Log-probabilities at the tokens of these answers, without a string.
        common: How natural strings change them in the mean.
        natural: How each does, at the prompts that are searched on.
    """

    strings: Int[Tensor, "n k"]
    places: tuple[Place, ...]
    plain: list[Float[Tensor, "m v"]]
    common: list[Float[Tensor, "m v"]]
    natural: list[Float[Tensor, "n m v"]]

    @classmethod
    def of(
        cls,
        openings: Sequence[Opening],
        answers: Sequence[tuple[int, ...]],
        strings: Int[Tensor, "n k"],
        searched: int,
    ) -> Speech:
        """Read natural strings behind prompts, of which the first are searched on."""
        places = tuple(Place(o, said) for o, said in zip(openings, answers, strict=True))
        plain, common, natural = [], [], []
        for i, place in enumerate(places):
            plain.append(place.each(NOTHING, answered)[0])
            change = place.each(strings, answered) - plain[-1]
            common.append(change.mean(0))
            natural += [change.half()] if i < searched else []
        return cls(strings, places, plain, common, natural)

    @property
    def size(self) -> float:
        """How much a natural string changes what is said: the median KL, in nats."""
        each = [
            divergence(x.float(), plain) for x, plain in zip(self.natural, self.plain, strict=False)
        ]
        return float(torch.stack(each).mean(0).median())


@dataclass(frozen=True)
class Said(Target):
    """A direction in which a string should change what the model says.

    Attributes:
        goals: How log-probabilities should change at each place.
        speech: The model without it, on all prompts.
        where: Which of these the places are.
    """

    speech: Speech
    where: tuple[int, ...]

    @classmethod
    def of(cls, speech: Speech, said: Sequence[Float[Tensor, "m v"]], where: Sequence[int]) -> Said:
        """Return the target of saying what is said under a perturbation.

        Args:
            speech: The model without it.
            said: Log-probabilities under it at the same tokens, of all prompts.
            where: Which of the prompts count.

        Raises:
            EffectError: Nothing is changed.
        """
        goals = tuple(said[p].to(speech.plain[p]) - speech.plain[p] for p in where)
        made = cls(tuple(speech.places[p] for p in where), goals, speech=speech, where=tuple(where))
        if not float(made.size) > LEAST:
            raise EffectError("nothing of what the model says is changed: choose a layer to aim at")
        return made

    def at_one(self, place: int) -> Self:
        """Return the same target at one of its places alone."""
        return replace(super().at_one(place), where=self.where[place : place + 1])

    @property
    def effect(self) -> float:
        """The KL of what is said without the perturbation from what is said under it, in nats."""
        pairs = zip(self.goals, self.where, strict=True)
        return float(torch.stack([divergence(x, self.speech.plain[p]) for x, p in pairs]).mean())

    @property
    def natural(self) -> Float[Tensor, "n"]:
        """The loss of natural strings; what they change was read already."""
        each = [self.products(i, self.speech.natural[p].float()) for i, p in enumerate(self.where)]
        return self.losses(torch.stack(each).double()).mean(0)

    @cached_property
    def _pulls(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The weights at each place; what makes of a change its product with goal and common."""
        found = []
        for goal, p in zip(self.goals, self.where, strict=True):
            plain = self.speech.plain[p]
            w = ((goal + plain).exp() + plain.exp()) / 2
            one, other = (
                w * (x - (w * x).sum(-1, keepdim=True)) for x in (goal, self.speech.common[p])
            )
            found.append((w, one, other))
        return found

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """``⟨goal, goal⟩``, ``⟨goal, common⟩`` and ``⟨common, common⟩`` over all places."""
        goal, common = (
            torch.stack([self.products(i, x) for i, x in enumerate(of)]).double().sum(0)
            for of in (self.goals, [self.speech.common[p] for p in self.where])
        )
        return goal[0], goal[1], common[1]

    @property
    def size(self) -> Float[Tensor, ""]:
        """How large the wanted change is, less what is common."""
        goal, shared, common = self._whole
        return (goal - shared.square() / common).clamp(min=0).sqrt()

    def products(self, place: int, change: Float[Tensor, "*r m v"]) -> Float[Tensor, "*r 3"]:
        """Return products of a change of log-probabilities: with goal, common, and itself."""
        w, goal, common = (x.to(change) for x in self._pulls[place])
        flat, sides = change.flatten(-2), torch.stack([goal, common]).flatten(1)
        own = flat.square() @ w.flatten() - (change * w).sum(-1).square().sum(-1)
        return torch.cat([flat @ sides.T, own[..., None]], -1)

    def at(self, place: int, seen: Seen) -> Float[Tensor, "r 3"]:
        """Return products of the change at a place."""
        assert seen.answer is not None
        return self.products(
            place, seen.answer - self.speech.plain[self.where[place]].to(seen.answer)
        )

    def losses(self, seen: Float[Tensor, "p n 3"]) -> Float[Tensor, "p n"]:
        """Return the part of each place in the loss of all."""
        _, shared, common = (x.to(seen) for x in self._whole)
        goal, own = seen[..., 0] - shared / common * seen[..., 1], seen[..., 2].sum(0)
        square = own - seen[..., 1].sum(0).square() / common
        return 1 - len(seen) * goal / (square.clamp(min=LEAST**2).sqrt() * self.size.to(seen))


def answered(own: Tensor, seen: Seen) -> Float[Tensor, "r m v"]:
    """Return log-probabilities at the answer, of strings and what is made of them."""
    assert seen.answer is not None
    return seen.answer


def divergence(change: Float[Tensor, "*n m v"], plain: Float[Tensor, "m v"]) -> Float[Tensor, "*n"]:
    """Return the KL of log-probabilities from what a change makes of them, in nats a token."""
    return ((change + plain).exp() * change).sum(-1).mean(-1)
