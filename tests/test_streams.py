"""What a command prints, while it is at work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Prints a line on standard error, says so on a descriptor of its own, and waits.
CHILD = """
import os, sys
from educe.cli.streams import lasting
with lasting():
    print("a line", file=sys.stderr)
    os.write({say}, b"!")
    sys.stdin.read()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_of_progress_is_seen_at_once(unbuffered: str) -> None:
    told, say = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(say=say)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(say,),
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        os.close(say)
        os.read(told, 1)
        os.set_blocking(child.stderr.fileno(), False)
        seen = child.stderr.read()
        child.stdin.close()
    os.close(told)
    assert seen == b"a line\n"
