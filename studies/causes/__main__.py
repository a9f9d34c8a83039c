"""Does a found vector touch what the network uses, and can a text do what it does?

python -m studies.causes [PART] [--quick]

Parts are files of this folder; by default all run. ``reads``: whether thinning sparsifies, how many
dimensions an answer uses, and whether what a key changes lies in what later layers read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks import quick
from studies.causes import reads

PARTS: dict[str, Callable[[bool], None]] = {"reads": reads.measure}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="by default all")
    asked = quick.parsed(parser, argv)
    for part in [asked.part] if asked.part else PARTS:
        PARTS[part](asked.quick)


if __name__ == "__main__":
    main()
