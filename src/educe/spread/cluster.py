"""Cluster: Ray actors, one for each GPU or core of a cluster, which have the model each.

Ray restarts an actor whose process or node died, elsewhere if it must. A job that was lost with it
is not Ray's to repeat: the loop names the actor, and gives the job to one that is there. What jobs
share lies in Ray's object store, once for each node.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from educe.errors import SpreadError
from educe.spread.jobs import Job, Shared

try:
    import ray
except ImportError as error:
    raise SpreadError("--on ray needs Ray: pip install 'educe[ray]'") from error

#: How often Ray begins an actor again.
RESTARTS = 100
#: Seconds within which a cluster's head answers.
PATIENCE = 10.0


class Remote:
    """An actor, as `educe.spread.loop.Worker` has it.

    Args:
        name: For a person.
        gpu: Whether it has a GPU, or else a core.
        store: What of that which jobs share lies in the object store.
    """

    lost: tuple[type[BaseException], ...] = (
        ray.exceptions.RayActorError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.WorkerCrashedError,
    )

    def __init__(self, name: str, gpu: bool, store: WeakKeyDictionary[Shared, Any]) -> None:
        self.name, self._store = name, store
        self.actor: Any = None
        self._made = partial(
            ray.remote(_Actor)
            .options(
                num_gpus=int(gpu),
                num_cpus=int(not gpu),
                max_restarts=RESTARTS,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            .remote,
            "cuda" if gpu else "cpu",
            os.getcwd(),
        )

    def begin(self) -> Future[str]:
        """Begin, or wait until Ray has begun it anew."""
        if self.actor is None:
            self.actor = self._made()
        return self.actor.whoami.options(max_task_retries=-1).remote().future()

    def submit(self, job: Job) -> Future[bytes]:
        """Give it a job."""
        if job.shared not in self._store:
            self._store[job.shared] = ray.put(job.shared.packed)
        return self.actor.do.remote(job.packed, job.shared.key, self._store[job.shared]).future()


class _Actor:
    """What runs on the cluster."""

    def __init__(self, device: str, folder: str) -> None:
        from educe.spread.packing import Bench

        self.bench = Bench(device, folder)

    def whoami(self) -> str:
        return f"process {os.getpid()} on {socket.gethostname()}"

    def do(self, job: bytes, key: str, shared: bytes) -> bytes:
        return self.bench.do(job, key, shared)


@contextmanager
def actors(address: str, workers: int | None) -> Iterator[list[Remote]]:
    """Have actors in a ``with`` statement.

    Args:
        address: Of a cluster that runs, as ``ray start`` says it; empty for one of this machine's
            own, which ends with the statement.
        workers: How many; by default one for each GPU of the cluster, or for each core.

    Raises:
        SpreadError: No cluster is there, or it has fewer GPUs or cores.
    """
    try:
        if address:  # where nobody listens, Ray waits for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        ray.init(
            address or "local",
            include_dashboard=False if not address else None,
            logging_level="warning",
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise SpreadError(
            f"there is no Ray cluster at {address or 'this machine'}: {error}"
        ) from error
    made: list[Remote] = []
    try:
        has = ray.cluster_resources()
        gpu = has.get("GPU", 0) > 0
        room = int(has.get("GPU" if gpu else "CPU", 0))
        if not room or (workers or 0) > room:
            raise SpreadError(
                f"the cluster has {room} {'GPUs' if gpu else 'cores'}, and each worker needs one: "
                "--workers"
            )
        store: WeakKeyDictionary[Shared, Any] = WeakKeyDictionary()
        made += [Remote(f"ray {i + 1}", gpu, store) for i in range(workers or room)]
        yield made
    finally:
        for one in made:
            if one.actor is not None:
                ray.kill(one.actor)
        ray.shutdown()
