"""The commands that begin with perturbations of a run and change them."""

from __future__ import annotations

from cyclopts import App

app = App(name="refine", help="Begin with perturbations of a run, and change them.")
