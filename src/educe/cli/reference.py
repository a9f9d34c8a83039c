"""The command reference, made from the commands: ``python -m educe.cli.reference``.

It is docs/commands.md, and a test holds that this is up to date.
"""

from __future__ import annotations

import sys

from educe.cli import app

HEAD = """<!-- Made from the code by: python -m educe.cli.reference > docs/commands.md -->

"""


def reference() -> str:
    """Return every command with its options, their defaults and what they are for, as Markdown."""
    ours, sys.argv = sys.argv, ["educe"]  # in lines of usage cyclopts says how it was started
    try:
        return HEAD + app.generate_docs().rstrip() + "\n"
    finally:
        sys.argv = ours


if __name__ == "__main__":
    print(reference(), end="")
