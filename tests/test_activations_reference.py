"""What a layer sees: Gaussian activations, where medians are known, and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2, ncx2
from torch import Tensor

from educe.activations.distance import learning
from educe.activations.natural import Natural, Sample
from educe.activations.reading import Place
from educe.activations.reference import Seen, Sight
from educe.activations.report import CHANCE, Standing, rare
from educe.activations.subspace import Moments
from toy_slice import normal

WIDTH = 8
STRETCH = torch.tensor([3.0, 2.5, 2.0, 1.6, 1.3, 1.0, 0.8, 0.7], dtype=torch.float64)


def sample(n: int, *, seed: int) -> Sample:
    rows = (STRETCH * normal(n, WIDTH, seed=seed)).float()
    return Sample(rows, torch.arange(n), torch.zeros(n))


def sight(still: Tensor, *, bank: int = 400) -> Sight:
    """Return a layer with Gaussian activations, spread as `STRETCH` says."""
    parts = tuple(Moments.of(STRETCH * normal(n, WIDTH, seed=n)) for n in (1000, 1001, 2002, 4004))
    held = sample(4000, seed=3)
    natural = Natural(
        Place(5), parts, Moments.of(held.rows), sample(bank, seed=1), held, first_norm=0.0
    )
    return Sight(natural, learning(natural), still)


def placed(there: Sight, own: Seen, controls: Seen) -> dict[str, tuple[Standing, ...]]:
    """Return where perturbed texts stand, by measure and size of the corpus."""
    found = there.measures(own, controls, controls)
    return {judge: measure.standings(f"{judge}_5") for judge, measure in found.items()}


def test_distances_under_a_vector_are_non_central_chi() -> None:
    still = sample(4000, seed=4).rows
    vector = (1.5 * STRETCH).float()  # of Mahalanobis length 1.5 √8 = 4.24
    there = sight(still)
    median = np.sqrt(ncx2(WIDTH, 1.5**2 * WIDTH).median())
    for seen in (there.of(still + vector), there.under(vector[None].double())):
        np.testing.assert_allclose(seen.distance.numpy(), np.full((1, 4), median), rtol=0.03)
    seen = there.of(still + vector)
    made = placed(there, seen, seen)["distance"][-1]
    assert made.found == pytest.approx(chi2(WIDTH).cdf(median**2), abs=0.01)
    assert made.still == pytest.approx(0.5, abs=0.02)


def test_vectors_added_without_a_model_are_seen_as_streams_are() -> None:
    still, vectors = sample(30, seed=4).rows, 6 * normal(5, WIDTH, seed=5)
    there = sight(still)
    streams = Seen.joined(there.of((still + v).float()) for v in vectors)
    for one, other in zip(there.under(vectors), streams, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-5)


def test_the_nearest_is_by_brute_force_for_each_size_of_the_corpus() -> None:
    still = sample(11, seed=4).rows
    there = sight(still, bank=161)
    vector = 4 * normal(WIDTH, seed=6)
    bank = sample(161, seed=1).rows.double()
    wanted = [
        np.median([min(float((h + vector - a).norm()) for a in bank[:size]) for h in still])
        for size in (21, 41, 81, 161)  # an eighth, a quarter, a half and all, rounded up
    ]
    seen = there.of((still + vector).float())
    np.testing.assert_allclose(seen.nearest[0], wanted, rtol=1e-5)
    held = sample(4000, seed=3).rows.double()
    nearest = placed(there, seen, seen)["nearest"]
    for size, standing, value in zip((21, 41, 81, 161), nearest, wanted, strict=True):
        among = torch.cdist(held, bank[:size]).min(1).values
        assert standing.found == pytest.approx(float((among < value).double().mean()))
    # One percentile for each share of the corpus.
    assert [known.tokens for _, known in there.learned] == [1000, 2001, 4003, 8007]


def test_a_natural_difference_stands_out_once_in_forty_times() -> None:
    """The claim is made as often as it says when there is nothing to claim."""
    there = sight(sample(40, seed=4).rows, bank=40)
    drawn = there.under(8 * torch.nn.functional.normalize(normal(40 * 200, WIDTH, seed=8), dim=1))

    def claim(of: slice, natural: slice) -> bool:
        own, controls = (Seen(*(x[at] for x in drawn)) for at in (of, natural))
        return rare(placed(there, own, controls)["distance"][-1], 39)

    claims = sum(claim(slice(at, at + 1), slice(at + 1, at + 40)) for at in range(0, 8000, 40))
    assert binomtest(claims, 200, CHANCE).pvalue > 0.01


def test_values_far_beyond_all_activations_are_still_placed_among_controls() -> None:
    """Percentiles among activations are all 100% there; the distances differ."""
    there = sight(sample(40, seed=4).rows)
    vectors = torch.outer(torch.arange(100.0, 139.0), STRETCH.float()).double()
    controls, own = there.under(vectors), there.under(150 * STRETCH[None])
    made = placed(there, own, controls)
    assert made["distance"][-1].found == made["distance"][-1].natural.low == 1
    assert made["distance"][-1].percentile == made["nearest"][-1].percentile == 1
    between = placed(there, there.under(120.5 * STRETCH[None]), controls)["distance"][-1]
    assert between.percentile == pytest.approx(21 / 39)


def test_a_bank_too_small_for_every_size_is_looked_at_whole() -> None:
    """Of two rows, an eighth, a quarter and a half of the corpus are the first."""
    still = sample(30, seed=4).rows
    there = sight(still, bank=2)
    assert there.sizes == [1, 1, 1, 2]
    first, second = (torch.cdist(still, row[None])[:, 0] for row in sample(2, seed=1).rows)
    expected = [first.median()] * 3 + [torch.minimum(first, second).median()]
    torch.testing.assert_close(there.of(still).nearest[0], torch.stack(expected), rtol=1e-4, atol=0)
