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

from educe.activations.corpus import questions
from educe.files import read_tensors, write_tensors
from educe.forward.benign import ordinary_prompts
from educe.inversion.control import MESSAGES, Known, controls
from educe.inversion.kept import CASE, keep
from educe.inversion.reach import Bench
from educe.inversion.report import SHUFFLED, Case, Reachability, Settings, Test, case
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
        bench = Bench(work.lm, prompts(work, settings), settings)
        reports = []
        for number in numbers:
            (group,) = groups(run, [number])
            reports.append(_inverted(work, bench, number, group.kind, group.theta))
        return reports


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


def _inverted(work: Work, bench: Bench, number: int, kind: Kind, theta: Tensor) -> Reachability:
    """Invert a perturbation and its controls, for one aim after the other."""
    run, settings = work.run, bench.settings
    (row,) = (p for p in run.perturbation_rows(derived=None) if p.id == number)
    tests = [_tested(work, bench, aim, number, kind, theta) for aim in _aims(settings, kind)]
    report = Reachability(number, row.arm, float(theta.norm()), settings, tuple(tests))
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


def _tested(work: Work, bench: Bench, aim: str, number: int, kind: Kind, theta: Tensor) -> Test:
    """Invert a perturbation and its controls for one aim."""
    layer = None if aim == "output" else work.run.note("facts")[aim]
    if aim == "source" and isinstance(kind, AfterBlock):
        layer = kind.layer  # of vectors that were added to the run, perhaps another one
    n, seed = bench.settings.controls, bench.settings.seed + 1
    # The direction of what is added is the same at every norm.
    norm = "" if aim == "source" else f"{float(theta.norm()):.4g}"
    shared = (kind.name, kind.before, kind.positions, norm)
    found = Known(FOUND, f"perturbation {number}", theta=theta)
    cases = [_case(work, bench, found, kind, layer, (number,))]
    for one in controls(work.lm, kind, theta, output=layer is None, n=n, seed=seed):
        own = (number,) if one.role == SHUFFLED else shared
        cases.append(_case(work, bench, one, kind, layer, (one.role, one.name, *own)))
    return Test(aim, layer, bench.ground(layer).size, cases[0], tuple(cases[1:]))


def _case(
    work: Work, bench: Bench, known: Known, kind: Kind, layer: int | None, decides: tuple[Any, ...]
) -> Case:
    """Invert one target, or return what is kept of it."""
    run, settings = work.run, bench.settings
    search = {k: v for k, v in asdict(settings).items() if k not in ("aim", "controls")}
    told = repr((known.role, layer, decides, sorted(search.items()), bench.batch.texts))
    key = sha256(told.encode()).hexdigest()[:16]
    if run.has(f"{CASE}{key}"):
        return case(run.note(f"{CASE}{key}"))
    path = run.tensors / f"inversion-{key}.state"
    state = State(read_tensors(path)[0]) if path.exists() else None
    wanted = bench.answers((), kind, known.theta) if known.role == FOUND else []
    what = f"inverting {known.role} {known.name if known.role != FOUND else ''}".strip()
    with work.reporter.stage(what, settings.budget, "reads") as advance:
        made = bench.case(
            known,
            kind,
            layer,
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
