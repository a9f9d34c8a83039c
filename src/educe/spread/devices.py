"""Devices: a process for each GPU of this machine, or several with one thread each without one.

Each is a pool of the standard library with one process, so that one that dies is known by its name
and takes no other with it. Where the system can, they are forked from a server that has imported
torch and never touched a device, so that a new one is there at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from threading import Thread

import torch

from educe.errors import SpreadError
from educe.spread.jobs import Job
from educe.spread.packing import Bench

_bench: Bench


class Process:
    """A process that does jobs, as `educe.spread.loop.Worker` has it.

    Args:
        name: For a person.
        device: The device that it computes on.
    """

    #: The last two where it is killed in the instant in which it is forked.
    lost: tuple[type[BaseException], ...] = (BrokenProcessPool, EOFError, ConnectionError)

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self._pool: ProcessPoolExecutor | None = None
        self._leash: Connection | None = None

    def begin(self) -> Future[str]:
        """Begin, or begin anew."""
        self.end()
        held, self._leash = multiprocessing.Pipe(duplex=False)
        given = (self.device, os.getcwd(), held)
        self._pool = ProcessPoolExecutor(1, _context(), initializer=_prepare, initargs=given)
        try:
            return self._pool.submit(_whoami)
        finally:
            held.close()  # it has its own end now

    def submit(self, job: Job) -> Future[bytes]:
        """Give it a job."""
        assert self._pool is not None, "it has begun"
        return self._pool.submit(_do, job.packed, job.shared.key, job.shared.packed)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._pool is not None and self._leash is not None:
            self._leash.close()
            self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def processes(workers: int | None) -> Iterator[list[Process]]:
    """Have processes for the devices of this machine in a ``with`` statement.

    Args:
        workers: How many; by default one for each GPU, or for each core where there is none.

    Raises:
        SpreadError: There are fewer GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus and (workers or 0) > gpus:
        raise SpreadError(f"this machine has {gpus} GPUs, and each worker needs one: --workers")
    if gpus:
        made = [Process(f"cuda:{i}", f"cuda:{i}") for i in range(workers or gpus)]
    else:
        made = [Process(f"cpu {i + 1}", "cpu") for i in range(workers or _cores())]
    try:
        yield made
    finally:
        for process in made:
            process.end()


def _cores() -> int:
    there = getattr(os, "sched_getaffinity", None)
    return len(there(0)) if there else os.cpu_count() or 1


def _context() -> multiprocessing.context.BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _prepare(device: str, folder: str, leash: Connection) -> None:
    """Make this process a worker."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for who began it, which ends this one
    Thread(target=_follow, args=(leash,), daemon=True).start()
    _bench = Bench(device, folder)


def _follow(leash: Connection) -> None:
    """End this process when the other end is closed, as it is when its process ends in any way."""
    with suppress(EOFError):
        leash.recv()
    os._exit(1)


def _whoami() -> str:
    return f"process {os.getpid()}"


def _do(job: bytes, key: str, shared: bytes) -> bytes:
    return _bench.do(job, key, shared)
