"""What the commands share: options, names of folders."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from educe.errors import RunError

if TYPE_CHECKING:
    from educe.runs import Run

FLAG = Parameter(negative="", show_default=False)
Debug = Annotated[bool, FLAG, Parameter(help="show the traceback of an error")]
Json = Annotated[bool, FLAG, Parameter(name="--json", help="print JSON for machines")]


def check_begun(run: Run) -> None:
    """Make sure that a run has something to show.

    Raises:
        RunError: It was cut off before it found anything.
    """
    if not run.has("facts"):
        raise RunError(
            f"the run in {run.folder} was cut off before it found anything: go on with educe "
            f"discover --resume --out {shlex.quote(str(run.folder))}"
        )


def new_folder(kind: str) -> Path:
    """Return the name of a new folder under runs/."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
