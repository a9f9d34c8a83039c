"""Points: perturbations of a run, each at its own radius and wherever it was scaled to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from educe.rows import FIRST, SCALED
from educe.run.store import Run

if TYPE_CHECKING:
    import pandas as pd

#: A radius has a value when its own is this near, as a share of it.
NEAR = 0.05


def points_of(
    run: Run, *, kl: str = "kl", kl_p95: str = "kl_p95", judge: str | None = None
) -> pd.DataFrame:
    """Return what is known of perturbations at radii, a row each.

    Columns: ``number`` of the perturbation and its ``arm``; ``radius``, negative for the other
    sign, as ``share`` of the one that it was used with, and as ``dose``; ``effect``; ``exponent``;
    ``linear_radius``, where its linearisation error is one half; ``kl`` and ``kl_p95``;
    ``coherence``, ``novelty``, ``interestingness`` and ``score``, means over what it wrote to the
    prompts asked; ``best``, its highest score; and its first ``text``. NaN is what was not
    measured, and what is infinite since the model breaks down.

    Args:
        run: The run.
        kl: Name of the scores by the mean divergence on ordinary text.
        kl_p95: Name of the scores by its 95th percentile.
        judge: Identity of the judge whose scores are looked at.
    """
    import pandas as pd

    rows, scores, written = run.perturbations, run.scores, run.completions
    number = rows.parent.where(rows.how == SCALED).fillna(rows.index.to_series()).astype(int)
    used = rows.radius.loc[number].to_numpy()
    asked = [p.id for p in run.prompt_rows("asked")]
    by_judge = {"columns": "judge", "values": "value"}
    whole = scores[scores.prompt.isna()].pivot(index="perturbation", **by_judge)
    of_texts = scores[scores.prompt.isin(asked) & (scores.phase == FIRST)]
    each = of_texts.pivot(index=["perturbation", "prompt", "sample"], **by_judge)
    each = each.reindex(columns=each.columns.union(["coherence", "novelty", judge or ""]))
    each["interestingness"] = each.coherence * each.novelty
    mean, best = (getattr(each.groupby(level="perturbation"), of)() for of in ("mean", "max"))
    first = written[written.prompt.isin(asked) & (written.phase == FIRST)]
    made = {
        "number": number,
        "arm": rows.arm,
        "radius": rows.radius,
        "share": rows.radius / used,
        "dose": rows.dose,
        "effect": rows.effect,
        "exponent": whole.get("exponent"),
        "linear_radius": whole.get("linear_radius"),
        "kl": whole.get(kl),
        "kl_p95": whole.get(kl_p95),
        **{name: mean[name] for name in ("coherence", "novelty", "interestingness")},
        "score": mean[judge or ""],
        "best": best[judge or ""],
        "text": first.groupby("perturbation").text.first(),
    }
    found = pd.DataFrame({k: math.nan if v is None else v for k, v in made.items()}, rows.index)
    return found.replace([math.inf, -math.inf], math.nan)


def beside(points: pd.DataFrame, number: int, sign: float) -> pd.DataFrame:
    """Return the points of one perturbation and sign, the smallest radius first, each once."""
    own = points[(points.number == number) & (points.radius * sign > 0)]
    return own.sort_values("radius", key=abs).drop_duplicates("radius")


def nearest(points: pd.DataFrame, what: str, wanted: float) -> pd.DataFrame:
    """Return the point that has a value: of those near it one that was written, then the nearest.

    Empty where no value is near.
    """
    away = np.log(points[what].where(points[what] > 0) / wanted).abs()
    near = points.assign(away=away, unwritten=points.coherence.isna())[away <= math.log1p(NEAR)]
    return near.sort_values(["unwritten", "away"])[:1]
