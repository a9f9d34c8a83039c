"""How many threads to compute with.

Threads that wait for each other at every matrix product lose far more than they gain when another
process takes one of their cores: two beside one busy process ran 8 to 12 times slower than one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch


def choose(say: Callable[[str], None]) -> int:
    """Use the cores that are idle now, at least one, unless ``OMP_NUM_THREADS`` says otherwise."""
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return torch.get_num_threads()
    cores = (
        len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count() or 1
    )
    busy = round(sum(psutil.cpu_percent(interval=0.5, percpu=True)) / 100)
    threads = max(1, min(torch.get_num_threads(), cores - busy))
    if threads < torch.get_num_threads():
        say(f"{busy} of {cores} cores are busy: computing with {threads}")
    torch.set_num_threads(threads)
    return threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for a time: another number of them rounds differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
