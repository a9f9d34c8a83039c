"""Writing: what the desk is asked for, a text under perturbations at any radius, a look into it.

`write` is `educe.generate` with a listener, `read` is teacher forcing of what was written, `curve`
the effect at the run's target as the radius grows, and `keep` has what was written in the run. Each
returns plain JSON.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from educe.errors import MethodError, PromptError, SteeringError
from educe.explore import frames
from educe.explore.bundle import shown
from educe.explore.desk import Desk, Job
from educe.rows import FIRST, OWN, CompletionRow, PromptRow, Row
from educe.run import marks
from educe.run.store import Run

if TYPE_CHECKING:
    from torch import Tensor

    from educe.forward.decoding import Written
    from educe.model.batch import PromptBatch
    from educe.model.language import LanguageModel
    from educe.perturbation.kind import Kind
    from educe.run.settings import Settings

#: The longest text that is written, in tokens, and prompt that is read, in signs.
LONGEST, LONGEST_PROMPT = 1024, 20_000
#: Perturbations that act together at most.
TOGETHER = 8
#: Seconds between two tellings of a text that is being written.
PACE = 0.05
#: Shares of its radius at which the effect of a perturbation is measured, for both signs.
SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


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

    @property
    def words(self) -> str:
        """How ``educe write`` is asked for the same; the prompt and the length are left out."""
        said = [f"{piece.id}:{piece.radius}" for piece in self.pieces]
        said += [f"--positions {self.positions}"] if self.positions else []
        said += [f"--temperature {self.temperature}"] if self.temperature else []
        return " ".join([*said, *([f"--sample {self.sample}"] if self.temperature else [])])

    def check(self) -> None:
        """Make sure that this can be asked for.

        Raises:
            MethodError: A number or a name is none.
            PromptError: The prompt is too long.
        """
        numbers = (self.temperature, *(piece.radius for piece in self.pieces))
        whole = (self.sample, *([] if self.tokens is None else [self.tokens]))
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise MethodError("temperature and radius are numbers")
        if self.temperature < 0 or not all(type(n) is int and n >= 0 for n in whole):
            raise MethodError("temperature, sample and tokens are 0 or more")
        if type(self.prompt) not in (int, str) or not isinstance(self.positions, str | None):
            raise MethodError("a prompt is a number or a text, positions are a text")
        if not 0 < (LONGEST if self.tokens is None else self.tokens) <= LONGEST:
            raise MethodError(f"{self.tokens} tokens: ask for 1 to {LONGEST}")
        if isinstance(self.prompt, str) and len(self.prompt) > LONGEST_PROMPT:
            signs = len(self.prompt)
            raise PromptError(f"a prompt of {signs} signs is too long: {LONGEST_PROMPT} at most")
        if len(self.text) > LONGEST or len(self.pieces) > TOGETHER:
            raise MethodError(f"{LONGEST} tokens and {TOGETHER} perturbations at most")


class Ready(NamedTuple):
    """All that a job needs: the model, the prompts, what to write, and what perturbs it."""

    lm: LanguageModel
    settings: Settings
    batch: PromptBatch
    row: Row
    kind: Kind | None  #: None for the model as it is
    theta: Tensor | None  #: ``[1, size]``


def write(desk: Desk, job: Job, asked: Asked) -> dict[str, Any]:
    """Write a text, as `educe.generate` does; return it with its tokens."""
    from educe.forward.generation import generate

    lm, settings, batch, row, kind, theta = ready(desk, job, asked)
    last = 0.0

    def told(row: Row, written: Written) -> None:
        nonlocal last
        job.check()
        if time.monotonic() - last > PACE:
            last = time.monotonic()
            text = lm.text(written.tokens, skip_special_tokens=True)
            job.tell({"text": shown(text), "tokens": len(written.tokens)})

    ((done,),) = generate(
        lm,
        batch,
        [row],
        theta,
        kind=kind,
        numbers=[row.perturbation] if row.perturbation else None,
        max_new_tokens=settings.max_new_tokens,
        temperature=asked.temperature,
        seed=settings.seed,
        told=told,
    )
    return {"text": shown(done.text), "tokens": list(done.tokens), "finished": done.finished}


def read(desk: Desk, job: Job, asked: Asked) -> dict[str, Any]:
    """Read a text: how it surprises the model, and where along depth its stream differs.

    Returns:
        For each token its text, ``base`` and ``own``: the nats by which it surprises the
        unperturbed and the perturbed model, ``kl`` between both there; and for each ``layer`` the
        ``shift`` of the stream at each token, as a share of its norm.
    """
    from educe.forward.forced import UNCHANGED, Forced

    if not asked.text:
        raise PromptError("there is no token to read: write a text first")
    lm, _, batch, row, kind, theta = ready(desk, job, asked)
    texts = Forced(
        lm,
        batch.select([row.prompt]).trimmed(),
        [asked.text],
        before=0 if kind is None else kind.before,
    )
    layers = [] if kind is None else list(range(kind.before, lm.depth))
    still = texts.under(UNCHANGED, layers)
    found: dict[str, Any] = {
        "token": _pieces(lm, asked.text),
        "base": _list(-texts.likelihood(still)[0, 0]),
    }
    if kind is None or theta is None:
        return found
    job.check()
    (moved,) = texts.read(theta, kind, layers)
    # The token at a place comes of the stream at the place before it.
    at = slice(-len(asked.text), None)
    streams = [(still.streams[i][0, 0, at], moved.streams[i][0, 0, at]) for i in layers]
    shift = [_list((own - base).norm(dim=-1) / base.norm(dim=-1)) for base, own in streams]
    return found | {
        "own": _list(-texts.likelihood(moved)[0, 0]),
        "kl": _list(texts.divergence(moved)[0, 0]),
        "layer": layers,
        "shift": shift,
    }


def keep(desk: Desk, job: Job, asked: Asked) -> dict[str, Any]:
    """Keep a text that was written, so that it can be marked; return the ``id`` of its row."""
    if not asked.text:
        raise PromptError("there is no text to keep: write one first")
    lm, settings, batch, row, *_ = ready(desk, job, asked)
    text = lm.text(asked.text, skip_special_tokens=True)
    ended = len(asked.text) < settings.max_new_tokens
    written = CompletionRow(row, asked.temperature, text, asked.text, ended)
    own = None
    if isinstance(asked.prompt, str):
        read = batch.read[row.prompt]
        own = PromptRow(0, OWN, asked.prompt, lm.text(read), len(read))
    with Run.open(desk.folders[asked.run]) as run:
        return {"id": frames.number(run, marks.keep(run, written, asked.words, own))}


def curve(desk: Desk, job: Job, asked: Asked) -> dict[str, Any]:
    """Measure the effect of the first perturbation at `SHARES` of its radius, of both signs.

    Returns:
        ``radius`` and ``effect``, the norm of the change at the run's target.
    """

    from educe.forward.slice import Slice
    from educe.run.settings import encoded

    if not asked.pieces:
        raise SteeringError("name a perturbation, whose effect is measured")
    lm, settings, *_, kind, _ = ready(desk, job, asked)
    assert kind is not None
    with Run.open(desk.folders[asked.run]) as run:
        facts = run.note("facts")
        first = asked.pieces[0]
        radii = sorted({s * sign * abs(first.radius) for s in SHARES for sign in (-1, 1)})
        rows = [together(run, [Piece(first.id, radius)], asked.positions)[1] for radius in radii]
    part = Slice(
        lm,
        encoded(lm, settings, settings.prompts),
        source=facts["source"],
        target=facts["target"],
        positions=facts["positions"],
        readout=settings.readout,
    ).on(kind)
    sizes = []
    for row in rows:
        job.check()
        sizes.append(float(part.effect(row.to(part.device, part.work_dtype)).norm()))
    return {"radius": radii, "effect": sizes}


def ready(desk: Desk, job: Job, asked: Asked) -> Ready:
    """Return what a job needs; the model is loaded if need be.

    Raises:
        EduceError: The run has no such prompt or perturbation, the model is another one now, or
            the perturbations cannot be added.
    """
    from educe.run.settings import encoded, stored

    with Run.open(desk.folders[asked.run]) as run:
        settings = stored(run)
        if asked.tokens is not None:
            settings = replace(settings, max_new_tokens=asked.tokens)
        lm = desk.model(job, run, settings)
        job.check()
        if isinstance(asked.prompt, str):
            contents, place = [asked.prompt], 0
        else:
            contents, place = [p.content for p in run.prompt_rows()], asked.prompt
        if not 0 <= place < len(contents):
            raise PromptError(f"the run has no prompt {place}")
        batch = encoded(lm, settings, contents)
        if not asked.pieces:
            return Ready(lm, settings, batch, Row(0, place, asked.sample, FIRST), None, None)
        row = Row(asked.pieces[0].id, place, asked.sample, FIRST)
        kind, theta = together(run, asked.pieces, asked.positions)
        return Ready(lm, settings, batch, row, kind, theta)


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
