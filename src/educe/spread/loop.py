"""The loop: which worker does which job, and what follows when one dies.

A worker has at most two jobs: the one that it does, and the next. When it dies it is named and
begins anew. The job that it was at may be why, so it is tried again when all others are done; the
next one goes to the front of the queue. A job that ends `LOSSES` workers while no work is done by
anyone is the cause: who kills workers at random rarely meets one job that often in a row.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import islice
from typing import Protocol

from educe.errors import SpreadError
from educe.spread.jobs import Done, Job
from educe.spread.packing import unpacked

#: Jobs that a worker has at most.
IN_FLIGHT = 2
#: Workers that one job may end while no other is done, and times that a worker may fail to begin.
LOSSES = 5
#: Workers whose rates are told one by one.
TOLD = 4


class Worker(Protocol):
    """Another process, here or elsewhere, that does one job after the other.

    Attributes:
        name: For a person.
        lost: What its futures raise when it is gone.
    """

    name: str
    lost: tuple[type[BaseException], ...]

    def begin(self) -> Future[str]:
        """Begin, or begin anew; comes to where that is, when it can be given work."""
        ...

    def submit(self, job: Job) -> Future[bytes]:
        """Give it a job; comes to what `educe.spread.packing.Bench.do` returns."""
        ...


class _Seat:
    """A worker as the loop sees it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.where = ""  # once it has begun
        self.beginning: Future[str] | None = None
        self.flying: dict[Future[bytes], Job] = {}
        self.failed = 0  # times in a row that it did not begin
        self.done, self.since = 0, 0.0  # work done in this stage, and when its first job came

    @property
    def gone(self) -> bool:
        """Whether it is given up."""
        return self.failed >= LOSSES

    @property
    def rate(self) -> float:
        """Work done a second."""
        return self.done / max(time.monotonic() - self.since, 1e-9) if self.done else 0.0


class Workers:
    """Does jobs by workers, as `educe.spread.Spread` has it.

    Args:
        workers: Who.
        say: Is told who begins and who dies.
    """

    here = False

    def __init__(self, workers: Sequence[Worker], say: Callable[[str], None]) -> None:
        self.seats = [_Seat(worker) for worker in workers]
        self.say = say

    def map(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs, as `educe.spread.Spread` has it."""
        todo, losses = _Queue(jobs), Counter[str]()
        for seat in self.seats:
            seat.flying, seat.done = {}, 0
        while True:
            for seat in self.seats:
                self._occupy(seat, todo)
            if not todo and not any(seat.flying for seat in self.seats):
                return
            if all(seat.gone for seat in self.seats):
                raise SpreadError(
                    "no worker is left: what is done is kept, and can be gone on with"
                )
            begun: dict[Future, _Seat] = {s.beginning: s for s in self.seats if s.beginning}
            at_work: dict[Future, _Seat] = {f: seat for seat in self.seats for f in seat.flying}
            ended = wait([*begun, *at_work], return_when=FIRST_COMPLETED).done
            for future in sorted(ended, key=lambda f: f.exception() is not None):  # what came first
                if future in begun:
                    self._begun(begun[future])
                elif future in at_work[future].flying:  # else its worker died with an earlier one
                    yield from self._came(at_work[future], future, todo, losses)

    def _occupy(self, seat: _Seat, todo: _Queue) -> None:
        """Give a worker as much as it may have; let it begin, if it is not there."""
        if seat.gone or not todo:
            return
        if not seat.where:
            seat.beginning = seat.beginning or _tried(seat.worker, seat.worker.begin)
            return
        while len(seat.flying) < IN_FLIGHT and todo:
            job = todo.take()
            if not seat.flying and not seat.done:
                seat.since = time.monotonic()
            seat.flying[_tried(seat.worker, partial(seat.worker.submit, job))] = job

    def _begun(self, seat: _Seat) -> None:
        """Note that a worker has begun, or has not."""
        beginning, seat.beginning = seat.beginning, None
        assert beginning is not None
        try:
            seat.where, seat.failed = beginning.result(), 0
        except seat.worker.lost as error:
            seat.failed += 1
            if seat.gone:
                self.say(f"worker {seat.worker.name} does not begin, and is given up: {error}")

    def _came(
        self, seat: _Seat, future: Future[bytes], todo: _Queue, losses: Counter[str]
    ) -> Iterator[Done]:
        """Yield what came of a job; where its worker died, put its jobs back."""
        try:
            value, error = unpacked(future.result())
        except seat.worker.lost:
            self._died(seat, todo, losses)
            return
        if error is not None:
            raise error
        losses.clear()
        job = seat.flying.pop(future)
        seat.done += job.size
        yield Done(job, value, self.note)

    def _died(self, seat: _Seat, todo: _Queue, losses: Counter[str]) -> None:
        where, seat.where = seat.where, ""
        jobs, seat.flying = list(seat.flying.values()), {}
        todo.put_back(jobs[0], jobs[1:])  # it does them in order
        first = jobs[0].key
        losses[first] += 1
        if losses[first] >= LOSSES:
            raise SpreadError(
                f"{LOSSES} workers died of one job ({first[:12]}, {jobs[0].name} of size "
                f"{jobs[0].size}), the last one {seat.worker.name} ({where}): is memory too small? "
                "What is done is kept, and can be gone on with"
            )
        self.say(f"worker {seat.worker.name} ({where}) died: what it was at goes to another one")

    @property
    def note(self) -> str:
        """How fast each worker is."""
        rates = {seat.worker.name: seat.rate for seat in self.seats if seat.done}
        if len(rates) > TOLD:
            slow, fast = min(rates.values()), max(rates.values())
            return f"{len(rates)} workers, {slow:.3g} to {fast:.3g} a second each"
        return ", ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items())


class _Queue:
    """Jobs that are to be done: those that came back first, then those that come, suspects last."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)
        self._back: deque[Job] = deque()
        self._suspects: deque[Job] = deque()

    def __bool__(self) -> bool:
        if not self._back:
            self._back.extend(islice(self._jobs, 1))
        return bool(self._back or self._suspects)

    def take(self) -> Job:
        """Return the next one."""
        return (self._back or self._suspects).popleft()

    def put_back(self, suspect: Job, others: Sequence[Job]) -> None:
        """Let one be the last, and some the next ones, in order."""
        self._suspects.append(suspect)
        self._back.extendleft(reversed(others))


def _tried(worker: Worker, what: Callable[[], Future]) -> Future:
    """Return a future; one that failed, where a worker is gone already."""
    try:
        return what()
    except worker.lost as error:
        future: Future = Future()
        future.set_exception(error)
        return future
