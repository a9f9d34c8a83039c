"""The commands that compare methods where the answer is known."""

from __future__ import annotations

from cyclopts import App

app = App(name="bench", help="Compare methods on organisms, where the answer is known.")
