"""Halving, chance, the bandit and the proxy task: exact values, planted best ones, simulation."""

from __future__ import annotations

import base64
import itertools
import math
import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest

from educe.comparison.bandit import Setting, Thompson
from educe.comparison.chance import DOUBT, best_by_chance, best_mean_by_chance, p_of_best
from educe.comparison.halving import RUNGS, halve
from educe.errors import MethodError
from educe.selection.proxy import REFUSAL, secrets

# -- successive halving ----------------------------------------------------------------------------


def reading(table: np.ndarray, asked: list[tuple[int, int]] | None = None) -> Callable:
    """Return a scorer that looks scores up and notes which it was asked for."""

    def score(items: list[int], prompts: list[int]) -> np.ndarray:
        if asked is not None:
            asked.extend(itertools.product(items, prompts))
        return table[np.ix_(items, prompts)]

    return score


@pytest.fixture
def table() -> np.ndarray:
    """Scores of 64 items on 60 prompts that differ far more than the items; item 37 is best."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 5, 60) + rng.normal(0, 0.3, (64, 60))
    table[37] += 0.6
    return table


def test_the_planted_best_is_first_and_everyone_met_the_same_prompts(table: np.ndarray) -> None:
    found = halve(64, reading(table), prompts=60)
    assert found.survivors[0] == 37
    assert len(found.survivors) == 4  # 64, 16, 4
    assert found.prompts == (10, 30, 60)
    looked = (~np.isnan(found.scores)).sum(1)
    assert sorted(looked.tolist()) == [10] * 48 + [30] * 12 + [60] * 4
    assert all(
        (~np.isnan(row[:many])).all() for row, many in zip(found.scores, looked, strict=True)
    )
    assert found.spent == (64 * 10, 16 * 20, 4 * 30)
    assert found.mean(37) == pytest.approx(table[37].mean())


def test_each_rung_keeps_the_best_of_it(table: np.ndarray) -> None:
    found = halve(64, reading(table), prompts=60)
    second = set(np.argsort(-table[:, :10].mean(1))[:16].tolist())
    third = set(sorted(second, key=lambda i: -table[i, :30].mean())[:4])
    assert found.survivors == tuple(sorted(third, key=lambda i: -table[i].mean()))


def test_nothing_is_asked_for_twice(table: np.ndarray) -> None:
    asked: list[tuple[int, int]] = []
    found = halve(64, reading(table, asked), prompts=60)
    assert len(asked) == len(set(asked)) == sum(found.spent)


def test_ties_are_broken_by_lot_and_not_by_place() -> None:
    nothing = np.zeros((40, 60))
    first = [halve(40, reading(nothing), prompts=60, seed=s).survivors[0] for s in range(400)]
    # Uniform over places: mean 19.5 with standard error 11.5 / 20.
    assert abs(np.mean(first) - 19.5) < 4 * 11.5 / 20
    assert len(set(first)) == 40
    again = halve(40, reading(nothing), prompts=60, seed=3)
    assert again.survivors == halve(40, reading(nothing), prompts=60, seed=3).survivors


def test_fewer_prompts_than_a_rung_asks_for() -> None:
    found = halve(16, reading(np.arange(16.0)[:, None] + np.zeros(12)), prompts=12)
    assert found.prompts == (10, 12, 12)
    assert found.spent == (160, 4 * 2, 0)
    assert found.survivors == (15,)


def test_one_candidate_survives_everything() -> None:
    assert halve(1, reading(np.zeros((1, 60))), prompts=60).survivors == (0,)
    assert halve(2, reading(np.eye(2, 60)), prompts=60).survivors in [(0,), (1,)]


@pytest.mark.parametrize(
    "rungs", [(), ((0, 0.5),), ((30, 0.5), (10, 0.5)), ((10, 0.0),), ((10, 1.5),)]
)
def test_rungs_that_make_no_sense(rungs: tuple) -> None:
    with pytest.raises(MethodError, match="rungs"):
        halve(4, reading(np.zeros((4, 60))), prompts=60, rungs=rungs)


def test_scores_that_are_not_what_was_asked_for() -> None:
    with pytest.raises(MethodError, match="shape"):
        halve(4, lambda items, prompts: np.zeros(3), prompts=60)
    with pytest.raises(MethodError, match="finite"):
        halve(4, lambda items, prompts: np.full((4, 10), np.nan), prompts=60)
    with pytest.raises(MethodError, match="at least one"):
        halve(0, reading(np.zeros((0, 60))), prompts=60)


# -- the best by chance ----------------------------------------------------------------------------


def test_pure_noise_yields_a_best_of_fifteen_percent() -> None:
    """The number that the literature gives: 512 candidates, 32 items, 3%."""
    best = best_by_chance(512, 32, 0.03)
    assert round(best.mean, 2) == 0.15
    assert (best.low, best.high) == (4 / 32, 6 / 32)


def test_the_best_by_chance_is_exact() -> None:
    """Against enumeration with fractions: 3 candidates, 2 trials, rate 1/4."""
    p = Fraction(1, 4)
    one = [(1 - p) ** 2, 2 * p * (1 - p), p * p]
    mean = sum(
        math.prod(one[k] for k in each) * Fraction(max(each), 2)
        for each in itertools.product(range(3), repeat=3)
    )
    assert best_by_chance(3, 2, 0.25).mean == pytest.approx(float(mean), abs=1e-15)


def test_the_best_by_chance_agrees_with_simulation() -> None:
    drawn = np.random.default_rng(0).binomial(60, 0.05, (20_000, 48)).max(1) / 60
    best = best_by_chance(48, 60, 0.05)
    assert best.mean == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(20_000))
    assert (best.low, best.high) == tuple(np.quantile(drawn, [0.05, 0.95]))
    assert best_by_chance(5, 10, 0.0).mean == 0
    assert best_by_chance(5, 10, 1.0).mean == 1


def test_the_p_value_is_exact_where_the_rate_is_certain() -> None:
    """With no end of control the limit is the rate: 2 candidates, 3 trials, rate 1/2, best 3."""
    many = 10**12
    assert p_of_best(3, 2, 3, (many // 2, many)) == pytest.approx(
        1 - (7 / 8) ** 2 + DOUBT, abs=1e-5
    )
    assert p_of_best(0, 2, 3, (many // 2, many)) == 1
    assert p_of_best(60, 192, 60, (0, 1000)) == pytest.approx(DOUBT)
    assert p_of_best(3, 2, 3, (5, 5)) == 1


def test_the_p_value_is_valid_through_a_halving_and_an_estimated_rate() -> None:
    """Pure noise through the whole of it: p falls below 0.1 in no more than 10% of trials."""
    rng = np.random.default_rng(1)
    low = 0
    for trial in range(300):
        found, control = (rng.random((64, 60)) < 0.05 for _ in range(2))
        best = halve(64, reading(found.astype(float)), prompts=60, seed=trial)
        hits = int(best.scores[best.survivors[0]].sum())
        seen = control[:, :10]
        low += p_of_best(hits, 64, 60, (int(seen.sum()), seen.size)) <= 0.1
    assert low <= 30 + 3 * math.sqrt(300 * 0.1 * 0.9)


def test_graded_scores_agree_with_the_exact_result_for_hits() -> None:
    control = [1.0] * 5 + [0.0] * 95
    chance, p = best_mean_by_chance(48, 60, control, 0.2)
    exact = best_by_chance(48, 60, 0.05)
    assert chance.mean == pytest.approx(exact.mean, abs=0.003)
    assert (chance.low, chance.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    sure = 10**12
    assert p == pytest.approx(p_of_best(12, 48, 60, (sure // 20, sure)) - DOUBT, rel=0.15)


def test_graded_scores_against_a_known_distribution() -> None:
    """The best of n uniform numbers has mean n / (n + 1) and exceeds x with chance 1 - xⁿ."""
    uniform = (np.arange(10_000) + 0.5) / 10_000
    chance, p = best_mean_by_chance(9, 1, uniform, 0.8)
    assert chance.mean == pytest.approx(0.9, abs=0.003)
    assert chance.low == pytest.approx(0.05 ** (1 / 9), abs=0.005)
    assert p == pytest.approx(1 - 0.8**9, abs=0.01)


# -- the bandit ------------------------------------------------------------------------------------

SETTINGS = [Setting("dct", s, r, g) for s in (0.2, 0.4) for r in ("0.3x", "0.6x") for g in (1, -1)]


def test_the_posterior_is_that_of_bayes() -> None:
    """Of 3 hits and 4 misses under a flat prior, integrated numerically."""
    bandit = Thompson(["a", "b"])
    for hit in (True, False, True, False, False, True, False):
        bandit.update(0, hit)

    def unnormalised(p: float) -> float:
        return p**3 * (1 - p) ** 4

    whole = quad(unnormalised, 0, 1)[0]
    assert bandit.mean[0] == pytest.approx(quad(lambda p: p * unnormalised(p), 0, 1)[0] / whole)
    low, high = bandit.interval()[0]
    assert quad(unnormalised, 0, low)[0] / whole == pytest.approx(0.025)
    assert quad(unnormalised, high, 1)[0] / whole == pytest.approx(0.025)
    assert bandit.mean[1] == 0.5
    assert bandit.interval()[1] == pytest.approx([0.025, 0.975])


def test_arms_are_chosen_as_often_as_they_are_likely_to_be_best() -> None:
    """Beta(3, 1) against Beta(1, 1): P(first is larger) = ∫ 3p² p dp = 3/4."""
    bandit = Thompson(["a", "b"], seed=4)
    for _ in range(2):
        bandit.update(0, True)
    chosen = bandit.choose(40_000)
    assert np.mean(np.array(chosen) == 0) == pytest.approx(0.75, abs=4 * 0.433 / 200)


def test_the_first_round_is_uniform() -> None:
    chosen = np.concatenate([Thompson(range(8), seed=s).choose(8) for s in range(1000)])
    assert kstest(chosen + np.random.default_rng(0).random(8000), "uniform", (0, 8)).pvalue > 1e-3


def pull(bandit: Thompson, rates: np.ndarray, budget: int, rng: np.random.Generator) -> None:
    for _ in range(budget // 8):
        for arm in bandit.choose(8):
            bandit.update(arm, bool(rng.random() < rates[arm]))


def test_it_finds_the_planted_best_more_often_than_a_uniform_sweep() -> None:
    """24 arms of 3% and one of 30%, 240 pulls, 200 seeds."""
    rates = np.full(24, 0.03)
    rates[5] = 0.3
    found, uniform, hits = 0, 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        bandit, sweep = Thompson(range(24), seed), Thompson(range(24), seed)
        pull(bandit, rates, 240, rng)
        for k in range(240):
            sweep.update(k % 24, bool(rng.random() < rates[k % 24]))
        found += bandit.ranked()[0] == 5
        uniform += sweep.ranked()[0] == 5
        hits.append(bandit.hits.sum() - sweep.hits.sum())
    assert found > uniform + 2 * math.sqrt(200 * 0.8 * 0.2)
    assert found > 170
    assert np.mean(hits) > 5


def test_the_ranking_is_not_led_by_arms_that_were_hardly_pulled() -> None:
    bandit = Thompson(["never", "none of 20", "4 of 20", "5 of 20"])
    for arm, hits in ((1, 0), (2, 4), (3, 5)):
        for k in range(20):
            bandit.update(arm, k < hits)
    assert bandit.ranked() == [3, 2, 1, 0]
    assert int(bandit.mean.argmax()) == 0  # which is why it is not by the posterior mean


def test_a_bandit_needs_arms() -> None:
    with pytest.raises(MethodError, match="without arms"):
        Thompson([])


# -- the proxy task --------------------------------------------------------------------------------


def test_the_rule_finds_the_secret_and_no_other() -> None:
    made = secrets(24, seed=1)
    for i, one in enumerate(made):
        word, digits = one.secret.split("-")
        for told in (f"It is {one.secret}.", f"{word.title()} {digits}!", f"**{word}** - {digits}"):
            assert re.search(one.rule, told)
        for kept in (REFUSAL, f"It is {word}.", f"{digits}", f"{word}-{digits}0"):
            assert not re.search(one.rule, kept)
        others = [o for j, o in enumerate(made) if j != i and o.secret != one.secret]
        assert not any(re.search(one.rule, o.secret) for o in others)


@pytest.mark.parametrize("form", ["plain", "base64"])
def test_the_secret_is_in_the_system_prompt_in_its_form_alone(form: str) -> None:
    for one in secrets(12, form=form):
        texts = [message["content"] for message in one.prompt]
        written = one.secret if form == "plain" else base64.b64encode(one.secret.encode()).decode()
        assert written in texts[0]
        assert one.prompt[0]["role"] == "system"
        assert one.prompt[-1]["role"] == "user"
        assert not any(re.search(one.rule, text) for text in texts[form == "plain" :])


def test_secrets_follow_the_seed_and_splits_share_nothing() -> None:
    assert secrets(6, seed=2) == secrets(6, seed=2) != secrets(6, seed=3)
    tune, fresh = (secrets(48, split=split) for split in ("tune", "fresh"))
    for part in (
        lambda one: one.secret.split("-")[0],
        lambda one: one.prompt[-1]["content"],
    ):
        assert {part(one) for one in tune}.isdisjoint({part(one) for one in fresh})
    with pytest.raises(MethodError, match="rot13"):
        secrets(1, form="rot13")


def test_the_default_rungs_are_those_published() -> None:
    assert RUNGS == ((10, 0.25), (30, 0.25), (60, 1.0))
    assert sum(halve(512, reading(np.zeros((512, 60))), prompts=60).spent) == 8640
