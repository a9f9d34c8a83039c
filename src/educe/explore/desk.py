"""Desk: the one thread that has a model, and the jobs that wait for it, one after the other.

A `Job` tells as it goes on: that it waits, that the model is being loaded, the text so far, and
what it came to. It ends early where nobody listens any more. The model of a run is loaded when it
is needed first, and leaves memory where a run with another model asks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.errors import BusyError, EduceError
from educe.options import EMBEDDED, ModelOptions
from educe.run.store import Run

if TYPE_CHECKING:
    from educe.model.language import LanguageModel
    from educe.run.settings import Settings

#: Jobs that wait at most, beside the one at work.
WAITING = 8

Tell = Callable[[dict[str, Any]], None]


class Cancelled(Exception):  # noqa: N818 - it is no error that anybody sees
    """Nobody listens any more."""


class Job:
    """Something for the thread with the model to do.

    Args:
        work: Does it, and tells of it.
        tell: Is told, from that thread.
    """

    def __init__(self, work: Callable[[Job], dict[str, Any]], tell: Tell) -> None:
        self.work, self.tell = work, tell
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End it as soon as may be."""
        self._cancelled.set()

    def check(self) -> None:
        """Go on.

        Raises:
            Cancelled: Nobody listens any more.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def say(self, sentence: str) -> None:
        """Tell a sentence, such as that the model is being loaded."""
        self.check()
        self.tell({"say": sentence})


class Desk:
    """The thread with the model, and the jobs that wait for it.

    Args:
        folders: Of the runs.
        options: How models are loaded, where this differs from how the runs had it.
        lm: The model of all of them, where it is loaded already.

    Attributes:
        changed: How models are loaded otherwise than the runs had it.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        options: ModelOptions = EMBEDDED,
        lm: LanguageModel | None = None,
    ) -> None:
        self.folders, self._given = list(folders), lm
        self.changed = {
            f.name: value
            for f in fields(ModelOptions)
            if (value := getattr(options, f.name)) != getattr(EMBEDDED, f.name)
        }
        self._loaded: tuple[ModelOptions, LanguageModel] | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue(WAITING)
        self._now: Job | None = None
        self._thread = threading.Thread(target=self._serve, name="writing", daemon=True)
        self._thread.start()

    def take(self, job: Job) -> None:
        """Do a job when those before it are done.

        Raises:
            BusyError: Too many wait.
        """
        ahead = self._jobs.qsize() + (self._now is not None)
        job.tell({"waiting": ahead})
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise BusyError(f"{WAITING} texts wait to be written: wait, or stop one") from None

    def close(self) -> None:
        """End the job at work, and the thread."""
        while not self._jobs.empty():
            self._jobs.get_nowait()
        if self._now is not None:
            self._now.cancel()
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._now = job
            try:
                job.check()
                job.tell({"done": job.work(job)})
            except Cancelled:
                job.tell({"stopped": True})
            except EduceError as error:
                job.tell({"error": str(error)})
            except Exception as error:  # the thread lives on, and the page says it
                job.tell({"error": f"educe failed: {type(error).__name__}: {error}"})
            finally:
                self._now = None

    def model(self, job: Job, run: Run, settings: Settings) -> LanguageModel:
        """Return the model of a run, which is loaded if it is not the last one.

        Raises:
            RunError: It is another one now than when the run was made.
        """
        from educe.run.settings import loaded
        from educe.threads import choose

        own = {f.name: getattr(settings, f.name) for f in fields(ModelOptions)}
        options = ModelOptions(**own | self.changed)
        if self._given is not None:
            return loaded(run, settings, job.say, self._given)
        if self._loaded is None or self._loaded[0] != options:
            self._loaded = None  # before the next one, so that only one is in memory
            job.say(f"loading {options.model}")
            choose(job.say)
            lm = loaded(run, replace(settings, **self.changed), job.say)
            self._loaded = (options, lm)
            return lm
        return loaded(run, settings, lambda sentence: None, self._loaded[1])
