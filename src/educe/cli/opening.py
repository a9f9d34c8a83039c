"""What the commands share while they work: who tells of it, an open run or model, and an end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.audit.settings import AUDIT
from educe.cli.options import Output
from educe.errors import RunError
from educe.options import ModelOptions

if TYPE_CHECKING:
    from educe.model.language import LanguageModel
    from educe.progress import Bars, Lines
    from educe.run.store import Run


def telling() -> Bars | Lines:
    """Compute on as many threads as are idle; return who tells of progress."""
    from educe.progress import reporter
    from educe.threads import choose

    made = reporter()
    choose(made.say)
    return made


def loaded(model: ModelOptions) -> tuple[LanguageModel, Bars | Lines]:
    """Load a model; return who tells of progress, too."""
    from educe.model.loading import load

    tells = telling()
    return load(**model.how, progress=tells.say), tells


@contextmanager
def opened(folder: Path, numbers: Sequence[int] = ()) -> Iterator[Run]:
    """Open a run that has something to show, and these perturbations.

    Raises:
        RunError: There is no such run, it was cut off before it found anything, or it has not all
            of the perturbations.
    """
    from educe.run.store import Run

    with Run.open(folder) as run:
        if run.has(AUDIT):
            raise RunError(f"{folder} holds an audit: educe show, report and explore read it")
        if not run.has("facts"):
            raise RunError(
                f"the run in {folder} was cut off before it found anything: go on with educe "
                f"discover --resume --out {shlex.quote(str(folder))}"
            )
        if numbers:
            from educe.run.fill import check_known  # which loads torch, as showing a run does not

            check_known(run, numbers)
        yield run


def some(numbers: Sequence[int]) -> list[int]:
    """Return numbers of perturbations, each once, of which there must be one.

    Raises:
        RunError: There is none.
    """
    if not numbers:
        raise RunError("no perturbation: name at least one, by its number in educe show")
    return list(dict.fromkeys(numbers))


@contextmanager
def going_on(command: str = "the same command", folder: Path | None = None) -> Iterator[None]:
    """Let an interrupt say how to go on, where there is a run to go on with."""
    try:
        yield
    except KeyboardInterrupt:
        there = folder is None or (folder / "run.sqlite").exists()  # one without results is removed
        raise KeyboardInterrupt(*[command] if there else []) from None


def resumed(command: str, folder: Path) -> str:
    """Return what goes on with what a command began in a folder."""
    return f"educe {command} --resume --out {shlex.quote(str(folder))}"


def end(run: Run, output: Output, data: dict[str, Any], tell: Callable[[], object]) -> None:
    """Draw the report anew, and say what came out."""
    from educe.report import page, terminal

    written = page.write(run, run.folder / "report.html")

    def told() -> None:
        tell()
        terminal.where(written)

    output.put(data | {"report": str(written)}, told)
