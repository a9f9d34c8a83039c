"""Holm's correction of p-values for how many they are (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(ps: Sequence[float]) -> list[float]:
    """Return corrected p-values, in the order of those given."""
    order, worst, out = np.argsort(ps), 0.0, [0.0] * len(ps)
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = worst
    return out
