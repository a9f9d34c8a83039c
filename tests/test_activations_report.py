"""Manifold reports: planted vectors are told apart, and numbers are recomputed by brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

import tiny
from educe.activations import corpus, natural
from educe.activations.examination import at_its_layer, depths, examine
from educe.activations.inside import within
from educe.activations.natural import Gathered, Natural, gather
from educe.activations.reading import Place
from educe.activations.reference import HeldOut, Reference
from educe.activations.report import (
    ABLATED,
    FORMS,
    INSIDE,
    ON_TEXTS,
    OUTSIDE,
    RANDOM,
    ManifoldReport,
    verdict,
    words,
)
from educe.activations.subspace import Moments, of_moments
from educe.forward.forced import perturbing
from educe.inversion.report import Case, Test
from educe.model.language import LanguageModel
from educe.perturbation import kinds
from educe.perturbation.kinds import TokenNoise, Vectors
from educe.report import manifold, screen
from educe.report.document import Text

LAYERS = [1, 2, 3]


@pytest.fixture(scope="module")
def known(tiny_lm: LanguageModel) -> Gathered:
    """What a corpus leaves of the tiny model's activations; its held-out texts are long."""
    texts = [text[start : start + 100] for text in corpus.passages() for start in (0, 100)]
    long = [text for text in texts if len(text) > 40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(natural, "LENGTH", 48)
        return gather(tiny_lm, long, [Place(i) for i in LAYERS])


def differences(natural: Natural) -> np.ndarray:
    """Return differences of held-out activations of other documents; those that begin alike have
    equal ones, which do not differ.
    """
    rng, rows = np.random.default_rng(0), natural.sample.rows.double().numpy()
    pairs = rng.integers(len(rows), size=(20_000, 2))
    documents = natural.sample.document.numpy()[pairs]
    apart = (rows[pairs[:, 0]] - rows[pairs[:, 1]])[documents[:, 0] != documents[:, 1]]
    return apart[np.abs(apart).max(1) > 0]


def planted(known: Gathered, which: str) -> Tensor:
    """Return a vector of norm 4 that is natural or not, or one of a natural direction, longer."""
    natural = known.natural[Place(1)]
    size, turn = np.linalg.eigh(natural.moments.covariance.numpy())
    assert size[0] < size[-1] / 40
    vectors = {
        "natural": natural.sample.rows[3].double() - natural.sample.rows[-3].double(),
        "principal": torch.tensor(turn[:, -1] + turn[:, -2] - turn[:, -4]),
        "unused": torch.tensor(turn[:, 0] + turn[:, 1]),
        "exaggerated": torch.tensor(turn[:, -1]),
    }
    unit = vectors[which] / vectors[which].norm()
    return (unit * (80 if which == "exaggerated" else 4))[None].float()


@pytest.fixture(scope="module")
def ground(tiny_lm: LanguageModel, known: Gathered) -> Reference:
    """Natural activations and controls at the layers, for perturbations after the first."""
    return Reference(tiny_lm, known, 1, LAYERS)


def report_of(ground: Reference, theta: Tensor, **options: Any) -> ManifoldReport:
    return examine(ground, Vectors(1, ground.lm.width), theta, **options).report


def altered(made: ManifoldReport, judge: str, **changes: Any) -> ManifoldReport:
    """Return a report in which a measure stands elsewhere with all of the corpus."""
    *before, last = made.standings[judge]
    sizes = (*before, replace(last, **changes))
    return replace(made, standings={**made.standings, judge: sizes})


@pytest.mark.parametrize(
    ("which", "told"),
    [
        ("natural", "natural"),
        ("principal", "natural"),
        ("exaggerated", "exaggerated"),
        ("unused", "farther"),
    ],
)
def test_planted_vectors_are_told_apart(
    ground: Reference, known: Gathered, which: str, told: str
) -> None:
    made = report_of(ground, planted(known, which))
    assert verdict(made) == told
    assert made.facts.norm == pytest.approx(80 if which == "exaggerated" else 4)


@pytest.fixture(scope="module")
def stand(ground: Reference) -> Callable[[Tensor], ManifoldReport]:
    """Place vectors at the layer alone: no model runs but under the controls of their norm."""
    blank = report_of(ground, 4 * torch.eye(32)[:1])

    def placed(theta: Tensor) -> ManifoldReport:
        measures = at_its_layer(ground, theta[None].float())
        there = {judge: m.standings(judge) for judge, m in measures.items()}
        return replace(blank, standings={**blank.standings, **there})

    return placed


def test_bottom_directions_lie_farther_out_than_random_vectors(
    stand: Callable[[Tensor], ManifoldReport], known: Gathered
) -> None:
    """Eigenvectors by numpy: the bottom ones and their mixtures, one with nothing at the top."""
    _, turn = np.linalg.eigh(known.natural[Place(1)].moments.covariance.numpy())
    bottom = torch.tensor(turn[:, :4].T)
    for vector in (*bottom, bottom.sum(0), bottom[0] + 0.1 * torch.tensor(turn[:, -1])):
        made = stand(4 * vector / vector.norm())
        assert verdict(made) == "farther"
        assert made["energy_top"].among_random == 0
        assert made["mahalanobis"].among_random == 1
    # Beyond random ones by one measure alone is not enough.
    for judge, percentile in (("energy_top", 0.02), ("mahalanobis", 0.98)):
        assert verdict(altered(made, judge, among_random=percentile)) == "random"


def test_random_vectors_are_seldom_called_farther(
    stand: Callable[[Tensor], ManifoldReport],
) -> None:
    """At a level of one in a hundred: of 150 eight or more are called so once in 5000 times."""
    drawn = torch.randn(150, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    told = [verdict(stand(4 * v / v.norm())) for v in drawn]
    assert told.count("farther") < 8
    assert told.count("random") > 125


@pytest.fixture(scope="module")
def unused(ground: Reference, known: Gathered) -> ManifoldReport:
    """The report of a vector where natural activations do not differ."""
    return report_of(ground, planted(known, "unused"))


@pytest.fixture(scope="module")
def loud() -> tuple[LanguageModel, Gathered]:
    """A model one of whose coordinates is massive from block 1 on, and its activations."""
    hf = tiny.hf_model()
    hf.model.layers[1].mlp.down_proj.weight.data[5] *= 300
    lm = LanguageModel(hf, tiny.tokenizer(), name="loud")
    texts = [text[start : start + 100] for text in corpus.passages() for start in (0, 100)]
    return lm, gather(lm, [t for t in texts if len(t) > 40], [Place(i) for i in LAYERS])


def test_a_vector_in_a_massive_coordinate_is_outside(loud: tuple[LanguageModel, Gathered]) -> None:
    lm, known = loud
    ground = Reference(lm, known, 1, LAYERS)
    natural = known.natural[Place(1)]
    assert natural.massive == [5]
    along, rest = torch.eye(32)[5], torch.nn.functional.normalize(natural.sample.rows[3], dim=0)
    rest = torch.nn.functional.normalize(rest * (1 - along), dim=0)
    # How much of differences of documents lies in the coordinate, by code of its own.
    apart = differences(natural)
    there = apart[:, 5] ** 2 / (apart**2).sum(1)
    usual, most = np.quantile(there, [0.5, 0.999])
    assert most < 1 - 1e-6

    # All are as long as a usual difference, so that they share their controls.
    usual_one = torch.tensor(apart[np.abs(there - usual).argmin()])[None].float()
    for share in (1.0, (1 + most) / 2):
        vector = usual_one.norm() * (math.sqrt(share) * along + math.sqrt(1 - share) * rest)
        made = report_of(ground, vector[None])
        assert made["energy_massive"].found == pytest.approx(share)
        assert made["energy_massive"].percentile == pytest.approx(1, abs=2e-3)
        assert made["energy_massive"].natural.median == pytest.approx(usual, abs=0.02)
        assert verdict(made) == "outside"
        assert words(made).startswith(
            "At layer 1 more of it lies in massive coordinates than of 99 in a hundred differences "
            "between natural activations; activations under it "
        )
        assert made.facts.tried == (39, 5)
        json.dumps(made.data(), allow_nan=False)
    told = StringIO()
    screen.tell([manifold.card(made)], Console(file=told, width=72))
    assert "energy in massive" in told.getvalue()
    assert "…" not in told.getvalue(), "a number that is cut off is another number"

    made = report_of(ground, usual_one)
    assert made["energy_massive"].percentile == pytest.approx(0.5, abs=0.05)
    assert verdict(made) == "natural"
    # Share and length are of the rest alone, whether there is much of it or little.
    bare = report_of(ground, usual_one * (1 - along))
    for judge in ("energy_top", "mahalanobis"):
        assert bare[judge].percentile == pytest.approx(made[judge].percentile, abs=1e-3)
    # Where natural differences lie there as wholly, nothing else of a vector is left to judge by.
    alone = altered(made, "energy_massive", found=1.0)
    assert verdict(alone) == "unknown"
    assert "too small" not in words(alone)


def test_what_is_neither_natural_nor_random_is_outside(unused: ManifoldReport) -> None:
    made = unused
    nearer = made["mahalanobis"].random.low / 1.01
    assert verdict(altered(made, "mahalanobis", found=nearer)) == "outside"
    nearer = made["energy_top"].random.high * 1.01
    assert verdict(altered(made, "energy_top", found=nearer)) == "outside"


def test_the_numbers_at_the_layer_are_those_of_numpy(ground: Reference, known: Gathered) -> None:
    theta = planted(known, "unused") + planted(known, "natural")
    theta *= 4 / theta.norm()  # the norm of the others, whose controls are there
    made = report_of(ground, theta)
    natural = known.natural[Place(1)]
    size, turn = np.linalg.eigh(natural.moments.covariance.numpy())
    v = theta[0].double().numpy()
    falling = np.cumsum(size[::-1]) / size.sum()
    rank = int(np.argmax(falling >= 0.9)) + 1
    assert made.facts.rank == rank
    assert made.facts.chance.median == pytest.approx(rank / 32)
    top = turn[:, -rank:]
    assert made["energy_top"].found == pytest.approx(((v @ top) ** 2).sum() / (v**2).sum())
    d, n = 32, natural.moments.count
    rho = ((size**2).sum() + size.sum() ** 2) / ((n + 1) * ((size**2).sum() - size.sum() ** 2 / d))
    shrunk = (1 - rho) * natural.moments.covariance.numpy() + rho * size.mean() * np.eye(d)
    length = math.sqrt(v @ np.linalg.inv(shrunk) @ v)
    assert made["mahalanobis"].found == pytest.approx(length)
    assert made["mahalanobis_own"].found == pytest.approx(length)
    # Among differences of held-out activations of other documents, drawn by independent code.
    apart = differences(natural)
    unit = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    shares = ((unit @ top) ** 2).sum(1)
    assert made["energy_top"].percentile == pytest.approx(
        (shares < made["energy_top"].found).mean(), abs=0.01
    )
    lengths = np.sqrt(np.einsum("nd,de,ne->n", apart, np.linalg.inv(shrunk), apart))
    assert made["mahalanobis_own"].percentile == pytest.approx((lengths < length).mean(), abs=0.02)
    assert made["energy_top"].natural.median == pytest.approx(np.median(shares), abs=0.01)
    assert made.facts.massive == ()


def test_what_later_layers_see_is_that_of_each_text_alone(
    tiny_lm: LanguageModel, unused: ManifoldReport, known: Gathered
) -> None:
    theta, made = planted(known, "unused"), unused
    moved, still = [], []
    for piece in known.texts:
        at = torch.ones(len(piece.ids))
        moved.append(tiny.run(tiny_lm.hf, piece.ids, source=1, vector=theta[0], at=at)[1][3])
        still.append(tiny.run(tiny_lm.hf, piece.ids)[1][3])
    moved, still = (
        torch.cat([x[p.skip :] for x, p in zip(xs, known.texts, strict=True)])
        for xs in (moved, still)
    )
    natural = known.natural[Place(3)]
    inverse = np.linalg.inv(natural.moments.covariance.numpy())

    def far(rows: Tensor) -> np.ndarray:
        apart = rows.detach().double().numpy() - natural.moments.mean.numpy()
        return np.sqrt(np.einsum("nd,de,ne->n", apart, inverse, apart))

    held = np.sort(far(natural.sample.rows))
    percentile = np.median(np.searchsorted(held, far(moved)) / len(held))
    assert made.facts.layers[-1] == 3
    assert made.at("distance", 3).found == pytest.approx(percentile, abs=0.01)
    size = ((moved - still).norm(dim=1) / still.norm(dim=1)).median()
    assert made.at("size", 3).found == pytest.approx(float(size), rel=1e-3)
    nearest = torch.cdist(natural.sample.rows, natural.bank.rows).min(1).values.sort().values
    own = torch.cdist(moved.detach(), natural.bank.rows).min(1).values
    among = torch.searchsorted(nearest, own).double() / len(nearest)
    assert made.at("nearest", 3).found == pytest.approx(float(among.median()), abs=0.01)


def test_a_trial_is_teacher_forcing_by_hand(tiny_lm: LanguageModel, known: Gathered) -> None:
    theta = planted(known, "natural")
    trial = HeldOut(tiny_lm, known.texts, 1, LAYERS)
    same = []
    outcome = trial.under(perturbing(tiny_lm, Vectors(1, 32), theta) for _ in trial.parts)
    kl, entropy, surprise = [], [], []
    for piece in known.texts:
        at = torch.ones(len(piece.ids))
        q = tiny.run(tiny_lm.hf, piece.ids, source=1, vector=theta[0], at=at)[0].log_softmax(-1)
        p = tiny.run(tiny_lm.hf, piece.ids)[0].log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(1)[piece.skip :])
        same.append((p.argmax(1) == q.argmax(1)).double()[piece.skip :])
        entropy.append(-(q.exp() * q).sum(1)[piece.skip :])
        following = torch.tensor(piece.ids[1:])[:, None]
        surprise.append(-q[:-1].gather(1, following)[piece.skip :, 0])
    kl, same, entropy, surprise = (
        float(torch.cat(x).mean()) for x in (kl, same, entropy, surprise)
    )
    assert outcome.scores["heldout_kl"] == pytest.approx(kl, rel=1e-3)
    assert outcome.scores["heldout_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert outcome.scores["heldout_perplexity"] == pytest.approx(math.exp(surprise), rel=1e-3)
    assert 0.2 < same < 1
    assert outcome.scores["heldout_same"] == pytest.approx(same)
    assert list(trial.plain.scores.values())[:2] == [0, 1]
    again = trial.under(nullcontext() for _ in trial.parts)
    assert torch.equal(again.streams[3], trial.plain.streams[3])


def test_a_vector_within_the_natural_subspace_has_no_part_outside(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    top = of_moments(known.natural[Place(1)].moments).top(5)
    kind = within(top, 1)
    theta = 3 * kind.draw(1, torch.Generator().manual_seed(0))
    made = examine(Reference(tiny_lm, known, 1, LAYERS), kind, theta).report
    assert made["energy_top"].found == pytest.approx(1)
    assert made.facts.norm == pytest.approx(3)
    assert made.outcomes(OUTSIDE) == []
    (part,) = made.outcomes(INSIDE)
    assert part.scores["heldout_kl"] == pytest.approx(made["heldout_kl"].found, rel=1e-3)


@pytest.mark.parametrize("which", ["adapters", "token noise"])
def test_other_kinds_are_examined_by_what_they_change(
    tiny_lm: LanguageModel, known: Gathered, which: str
) -> None:
    kind = (
        kinds.adapters(tiny_lm, first=2, blocks=1)
        if which == "adapters"
        else TokenNoise(2, 32, seeds=(5,))
    )
    theta = 3 * kind.draw(1, torch.Generator().manual_seed(0))
    prompts = tiny_lm.encode(["Hello."])
    ground = Reference(tiny_lm, known, kind.before, [2, 3])
    made = examine(ground, kind, theta, prompts=prompts).report
    assert made.facts.layer == 2
    # Noise has no direction to take away; an adapter's is the mean of what it changes.
    ways = () if which == "token noise" else FORMS
    assert {one.how for one in made.derived} == {
        name + ABLATED.format(form) for form in ways for name in ("", RANDOM)
    }
    assert made.facts.prompt_rank == prompts.lengths[0] - 1  # all tokens but the first
    assert 0 < made["energy_prompt"].found < 1
    assert 0 < made["energy_top"].found < 1
    assert made.at("size", 2).found > 0
    if which == "token noise":
        assert made.facts.norm == pytest.approx(3, rel=1e-4)
        assert made["energy_top"].found == pytest.approx(made.facts.chance.median, abs=0.1)


def test_natural_activations_themselves_are_at_the_middle(
    ground: Reference, known: Gathered
) -> None:
    made = report_of(ground, 1e-4 * planted(known, "natural"))
    for layer in LAYERS:
        for judge in ("distance", "nearest"):
            there = made.at(judge, layer)
            assert there.found == pytest.approx(there.still, abs=0.01)
        assert 0.3 < made.at("distance", layer).still < 0.7
    assert made["heldout_kl"].found < 1e-4
    for judge in ON_TEXTS:
        assert made[judge].found == pytest.approx(made[judge].still, rel=1e-3, abs=1e-4)


def small_at(made: ManifoldReport, layer: int) -> ManifoldReport:
    """Return a report in which the corpus is too small at a layer."""
    *before, last = made.coverage[layer]
    return replace(made, coverage={**made.coverage, layer: (*before, last._replace(optimism=1.5))})


def test_half_of_the_corpus_must_say_the_same(unused: ManifoldReport) -> None:
    made = unused
    doubt = dict(made.standings)
    for judge in ("energy_top", "mahalanobis"):
        sizes = made.standings[judge]
        doubt[judge] = (*sizes[:-2], replace(sizes[-2], percentile=0.5), sizes[-1])
    assert verdict(replace(made, standings=doubt)) == "unknown"
    unsure = small_at(made, 1)
    assert verdict(unsure) == "unknown"
    assert "too small to say" in words(unsure)


UNUSED = (
    "At layer 1 it points where natural activations hardly differ from one another, and lies "
    "farther out than 99 in a hundred random vectors; activations under it "
)
FROM = "stand out from those under natural differences of its norm"
THERE = f"{FROM} (farther out than 391 of 400), "
NOT = f"do not {FROM} (farther out than 380 of 400), "


@pytest.mark.parametrize(
    ("beaten", "enough", "told"),
    [
        ((391, 39), (True, True), f"{UNUSED}{THERE}and at layer 3 still do (39 of 39)."),
        ((391, 38), (True, True), f"{UNUSED}{THERE}and at layer 3 no longer do (38 of 39)."),
        ((380, 39), (True, True), f"{UNUSED}{NOT}but at layer 3 they do (39 of 39)."),
        ((380, 10), (True, True), f"{UNUSED}{NOT}nor do they at layer 3 (10 of 39)."),
        (
            (391, 39),
            (True, False),
            f"{UNUSED}{THERE}and the corpus is too small to say what becomes of it by layer 3.",
        ),
        (
            (391, 39),
            (False, True),
            "At layer 1 the corpus is too small to say whether it points where natural activations "
            "differ.",
        ),
    ],
)
def test_words_follow_the_numbers(
    unused: ManifoldReport, beaten: tuple[int, int], enough: tuple[bool, bool], told: str
) -> None:
    made = unused
    for layer, there, of in zip((1, 3), enough, beaten, strict=True):
        made = altered(made, f"distance_{layer}", percentile=of / made.controls(layer))
        made = made if there else small_at(made, layer)
    assert words(made) == told


def test_at_its_own_layer_it_is_placed_among_many_differences(
    tiny_lm: LanguageModel, known: Gathered, unused: ManifoldReport
) -> None:
    """Distance and nearest of natural activations with natural differences added, by numpy."""
    natural, theta = known.natural[Place(1)], planted(known, "unused")
    still = np.concatenate(
        [tiny.run(tiny_lm.hf, p.ids)[1][1][p.skip :].detach().numpy() for p in known.texts]
    )
    rng, rows = np.random.default_rng(1), natural.sample.rows.numpy()
    pairs = rng.integers(len(rows), size=(300, 2))
    documents = natural.sample.document.numpy()[pairs]
    apart = (rows[pairs[:, 0]] - rows[pairs[:, 1]])[documents[:, 0] != documents[:, 1]]
    apart *= 4 / np.linalg.norm(apart, axis=1, keepdims=True)
    inverse, mean = np.linalg.inv(natural.moments.covariance.numpy()), natural.moments.mean.numpy()
    bank = natural.bank.rows.double()

    def far(vector: np.ndarray) -> tuple[float, float]:
        h = still + vector
        distance = np.sqrt(np.einsum("nd,de,ne->n", h - mean, inverse, h - mean))
        nearest = torch.cdist(torch.as_tensor(h).double(), bank).min(1).values
        return np.median(distance), float(nearest.median())

    own, others = far(theta[0].numpy()), np.array([far(vector) for vector in apart])
    assert [unused.controls(layer) for layer in LAYERS] == [400, 39, 39]
    for judge, beaten in zip(("distance", "nearest"), (others < own).mean(0), strict=True):
        assert unused.at(judge, 1).percentile == pytest.approx(beaten, abs=0.08)


def test_every_measure_along_the_depth_has_its_learning_curve(
    known: Gathered, unused: ManifoldReport
) -> None:
    for layer in LAYERS:
        moments, sizes = known.natural[Place(layer)].growing, unused.coverage[layer]
        assert [known.tokens for known in sizes] == [some.count for some in moments]
        assert sizes[0].optimism > sizes[-1].optimism > 0.9
        for judge in ("distance", "nearest"):
            assert len({at.found for at in unused.standings[f"{judge}_{layer}"]}) == 4


def test_share_and_length_stand_among_activations_too(
    known: Gathered, unused: ManifoldReport
) -> None:
    natural = known.natural[Place(1)]
    rows = natural.sample.rows.double().numpy() - natural.moments.mean.numpy()
    size, turn = np.linalg.eigh(natural.moments.covariance.numpy())
    shares = ((rows @ turn[:, -unused.facts.rank :]) ** 2).sum(1) / (rows**2).sum(1)
    lengths = np.sqrt(((rows @ turn) ** 2 / size).sum(1))
    for judge, values, off in (("energy_top", shares, 0.01), ("mahalanobis_own", lengths, 0.02)):
        smaller = (values < unused[judge].found).mean()
        assert unused[judge].activations == pytest.approx(smaller, abs=off)


def test_controls_of_one_norm_run_once(
    tiny_lm: LanguageModel, known: Gathered, ground: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_of(ground, planted(known, "unused"))
    alone = report_of(Reference(tiny_lm, known, 1, LAYERS), planted(known, "natural"))
    monkeypatch.setattr(Reference, "_run", None)  # a second time is an error
    assert report_of(ground, planted(known, "natural")) == alone


def test_taking_the_direction_away_is_compared_with_equal_variance(
    ground: Reference, known: Gathered
) -> None:
    made = report_of(ground, planted(known, "principal"))
    forms = {form: made.outcomes(ABLATED.format(form))[0].scores for form in FORMS}
    origin, mean, oblique = (forms[form]["energy_unused"] for form in FORMS)
    assert oblique < 0.01 < made.facts.unused[1]
    assert origin == pytest.approx(mean)  # of the same vector
    for form in FORMS:
        how = RANDOM + ABLATED.format(form)
        assert len(made.outcomes(how)) == 5
        assert forms[form]["heldout_kl"] > 0
        assert made.range(how, "heldout_kl").low > 0


def test_random_directions_that_are_taken_away_vary_about_as_much(
    tiny_lm: LanguageModel,
    ground: Reference,
    known: Gathered,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And for another vector of about that variance the model runs under its own parts alone."""
    covariance = known.natural[Place(1)].moments.covariance.numpy()
    kind, theta = Vectors(1, tiny_lm.width), planted(known, "natural")
    made = examine(ground, kind, theta)
    varied: dict[bool, list[float]] = {True: [], False: []}
    for part in made.derived:
        if part.how not in (INSIDE, OUTSIDE):
            read = part.direction[0, :32].double().numpy()
            varied[part.how.startswith(RANDOM)].append(read @ covariance @ read)
    (own,) = set(np.round(varied[False], 4))
    assert len(varied[True]) == 15
    assert all(1 / 1.1 < variance / own < 1.1 for variance in varied[True])

    ran: list[str] = []
    under = Reference.under
    monkeypatch.setattr(Reference, "under", lambda *args: ran.append(args[1].name) or under(*args))
    again = examine(ground, kind, theta)
    assert ran == ["vectors", "vectors", "vectors", *["ablations"] * len(FORMS)]
    assert again.report == made.report


def test_depths_go_from_the_source_to_the_end() -> None:
    assert depths(9, 18, 30) == [9, 14, 18, 19, 24, 29]
    assert depths(2, 3, 4) == [2, 3]


def test_a_report_is_json_and_one_screen(unused: ManifoldReport) -> None:
    made = unused
    data = json.loads(json.dumps(made.data(), allow_nan=False))
    assert data["words"] == words(made)
    assert data["standings"]["energy_top"][-1]["natural"]["median"] == (
        made["energy_top"].natural.median
    )
    told = StringIO()
    screen.tell([manifold.card(made)], Console(file=told, width=100))
    lines = told.getvalue().splitlines()
    assert len(lines) < 34
    assert f"{made['energy_top'].found:.3g}" in told.getvalue()


def test_how_much_is_read_is_its_share_in_the_top_gradients(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    rows = torch.zeros(60, 32, dtype=torch.float64)
    rows[:20, 3], rows[20:40, 7], rows[40:, 9] = 3, 2, 0.1  # 3 and 7 have all but a thousandth
    gradients = torch.cat([rows, -rows])  # of mean zero
    reference = Reference(tiny_lm, known, 1, LAYERS, read=Moments.of(gradients))
    theta = torch.zeros(3, 32)
    theta[0, 3] = theta[1, 20] = theta[2, 7] = theta[2, 20] = 1
    for v, share in zip(theta, (1, 0, 0.5), strict=True):
        measure = at_its_layer(reference, v[None])["read"]
        assert float(measure.own) == pytest.approx(share)
    drawn = normalize(natural_controls(reference), dim=1)
    torch.testing.assert_close(measure.natural[:, 0], drawn[:, [3, 7]].square().sum(1))
    assert float(measure.random.mean()) == pytest.approx(2 / 32, abs=0.01)
    assert report_of(reference, 4 * theta[:1]).facts.read_rank == 2


def test_the_picture_says_how_far_a_text_reaches(tiny_lm: LanguageModel, known: Gathered) -> None:
    read = Moments.of(torch.randn(60, 32, dtype=torch.float64))
    made = report_of(Reference(tiny_lm, known, 1, LAYERS, read=read), planted(known, "unused"))

    def case(role: str, share: float) -> Case:
        empty = ("x", "s", share, 0.0, 1.0, share, 1.0, 9.0, 0.5, "n", 0.1, None, None)
        return Case(role, *empty, (), 9, ())

    controls = (case("natural vector", 0.5), case("natural vector", 0.7), case("random", 0.2))
    reached = Test("source", 1, 1.0, case("found", 0.3), controls)
    drawn = manifold.present_and_read(made, reached)
    assert {row["of"]: row["reached"] for row in drawn.to_dict()["data"]["values"]} == {
        "perturbation": "reached to 30%",
        "natural differences": "reached to 60%",
        "random vectors": "reached to 20%",
    }
    _, three, *_ = manifold.card(made, reached).blocks
    assert isinstance(three, Text)
    told = f"reached by a text to 30% ({reached.verdict.value})."
    present, read = made["energy_top"].found, made["read"].found
    assert three.spans == f"Present {present:.2f}, read {read:.2f}, {told}"


def natural_controls(reference: Reference) -> Tensor:
    """Return the natural differences that a vector stands among."""
    return reference.home.bare(reference.apart)
