"""Engine: what writes texts under perturbations beside us, by names that it knows them by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind

#: Perturbations that an engine has at a time.
LOADED = 64


class Said(NamedTuple):
    """What an engine wrote.

    Attributes:
        tokens: With the one that ended it, if one did.
        logprobs: Of each, in nats.
        likeliest: Log-probabilities of the likeliest first tokens, where they were asked for.
    """

    tokens: list[int]
    logprobs: list[float]
    likeliest: dict[int, float]


class Engine(Protocol):
    """What writes beside us.

    Attributes:
        name: As messages call it.
    """

    name: str

    def takes(self, kind: Kind) -> bool:
        """Tell whether it can write under perturbations of a kind."""

    def having(
        self, lm: LanguageModel, kind: Kind, theta: dict[str, Float[Tensor, "s"]], longest: int
    ) -> AbstractContextManager[None]:
        """Let it have perturbations, by their names, for the time of a statement.

        Args:
            lm: The model.
            kind: Their kind.
            theta: Each at its radius.
            longest: Tokens of the longest prompt and its answer together.
        """

    def ask(
        self, asked: Sequence[tuple[str, Sequence[int]]], tokens: int, ends: set[int], top: int = 0
    ) -> list[Said]:
        """Let it write the likeliest texts.

        Args:
            asked: For each the name of a perturbation and the tokens of a prompt.
            tokens: The most tokens of an answer.
            ends: Tokens that end one.
            top: How many of the likeliest first tokens it tells.
        """

    def close(self) -> None:
        """End what it began."""
