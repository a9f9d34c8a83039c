"""Who does which job: workers are puppets that die when they are told to, in no time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as whole
from typing import Any

import pytest

from educe.audit.meter import Meter, Metered
from educe.errors import EduceError, MethodError, SpreadError
from educe.spread import Done, Job, Local, Shared, gathered, loop
from educe.spread.loop import IN_FLIGHT, LOSSES, Workers
from educe.spread.packing import Bench

WHOLE = Shared((10,))


class DiedError(Exception):
    """What a puppet's futures raise when it died."""


def plus(a: int, b: int) -> int:
    if b < 0:
        raise MethodError(f"{b} is below zero")
    return a + b


def jobs(n: int) -> list[Job]:
    return [Job(plus, WHOLE, (i,)) for i in range(n)]


class Puppet:
    """Does its jobs in order when it is stepped; each step ends one, or the puppet.

    Args:
        name: Its name.
        dies: Whether it dies at a job, by its number and how often that was tried.
        begins: Whether it begins, by how often it did before.
    """

    lost = (DiedError,)

    def __init__(
        self, name: str, dies: Any = lambda *_: False, begins: Any = lambda _: True
    ) -> None:
        self.name, self.dies, self.begins = name, dies, begins
        self.bench, self.lives = Bench("cpu", "."), 0
        self.waiting: list[tuple[Future, Job]] = []
        self.starting: Future | None = None
        self.most = 0

    def begin(self) -> Future[str]:
        self.lives += 1
        self.starting = Future()
        return self.starting

    def submit(self, job: Job) -> Future[bytes]:
        future: Future = Future()
        self.waiting.append((future, job))
        self.most = max(self.most, len(self.waiting))
        return future

    def step(self, tried: Counter) -> None:
        if self.starting is not None and not self.starting.done():
            if self.begins(self.lives):
                self.starting.set_result(f"life {self.lives}")
            else:
                self.starting.set_exception(DiedError("no"))
        elif self.waiting:
            future, job = self.waiting[0]
            tried[job.given[0]] += 1
            if self.dies(job.given[0], tried[job.given[0]]):
                dead, self.waiting = self.waiting, []
                for one, _ in dead:
                    one.set_exception(DiedError("killed"))
            else:
                self.waiting.pop(0)
                future.set_result(self.bench.do(job.packed, job.shared.key, job.shared.packed))


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what came of jobs, what was said, and how often each was tried; no thread runs."""

    def do(
        puppets: list[Puppet], some: Any, seed: int = 0
    ) -> tuple[Iterator[Done], list[str], Counter]:
        tried, said, draw = Counter[int](), [], random.Random(seed)

        def wait(futures: Any, return_when: str) -> Any:
            futures = list(futures)
            assert futures, "the loop waits for nobody"
            while not any(f.done() for f in futures):
                draw.choice(puppets).step(tried)
            return whole(futures, return_when=return_when)

        monkeypatch.setattr(loop, "wait", wait)
        return Workers(puppets, said.append).map(some), said, tried

    return do


def values(came: Iterator[Done]) -> list[int]:
    return sorted(done.value for done in came)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_what_comes_is_what_this_process_makes(stepped: Any, n: int) -> None:
    came, said, tried = stepped([Puppet(str(i)) for i in range(n)], jobs(20))
    assert values(came) == values(Local().map(jobs(20))) == list(range(10, 30))
    assert set(tried.values()) == {1}
    assert said == []


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_or_comes_twice_whoever_dies_when(stepped: Any, seed: int) -> None:
    draw = random.Random(seed)
    doomed = Counter(draw.choices(range(30), k=15))

    def dies(job: int, tried: int) -> bool:
        return tried <= min(doomed[job], LOSSES - 1)

    puppets = [Puppet(str(i), dies) for i in range(3)]
    came, said, tried = stepped(puppets, jobs(30), seed)
    assert values(came) == list(range(10, 40))
    deaths = sum(min(times, LOSSES - 1) for times in doomed.values())
    assert tried.total() == 30 + deaths
    assert len(said) == deaths
    assert all("died: what it was at goes to another one" in line for line in said)


def test_a_worker_that_dies_is_named_and_so_is_where_it_was(stepped: Any) -> None:
    came, said, _ = stepped([Puppet("cpu 1", lambda job, tried: (job, tried) == (1, 1))], jobs(3))
    assert values(came) == [10, 11, 12]
    assert [line.split(" died")[0] for line in said] == ["worker cpu 1 (life 1)"]


def test_a_job_that_ends_its_workers_is_the_end_when_all_others_are_done(stepped: Any) -> None:
    puppets = [Puppet("a", lambda job, _: job == 4), Puppet("b", lambda job, _: job == 4)]
    came, _, tried = stepped(puppets, jobs(8))
    got: list[int] = []
    with pytest.raises(SpreadError, match=f"{LOSSES} workers died of one job.*plus of size 1"):
        got.extend(done.value for done in came)
    assert sorted(got) == [10, 11, 12, 13, 15, 16, 17]
    assert LOSSES <= tried[4] < 2 * LOSSES


def test_a_job_of_an_audit_that_ends_its_workers_is_named_by_its_part(stepped: Any) -> None:
    class Stepped(Local):
        def map(self, jobs: Any) -> Iterator[Done]:
            return stepped([Puppet("a", lambda *_: True)], jobs)[0]

    meter = Meter()
    with (
        meter.counting("weights"),
        pytest.raises(SpreadError, match=r"of one job \(\w{12}, weights: plus of size 1\)"),
    ):
        list(Metered(Stepped(), meter).map(jobs(1)))


def test_what_ended_workers_before_others_were_done_does_not_count(stepped: Any) -> None:
    came, said, _ = stepped([Puppet("a", lambda job, tried: job == 0 and tried <= LOSSES)], jobs(9))
    assert [done.value for done in came] == [*range(11, 19), 10]
    assert len(said) == LOSSES


def test_a_worker_that_does_not_begin_is_given_up_and_the_others_do_its_work(stepped: Any) -> None:
    puppets = [Puppet("well"), Puppet("never", begins=lambda life: False)]
    came, said, _ = stepped(puppets, jobs(12))
    assert values(came) == list(range(10, 22))
    assert puppets[1].lives <= LOSSES
    came, said, _ = stepped([Puppet("never", begins=lambda life: False)], jobs(1))
    with pytest.raises(SpreadError, match="no worker is left"):
        next(came)
    assert len(said) == 1
    assert "never does not begin" in said[0]


def test_a_worker_that_begins_later_is_waited_for(stepped: Any) -> None:
    came, said, _ = stepped([Puppet("slow", begins=lambda life: life == LOSSES)], jobs(2))
    assert values(came) == [10, 11]
    assert said == []


def test_jobs_are_drawn_as_workers_become_free(stepped: Any) -> None:
    drawn = 0

    def endless() -> Iterator[Job]:
        nonlocal drawn
        for job in jobs(1000):
            drawn += 1
            yield job

    puppets = [Puppet(str(i)) for i in range(3)]
    came, _, _ = stepped(puppets, endless())
    for done, _ in enumerate(came, 1):
        assert drawn <= done + IN_FLIGHT * len(puppets) + 1
    assert max(puppet.most for puppet in puppets) == IN_FLIGHT


def test_an_error_of_a_job_is_raised_here(stepped: Any) -> None:
    came, said, tried = stepped([Puppet("a")], [Job(plus, WHOLE, (-1,))])
    with pytest.raises(EduceError, match="-1 is below zero") as caught:
        next(came)
    assert type(caught.value) is MethodError
    assert any("In a worker" in note for note in caught.value.__notes__)
    assert said == []
    assert tried == {-1: 1}


def test_workers_begin_with_the_first_job(stepped: Any) -> None:
    puppets = [Puppet("a"), Puppet("b")]
    came, _, _ = stepped(puppets, [])
    assert list(came) == []
    assert [puppet.lives for puppet in puppets] == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_is_gathered_in_the_order_of_the_jobs(seed: int) -> None:
    class Shuffled(Local):
        def map(self, jobs: Any) -> Iterator[Done]:
            done = list(super().map(jobs))
            random.Random(seed).shuffle(done)
            yield from (one._replace(note="here") for one in done)

    told = Counter[str]()

    def step(steps: int, note: str) -> None:
        told[note] += steps

    some = [job._replace(size=i) for i, job in enumerate(jobs(9))]
    assert list(gathered(Shuffled(), some, step)) == list(range(10, 19))
    assert told == {"here": sum(range(9))}


def test_rates_are_told_by_worker(stepped: Any) -> None:
    came, _, _ = stepped([Puppet("a"), Puppet("b")], jobs(30))
    last = [done.note for done in came][-1]
    assert {part.split()[0] for part in last.split(", ")} == {"a", "b"}
    came, _, _ = stepped([Puppet(str(i)) for i in range(6)], jobs(60))
    assert [done.note for done in came][-1].startswith("6 workers, ")
