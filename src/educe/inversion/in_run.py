"""Inversions of perturbations of a run, kept in it: which text does what they do, and its controls.

Each target is a case of its own, kept as a note as soon as it is done, and the state of a search
under way in this process is kept as a file: an inversion that was cut off goes on to the same
result. Workers do several cases at once, and begin one that was cut off anew. Controls hang on the
norm and not on the perturbation, so that perturbations of one norm share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from educe.activations.corpus import questions
from educe.files import read_tensors, write_tensors
from educe.forward.benign import ordinary_prompts
from educe.inversion.control import MESSAGES, Known, controls
from educe.inversion.kept import CASE, keep
from educe.inversion.reach import Bench
from educe.inversion.report import SHUFFLED, Case, Reachability, Settings, Test, case
from educe.methods.state import State
from educe.model.language import LanguageModel
from educe.options import ALONE
from educe.perturbation.kind import Kind
from educe.perturbation.vectors import AfterBlock
from educe.progress import Reporter
from educe.rows import FOUND
from educe.run.fill import groups
from educe.run.settings import encoded
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.spread import Job, Shared, Who


def invert_run(
    run: Run,
    numbers: Sequence[int],
    *,
    lm: LanguageModel | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    spread: Who = ALONE,
) -> list[Reachability]:
    """Search for texts that do what perturbations do, with controls, and keep what came of it.

    What was inverted with the same settings already is not inverted again.

    Args:
        run: The run.
        numbers: The perturbations, by their numbers in it.
        lm: Its model, when it is loaded already.
        settings: How; by default `Settings`.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who searches.

    Raises:
        MethodError: A setting is out of bounds.
        PromptError: A prompt has no message behind which a string could be put.
        RunError: The model is not the run's, or another process is at work on the run.
    """
    settings = settings or Settings()
    with at_work(run, lm, reporter, spread) as work:
        bench = Bench(work.lm, prompts(work, settings), settings)
        each = {}
        for number in numbers:
            (group,) = groups(run, [number])
            aims = _aims(settings, group.kind)
            each[number] = [
                _aimed(work, bench, aim, number, group.kind, group.theta) for aim in aims
            ]
        if not work.spread.here:
            _elsewhere(work, bench, [one for tests in each.values() for t in tests for one in t.of])
        return [_inverted(work, bench, number, tests) for number, tests in each.items()]


def prompts(work: Work, settings: Settings) -> Any:
    """Return the prompts to search on, then those that count, each once.

    The first that the run asked are searched on, as the perturbations were; its others count, its
    fresh ones, and then benign ones and questions behind which no control was made.
    """
    wanted = settings.searched + settings.fresh
    asked, fresh = list(work.settings.prompts), list(work.settings.fresh)
    own = asked[: settings.searched]
    plain = [*ordinary_prompts(), *questions()[MESSAGES:]]
    others = [*asked[settings.searched :], *fresh, *plain]
    made = encoded(work.lm, work.settings, [*own, *others])
    distinct = {text: i for i, text in reversed(list(enumerate(made.texts)))}
    return made.select(sorted(distinct.values())[:wanted])


class Wanted(NamedTuple):
    """A target that is to be inverted.

    Attributes:
        key: What its case is kept under.
        known: What does what is to be done.
        kind: The kind of perturbations.
        layer: The layer whose stream is to be met; None for the output.
    """

    key: str
    known: Known
    kind: Kind
    layer: int | None

    def file(self, run: Run) -> Path:
        """Return where the state of its search is kept."""
        return run.tensors / f"inversion-{self.key}.state"

    def state(self, run: Run) -> State | None:
        """Return where its search was left, if it was."""
        return State(read_tensors(self.file(run))[0]) if self.file(run).exists() else None


class Aimed(NamedTuple):
    """What is inverted for one aim: a perturbation, then its controls."""

    aim: str
    layer: int | None
    of: list[Wanted]


def _inverted(work: Work, bench: Bench, number: int, tests: Sequence[Aimed]) -> Reachability:
    """Invert a perturbation and its controls, for one aim after the other."""
    run, settings = work.run, bench.settings
    (row,) = (p for p in run.perturbation_rows(derived=None) if p.id == number)
    made = []
    for aim, layer, wanted in tests:
        found, *others = (_case(work, bench, one) for one in wanted)
        made.append(Test(aim, layer, bench.ground(layer).size, found, tuple(others)))
    theta = tests[0].of[0].known.theta
    assert theta is not None, "what was found is a perturbation"
    report = Reachability(number, row.arm, float(theta.norm()), settings, tuple(made))
    keep(run, report)
    return report


def _aims(settings: Settings, kind: Kind) -> list[str]:
    """Return what is aimed at: a stream in which the last tokens are changed, and the output."""
    if settings.aim != "both":
        return [settings.aim]
    if kind.positions == "generated":
        return ["output"]
    there = kind.positions in ("all", "prompt") or kind.positions.startswith("last:")
    return ["source" if isinstance(kind, AfterBlock) and there else "target", "output"]


def _aimed(work: Work, bench: Bench, aim: str, number: int, kind: Kind, theta: Tensor) -> Aimed:
    """Return a perturbation and its controls, to be inverted for one aim."""
    layer = None if aim == "output" else work.run.note("facts")[aim]
    if aim == "source" and isinstance(kind, AfterBlock):
        layer = kind.layer  # of vectors that were added to the run, perhaps another one
    n, seed = bench.settings.controls, bench.settings.seed + 1
    # The direction of what is added is the same at every norm.
    norm = "" if aim == "source" else f"{float(theta.norm()):.4g}"
    shared = (kind.name, kind.before, kind.positions, norm)
    found = Known(FOUND, f"perturbation {number}", theta=theta)
    search = {k: v for k, v in asdict(bench.settings).items() if k not in ("aim", "controls")}

    def wanted(known: Known, *decides: Any) -> Wanted:
        told = repr((known.role, layer, decides, sorted(search.items()), bench.batch.texts))
        return Wanted(sha256(told.encode()).hexdigest()[:16], known, kind, layer)

    of = [wanted(found, number)]
    for one in controls(work.lm, kind, theta, output=layer is None, n=n, seed=seed):
        own = (number,) if one.role == SHUFFLED else shared
        of.append(wanted(one, one.role, one.name, *own))
    return Aimed(aim, layer, of)


def _elsewhere(work: Work, bench: Bench, wanted: Sequence[Wanted]) -> None:
    """Let workers invert what is not kept yet."""
    run = work.run
    missing = {one.key: one for one in wanted if not run.has(f"{CASE}{one.key}")}
    shared, reads = Shared((bench,)), bench.settings.budget
    jobs = (Job(_made, shared, (one, one.state(run)), reads) for one in missing.values())
    with work.reporter.stage("inverting", reads * len(missing), "reads") as step:
        for done in work.spread.map(jobs):
            _remember(run, done.job.given[0], done.value)
            step(done.job.size, done.note)


def _case(work: Work, bench: Bench, wanted: Wanted) -> Case:
    """Invert one target, or return what is kept of it."""
    run, known = work.run, wanted.known
    if run.has(f"{CASE}{wanted.key}"):
        return case(run.note(f"{CASE}{wanted.key}"))
    what = f"inverting {known.role} {known.name if known.role != FOUND else ''}".strip()
    with work.reporter.stage(what, bench.settings.budget, "reads") as advance:
        on_step = _kept(wanted.file(run), advance, bench)
        made = _made(bench, wanted, wanted.state(run), on_step)
    _remember(run, wanted, made)
    return made


def _made(
    bench: Bench,
    wanted: Wanted,
    state: State | None,
    on_step: Callable[[State], None] | None = None,
) -> Case:
    """Invert one target, from where its search was left."""
    _, known, kind, layer = wanted
    answers = bench.answers((), kind, known.theta) if known.role == FOUND else []
    return bench.case(known, kind, layer, wanted=answers, state=state, on_step=on_step)


def _remember(run: Run, wanted: Wanted, made: Case) -> None:
    run.remember(f"{CASE}{wanted.key}", asdict(made))
    with suppress(FileNotFoundError):
        wanted.file(run).unlink()


def _kept(path: Any, advance: Callable[..., None], bench: Bench) -> Callable[[State], None]:
    """Return what keeps the state of a search after each step, and tells of it."""
    told = 0

    def step(state: State) -> None:
        nonlocal told
        write_tensors(path, state, {})
        reads = int(state["reads"])
        best = bench.vocabulary.text(state["strings"][int(state["loss"].argmin())].tolist())
        advance(reads - told, note=f"loss {float(state['loss'].min()):.3f}, {best!r}")
        told = reads

    return step
