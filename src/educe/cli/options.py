"""What the commands share: their own options, prompts from files, the folders of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from educe.cli.streams import print_json
from educe.errors import PromptError
from educe.model.prompts import Prompt, read_prompts
from educe.options import Flag, Natural

Debug = Annotated[Flag, Parameter(help="show the traceback of an error")]
RunFolder = Annotated[Path, Parameter(help="the folder of the run")]
NewFolder = Annotated[
    Path | None, Parameter(help="folder of what is made; by default a new one under runs/")
]
Number = Annotated[Natural, Parameter(help="perturbations, as the table numbers them")]
PromptsFile = Annotated[
    Path | None,
    Parameter(
        name="--prompts",
        help="a file of prompts: .txt with one a line, or .jsonl, .ndjson, .json, .csv, .tsv",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How a command says what came out."""

    as_json: Annotated[Flag, Parameter(name="--json", help="print JSON for machines")] = False
    debug: Debug = False

    def put(self, data: Any, tell: Callable[[], object]) -> None:
        """Print data as JSON where that was asked for; else tell it on the screen."""
        if self.as_json:
            print_json(data, indent=1)
        else:
            tell()


#: On the screen.
SCREEN = Output()


def prompts_in(file: Path | None) -> tuple[Prompt, ...]:
    """Return the prompts of a file, none without one."""
    return tuple(read_prompts(file)) if file else ()


def given(prompts: Sequence[str], file: Path | None) -> tuple[Prompt, ...]:
    """Return the prompts that are given, one by one and in a file.

    Raises:
        PromptError: There is none.
    """
    asked = (*prompts, *prompts_in(file))
    if not asked:
        raise PromptError("no prompt: give at least one, or a file with --prompts")
    return asked


def new_folder(kind: str) -> Path:
    """Return the name of a new folder under runs/."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
