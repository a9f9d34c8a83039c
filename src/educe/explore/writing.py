"""Writing: the one thread that has a model, and what it is asked for, one after the other.

A `Job` tells as it goes on: that it waits, that the model is being loaded, the text so far, and
what it came to. It ends early where nobody listens any more. The model of a run is loaded when it
is needed first, and leaves memory where a run with another model asks.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.errors import BusyError, EduceError, MethodError, PromptError, RunError, SteeringError
from educe.explore.bundle import shown
from educe.options import EMBEDDED, ModelOptions
from educe.rows import FIRST, Row
from educe.run.store import Run

if TYPE_CHECKING:
    from torch import Tensor

    from educe.model.language import LanguageModel
    from educe.model.rendering import PromptBatch
    from educe.perturbation.kind import Kind
    from educe.run.settings import Settings

#: Jobs that wait at most, beside the one at work.
WAITING = 8
#: The longest text that is written, in tokens, and prompt that is read, in signs.
LONGEST, LONGEST_PROMPT = 1024, 20_000
#: Perturbations that act together at most.
TOGETHER = 8
#: Seconds between two tellings of a text that is being written.
PACE = 0.05

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Piece:
    """A perturbation at some radius."""

    id: int
    radius: float  #: negative for the other sign


@dataclass(frozen=True)
class Asked:
    """What is to be written, or read.

    Attributes:
        run: Which run.
        prompt: A prompt of the run by its number, or a text.
        pieces: Perturbations that are added; none for the model as it is.
        positions: Where they are added; as they were found where this is None.
        temperature: 0 for the likeliest token.
        sample: Which of several samples, at a temperature.
        tokens: The most tokens; as in the run where this is None.
        text: Tokens that are read instead of writing any.
    """

    run: int
    prompt: int | str
    pieces: tuple[Piece, ...] = ()
    positions: str | None = None
    temperature: float = 0.0
    sample: int = 0
    tokens: int | None = None
    text: tuple[int, ...] = ()

    def check(self) -> None:
        """Make sure that this can be asked for.

        Raises:
            MethodError: A number or a name is none.
        """
        numbers = (self.temperature, *(piece.radius for piece in self.pieces))
        whole = (self.sample, *([] if self.tokens is None else [self.tokens]))
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise MethodError("temperature and radius are numbers")
        if self.temperature < 0 or not all(type(n) is int and n >= 0 for n in whole):
            raise MethodError("temperature, sample and tokens are 0 or more")
        if type(self.prompt) not in (int, str) or not isinstance(self.positions, str | None):
            raise MethodError("a prompt is a number or a text, positions are a text")
        if len(self.text) > LONGEST or len(self.pieces) > TOGETHER:
            raise MethodError(f"{LONGEST} tokens and {TOGETHER} perturbations at most")


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
    """

    def __init__(
        self,
        folders: Sequence[Path],
        options: ModelOptions = EMBEDDED,
        lm: LanguageModel | None = None,
    ) -> None:
        self.folders, self._given = list(folders), lm
        self._changed = {
            f.name: value
            for f in fields(ModelOptions)
            if (value := getattr(options, f.name)) != getattr(EMBEDDED, f.name)
        }
        self._loaded: tuple[ModelOptions, LanguageModel] | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue(WAITING)
        self._now: Job | None = None
        self._thread = threading.Thread(target=self._serve, name="writing", daemon=True)
        self._thread.start()

    @property
    def loaded(self) -> bool:
        """Whether a model is in memory."""
        return self._loaded is not None

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

    # -- what jobs do --------------------------------------------------------------------------

    def write(self, job: Job, asked: Asked) -> dict[str, Any]:
        """Write a text, as `educe.generate` does; return it with its tokens."""
        from educe.forward.generation import generate

        with Run.open(self.folders[asked.run]) as run:
            lm, batch, row, kind, theta = self._ready(job, run, asked)
            limit = _limit(asked, run)
            last = 0.0

            def told(row: Row, tokens: Sequence[int]) -> None:
                nonlocal last
                job.check()
                if time.monotonic() - last > PACE:
                    last = time.monotonic()
                    text = lm.text(tokens, skip_special_tokens=True)
                    job.tell({"text": shown(text), "tokens": len(tokens)})

            ((done,),) = generate(
                lm,
                batch,
                [row],
                theta,
                kind=kind,
                numbers=[row.perturbation] if row.perturbation else None,
                max_new_tokens=limit,
                temperature=asked.temperature,
                seed=run.config["seed"],
                told=told,
            )
        return {
            "text": shown(done.text),
            "tokens": list(done.tokens),
            "finished": done.finished,
            "logprob": sum(done.logprobs) / len(done.logprobs) if done.logprobs else None,
        }

    def read(self, job: Job, asked: Asked) -> dict[str, Any]:
        """Read a text: how it surprises the model, and where along depth its stream differs.

        Returns:
            For each token its text, ``base`` and ``own``: the nats by which it surprises the
            unperturbed and the perturbed model, ``kl`` between both there; and for each ``layer``
            the ``shift`` of the stream at each token, as a share of its norm.
        """
        from educe.forward.forced import Forced

        if not asked.text:
            raise PromptError("there is no token to read: write a text first")
        with Run.open(self.folders[asked.run]) as run:
            lm, batch, row, kind, theta = self._ready(job, run, asked)
            some = batch.select([row.prompt]).trimmed()
            before = kind.before if kind is not None else 0
            texts = Forced(lm, some, [asked.text], before=before)
            base = -texts.likelihood(texts.under(_unchanged()))[0, 0]
            found: dict[str, Any] = {"token": _pieces(lm, asked.text), "base": _list(base)}
            if kind is not None and theta is not None:
                layers = list(range(before, lm.depth))
                still = texts.under(_unchanged(), layers).streams
                job.check()
                (moved,) = texts.read(theta, kind, layers)
                n = len(asked.text)
                shift = [
                    (moved.streams[i] - still[i])[0, 0, -n:].norm(dim=-1)
                    / still[i][0, 0, -n:].norm(dim=-1)
                    for i in layers
                ]
                found |= {
                    "own": _list(-texts.likelihood(moved)[0, 0]),
                    "kl": _list(texts.divergence(moved)[0, 0]),
                    "layer": layers,
                    "shift": [_list(row) for row in shift],
                }
        return found

    def _ready(
        self, job: Job, run: Run, asked: Asked
    ) -> tuple[LanguageModel, PromptBatch, Row, Kind | None, Tensor | None]:
        """Return the model, the prompts, the row to be written, and what perturbs it."""
        from educe.run.settings import encoded, stored

        settings = stored(run)
        lm = self._model(job, run, settings)
        job.check()
        number = asked.pieces[0].id if asked.pieces else 0
        settings = replace(settings, max_new_tokens=_limit(asked, run))
        if isinstance(asked.prompt, str):
            if len(asked.prompt) > LONGEST_PROMPT:
                raise PromptError(
                    f"a prompt of {len(asked.prompt)} signs is too long: {LONGEST_PROMPT} at most"
                )
            contents, place = [asked.prompt], 0
        else:
            contents, place = [p.content for p in run.prompt_rows()], asked.prompt
            if not 0 <= place < len(contents):
                raise PromptError(f"the run has no prompt {place}")
        batch = encoded(lm, settings, contents)
        row = Row(number, place, asked.sample, FIRST)
        if not asked.pieces:
            return lm, batch, row, None, None
        kind, theta = together(run, asked.pieces, asked.positions)
        return lm, batch, row, kind, theta

    def _model(self, job: Job, run: Run, settings: Settings) -> LanguageModel:
        """Return the model of a run, which is loaded if it is not the last one."""
        from educe.run.settings import loaded
        from educe.threads import choose

        own = {f.name: getattr(settings, f.name) for f in fields(ModelOptions)}
        options = ModelOptions(**own | self._changed)
        if self._given is not None:
            return loaded(run, settings, job.say, self._given)
        if self._loaded is None or self._loaded[0] != options:
            self._loaded = None  # before the next one, so that only one is in memory
            job.say(f"loading {options.model}")
            choose(job.say)
            lm = loaded(run, replace(settings, **self._changed), job.say)
            self._loaded = (options, lm)
            return lm
        return loaded(run, settings, lambda sentence: None, self._loaded[1])


