"""Inversions of perturbations of a run, kept in it: which text does what they do, and its controls.

Each target is a case of its own, kept as a note as soon as it is done, and the state of a search
under way is kept as a file: an inversion that was cut off goes on to the same result. Controls hang
on the norm and not on the perturbation, so that perturbations of one norm share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from torch import Tensor

from educe.files import read_tensors, write_tensors
from educe.forward.benign import ordinary_prompts
from educe.inversion.control import Known, controls
from educe.inversion.kept import CASE, keep
from educe.inversion.reach import Bench, Settings
from educe.inversion.report import SHUFFLED, Case, Facts, Reachability, case
from educe.inversion.targets import Taught, by_text, taught
from educe.methods.state import State
from educe.model.language import LanguageModel
from educe.perturbation.kind import Kind
from educe.perturbation.vectors import AfterBlock
from educe.progress import Reporter
from educe.rows import FOUND
from educe.run.fill import groups
from educe.run.settings import encoded
from educe.run.store import Run
from educe.run.work import Work, at_work


def invert_run(
    run: Run,
    numbers: Sequence[int],
    *,
    lm: LanguageModel | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> list[Reachability]:
    """Search for texts that do what perturbations do, with controls, and keep what came of it.

    What was inverted with the same settings already is not inverted again.

    Args:
        run: The run.
        numbers: The perturbations, by their numbers in it.
        lm: Its model, when it is loaded already.
        settings: How; by default `Settings`.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        MethodError: A setting is out of bounds.
        PromptError: A prompt has no message behind which a string could be put.
        RunError: The model is not the run's, or another process is at work on the run.
    """
    settings = settings or Settings()
    with at_work(run, lm, reporter) as work:
        facts = run.note("facts")
        bench = Bench(
            work.lm, prompts(work, settings), settings, (facts["source"], facts["target"])
        )
        reports = []
        for number in numbers:
            (group,) = groups(run, [number])
            reports.append(_inverted(work, bench, number, group.kind, group.theta))
        return reports


def prompts(work: Work, settings: Settings) -> Any:
    """Return the prompts to search on, then those that count, each once.

    The first that the run asked are searched on, as the perturbations were; its others count, its
    fresh ones and then benign ones.
    """
    wanted = settings.searched + settings.fresh
    asked, fresh = list(work.settings.prompts), list(work.settings.fresh)
    own = asked[: settings.searched]
    others = [*asked[settings.searched :], *fresh, *ordinary_prompts()]
    made = encoded(work.lm, work.settings, [*own, *others])
    distinct = {text: i for i, text in reversed(list(enumerate(made.texts)))}
    return made.select(sorted(distinct.values())[:wanted])


def _inverted(work: Work, bench: Bench, number: int, kind: Kind, theta: Tensor) -> Reachability:
    """Invert a perturbation and its controls."""
    run, settings = work.run, bench.settings
    (row,) = (p for p in run.perturbation_rows(derived=None) if p.id == number)
    known = list(
        controls(work.lm, bench.openings, kind, theta, n=settings.controls, seed=settings.seed + 1)
    )
    shared = (kind.name, kind.before, kind.positions, f"{float(theta.norm()):.4g}")
    cases = [_case(work, bench, Known(FOUND, f"perturbation {number}"), kind, theta, (number,))]
    for one in known:
        own = (number,) if one.role == SHUFFLED else shared
        cases.append(_case(work, bench, one, kind, theta, (one.role, one.name, *own)))
    report = Reachability(
        number,
        row.arm,
        Facts(
            aim=settings.aim,
            method=settings.method,
            tokens=settings.tokens,
            answer=settings.answer,
            budget=settings.budget,
            searched=settings.searched,
            fresh=settings.fresh,
            wanted=_wanted(kind),
            layer=bench.layer,
            norm=float(theta.norm()),
        ),
        cases[0],
        tuple(cases[1:]),
    )
    keep(run, report)
    return report


def _wanted(kind: Kind) -> int:
    """Return how many controls there are by default: texts, random ones, one shuffled, a vector."""
    return 2 * Settings.controls + 1 + isinstance(kind, AfterBlock)


def _case(
    work: Work, bench: Bench, known: Known, kind: Kind, theta: Tensor, decides: tuple[Any, ...]
) -> Case:
    """Invert one target, or return what is kept of it."""
    run, settings = work.run, bench.settings
    search = {k: v for k, v in asdict(settings).items() if k != "controls"}
    told = repr((known.role, known.name, decides, sorted(search.items()), bench.batch.texts))
    key = sha256(told.encode()).hexdigest()[:16]
    if run.has(f"{CASE}{key}"):
        return case(run.note(f"{CASE}{key}"))
    path = run.tensors / f"inversion-{key}.state"
    state = State(read_tensors(path)[0]) if path.exists() else None
    done, own, wanted = _done(bench, known, kind, theta)
    what = f"inverting {known.role} {known.name if known.role != FOUND else ''}".strip()
    with work.reporter.stage(what, settings.budget, "reads") as advance:
        made = bench.case(
            known.role,
            known.name,
            done,
            own=own,
            wanted=wanted,
            state=state,
            on_step=_kept(path, advance, bench),
        )
    run.remember(f"{CASE}{key}", asdict(made))
    with suppress(FileNotFoundError):
        path.unlink()
    return made


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


def _done(
    bench: Bench, known: Known, kind: Kind, theta: Tensor
) -> tuple[Taught, tuple[int, ...], list[str]]:
    """Return what is done on the prompts, by which text, and what it makes the model answer."""
    settings, layers = bench.settings, bench.layers
    if known.string and known.theta is None:
        done = by_text(bench.openings, known.string, layers, tokens=settings.answer)
        return done, known.string, bench.answers(known.string)
    own = theta if known.theta is None else known.theta
    batch = bench.batch.select(range(len(bench.openings)))
    done = taught(bench.lm, batch, kind, own, layers, tokens=settings.answer)
    if known.role == SHUFFLED:
        # Searched on and counted apart, as everything else is.
        parts = [list(part) for part in (bench.searched, bench.fresh)]
        return done.shuffled([i for part in parts for i in (*part[1:], *part[:1])]), (), []
    wanted = bench.answers((), kind, own) if known.role == FOUND else []
    return done, known.string, wanted
