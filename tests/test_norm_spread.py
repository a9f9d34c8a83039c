"""Outliers and comparisons, against closed forms, published tables and counting."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact, linregress

from educe.comparison.equal import arm, equal
from educe.comparison.spread import against, grubbs, spread, without


@pytest.mark.parametrize(("n", "critical"), [(5, 1.672), (8, 2.032), (20, 2.557)])
def test_grubbs_has_the_published_critical_values(n: int, critical: float) -> None:
    """One-sided 5% points, Grubbs (1969), table I."""

    def far(top: float) -> tuple[float, np.ndarray]:
        data = np.array([*([-1.0, 1.0] * n)[: n - 1], top])
        return (data.max() - data.mean()) / data.std(ddof=1), data

    low, high = 1.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if far(middle)[0] < critical else (low, middle)
    assert grubbs(far(low)[1]) == pytest.approx(0.05, abs=0.001)


def test_grubbs_holds_its_level_on_normal_values() -> None:
    drawn = np.random.default_rng(0).normal(size=(2000, 12))
    share = np.mean([grubbs(row) < 0.1 for row in drawn])
    assert 0.08 < share < 0.12
    assert grubbs([1.0, 1.0, 1.0]) == 1.0
    assert grubbs([0.0] * 9 + [1.0]) == 1.0
    assert grubbs([0.0, 1e-3] * 4 + [1.0]) < 1e-9


def test_the_best_of_many_is_held_against_the_best_of_as_many() -> None:
    """With one random set of 19 and a single draw it is 1/20 for a new maximum."""
    assert against(5.0, 1, list(range(5)) * 4) == pytest.approx(1 / 21)
    assert against(3.0, 2, [1, 2, 3, 4]) == pytest.approx(1 - (1 - 3 / 5) ** 2)


def test_against_is_not_smaller_than_it_should_be() -> None:
    """For values all drawn alike, a p-value below 20% comes in at most one of five."""
    draw = np.random.default_rng(1)
    p = [against(draw.normal(size=4).max(), 4, draw.normal(size=60).tolist()) for _ in range(2000)]
    assert np.mean(np.asarray(p) < 0.2) < 0.23
    assert np.mean(np.asarray(p) < 0.2) > 0.1


def test_what_the_effect_explains_is_taken_away() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=40), draw.normal(size=40)
    left, explained = without(y, x)
    line = linregress(x, y)
    np.testing.assert_allclose(left, y - line.slope * x - line.intercept, atol=1e-12)
    assert explained == pytest.approx(line.rvalue**2)
    assert without(np.ones(3), np.arange(3.0))[1] == 0


def test_a_loud_top_is_no_outlier_beyond_its_effect_and_a_quiet_one_is() -> None:
    draw = np.random.default_rng(0)
    sizes = np.exp(draw.normal(size=24))
    control = np.exp(draw.normal(size=40))
    scores, noise = np.log(sizes), 0.1
    scores = scores + noise * draw.normal(size=24)
    loud = int(sizes.argmax())
    others = np.log(control) + noise * draw.normal(size=40)
    sizes[loud], scores[loud] = np.exp(6), 6 + noise
    quiet = int(sizes.argsort()[12])
    scores[quiet] += 2
    found = pd.DataFrame({"number": range(100, 124), "dose": 0.5, "x": scores, "effect": sizes})
    random = pd.DataFrame({"number": range(40), "dose": 0.5, "x": others, "effect": control})
    told = spread("x", found, random)
    assert told.top.number == 100 + loud
    assert told.top.grubbs < 0.01
    assert told.left.number == 100 + quiet
    assert told.left.grubbs < 1e-6
    assert told.left.random < 0.5
    assert told.explained > 0.8
    assert told.found == pytest.approx(np.quantile(scores, [0, 0.25, 0.5, 0.75, 1]))


POINT = {
    "number": 1, "radius": 2.0, "effect": 3.0, "kl_p95": 0.5, "coherence": 0.8, "novelty": 0.9,
    "interestingness": 0.72, "best": 0.0,
}  # fmt: skip


def points(*changed: dict[str, float]) -> pd.DataFrame:
    """Points that differ from one in some values."""
    return pd.DataFrame([POINT | own for own in changed], columns=list(POINT))


def test_arms_are_counted_by_perturbations() -> None:
    found = points(
        {"best": 1.0},
        {"best": 1.0, "coherence": 0.1, "radius": -4.0, "interestingness": 0.09},
        {"novelty": 0.2, "interestingness": 0.16},
        {"kl_p95": np.nan},
    )
    of = arm(found)
    assert (of.reached, of.shows.hits, of.new.hits, of.nonsense.hits) == (4, 2, 2, 1)
    assert (of.radius, of.effect, of.kl_p95) == (2.0, 3.0, 0.5)
    assert of.interestingness[0] == pytest.approx((0.72 + 0.09 + 0.16 + 0.72) / 4)
    told = equal("effect", 3.0, 0.4, found, points({}, {}, {}, {}, {}))
    assert (told.value, told.dose) == (3.0, 0.4)
    assert told.p_shows == pytest.approx(fisher_exact([[2, 2], [0, 5]], "greater").pvalue)
    assert told.p_nonsense == pytest.approx(fisher_exact([[1, 3], [0, 5]], "greater").pvalue)
    assert told.p_new == pytest.approx(fisher_exact([[2, 2], [5, 0]], "greater").pvalue)
    assert arm(points()).reached == 0
