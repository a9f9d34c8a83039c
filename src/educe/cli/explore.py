"""``educe explore``: a local page over runs, where one can look, try and keep."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from educe.cli.opening import opened, telling
from educe.cli.options import SCREEN, Output, RunFolder
from educe.cli.streams import print_text
from educe.errors import ModelError, RunError
from educe.options import EMBEDDED, Count, ModelOptions, Natural, NonNegative

if TYPE_CHECKING:
    from educe.explore.writing import Piece

#: Hosts that nobody else reaches.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def explore(
    *runs: Annotated[Path, Parameter(help="the folders of the runs")],
    port: Natural = 8360,
    host: str = "127.0.0.1",
    model: ModelOptions = EMBEDDED,
) -> None:
    """Look through runs on a local page: read, write anew at any dose, compare, star and label.

    The page is live while a run is still at work. The model is loaded when something is to be
    written; reading needs none.

    Args:
        port: of the page; 0 for any that is free
        host: address at which it answers; other machines reach it only where this is said
        model: how models are loaded; what is not said is as in the run
    """
    if not runs:
        raise RunError("no run: name the folder of at least one")
    try:
        from educe.explore.app import app
        from educe.serving.listening import listening, serve
    except ImportError as error:
        raise ModelError(f"{error.name} is missing: pip install 'educe[explore]'") from error
    from educe.explore.desk import Desk
    from educe.explore.shelf import Shelf

    at = listening(host, port)
    token = secrets.token_urlsafe(24)
    shelf = Shelf(runs)
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    served = app(shelf, Desk(shelf.folders, model), token, hosts=hosts)
    shown = f"[{host}]" if ":" in host else host
    print_text(f"http://{shown}:{at.getsockname()[1]}/?token={token}")
    print("open this address in a browser; Ctrl-C ends it, and nothing is lost", file=sys.stderr)
    if host not in LOOPBACK:
        print(f"others who reach {host} and know the address can read and write", file=sys.stderr)
    serve(served, at, grace=2)


def write(
    run: RunFolder,
    *pieces: Annotated[
        str, Parameter(help="perturbations, as ID or ID:RADIUS; none for the model")
    ],
    prompt: str | None = None,
    number: Natural = 0,
    positions: str | None = None,
    temperature: NonNegative = 0.0,
    sample: Natural = 0,
    tokens: Count | None = None,
    model: ModelOptions = EMBEDDED,
    output: Output = SCREEN,
) -> None:
    """Write one text under perturbations of a run, at any radius, as the explorer does.

    Args:
        prompt: a text; by default a prompt of the run
        number: the prompt's number in the run
        positions: where they are added; by default as they were found
        sample: which of several samples, at a temperature
        tokens: the most tokens; by default as in the run
        model: how the model is loaded; what is not said is as in the run
    """
    from educe.explore import writing
    from educe.explore.desk import Desk, Job

    with opened(run) as found:
        radius = {p.id: p.radius for p in found.perturbation_rows(derived=None)}
    asked = writing.Asked(
        run=0,
        prompt=number if prompt is None else prompt,
        pieces=tuple(_piece(word, radius) for word in pieces),
        positions=positions,
        temperature=temperature,
        sample=sample,
        tokens=tokens,
    )
    asked.check()
    tells = telling()

    def tell(event: dict[str, Any]) -> None:
        if "say" in event:
            tells.say(event["say"])

    done = writing.write(Desk([run], model), Job(lambda job: {}, tell), asked)
    output.put(done, lambda: print_text("".join(done["text"])))


def _piece(word: str, radius: dict[int, float]) -> Piece:
    """Read a perturbation and its radius.

    Raises:
        RunError: It is none.
    """
    from educe.explore.writing import Piece

    name, colon, size = word.partition(":")
    try:
        return Piece(int(name), float(size) if colon else radius[int(name)])
    except (ValueError, KeyError):
        raise RunError(f"{word!r} is no perturbation of the run: write ID or ID:RADIUS") from None
