"""Forecasts: how long a part of an audit will take, from what it took in audits that were measured.

    seconds here = seconds there · (seconds here / seconds there of the parts that are over)

`data/costs.json` has the median seconds of each part in the audits of `studies/audit`, for each
budget, with and without a reference. The ratio is that of this machine and model to those. Before
the first part is over, and for a part that was not measured, there is no forecast.
"""

from __future__ import annotations

from collections.abc import Mapping

from educe.audit.settings import Budget, bundled


def seconds(
    part: str, budget: Budget, *, reference: bool, spent: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Return how long a part is expected to take, in seconds; None where nobody can say.

    Args:
        part: A source, or another part of an audit.
        budget: How much is tried.
        reference: Whether there is one.
        spent: What the parts that are over cost (see `educe.audit.meter`).

    Examples:
        >>> from educe.audit.forecast import seconds
        >>> seconds("weights", "quick", reference=True, spent={}) is None
        True
    """
    there: dict[str, float] = (
        bundled("costs").get(budget, {}).get("with" if reference else "without", {})
    )
    over = [name for name in spent if name in there and name != part]
    known = sum(there[name] for name in over)
    if part not in there or not known:
        return None
    return there[part] * sum(spent[name]["seconds"] for name in over) / known


def left(seconds: float) -> str:
    """Write the time that is left for a person.

    Examples:
        >>> from educe.audit.forecast import left
        >>> left(20), left(100), left(400)
        ('under a minute left', 'about 2 minutes left', 'about 7 minutes left')
    """
    if seconds < 45:
        return "under a minute left"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} minute{'s' if minutes > 1 else ''} left"