def together(run: Run, pieces: Sequence[Piece], positions: str | None) -> tuple[Kind, Tensor]:
    """Return the kind and the numbers, ``[1, size]``, of perturbations that are added.

    One may be of any kind. Several are vectors: after one block they are summed, after several
    blocks they act on all tokens.

    Raises:
        SteeringError: They cannot be added, or not at these positions.
        RunError: There is no such perturbation.
    """
    import torch

    from educe.perturbation.kinds import Joint, Vectors, Within
    from educe.perturbation.positions import check
    from educe.run.fill import check_known, groups

    if positions is not None:
        check(positions)
    check_known(run, [piece.id for piece in pieces], derived=None)
    whole = []
    for piece in pieces:
        (group,) = groups(run, [piece.id])
        whole.append(
            (group.kind, group.kind.scaled(group.directions, torch.tensor([[piece.radius]])))
        )
    (kind, theta), *rest = whole
    if not rest:
        if positions is None or positions == kind.positions:
            return kind, theta
        if not any(f.name == "positions" for f in fields(kind)):  # type: ignore[arg-type]
            raise SteeringError(
                f"{kind.name} act on {kind.positions} tokens: leave positions as they are"
            )
        return replace(kind, positions=positions), theta  # type: ignore[type-var]
    places = sorted({k.positions for k, _ in whole}) if positions is None else [positions]
    rows, layers = [], []
    for k, own in whole:
        if not isinstance(k, Vectors | Within):
            raise SteeringError(f"{k.name} cannot be added to others: choose vectors")
        rows.append(own if isinstance(k, Vectors) else own @ k.rows)
        layers.append(k.layer)
    if len(places) > 1:
        raise SteeringError(f"these act at different positions, {' and '.join(places)}: choose one")
    if len({*layers}) == 1:
        total = torch.cat(rows).sum(0, keepdim=True)
        return Vectors(layers[0], total.shape[1], places[0]), total
    if places != ["all"]:
        raise SteeringError("vectors after different blocks act together on all tokens alone")
    after = sorted({*layers})
    stacked = torch.zeros(len(rows), len(after), rows[0].shape[1])
    for i, (layer, own) in enumerate(zip(layers, rows, strict=True)):
        stacked[i, after.index(layer)] = own[0]
    return Joint(tuple(after), stacked), torch.ones(1, len(rows))


def _limit(asked: Asked, run: Run) -> int:
    limit = asked.tokens or int(run.config["max_new_tokens"])
    if not 0 < limit <= LONGEST:
        raise RunError(f"{limit} tokens: ask for 1 to {LONGEST}")
    return limit


def _unchanged() -> Any:
    from educe.forward.forced import UNCHANGED

    return UNCHANGED


def _pieces(lm: LanguageModel, tokens: Sequence[int]) -> list[str | list[str]]:
    """Return what each token adds to the text; what ends in half a sign waits for the next."""
    said, pieces = "", []
    for i in range(1, len(tokens) + 1):
        text = lm.text(tokens[:i])
        whole = text if i == len(tokens) or not text.endswith("\ufffd") else said
        pieces.append(shown(whole[len(said) :]))
        said = whole
    return pieces


def _list(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.double().tolist()]
