"""Reachability reports as a run keeps them: a score of each perturbation, and notes."""

from __future__ import annotations

from educe.inversion.report import REACHABLE, UNIT, Reachability
from educe.rows import ScoreRow
from educe.run.store import Run

#: Notes of a run: the report of a perturbation, whose number follows; and a case, by its key.
NOTE, CASE = "reachability ", "reachability case "


def keep(run: Run, report: Reachability) -> None:
    """Keep a report; it takes the place of an earlier one."""
    best = report.tests[0].found
    why = f"{report.verdict.value}: “{best.string}”"
    run.add_scores([ScoreRow(report.number, REACHABLE, best.share, UNIT, why)])
    run.remember(f"{NOTE}{report.number}", report.data())


def reports(run: Run) -> list[Reachability]:
    """Return the reachability reports of a run, by the numbers of their perturbations."""
    noted = [f"{NOTE}{p.id}" for p in run.perturbation_rows(derived=None)]
    return [Reachability.read(run.note(name)) for name in noted if run.has(name)]
