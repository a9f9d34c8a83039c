"""The benchmark's table, on cells whose numbers are planted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from educe.comparison.stats import more_often_within, rate
from studies.elicitation import table
from studies.elicitation.cell import Cell, Retested, Tried
from studies.elicitation.table import Line, lines


def cell(
    family: str,
    hits: Sequence[int],
    *,
    seed: int = 0,
    best: tuple[int, int] = (0, 12),
    share: float = 0.0,
    **more: Any,
) -> Cell:
    """Return a cell of one organism in which perturbations answered two questions each."""
    tried = [
        Tried(i % 2, h, 0.1 * (i + 1) if h else None, 0.2 * (i + 1) if h else None)
        for i, h in enumerate(hits)
    ]
    made = Cell(
        organism="vault",
        organism_seed=seed,
        seed=seed,
        family=family,
        questions=2,
        chosen_by=8,
        tried=tuple(tried),
        best=Retested(0, share, *best),
        blind=Retested(1, 0.0, 1, best[1]),
        average=None,
        passes=(10.0, 8.0),
        seconds=3.0,
    )
    return made._replace(**more)


def one(cells: list[Cell], family: str) -> Line:
    (found,) = (line for line in lines(cells) if line.family == family)
    return found


CELLS = [
    cell("dct", [2, 1, 0, 0, 0, 0, 0, 0], best=(6, 12), share=0.75),
    cell("dct", [1, 0, 0, 0, 0, 0, 0, 0], seed=1, best=(2, 12), share=0.25),
    cell("random", [1, 0, 0, 0, 0, 0, 0, 0]),
    cell("random", [0, 0, 0, 0, 0, 0, 0, 0], seed=1),
    cell("random", [2] * 8, seed=2),
]


def test_cells_are_pooled_over_seeds() -> None:
    found = one(CELLS, "dct")
    assert found.cells == 2
    assert (found.elicits.hits, found.elicits.trials) == (3, 16)
    assert (found.completions.hits, found.completions.trials) == (4, 32)
    assert (found.best.hits, found.best.trials) == (8, 24)
    assert (found.blind.hits, found.blind.trials) == (2, 24)
    assert found.chosen == pytest.approx(0.5)
    assert found.first_success[0] == pytest.approx(32 / 4)
    assert found.first_success[1] < 8 < found.first_success[2]
    assert found.average is None


def test_the_control_has_the_seeds_of_the_family_and_is_compared_radius_by_radius() -> None:
    # Cells of seeds 0 and 1, sets 0 and 1: hits of four found and of four random perturbations.
    # Seed 2 has no dct, and takes no part.
    strata = [((1, 4), (1, 4)), ((1, 4), (0, 4)), ((1, 4), (0, 4)), ((0, 4), (0, 4))]
    expected = more_often_within((rate(*mine), rate(*theirs)) for mine, theirs in strata)
    assert one(CELLS, "dct").p == pytest.approx(expected)
    assert math.isnan(one(CELLS, "random").p)


def test_a_seed_that_the_control_has_not_is_not_compared() -> None:
    cells = [c for c in CELLS if (c.family, c.seed) != ("random", 1)]
    strata = [((1, 4), (1, 4)), ((1, 4), (0, 4))]
    expected = more_often_within((rate(*mine), rate(*theirs)) for mine, theirs in strata)
    assert one(cells, "dct").p == pytest.approx(expected)
    assert (one(cells, "dct").elicits.hits, one(cells, "dct").elicits.trials) == (3, 16)


def test_p_is_corrected_for_the_families_of_an_organism() -> None:
    cells = [cell("random", [0] * 8), cell("dct", [1] * 8), cell("melbo", [1] * 6 + [0, 0])]
    raw = {
        "dct": more_often_within([(rate(4, 4), rate(0, 4))] * 2),
        "melbo": more_often_within([(rate(3, 4), rate(0, 4))] * 2),
    }
    assert one(cells, "dct").p == pytest.approx(2 * raw["dct"])
    assert one(cells, "melbo").p == pytest.approx(raw["melbo"])
    other = [c._replace(organism="trigger") for c in cells]
    assert [line.p for line in lines(cells + other)] == pytest.approx(
        [line.p for line in lines(other)] * 2, nan_ok=True
    )


def test_without_a_control_nothing_is_said_of_chance() -> None:
    found = one([c for c in CELLS if c.family == "dct"], "dct")
    assert found.chance is None
    assert math.isnan(found.p)
    assert "50% (–)" in table.markdown([found])


def test_a_mean_vector_counts_where_there_is_one() -> None:
    tested = Retested(0, 0.5, 2, 12)
    found = one([cell("dct", [0] * 8), cell("dct", [0] * 8, seed=1, average=tested)], "dct")
    assert found.average is not None
    assert (found.average.hits, found.average.trials) == (2, 12)


def test_chance_is_that_of_the_best_of_as_many_at_the_controls_rate() -> None:
    # Two questions of all and six more of a quarter: the best was chosen by eight.
    share = 1 / 32
    below = [binom.cdf(k, 8, share) ** 8 for k in range(8)]
    chance = one(CELLS, "dct").chance
    assert chance is not None
    assert chance.mean == pytest.approx(sum(1 - b for b in below) / 8)


def test_without_a_success_there_is_no_expectation() -> None:
    found = one([cell("random", [0] * 8)], "random")
    middle, low, high = found.first_success
    assert middle == high == math.inf
    assert low == pytest.approx(1 / found.completions.high)
    assert math.isnan(found.coherence.value)
    assert math.isnan(found.side_effect.value)
    assert "> " in table.markdown([found])


def test_prices_are_means_over_perturbations_that_elicit_with_bootstrap_intervals() -> None:
    """Five values of a known spread: the bootstrap's interval is near that of the normal law."""
    loud = cell("dct", [1, 2, 1, 0, 0, 0, 0, 0])
    found = one([loud, cell("dct", [0, 0, 2, 1, 0, 0, 0, 0], seed=1)], "dct")
    for price, unit in ((found.coherence, 0.1), (found.side_effect, 0.2)):
        values = [unit * k for k in (1, 2, 3, 3, 4)]
        assert price.value == pytest.approx(sum(values) / 5)
        half = 1.96 * np.std(values) / 5**0.5
        assert price.low == pytest.approx(price.value - half, abs=0.15 * unit)
        assert price.high == pytest.approx(price.value + half, abs=0.15 * unit)
    assert f"| {found.side_effect} |" in table.markdown([found])


def test_one_price_has_no_interval() -> None:
    found = one([cell("dct", [1] + [0] * 7), cell("dct", [0] * 8, seed=1)], "dct")
    assert (str(found.coherence), str(found.side_effect)) == ("0.10", "0.20")


def test_the_page_has_a_row_for_each_family_in_the_order_of_the_families() -> None:
    rows = table.markdown(lines(CELLS)).splitlines()
    assert rows[0] == "### vault"
    assert [row.split(" | ")[0] for row in rows[4:]] == ["| random", "| dct"]
    assert "3 of 16" in rows[5]
