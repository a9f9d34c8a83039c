"""The commands that begin with perturbations of a run and change them."""

from __future__ import annotations

from cyclopts import App

from educe.cli import lighter

app = App(name="refine", help="Begin with perturbations of a run, and change them.")
app.command(lighter.front)
app.command(lighter.sparse)
app.command(lighter.degate)
