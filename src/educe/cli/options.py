"""What the commands share: options, files of prompts, names of folders."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from educe.errors import PromptError, RunError

if TYPE_CHECKING:
    from educe.runs import Run

FLAG = Parameter(negative="", show_default=False)
Debug = Annotated[bool, FLAG, Parameter(help="show the traceback of an error")]
Json = Annotated[bool, FLAG, Parameter(name="--json", help="print JSON for machines")]


def read_prompts(path: Path) -> list[Any]:
    """Read prompts from a file: one a line, or JSON lines of strings or messages.

    Raises:
        PromptError: The file cannot be read or holds something else.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [(i, line.rstrip("\n")) for i, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read prompts from {path}: {error}") from error
    if not lines:
        raise PromptError(f"{path} holds no prompt")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt(line, f"{path}, line {i}") for i, line in lines]


def _prompt(line: str, where: str) -> Any:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{where} is no JSON: {error}") from error
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(found, str) and not (
        isinstance(messages, list)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
    ):
        raise PromptError(f"{where}: give a string, or messages with a role and a content each")
    return messages


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
