"""What is asked for and what comes of it: settings and results of hardening and distilling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from educe.comparison.stats import Rate
from educe.errors import MethodError
from educe.options import Count, Seed
from educe.run.scored import Mean
from educe.whole import check_fields

#: Where vectors come from (see `educe.hardening.pools`).
FOUND, RANDOM, FRESH = "found", "random", "fresh"
POOLS = (FOUND, RANDOM, FRESH)


@dataclass(frozen=True)
class HardeningConfig:
    """How to harden.

    Attributes:
        pool: Where vectors come from: some of `POOLS`, all equally often.
        rounds: How many times the pool ``fresh`` is searched; its vectors of all rounds are kept.
        steps: Steps of training.
        count: Vectors of each pool: how many of the run's best, and how many a search looks for.
        rank: Of the adapter.
        seed: Of the adapter, the order of the examples, and the vectors that are drawn.
    """

    pool: tuple[str, ...] = POOLS
    rounds: Count = 4
    steps: Count = 200
    count: Count = 8
    rank: Count = 8
    seed: Seed = 0

    def check(self) -> None:
        """Find what cannot work.

        Raises:
            MethodError: A number is out of its bounds, or there is no such pool.
        """
        check_fields(self)
        unknown = [name for name in self.pool if name not in POOLS]
        if unknown or not self.pool:
            named = repr(unknown[0]) if unknown else "nothing"
            raise MethodError(f"pool {named}: name some of {', '.join(POOLS)}")


@dataclass(frozen=True)
class DistillConfig:
    """How to distil.

    Attributes:
        steps: Steps of training.
        rank: Of the adapter.
        seed: Of the adapter and the order of the examples.
    """

    steps: Count = 100
    rank: Count = 8
    seed: Seed = 0


class Level(NamedTuple):
    """How a model behaves under some vectors, or without one."""

    kl: Mean  #: nats a token; over vectors, or without one over prompts
    same: Rate  #: of all pairs of a vector and a fresh prompt
    shows: Rate | None  #: of the same


class Measured(NamedTuple):
    """The same under one set of vectors, before and after."""

    what: str
    before: Level
    after: Level


class Hardened(NamedTuple):
    """What came of it; the first row is the model without a vector: what it cost."""

    folder: Path
    measured: list[Measured]
    curve: list[float]  #: the loss at each step, nats an answer


class Distilled(NamedTuple):
    """What came of it, on fresh prompts of the run."""

    folder: Path
    same: tuple[Rate, Rate]  #: answers without it that begin as those under it: before, after
    shows: tuple[Rate, Rate, Rate] | None  #: what the run looks for: before, after, and under it
    curve: list[float]  #: the loss at each step, nats an answer
