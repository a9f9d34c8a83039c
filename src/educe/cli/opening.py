"""What commands on perturbations of a run share: opening it, and drawing its report anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.cli.options import check_begun
from educe.cli.streams import print_json
from educe.errors import RunError

if TYPE_CHECKING:
    from educe.progress import Reporter
    from educe.run.store import Run


def some(numbers: Sequence[int]) -> Sequence[int]:
    """Return numbers of perturbations, of which there must be one.

    Raises:
        RunError: There is none.
    """
    if not numbers:
        raise RunError("no perturbation: name at least one, by its number in educe show")
    return numbers


@contextmanager
def begun(run: Path, numbers: Sequence[int] = ()) -> Iterator[tuple[Run, Reporter]]:
    """Open a run that has these perturbations; yield who tells, too.

    Raises:
        RunError: There is no such run, it was cut off before it found anything, or it has not all
            of the perturbations.
    """
    from educe.progress import reporter
    from educe.run.fill import check_known
    from educe.run.store import Run
    from educe.threads import choose

    telling = reporter()
    with Run.open(run) as found:
        check_begun(found)
        check_known(found, numbers)
        choose(telling.say)
        yield found, telling


def end(run: Run, as_json: bool, data: dict[str, Any], tell: Callable[[], None]) -> None:
    """Draw the report anew, and say what came out: as JSON, or on the screen."""
    from educe.report import page, terminal

    written = page.write(run, run.folder / "report.html")
    if as_json:
        print_json(data | {"report": str(written)})
        return
    tell()
    terminal.where(written)
