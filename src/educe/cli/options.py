"""What the commands share: options, names of folders."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import Parameter, Token, validators

from educe.errors import RunError
from educe.whole import MOST, SEEDS, read_layer, read_real, read_whole

if TYPE_CHECKING:
    from educe.run.store import Run

FLAG = Parameter(negative="", show_default=False)
Debug = Annotated[bool, FLAG, Parameter(help="show the traceback of an error")]
Json = Annotated[bool, FLAG, Parameter(name="--json", help="print JSON for machines")]


def _read(low: int, high: int = MOST) -> Parameter:
    """Return what reads whole numbers strictly: cyclopts would round 2.7 to 3."""
    return Parameter(converter=lambda type_, tokens: read_whole(tokens[0].value, low, high))


def _real(read: Callable[[str], float] = read_real, **bounds: float) -> Parameter:
    """Return what reads finite numbers, or one of the words that may stand for them.

    Args:
        read: Reads a number.
        bounds: Between which numbers lie: gt, gte, lt, lte.
    """

    def converter(type_: Any, tokens: Sequence[Token]) -> float | str:
        text = tokens[0].value
        words = [word for kind in get_args(type_) for word in get_args(kind)]
        return text if text in words else read(text)

    within = validators.Number(**bounds) if bounds else None
    return Parameter(converter=converter, validator=within)


#: Numbers. What is counted is 1 or more, or 0 or more; a seed has bounds of its own.
Count = Annotated[int, _read(1)]
Natural = Annotated[int, _read(0)]
Seed = Annotated[int, _read(0, SEEDS)]
Real = Annotated[float, _real()]
Positive = Annotated[float, _real(gt=0)]
NonNegative = Annotated[float, _real(gte=0)]
Share = Annotated[float, _real(gt=0, lte=1)]
Part = Annotated[float, _real(gt=0, lt=1)]  #: a share that is not all
AtLeastOne = Annotated[float, _real(gte=1)]
Seconds = Annotated[float, _real(gt=0, lte=86_400)]  #: of one wait: a day at most
Layer = Annotated[float, _real(read_layer)]
LayerOrAuto = Annotated[float | Literal["auto"], _real(read_layer)]
N = Annotated[Count, Parameter(name=["-n", "--n"])]

#: The options of every command that loads a model.
Model = Annotated[str, Parameter(help="embedded, a Hub id, a folder, or a .gguf file")]
Adapter = Annotated[
    str | None, Parameter(help="a PEFT adapter, loaded beside the weights and never merged")
]
Revision = Annotated[str | None, Parameter(help="revision on the Hub")]
DType = Annotated[str, Parameter(help="auto, float32, bfloat16, float16")]
Device = Annotated[
    str | None, Parameter(help="cpu, cuda, cuda:1, mps; by default a GPU when there is one")
]
DeviceMap = Annotated[str | None, Parameter(help="auto spreads a large model over all GPUs")]


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


def to_go_on(command: str, folder: Path) -> KeyboardInterrupt:
    """Return an interrupt that says how to go on, where there is a run to go on with."""
    there = (folder / "run.sqlite").exists()  # one that has kept nothing is removed
    hint = f"educe {command} --resume --out {shlex.quote(str(folder))}"
    return KeyboardInterrupt(*[hint] if there else [])
