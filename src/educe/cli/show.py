"""``educe show`` and ``educe report``: what a run found, in the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

from educe.cli.options import Debug, Json, Natural, check_begun
from educe.cli.streams import print_json, print_text


def show(
    run: Path, number: Natural | None = None, /, *, as_json: Json = False, debug: Debug = False
) -> None:
    """Show what a run found, or one perturbation with everything it wrote.

    Args:
        run: the folder of the run
        number: a perturbation, as the table numbers them; 0 is the unperturbed model
    """
    from educe.comparison.summary import summarise
    from educe.report import terminal
    from educe.run.store import Run

    with Run.open(run) as opened:
        check_begun(opened)
        summary = summarise(opened)
    if as_json:
        print_json(terminal.as_data(summary, number), indent=1)
    elif number is None:
        terminal.table(summary, run)
    else:
        terminal.perturbation(summary, number)


def report(
    run: Path, /, *, out: Path | None = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Draw a run as one HTML file that opens offline.

    Args:
        run: the folder of the run
        out: the file; by default report.html in the run
    """
    from educe.report import page
    from educe.run.store import Run

    with Run.open(run) as opened:
        check_begun(opened)
        written = page.write(opened, out or run / "report.html")
    if as_json:
        print_json({"report": str(written)})
    else:
        print_text(f"report: {written}")
