"""Searches over the tokens of a string: one file each, and the loop that they share.

A search is a configuration and two functions: ``start`` reads the strings to begin with, ``step``
takes it one step further. It sees only a `Target` and a `Vocabulary`. The budget is counted in
reads (strings read at one place), so that searches, and what they search for, can be compared at
equal cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import MethodError
from educe.inversion.searches import epo, gcg, soft
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.methods.state import State
from educe.whole import check_fields, check_whole


class Search(NamedTuple):
    """What a search consists of."""

    config: type
    start: Callable[..., State]
    step: Callable[..., State]


SEARCHES: dict[str, Search] = {
    "gcg": Search(gcg.GcgConfig, gcg.start, gcg.step),
    "epo": Search(epo.EpoConfig, epo.start, epo.step),
    "soft": Search(soft.SoftConfig, soft.start, soft.step),
}


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        strings: The tokens of strings, the best first.
        loss: Of each.
        curve: Reads so far, and the best loss then, after each step.
        front: Strings, losses and nats a token that no other string beats in both, where the search
            keeps them.
    """

    strings: Int[Tensor, "n k"]
    loss: Float[Tensor, "n"]
    curve: Float[Tensor, "s 2"]
    front: tuple[Tensor, ...] = ()

    @property
    def best(self) -> tuple[int, ...]:
        """The tokens of the best string."""
        return tuple(self.strings[0].tolist())


def search(
    target: Target,
    vocabulary: Vocabulary,
    first: Int[Tensor, "n k"],
    method: str = "gcg",
    *,
    budget: int = 4000,
    seed: int = 0,
    config: Any = None,
    state: State | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Found:
    """Search for a string that does what a target wants.

    Args:
        target: What it should do.
        vocabulary: What it may be made of.
        first: The strings to begin with, all of one length.
        method: One of `SEARCHES`.
        budget: Strings that may be read at one place, after which no step is begun.
        seed: The same seed gives the same string.
        config: The search's settings; its defaults when left out.
        state: Where an earlier call left off, as it was given to ``on_step``.
        on_step: Called after each step.

    Raises:
        MethodError: The search is unknown, or a setting is out of bounds.
        EffectError: A loss is NaN or infinite.

    Example:
        >>> from educe.forward.inserted import Opening
        >>> from educe.inversion.examples import natural
        >>> from educe.inversion.searches import search
        >>> from educe.inversion.strings import Vocabulary
        >>> from educe.inversion.targets import text
        >>> words = Vocabulary(lm)
        >>> first = natural(words, 3, 4)
        >>> found = search(text([Opening(lm, part.batch, 0)], [70, 71]), words, first, budget=200)
        >>> found.strings.shape
        torch.Size([1, 3])
        >>> bool(found.curve[-1, 1] <= found.curve[0, 1])
        True
    """
    if method not in SEARCHES:
        raise MethodError(f"search {method!r} is unknown: use {', '.join(SEARCHES)}")
    how = SEARCHES[method]
    check_whole("budget", budget)
    check_whole("seed", seed, 0, 2**63 - 1)
    config = how.config() if config is None else config
    check_fields(config, f"{method}: {{}}")
    if state is None:
        state = how.start(target, first, config, seed)
        if on_step is not None:
            on_step(state)
    while int(state["reads"]) < budget:
        state = how.step(target, vocabulary, config, state)
        if on_step is not None:
            on_step(state)
    order = state["loss"].argsort(stable=True)
    front = [state[f"front.{name}"] for name in ("strings", "loss", "nll") if "weights" in state]
    return Found(state["strings"][order], state["loss"][order], state["curve"], tuple(front))
