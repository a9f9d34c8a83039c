"""Judges: what scores completions. One file a judge.

A judge sees completions, and the unperturbed model if it asks for it; it never sees how a
perturbation was found.
"""

from __future__ import annotations

from typing import NamedTuple


class Score(NamedTuple):
    """What a judge says of one completion or perturbation."""

    judge: str  #: the judge's name
    value: float
    higher_is: str  #: what a higher value is more of
    why: str
