"""The commands: thin, over the public API. Each prints one screen; ``--json`` is for machines."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from cyclopts import App, CycloptsError

from educe.cli import (
    audit,
    contrast,
    derive,
    discover,
    examine,
    explore,
    export,
    harden,
    invert,
    judge,
    layers,
    organism,
    reads,
    sample,
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

for command in (
    audit.audit,
    audit.sources,
    audit.demo,
    discover.discover,
    discover.methods,
    layers.layers,
    reads.reads,
    contrast.contrast,
    show.show,
    show.report,
    explore.explore,
    explore.write,
    organism.app,
    judge.app,
    select.select,
    select.tune,
    examine.examine,
    invert.invert,
    derive.app,
    sample.sample,
    harden.harden,
    harden.distill,
    export.export,
    export.exports,
    export.serve,
):
    app.command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and the exit status 2."""
    with lasting(), _terminable():
        status = _exit_status(sys.argv[1:] if arguments is None else arguments)
    sys.exit(status)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, by which batch systems and containers end a job, do what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_status(arguments: list[str]) -> int:
    try:
        for argument in arguments:  # what is not UTF-8 comes as halves of surrogate pairs
            well_formed(argument, f"the argument {argument!a}")
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        check_taken()
    except KeyboardInterrupt as interrupt:
        hint = f"; go on with: {interrupt}" if str(interrupt) else ""
        print(f"educe: interrupted, nothing is lost{visible(hint)}", file=sys.stderr)
        return 130
    except (EduceError, CycloptsError) as error:
        if "--debug" in arguments:
            print(visible(traceback.format_exc()), end="", file=sys.stderr)
        else:
            print(f"educe: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0
