"""How many lines each room of the house has: ``python docs/lines.py`` renews the table.

The table is in docs/architecture.md, between two marks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BETWEEN = re.compile(r"(?<=<!-- lines -->\n).*?(?=<!-- end of lines -->)", re.DOTALL)
ALONE = "files beside them"


def files() -> dict[str, list[int]]:
    """Return the lines of each file, by room: a package right below educe, or none."""
    house = ROOT / "src" / "educe"
    rooms: dict[str, list[int]] = defaultdict(list)
    for path in sorted(house.rglob("*.py")):
        room, *inner = path.relative_to(house).parts
        rooms[f"{room}/" if inner else ALONE].append(len(path.read_bytes().splitlines()))
    return dict(rooms)


def table() -> str:
    """Return the table of rooms, the largest first, as Markdown."""
    rooms = sorted(files().items(), key=lambda room: -sum(room[1]))
    everything = [lines for _, each in rooms for lines in each]
    named = [(f"`{room}`" if room != ALONE else room, each) for room, each in rooms]
    rows = [
        f"| {name} | {len(each)} | {sum(each):,} | {median(each):.0f} | {max(each)} |"
        for name, each in [*named, ("together", everything)]
    ]
    head = ["| room | files | lines | median file | longest |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(BETWEEN.sub(table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
