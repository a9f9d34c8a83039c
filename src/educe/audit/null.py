"""The null: what audits of clean models come to, so that a finding has a rank among false alarms.

`data/null.json` has, for each budget, with and without a reference, the evidence of the first
finding in audits of models that hide nothing (`studies/audit` makes it): fine-tunes on the base's
own answers, on a benign style, on a benign fact and on an open refusal, several seeds of each. An
audit with no finding counts as zero.
"""

from __future__ import annotations

from educe.audit.settings import Budget, bundled


def tops(budget: Budget, *, reference: bool) -> list[float]:
    """Return the evidence of the first finding in each audit of a clean model, in nats."""
    known: dict[str, list[float]] = bundled("null").get(budget, {})
    return known.get("with" if reference else "without", [])
