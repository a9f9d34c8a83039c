"""Files of lines of JSON that a benchmark adds to, so that what is there is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines(file: Path) -> list[dict[str, Any]]:
    """Return what is in a file; nothing where there is none."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def add(file: Path, record: dict[str, Any]) -> None:
    """Add a line to a file."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")
