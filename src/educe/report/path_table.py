"""Paths of vectors through the radius as rows of tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: The arms of a path, as the page names them, and their colours.
ARMS = {
    "found": ("found", "accent"),
    "shuffled": ("shuffled target", "rare"),
    "random": ("random", "control"),
    "elsewhere": ("other prompts", "noise"),
}
CURVES = {
    "turning": "turning of the direction",
    "exponent": "response exponent",
    "effect_turning": "turning of the effect",
    "neurons_variance": "variance of slopes over neurons",
}
#: What is said of the neurons of the target's MLP; a mixture of experts has none.
NEURONS = {
    "neurons_variance": "Variance of slopes",
    "neurons_spread": "Spread",
    "neurons_turning": "Turning",
    "neurons_exponent": "Exponent",
}


def rows(path: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a table says of each vector."""
    home = path["shares"].index(1.0)
    found = path["arms"]["found"]
    basis = path["bases"][0]
    variance = found.get("neurons_variance")
    return [
        {
            "number": number,
            "dose": path["dose"][i],
            "moved": path["moved"][i],
            "drift": path["drift"][i],
            "sine": found["sine"][home][i],
            "exponent": found["exponent"][home][i],
            "turning": found["turning"][home][i],
            "effect_turning": found["effect_turning"][home][i],
            "neurons_variance": variance[home][i] if variance else None,
            "participation": found["statistics"][basis]["participation"][i],
            "held": found["statistics"][basis]["held"][i],
            "left": left(path, i),
        }
        for i, number in enumerate(path["numbers"])
    ]


def curves_of(path: dict[str, Any]) -> dict[str, str]:
    """Return the curves that a path has, and their titles."""
    return {name: title for name, title in CURVES.items() if name in path["arms"]["found"]}


def left(path: dict[str, Any], i: int) -> list[float]:
    """Return the shares of its radius at which a vector left its basin."""
    branch = [row[i] for row in path["arms"]["found"]["branch"]]
    home = path["shares"].index(1.0)
    steps = range(1, len(branch))
    return [path["shares"][k if k > home else k - 1] for k in steps if branch[k] != branch[k - 1]]


def middles(path: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the median and the range of each statistic of each arm, at the vectors' own radius."""
    home = path["shares"].index(1.0)
    names = dict.fromkeys(("sine", *CURVES, *NEURONS))
    told: dict[str, dict[str, str]] = {}
    for arm, (title, _) in ARMS.items():
        own = path["arms"].get(arm, {})
        told[title] = {name: ranged(own[name][home]) if name in own else "" for name in names}
    return {title: line for title, line in told.items() if any(line.values())}


def spreads(path: dict[str, Any]) -> list[tuple[str, str, dict[str, str]]]:
    """Return basis, arm, and the median and range of each statistic of coordinates."""
    return [
        (basis, ARMS[arm][0], {name: ranged(values) for name, values in statistics.items()})
        for basis in path["bases"]
        for arm in ("found", "shuffled")
        for statistics in [path["arms"].get(arm, {}).get("statistics", {}).get(basis)]
        if statistics
    ]


def ranged(values: Sequence[float | None]) -> str:
    """Write the median of some numbers and what they lie between."""
    known = [x for x in values if x is not None]
    if not known:
        return "–"
    low, middle, high = np.quantile(known, [0.0, 0.5, 1.0])
    return f"{middle:.2g} ({low:.2g} to {high:.2g})"
