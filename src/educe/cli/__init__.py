"""The commands: thin, over the public API. Each prints one screen; ``--json`` is for machines."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from cyclopts import App, CycloptsError

from educe.cli import (
    atlas,
    contrast,
    derive,
    discover,
    examine,
    judge,
    organism,
    select,
    show,
)
from educe.cli.streams import check_taken, lasting
from educe.errors import EduceError
from educe.model.prompts import well_formed
from educe.visible import visible

app = App(
    name="educe",
    help="Bring out what a language model can do but does not show.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)

app.command(discover.discover)
app.command(discover.methods)
app.command(discover.demo)
app.command(atlas.atlas)
app.command(contrast.contrast)
app.command(show.show)
app.command(show.report)
app.command(organism.app)
app.command(judge.app)
app.command(select.select)
app.command(select.tune)
app.command(examine.examine)
app.command(derive.app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and the exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        for argument in arguments:  # what is not UTF-8 comes as halves of surrogate pairs
            well_formed(argument, f"the argument {argument!a}")
        app(arguments, **_QUIET)

    with lasting():
        status = _exit_status(command, "--debug" in arguments)
    sys.exit(status)


_QUIET: dict[str, Any] = {
    "exit_on_error": False,
    "print_error": False,
    "result_action": "return_value",
}


def _exit_status(command: Callable[[], object], debug: bool) -> int:
    try:
        command()
        check_taken()
    except KeyboardInterrupt as interrupt:
        hint = f"; go on with: {interrupt}" if str(interrupt) else ""
        print(f"educe: interrupted, nothing is lost{visible(hint)}", file=sys.stderr)
        return 130
    except (EduceError, CycloptsError) as error:
        if debug:
            print(visible(traceback.format_exc()), end="", file=sys.stderr)
        else:
            print(f"educe: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0
