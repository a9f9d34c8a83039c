"""The commands that make perturbations of a run do less beside: fronts, sparse, ungated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.cli.options import Debug, Json, check_begun
from educe.errors import RunError

if TYPE_CHECKING:
    from educe.model import LanguageModel
    from educe.runs import Run


def front(
    run: Path,
    /,
    *,
    ordinary: str = "bundled",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what each perturbation costs on ordinary prompts, and draw effect against it.

    Parameters
    ----------
    run
        the folder of the run
    ordinary
        a file of ordinary prompts, as in Alpaca; by default bundled ones
    """
    from educe.refine.front import measure
    from educe.report import fronts, tables

    with _opened(run) as (opened, lm, telling):
        measure(opened, lm, ordinary=ordinary, reporter=telling)
        found = fronts.points(opened)
        _end(opened, as_json, {"front": found}, lambda: tables.front(found))


def sparse(
    run: Path,
    /,
    *numbers: int,
    basis: str = "residual",
    keep: float = 0.8,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find how few coordinates of a basis carry what vectors do, and what these write.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        vectors, as the table numbers them
    basis
        residual, components, heads, neurons, random, or a safetensors file of directions
    keep
        the share of the effect that is to be kept
    """
    from educe.refine.sparse import sparsify
    from educe.report import tables

    with _opened(run, numbers) as (opened, lm, telling):
        done = sparsify(opened, list(numbers), lm, basis=basis, keep=keep, reporter=telling)
        data = [one.data() for one in done]
        _end(opened, as_json, {"sparse": data}, lambda: tables.sparse(data, basis, keep))


def degate(
    run: Path,
    /,
    *numbers: int,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Let adapters write the same at every token, and scan sign and size of it.

    Random adapters go through the same scan; the best of both are tested again.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        adapters, as the table numbers them
    """
    from educe.refine import degate as scanning
    from educe.report import tables

    with _opened(run, numbers) as (opened, lm, telling):
        data = scanning.degate(opened, list(numbers), lm, reporter=telling).data()
        _end(opened, as_json, {"degate": data}, lambda: tables.degate(data))


@contextmanager
def _opened(
    run: Path, numbers: Sequence[int] | None = None
) -> Iterator[tuple[Run, LanguageModel, Any]]:
    """Open a run that has these perturbations, and load its model."""
    from educe import job
    from educe.progress import reporter
    from educe.runs import Run
    from educe.threads import choose

    if numbers is not None and not numbers:
        raise RunError("no perturbation: name at least one, by its number in educe show")
    telling = reporter()
    with Run.open(run) as opened:
        check_begun(opened)
        known = {p.id for p in opened.perturbations()}
        if unknown := [number for number in numbers or () if number not in known]:
            raise RunError(
                f"the run has no perturbation {unknown[0]}: see educe show for its numbers"
            )
        choose(telling.say)
        yield opened, job.loaded(job.stored(opened), telling.say), telling


def _end(opened: Run, as_json: bool, data: dict[str, Any], tell: Any) -> None:
    """Draw the report anew, and say what came out."""
    from educe.report import page, terminal

    written = page.write(opened, opened.folder / "report.html")
    if as_json:
        print(json.dumps(data | {"report": str(written)}, ensure_ascii=False))
        return
    tell()
    terminal.where(written)
