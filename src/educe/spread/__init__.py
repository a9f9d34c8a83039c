"""Spread: the same work in this process, on the devices of this machine, or on a Ray cluster.

    Job      a function of a module and what it gets, known by the hash of both
    Spread   does jobs, in any order, and yields what came of each

`Local` does them in this process, `devices` in one process for each device, `cluster` in actors of
Ray; `packing` is how a job gets there, `loop` who does which, and what follows when one dies.

Whoever has jobs cuts them in the same way for any number of workers, and a job's result hangs on
the job alone. So what comes is the same, bit for bit, wherever it is done on processors of one
kind. Workers only return what they made: a run's files have one writer, who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from educe.options import ALONE, SpreadOptions
from educe.spread.jobs import HERE, Done, Job, Local, Shared, Spread, gathered
from educe.spread.loop import Worker, Workers

__all__ = ["HERE", "Done", "Job", "Local", "Shared", "Spread", "Who", "gathered", "opened"]

#: Who works: as it is asked for, or workers that are there already.
Who = SpreadOptions | Spread


@contextmanager
def opened(
    who: Who = ALONE, say: Callable[[str], None] = lambda sentence: None
) -> Iterator[Spread]:
    """Let workers do jobs in a ``with`` statement; they begin with the first job.

    Args:
        who: Who does; workers that are there already stay when the statement ends.
        say: Is told of workers that begin and die.

    Raises:
        SpreadError: There are no such workers.
    """
    if not isinstance(who, SpreadOptions):
        yield who
        return
    who.check()
    if who.on == "local":
        yield Local()
        return
    made: AbstractContextManager[Sequence[Worker]]
    if who.on == "devices":
        from educe.spread.devices import processes

        made = processes(who.workers)
    else:
        from educe.spread.cluster import actors

        made = actors(who.on.removeprefix("ray").removeprefix("://"), who.workers)
    with made as workers:
        yield Workers(workers, say)
