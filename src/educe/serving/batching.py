"""Batching: requests that come one by one are written together, a perturbation in each row.

    request ─► queue ─► (a few ms) ─► educe.generate, one call for each kind of perturbation

One thread has the model. What it takes from the queue together becomes one batch: the unperturbed
model, any perturbations of one kind, any temperatures and limits. What came in the meantime is the
next batch. A request draws by its own seed, so it is written alike beside any others.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from educe.errors import BusyError, EduceError, RunError
from educe.forward.decoding import Way, Written
from educe.forward.generation import Completion, generate
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.perturbation.kinds import Vectors
from educe.rows import Row
from educe.run.fill import Group, check_known, groups
from educe.run.settings import loaded, stored
from educe.run.store import Run

#: Seconds that a batch waits for others to come, the most rows of one, and the most that wait.
WAIT, ROWS, WAITING = 0.01, 64, 1024
#: The most tokens of an answer where nothing is said, as far as the model's context allows.
LIMIT = 512


class Asked:
    """One request, and what has been written of it.

    Attributes:
        number: The perturbation; 0 is the unperturbed model.
        gone: Set where nobody waits for it any more: it then leaves its batch.
        text: What is written so far, up to the first of the strings that stop it.
        written: Its tokens so far, with their log-likelihoods.
        stopped: Whether such a string has come.
        done: Gets the whole completion, or why there is none.
    """

    def __init__(
        self,
        number: int,
        prompt: Prompt,
        *,
        limit: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        top: int = 0,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.number, self.prompt, self.limit = number, prompt, limit
        self.temperature, self.seed, self.stop, self.top = temperature, seed, stop, top
        self.heard = heard
        self.gone = self.stopped = False
        self.text = ""
        self.read: PromptBatch | None = None  # the prompt as the model reads it
        self.written = Written([], [], False, [])
        self.done: Future[Completion] = Future()

    @property
    def sure(self) -> str:
        """The text so far without what the next token may still change or take away."""
        text = self.text.rstrip("�")
        if self.stopped:
            return text
        halves = (stop[:k] for stop in self.stop for k in range(1, len(stop)))
        return text[: len(text) - max((len(h) for h in halves if text.endswith(h)), default=0)]


class Batcher:
    """Writes what it is asked for, in a thread of its own.

    Args:
        lm: The model.
        groups: The perturbations that there are (see `educe.run.fill.groups`).
        chat: Whether texts go through the chat template; by default, when there is one.
        enable_thinking: For chat templates that know it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        groups: Sequence[Group],
        *,
        chat: bool | None = None,
        enable_thinking: bool | None = None,
    ) -> None:
        self.lm = lm
        self._how: dict[str, Any] = {"chat": chat, "enable_thinking": enable_thinking}
        self._of = {number: group for group in groups for number in group.numbers}
        self._queue: queue.Queue[Asked | None] = queue.Queue(WAITING)
        self._count = itertools.count()
        self.batches = deque[int](maxlen=WAITING)  #: rows of the latest batches
        self._thread = threading.Thread(target=self._work, name="educe-writing", daemon=True)
        self._thread.start()

    @classmethod
    def of_run(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        numbers: Sequence[int] | None = None,
        lm: LanguageModel | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> Batcher:
        """Return who writes under the perturbations of a run.

        Args:
            folder: The run.
            model: Where its model is now; by default where it was. It must be the same one.
            numbers: Which perturbations; by default all, derived ones too.
            lm: The model, when it is loaded.
            say: Is told what is no error.

        Raises:
            RunError: There is no such run or perturbation, or the model is another one.
        """
        with Run.open(folder) as run:
            s = stored(run)
            known = [p.id for p in run.perturbation_rows(derived=None)]
            wanted = known if numbers is None else [number for number in numbers if number]
            check_known(run, wanted, derived=None)
            lm = loaded(run, s if model is None else replace(s, model=model), say, lm)
            members = groups(run, wanted) if wanted else []
        return cls(lm, members, chat=s.chat, enable_thinking=s.enable_thinking)

    @property
    def numbers(self) -> list[int]:
        """The perturbations that there are."""
        return sorted(self._of)

    def has(self, number: int) -> bool:
        """Return whether there is such a perturbation; 0 is the unperturbed model."""
        return number == 0 or number in self._of

    def ask(self, asked: Asked) -> Future[Completion]:
        """Ask for an answer; `Asked.heard` is called after each token, in the writing thread.

        Raises:
            RunError: There is no such perturbation.
            PromptError: The prompt is none, or does not fit the context with the tokens asked for.
            PositionsError: It has not the tokens at which the perturbation is added.
            BusyError: Too much waits already.
        """
        if not self.has(asked.number):
            raise RunError(
                f"the run has no perturbation {asked.number}: see educe show for its numbers"
            )
        asked.read = self.lm.encode([self._plain(asked.prompt)], room=asked.limit or 1, **self._how)
        if asked.number:  # here, where it is no error of others in its batch
            asked.read.at(self._of[asked.number].kind.positions)
        if asked.limit is None:
            asked.limit = min(LIMIT, (self.lm.context or 2**30) - asked.read.lengths[0])
        try:
            self._queue.put_nowait(asked)
        except queue.Full:
            raise BusyError(f"{WAITING} requests wait already: ask again later") from None
        return asked.done

    def close(self) -> None:
        """End after what is being written; what waits is not written any more."""
        self._queue.put(None)
        self._thread.join()

    def _plain(self, prompt: Prompt) -> Prompt:
        """Return a message alone as a text where the model has no template for messages."""
        if self.lm.tokenizer.chat_template or isinstance(prompt, str) or len(prompt) != 1:
            return prompt
        return str(prompt[0]["content"]) if prompt[0].get("role") == "user" else prompt

    # -- in the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            some: list[Asked | None] = [first]
            until = time.monotonic() + WAIT
            while len(some) < ROWS and some[-1] is not None:
                try:
                    some.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
                except queue.Empty:
                    break
            here = [asked for asked in some if asked is not None]
            for asked in here:
                if asked.gone:
                    asked.done.cancel()
            self._write([asked for asked in here if not asked.gone])
            if some[-1] is None:
                break
        while not self._queue.empty():
            if (left := self._queue.get()) is not None:
                left.done.cancel()

    def _write(self, some: Sequence[Asked]) -> None:
        nothing = Vectors(0, self.lm.width)
        kinds = {asked.number: self._of[asked.number].kind for asked in some if asked.number}
        first = next(iter(kinds.values()), nothing)  # rows without perturbation go with these
        batches: dict[object, list[Asked]] = {}
        for asked in some:
            batches.setdefault(kinds.get(asked.number, first), []).append(asked)
        for own in batches.values():
            try:
                self._batch(own)
            except Exception as error:  # whatever it is, each of them waits for an answer
                if not isinstance(error, EduceError):
                    error = RunError(f"the model could not answer: {type(error).__name__}: {error}")
                for asked in own:
                    if not asked.done.done():
                        asked.done.set_exception(error)

    def _batch(self, some: Sequence[Asked]) -> None:
        """Write requests under perturbations of one kind."""
        self.batches.append(len(some))
        batch = reduce(PromptBatch.followed_by, (asked.read for asked in some if asked.read))
        rows = {Row(asked.number, place): asked for place, asked in enumerate(some)}
        numbers = sorted({asked.number for asked in some} - {0})
        kind = theta = None
        if numbers:
            group = self._of[numbers[0]]
            at = torch.tensor([group.numbers.index(number) for number in numbers])
            kind = group.kind.select(at)
            theta = kind.scaled(group.directions[at], group.radius[at][:, None])

        def told(row: Row, written: Written) -> bool:
            return self._heard(rows[row], written)

        for came in generate(
            self.lm,
            batch,
            list(rows),
            theta,
            kind=kind,
            numbers=numbers or None,
            told=told,
            ways={row: self._way(asked) for row, asked in rows.items()},
            top=max(asked.top for asked in some),
        ):
            for completion in came:
                asked = rows[completion.row]
                if not asked.stopped:
                    asked.text = completion.text
                with suppress(InvalidStateError):  # nobody waits any more
                    asked.done.set_result(completion)

    def _way(self, asked: Asked) -> Way:
        own = f"seed {asked.seed}" if asked.seed is not None else f"request {next(self._count)}"
        assert asked.limit is not None
        return Way(asked.limit, asked.temperature, own)

    def _heard(self, asked: Asked, written: Written) -> bool:
        """Note what is written of a request; return whether that is enough."""
        asked.written = written
        asked.text = self.lm.text(written.tokens, skip_special_tokens=True)
        ends = [at for stop in asked.stop if (at := asked.text.find(stop)) >= 0]
        if ends:
            asked.text, asked.stopped = asked.text[: min(ends)], True
        asked.heard()
        return asked.stopped or asked.gone
