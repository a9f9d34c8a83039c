"""``educe show`` and ``educe report``: what a run found, in the terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from educe.audit.settings import AUDIT
from educe.cli import audit
from educe.cli.opening import opened
from educe.cli.options import SCREEN, Output, RunFolder
from educe.cli.streams import print_text
from educe.errors import RunError
from educe.options import Natural
from educe.run.store import Run

if TYPE_CHECKING:
    from educe.audit.overview import Overview


def show(run: RunFolder, number: Natural | None = None, /, *, output: Output = SCREEN) -> None:
    """Show what a run found, or one perturbation with everything it wrote.

    Args:
        number: a perturbation, as the table numbers them; 0 is the unperturbed model
    """
    from educe.comparison.summary import summarise
    from educe.report import audit_screen, terminal

    if (seen := _audited(run)) is not None:
        if number is not None:
            raise RunError("an audit is shown as a whole: leave the number out")
        output.put(audit.data(seen), lambda: audit_screen.show(seen))
        return
    with opened(run) as found:
        summary = summarise(found)
        output.put(
            terminal.as_data(summary, number) if output.as_json else None,
            lambda: (
                terminal.table(summary, run)
                if number is None
                else terminal.perturbation(summary, number)
            ),
        )


def report(run: RunFolder, /, *, out: Path | None = None, output: Output = SCREEN) -> None:
    """Draw a run as one HTML file that opens offline.

    Args:
        out: the file; by default report.html in the run
    """
    from educe.report import page

    with Run.open(run) if _audited(run) is not None else opened(run) as found:
        written = page.write(found, out or run / "report.html")
    output.put({"report": written}, lambda: print_text(f"report: {written}"))


def _audited(folder: Path) -> Overview | None:
    """Return what an audit came to; None where a run is none."""
    with Run.open(folder) as run:
        return audit.finished(run, folder) if run.has(AUDIT) else None
