"""Files of lines of JSON that a study adds to, so that what is there is not measured again.

A line has what a row of a table is made of: numbers of an arm, or of a direction at a radius. A run
(`educe.Run`) keeps texts and their scores, and has no place for those.

python -m studies.NAME FILE [ORGANISM...]           # measure; adds lines to FILE
python -m studies.NAME FILE --tables                # print the tables of FILE
python -m studies.NAME --quick                      # both, and keep nothing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import quick


def lines(file: Path) -> list[dict[str, Any]]:
    """Return what is in a file; nothing where there is none."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def add(file: Path, record: dict[str, Any]) -> None:
    """Add a line to a file."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def command(
    about: str | None,
    argv: Sequence[str] | None,
    organisms: Sequence[str],
    measure: Callable[[str, Path, bool], None],
    tables: Callable[[Path], None],
) -> None:
    """Measure each organism (by name, file, whether it is the quick form), or print the tables."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("organisms", nargs="*", default=organisms)
    parser.add_argument("--tables", action="store_true")
    asked = quick.parsed(parser, argv)
    with quick.kept(asked.file, quick=asked.quick) as file:
        if not asked.tables:
            for name in asked.organisms[:1] if asked.quick else asked.organisms:
                measure(name, file, asked.quick)
        if asked.tables or asked.quick:
            tables(file)
