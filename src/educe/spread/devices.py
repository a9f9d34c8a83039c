"""Devices: a process for each GPU of this machine, or several with one thread each without one.

Each process has a pipe of its own to this one, by which it gets one job after the other, and a
thread here that waits for it. The other end of the pipe is nobody else's: whenever the process
dies, even in the middle of an answer, the thread reads the end of the pipe and nothing hangs; and a
process whose pipe ends has lost whoever gave it work, and ends too. Where the system can, processes
are forked from a server that has imported torch and never touched a device, so that a new one is
there at once. Without a GPU the server has imported all that this process had.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from educe.errors import SpreadError
from educe.spread.jobs import Job
from educe.spread.packing import Bench

#: Packages whose modules take seconds to import; some modules touch a GPU where there is one.
PRELOADED = ("educe", "transformers")


class Process:
    """A process that does jobs, as `educe.spread.loop.Worker` has it.

    Args:
        name: For a person.
        device: The device that it computes on.
    """

    #: What a pipe raises whose other end is gone, or ends within a message.
    lost: tuple[type[BaseException], ...] = (EOFError, OSError)

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self._process: BaseProcess | None = None

    def begin(self) -> Future[str]:
        """Begin, or begin anew."""
        self.end()
        self._pipe, theirs = multiprocessing.Pipe()
        self._waiting = ThreadPoolExecutor(1)
        self._process = _context(self.device).Process(
            target=_work, args=(theirs, self.device, os.getcwd()), daemon=True
        )
        try:
            self._process.start()
        finally:
            theirs.close()
        return self._waiting.submit(self._pipe.recv)

    def submit(self, job: Job) -> Future[bytes]:
        """Give it a job, which it gets when it has done those before."""
        given = job.packed, job.shared.key, job.shared.packed
        return self._waiting.submit(self._done, given)

    def _done(self, given: tuple[bytes, str, bytes]) -> bytes:
        self._pipe.send(given)
        return self._pipe.recv_bytes()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        if self._process.pid is not None:  # it has begun
            self._process.kill()
            self._process.join()
        self._waiting.shutdown(cancel_futures=True)
        self._pipe.close()
        self._process = None


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


def _context(device: str) -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    known = [m for m in sys.modules if m.split(".")[0] in PRELOADED]
    context.set_forkserver_preload(known if device == "cpu" else [__name__])
    return context


def _work(pipe: Connection, device: str, folder: str) -> None:
    """Be a worker: say where, then do what comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for who began it, which ends this one
    jobs: SimpleQueue[tuple[bytes, str, bytes]] = SimpleQueue()
    Thread(target=_listen, args=(pipe, jobs), daemon=True).start()
    bench = Bench(device, folder)
    with suppress(OSError):  # whoever would read it is gone
        pipe.send(f"process {os.getpid()}")
        while True:
            pipe.send_bytes(bench.do(*jobs.get()))


def _listen(pipe: Connection, jobs: SimpleQueue[tuple[bytes, str, bytes]]) -> None:
    """Take jobs; end this process when the pipe ends, as it does when whoever gave them is gone."""
    try:
        while True:
            jobs.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)
