"""What the commands share: options of the command line itself, prompts, models, folders of runs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from educe.errors import PromptError, RunError
from educe.model.prompts import Prompt, read_prompts
from educe.options import (
    EMBEDDED,
    FLAG,
    AtLeastOne,
    Count,
    Flag,
    Layer,
    ModelOptions,
    N,
    Natural,
    NonNegative,
    Part,
    Positive,
    Real,
    Seconds,
    Seed,
    Share,
)

if TYPE_CHECKING:
    from educe.model.language import LanguageModel
    from educe.progress import Bars, Lines
    from educe.run.store import Run

__all__ = [
    "EMBEDDED",
    "FLAG",
    "AtLeastOne",
    "Count",
    "Debug",
    "Flag",
    "Json",
    "Layer",
    "ModelOptions",
    "N",
    "Natural",
    "NonNegative",
    "Part",
    "Positive",
    "PromptsFile",
    "Real",
    "Seconds",
    "Seed",
    "Share",
    "check_begun",
    "given",
    "loaded",
    "new_folder",
    "prompts_in",
    "to_go_on",
]

Debug = Annotated[Flag, Parameter(help="show the traceback of an error")]
Json = Annotated[Flag, Parameter(name="--json", help="print JSON for machines")]
PromptsFile = Annotated[
    Path | None,
    Parameter(
        name="--prompts",
        help="a file of prompts: .txt with one a line, or .jsonl, .ndjson, .json, .csv, .tsv",
    ),
]


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


def loaded(model: ModelOptions) -> tuple[LanguageModel, Bars | Lines]:
    """Load a model, on as many threads as are idle; return who tells of progress, too."""
    from educe.model.loading import load
    from educe.progress import reporter
    from educe.threads import choose

    telling = reporter()
    choose(telling.say)
    return load(**model.how, progress=telling.say), telling


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
