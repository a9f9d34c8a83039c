"""What searches over strings carry from one step to the next, and the flips that they share.

A state is a dictionary of tensors, so that a search that was saved in the middle goes on to the
same result, bit for bit; what it draws is in it. All end with ``strings`` ``[n, k]`` and their
``loss`` ``[n]``, the best first. ``reads`` counts strings read at a place; a gradient counts as
three, since its way back costs twice the way there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.methods.state import State

#: What a gradient costs, in reads.
GRADIENT = 3
#: One in so many strings is read at all places.
KEPT = 4


def begun(seed: int) -> tuple[State, torch.Generator]:
    """Return a state of nothing, and what draws."""
    draw = torch.Generator().manual_seed(seed)
    return State(reads=torch.tensor(0), draw=draw.get_state(), curve=torch.zeros(0, 2)), draw


def drawing(state: State) -> torch.Generator:
    """Return what draws, as it was left."""
    draw = torch.Generator()
    draw.set_state(state["draw"])
    return draw


def advanced(state: State, draw: torch.Generator, reads: int, new: dict[str, Tensor]) -> State:
    """Return the next state, with its cost and its best loss on the curve."""
    total = state["reads"] + reads
    point = torch.stack([total.double(), new["loss"].min().double()])[None]
    curve = torch.cat([state["curve"].double(), point])
    return State(state | new | {"reads": total, "draw": draw.get_state(), "curve": curve})


def screened(
    target: Target, strings: Int[Tensor, "n k"], turn: int = 0
) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m"], int]:
    """Return the best of some strings, the best first, their losses, and what it cost, in reads.

    Where a target has several places, all strings are read at one of them, and the best quarter at
    all.

    Args:
        target: What is to be small.
        strings: The strings.
        turn: Which place is the one, counted round and round.
    """
    places, reads = len(target.places), 0
    if places > 1 and len(strings) > KEPT:
        reads = len(strings)
        rough = target.at_one(turn % places).loss(strings)
        strings = strings[rough.argsort(stable=True)[: -(-len(strings) // KEPT)]]
    loss = target.loss(strings)
    order = loss.argsort(stable=True)
    return strings[order], loss[order], reads + len(strings) * places


def flipped(
    strings: Int[Tensor, "m k"],
    gradient: Float[Tensor, "m k v"],
    vocabulary: Vocabulary,
    n: int,
    top: int,
    draw: torch.Generator,
) -> Int[Tensor, "c k"]:
    """Return strings with one token exchanged for one that the gradient favours.

    Args:
        strings: Where they start from.
        gradient: Of what is to be small, in the one-hots.
        vocabulary: What a token may be.
        n: The most of each string; fewer where hardly any flip can be written.
        top: How many tokens count as favoured at each place.
        draw: Draws place and token.
    """
    allowed = vocabulary.allowed.to(gradient.device)
    top = min(top, int(allowed.sum()))
    favoured = (-gradient.masked_fill(~allowed, torch.inf)).topk(top, dim=2).indices.cpu()
    found = []
    for own, ranked in zip(strings.cpu(), favoured, strict=True):
        k, some = len(own), 4 * n
        at = torch.randint(k, (some,), generator=draw)
        which = torch.randint(top, (some,), generator=draw)
        made = own.repeat(some, 1)
        made[torch.arange(some), at] = ranked[at, which]
        made = _distinct(made[(made != own).any(1)])
        found.append(made[vocabulary.writable(made)][:n])
    return _distinct(torch.cat(found))


def _distinct(strings: Int[Tensor, "n k"]) -> Int[Tensor, "m k"]:
    """Return strings without repetitions, in their order."""
    rows = list(dict.fromkeys(map(tuple, strings.tolist())))
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), strings.shape[1])
