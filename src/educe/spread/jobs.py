"""Jobs: what is done, what comes of it, and this process as the one that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from educe.progress import Advance, untold
from educe.spread.packing import packed


class Shared:
    """What many jobs get: sent to a worker once, or once for each node of a cluster.

    Attributes:
        value: What they get.
    """

    def __init__(self, value: tuple[Any, ...]) -> None:
        self.value = value

    @cached_property
    def packed(self) -> bytes:
        """The value as a worker gets it."""
        return packed(self.value)

    @cached_property
    def key(self) -> str:
        """A SHA-256 of it."""
        return sha256(self.packed).hexdigest()


class Job(NamedTuple):
    """Work that any process can do: ``do(*shared.value, *given)``.

    A model among what it gets is loaded by whoever works, on its own device.

    Example:
        >>> from educe.spread import Job, Local, Shared
        >>> jobs = [Job(pow, Shared((2,)), (exponent,)) for exponent in (3, 4)]
        >>> [done.value for done in Local().map(jobs)]
        [8, 16]
    """

    do: Callable[..., Any]  #: a function that a module has under its name
    shared: Shared
    given: tuple[Any, ...]
    size: int = 1  #: how much work it is, for rates
    place: int = 0  #: which of some jobs it is, for whoever has them
    named: str = ""  #: for a person, where the function's name says too little

    @property
    def name(self) -> str:
        """What it is called where a person reads of it."""
        return self.named or self.do.__name__

    @property
    def packed(self) -> bytes:
        """The job as a worker gets it, without what is shared."""
        return packed((self.do, self.given))

    @property
    def key(self) -> str:
        """What it is known by: a SHA-256 of the function and all that it gets."""
        return sha256(self.packed + self.shared.key.encode()).hexdigest()


class Done(NamedTuple):
    """A job that is done."""

    job: Job
    value: Any
    note: str = ""  #: how fast each worker is, for a person


class Spread(Protocol):
    """Does jobs.

    Attributes:
        here: Whether it is this process that does them.
    """

    here: bool

    def map(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs, which are drawn as workers become free; yield each when it is done.

        Raises:
            SpreadError: No worker is left, or one job ends every worker that tries it.
            EduceError: What a job raises.
        """
        ...


class Local:
    """Does jobs in this process, one after the other."""

    here = True

    def map(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs, as `Spread` has it."""
        for job in jobs:
            yield Done(job, job.do(*job.shared.value, *job.given))


#: This process.
HERE: Spread = Local()


def gathered(
    spread: Spread,
    jobs: Iterable[Job],
    step: Advance = untold,
) -> Iterator[Any]:
    """Do jobs, and yield what came of each, in the order of the jobs.

    Args:
        spread: Who does them.
        jobs: The jobs.
        step: Is told of each one that is done: its size, and how fast each worker is.

    Example:
        >>> from educe.spread import Job, Local, Shared, gathered
        >>> list(gathered(Local(), [Job(pow, Shared((2,)), (exponent,)) for exponent in (3, 4)]))
        [8, 16]
    """
    came: dict[int, Any] = {}
    first = 0  # of those that were not yielded yet
    for done in spread.map(job._replace(place=place) for place, job in enumerate(jobs)):
        came[done.job.place] = done.value
        step(done.job.size, done.note)
        while first in came:
            yield came.pop(first)
            first += 1
