"""Intervals and tests, against equations, sums written out, and simulation."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import norm

from educe.comparison import stats
from educe.comparison.stats import (
    Rate,
    bootstrap_mean,
    comparisons,
    more_often,
    more_often_within,
    rate,
)

# -- rates ---------------------------------------------------------------------------------------

COUNTS = [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (1, 64), (81, 263), (500, 1000)]


@pytest.mark.parametrize(("hits", "trials"), COUNTS)
def test_interval_is_wilsons(hits: int, trials: int) -> None:
    found = rate(hits, trials)
    # Shares that lie 1.96 standard errors from what was seen, the errors being those at the share.
    z = norm.ppf(0.975)
    square = [1 + z * z / trials, -2 * hits / trials - z * z / trials, (hits / trials) ** 2]
    assert (found.hits, found.trials) == (hits, trials)
    assert found.share == hits / trials
    assert (found.low, found.high) == pytest.approx(sorted(np.roots(square).real), abs=1e-7)


def test_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263 and 15 of 148.
    assert rate(81, 263)[2:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert rate(15, 148)[2:] == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize("trials", [1, 7, 500])
def test_none_and_all_are_ends_of_their_intervals(trials: int) -> None:
    assert rate(0, trials).low == 0
    assert rate(trials, trials).high == 1
    assert rate(0, trials).high == pytest.approx(1 - rate(trials, trials).low)


def test_without_trials_nothing_is_known() -> None:
    assert rate(0, 0) == Rate(0, 0, 0, 1)
    assert math.isnan(rate(0, 0).share)


def test_a_rate_reads_as_a_sentence() -> None:
    assert str(rate(3, 10)) == "3 of 10 (11% to 60%)"


# -- comparing two -------------------------------------------------------------------------------


def by_hand(a: int, n: int, b: int, m: int) -> float:
    """Chance that of ``a + b`` hits at least ``a`` fall on the first ``n`` of ``n + m`` trials."""
    return sum(
        math.comb(n, k) * math.comb(m, a + b - k) / math.comb(n + m, a + b)
        for k in range(a, min(n, a + b) + 1)
    )


@pytest.mark.parametrize(
    ("found", "control"),
    [
        ((8, 10), (1, 10)),
        ((1, 10), (8, 10)),
        ((3, 64), (0, 64)),
        ((0, 5), (0, 9)),
        ((4, 4), (0, 9)),
    ],
)
def test_more_often_is_the_hypergeometric_tail(
    found: tuple[int, int], control: tuple[int, int]
) -> None:
    expected = by_hand(*found, *control)
    assert more_often(rate(*found), rate(*control)) == pytest.approx(expected)


def test_more_often_without_trials_is_no_evidence() -> None:
    assert more_often(rate(0, 0), rate(2, 10)) == 1
    assert more_often(rate(2, 10), rate(0, 0)) == 1


# -- many comparisons ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("totals", "found", "control"),
    [
        ([9, 8, 2, 1, 1], 16, 16),
        ([1, 2, 3, 4, 5, 6, 7], 32, 32),
        ([20, 20, 20], 64, 64),
        ([12, 5, 5, 4, 30], 20, 40),
        ([1, 1], 8, 8),
        ([30], 16, 16),
        ([], 16, 16),
    ],
)
def test_comparisons_are_tarones(totals: list[int], found: int, control: int) -> None:
    # The most one-sided split of so many hits: all in the first arm, or as many as it holds.
    smallest = []
    for total in totals:
        inside = min(total, found)
        smallest.append(by_hand(inside, found, total - inside, control))
    k = 1
    while sum(p <= 0.05 / k for p in smallest) > k:
        k += 1
    assert comparisons(totals, found, control) == k


def test_comparisons_that_cannot_matter_cost_nothing() -> None:
    assert comparisons([9, 8], 16, 16) == 2
    assert comparisons([9, 8] + [2] * 40, 16, 16) == 2
    assert comparisons([9] * 40, 16, 16) == 40


def test_comparisons_keep_the_error_of_the_family() -> None:
    # With no difference between the arms, a discovery at all is as rare as the level says.
    draw = np.random.default_rng(0)
    shares = np.array([0.3, 0.25, 0.15, 0.1, 0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.02])
    false = 0
    for _ in range(300):
        one, two = draw.multinomial(24, shares), draw.multinomial(24, shares)
        seen = one + two > 0
        times = comparisons((one + two)[seen].tolist(), 24, 24)
        smallest = min(
            more_often(rate(int(a), 24), rate(int(b), 24))
            for a, b in zip(one[seen], two[seen], strict=True)
        )
        false += smallest * times <= 0.05
    assert false / 300 < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


# -- bootstrap -----------------------------------------------------------------------------------


def test_within_one_stratum_it_is_fishers() -> None:
    for table in [(3, 8, 1, 9), (0, 5, 2, 5), (5, 5, 0, 7), (0, 4, 0, 4)]:
        found, control = rate(*table[:2]), rate(*table[2:])
        assert more_often_within([(found, control)]) == pytest.approx(more_often(found, control))


def test_within_strata_it_is_the_share_of_all_ways_to_deal_the_hits() -> None:
    strata = [((2, 3), (1, 4)), ((1, 3), (0, 2)), ((2, 2), (2, 3))]
    dealt = []
    for (h, n), (k, m) in strata:
        hits = [i < h + k for i in range(n + m)]
        dealt.append([sum(hits[i] for i in some) for some in combinations(range(n + m), n)])
    sums = [sum(way) for way in product(*dealt)]
    expected = sum(total >= 5 for total in sums) / len(sums)
    pairs = [(rate(*found), rate(*control)) for found, control in strata]
    assert more_often_within(pairs) == pytest.approx(expected)


def test_within_strata_what_both_arms_share_is_no_evidence() -> None:
    # A cell where everything hits, and many more of found there than of control.
    easy, hard = (rate(30, 30), rate(5, 5)), (rate(0, 10), rate(0, 30))
    assert more_often_within([easy, hard]) == 1.0
    assert more_often(rate(30, 40), rate(5, 35)) < 1e-6


def test_within_strata_it_holds_its_level() -> None:
    draw = np.random.default_rng(0)
    below = 0
    for _ in range(500):
        pairs = []
        for share in draw.beta(0.3, 2.0, 4):  # of each cell its own
            one, other = draw.binomial(10, share, 2).tolist()
            pairs.append((rate(one, 10), rate(other, 10)))
        below += more_often_within(pairs) <= 0.05
    assert below / 500 <= 0.06


def test_bootstrap_interval_of_a_large_sample_is_the_normal_one() -> None:
    data = np.random.default_rng(1).normal(3.0, 2.0, 400)
    mean, low, high = bootstrap_mean(data.tolist())
    half = norm.ppf(0.975) * data.std() / 20
    assert mean == pytest.approx(data.mean())
    assert low == pytest.approx(data.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(data.mean() + half, abs=0.1 * half)


def test_bootstrap_interval_of_few_values_is_that_of_every_resample() -> None:
    values = [0.0, 1.0, 5.0]
    means = sorted((a + b + c) / 3 for a in values for b in values for c in values)
    # 1 of 27 resamples has mean 0, and 1 of 27 mean 5: more than 2.5% each.
    assert bootstrap_mean(values) == (2.0, means[0], means[-1])


def test_bootstrap_interval_covers() -> None:
    draw = np.random.default_rng(2)
    covered = 0
    for seed in range(300):
        _, low, high = bootstrap_mean(draw.exponential(1.0, 40).tolist(), seed=seed, draws=400)
        covered += low <= 1.0 <= high
    # A percentile interval of 40 skewed values falls somewhat short of 95%.
    assert 0.88 < covered / 300 < 0.98


def test_bootstrap_depends_on_the_seed_alone() -> None:
    values = [0.3, 1.2, 0.7, 2.2, 0.1, 0.9, 1.1]
    first = bootstrap_mean(values, seed=4)
    np.random.seed(9)
    assert bootstrap_mean(values, seed=4) == first
    assert bootstrap_mean(values, seed=5) != first
    assert bootstrap_mean(values, seed=5)[0] == first[0]


def test_bootstrap_some_draws_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).exponential(1.0, 41)
    whole = bootstrap_mean(values)
    monkeypatch.setattr(stats, "PICKS", 100)  # two draws, and a third value that is left
    assert bootstrap_mean(values) == whole


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_mean([2.5] * 6) == (2.5, 2.5, 2.5)
    assert bootstrap_mean([2.5]) == (2.5, 2.5, 2.5)
