"""Files of prompts: one a line, JSON lines, or a JSON list, in our form or in Alpaca's.

An item of JSON is a string, messages (``[{"role": ..., "content": ...}]``, by themselves or under
``messages``), or an ``instruction`` with or without an ``input``, as the files of Alpaca have them
(Taori et al. 2023): the input follows the instruction after a blank line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from educe.errors import PromptError


def read_prompts(path: Path) -> list[Any]:
    """Read the prompts of a file: ``.json`` and ``.jsonl`` as such, others one a line.

    Raises:
        PromptError: The file cannot be read or holds something else.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [(i, line.rstrip("\n")) for i, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read prompts from {path}: {error}") from error
    if path.suffix == ".json":
        found = _parsed("\n".join(line for _, line in lines), str(path))
        if not isinstance(found, list):
            raise PromptError(f"{path}: give a list of prompts")
        prompts = [_prompt(item, f"{path}, item {i}") for i, item in enumerate(found, 1)]
    elif path.suffix == ".jsonl":
        places = [(line, f"{path}, line {i}") for i, line in lines]
        prompts = [_prompt(_parsed(line, where), where) for line, where in places]
    else:
        prompts = [line for _, line in lines]
    if not prompts:
        raise PromptError(f"{path} holds no prompt")
    return prompts


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PromptError(f"{where} is no JSON: {error}") from error


def _prompt(item: Any, where: str) -> Any:
    if isinstance(item, dict) and "instruction" in item:
        parts = [item["instruction"], item.get("input") or ""]
        if all(isinstance(part, str) for part in parts):
            return "\n\n".join(filter(None, parts))
    messages = item.get("messages") if isinstance(item, dict) else item
    if not isinstance(item, str) and not (
        isinstance(messages, list)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
    ):
        raise PromptError(
            f"{where}: give a string, messages with a role and a content each, or an instruction"
        )
    return messages
