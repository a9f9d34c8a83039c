"""The commands that derive perturbations from those of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from educe.cli.judge import HERE, Asked
from educe.cli.opening import end, going_on, opened, some, telling
from educe.cli.options import SCREEN, Number, Output, RunFolder
from educe.options import (
    ALONE,
    AtLeastOne,
    Count,
    Flag,
    Natural,
    Part,
    Seed,
    Share,
    SpreadOptions,
)
from educe.plain import as_data

if TYPE_CHECKING:
    from educe.run.store import Run
    from educe.run.work import Work

app = App(name="derive", help="Derive perturbations from those of a run.")

#: How many of those found, the most effective, are followed where none is named.
FIRST = 8


@contextmanager
def _working(
    folder: Path, numbers: Sequence[int] = (), who: SpreadOptions = ALONE
) -> Iterator[Work]:
    """Open a finished run to work on some of its perturbations."""
    from educe.derive.listing import deriving

    with opened(folder) as run, deriving(run, numbers, reporter=telling(), spread=who) as work:
        yield work


@app.command
def path(
    run: RunFolder,
    /,
    *numbers: Natural,
    low: Part = 0.25,
    high: AtLeastOne = 2.0,
    steps: Count = 5,
    converge: Natural = 12,
    basis: Annotated[list[str] | None, Parameter(negative="")] = None,
    nulls: Natural = 8,
    exact: Flag = False,
    seed: Seed = 0,
    output: Output = SCREEN,
) -> None:
    """Follow vectors through the radius, optimised anew at each, with their nulls.

    Args:
        numbers: perturbations, as the table numbers them; by default the eight most effective found
        low: the smallest radius, as a share of a vector's own
        high: the largest
        steps: radii for each doubling
        converge: the most iterates at a vector's own radius before it is followed: with 0 it is the
            vector itself, which is mostly far from a maximum
        basis: in which coordinates are read: residual, components, heads, neurons, random, or a
            safetensors file; may be repeated; by default residual, random, and heads and neurons
            where the block has them
        nulls: how many random vectors, and how many optimised for a shuffled target, are put beside
        exact: solve for the turning of stationary vectors as well: slow
        seed: of the nulls
    """
    from educe.derive.continuation import PathConfig
    from educe.derive.paths import follow_run
    from educe.report import paths, screen, tables

    config = PathConfig(low=low, high=high, steps=steps, converging=converge)
    asked: dict[str, Any] = {"read_in": basis or (), "nulls": nulls, "exact": exact, "seed": seed}
    with _working(run, numbers) as work:
        chosen = list(dict.fromkeys(numbers)) or _effective(work.run)
        with going_on(f"educe derive path {shlex.quote(str(run))} ..."):
            name = follow_run(work, chosen, config, **asked)
        done = next(one for one in paths.paths(work.run) if one.name == name)
        where = tables.lie(run / done.file)
        end(work.run, output, as_data(done), lambda: screen.tell([paths.card(done), where]))


@app.command
def shrink(
    run: RunFolder,
    /,
    *numbers: Number,
    keep: Share = 0.8,
    by: str | None = None,
    asked: Asked = HERE,
    low: Part = 0.1,
    steps: Count = 4,
    optimise: Flag = False,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Shrink perturbations until a share of what they do is gone.

    Args:
        keep: the share of what is measured at a perturbation's own radius that is to stay
        by: look-for (how often the run's pattern is found in answers to all its prompts), exponent,
            or a judge that educe judge list shows, whose scores are kept in the run; by default
            look-for where the run has one
        low: the smallest radius that is looked at, as a share of a perturbation's own
        steps: radii for each halving
        optimise: improve the directions of vectors at every radius on the way
    """
    from educe.derive.shrinking import shrink as shrinking
    from educe.progress import reporter
    from educe.report import screen, tables

    chosen = some(numbers)
    judge = None if by in (None, "look-for", "exponent") else asked.kept(by, run, reporter().say)
    with _working(run, chosen, who) as work:
        by = by or ("look-for" if work.settings.look_for else "exponent")
        done, name = shrinking(
            work, chosen, judge or by, keep=keep, low=low, steps=steps, optimise=optimise
        )
    curves = {number: one.curve for number, one in zip(chosen, done, strict=True)}
    kept = {number: one.kept for number, one in zip(chosen, done, strict=True)}
    file = None if set(kept.values()) == {None} else f"tensors/{name}"
    where = [tables.lie(run / file)] if file else []
    output.put(
        {"by": by, "keep": keep, "curves": curves, "kept": kept, "file": file},
        lambda: screen.tell([*tables.shrunk(curves, kept, by, keep), *where]),
    )


@app.command
def front(
    run: RunFolder,
    /,
    *,
    ordinary: str = "bundled",
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Measure what each perturbation costs on ordinary prompts, and draw effect against it.

    Args:
        ordinary: a file of ordinary prompts, as in Alpaca; by default bundled ones
    """
    from educe.derive.front import measure
    from educe.report import derived, fronts, screen

    with _working(run, who=who) as work:
        judge = measure(work, ordinary=ordinary)
        points = derived.fronts(work.run).get(judge, [])
        data = {"front": as_data(points), "score": judge}
        end(work.run, output, data, lambda: screen.tell(fronts.budgets(points)))


@app.command
def sparse(
    run: RunFolder,
    /,
    *numbers: Number,
    basis: str = "residual",
    keep: Part = 0.8,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Find how few coordinates of a basis carry what vectors do, and what these write.

    Args:
        basis: residual, components, heads, neurons, random, or a safetensors file of directions
        keep: the share of the effect that is to be kept
    """
    from educe.derive.sparsity import sparsify
    from educe.report import derived, fronts, screen

    chosen = some(numbers)
    with _working(run, chosen, who) as work:
        name = sparsify(work, chosen, basis=basis, keep=keep)
        done = next(one for one in derived.sparse(work.run) if one.name == name)
        end(work.run, output, as_data(done), lambda: screen.tell([fronts.sparse(done)]))


@app.command
def ungate(
    run: RunFolder, /, *numbers: Number, who: SpreadOptions = ALONE, output: Output = SCREEN
) -> None:
    """Let adapters write the same at every token, and scan sign and size of it.

    Random adapters go through the same scan; the best of both are tested again.
    """
    from educe.derive.ungating import scan
    from educe.report import derived, fronts, screen

    chosen = some(numbers)
    with _working(run, chosen, who) as work:
        name = scan(work, chosen)
        done = next(one for one in derived.scans(work.run) if one.name == name)
        data = as_data(done) | {"best": as_data(done.best)}
        end(work.run, output, data, lambda: screen.tell([fronts.ungated(done)]))


@app.command
def combine(
    run: RunFolder,
    /,
    *numbers: Natural,
    judge: str | None = None,
    asked: Asked = HERE,
    against: Path | None = None,
    showing: str | None = None,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Let the model write between each two vectors, and under the average of all.

    Args:
        numbers: vectors, as the table numbers them
        judge: what scores the answers: one that educe judge list shows; by default what the run
            looks for, or interestingness
        against: a set with a supervised vector, as educe contrast writes it: the average of more
            and more of the vectors is compared with its first
        showing: in place of numbers, all vectors found with this regular expression in an answer,
            which so share an effect: their average alone
    """
    from educe.derive.combined import combine as combining
    from educe.derive.combined import sharing
    from educe.progress import reporter
    from educe.report import screen, tables

    if showing is None:
        chosen = some(numbers)
    else:
        with opened(run) as kept:
            chosen = sharing(kept, showing)
    by = None if judge is None else asked.kept(judge, run, reporter().say)
    with _working(run, chosen, who) as work:
        told = combining(work, chosen, by, against=against, pairs=showing is None)
        end(work.run, output, as_data(told), lambda: screen.tell(tables.combined(*told)))


def _effective(run: Run) -> list[int]:
    """Return the most effective perturbations that were found."""
    ranked = sorted(run.perturbation_rows("found"), key=lambda p: -p.effect)
    return [p.id for p in ranked[:FIRST]]
