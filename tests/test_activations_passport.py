"""Passports: planted vectors are told apart, and the numbers are recomputed by brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import tiny
from educe import kinds
from educe.activations import corpus, passport
from educe.activations.ground import Ground
from educe.activations.inside import within
from educe.activations.natural import Gathered, gather
from educe.activations.passport import depths, examine, examine_on
from educe.activations.project import ablating, plain
from educe.activations.reading import Place
from educe.activations.record import Passport, verdict, words
from educe.activations.subspace import of_moments
from educe.activations.trial import Trial
from educe.forward.generation import generate
from educe.kinds import TokenNoise, Vectors
from educe.model import LanguageModel
from educe.report import tables
from educe.rows import Row

LAYERS = [1, 2, 3]


@pytest.fixture(scope="module")
def known(tiny_lm: LanguageModel) -> Gathered:
    """What a corpus leaves of the tiny model's activations."""
    texts = [text[start : start + 100] for text in corpus.passages() for start in (0, 100)]
    return gather(tiny_lm, [text for text in texts if len(text) > 40], [Place(i) for i in LAYERS])


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
def ground(tiny_lm: LanguageModel, known: Gathered) -> Ground:
    """Natural activations and controls at the layers, for perturbations after the first."""
    return Ground(tiny_lm, known, 1, LAYERS)


def examined(ground: Ground, theta: Tensor, **options: Any) -> Passport:
    return examine_on(ground, Vectors(1, ground.lm.width), theta, **options)


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
    ground: Ground, known: Gathered, which: str, told: str
) -> None:
    made = examined(ground, planted(known, which))
    assert verdict(made) == told
    assert made.norm == pytest.approx(80 if which == "exaggerated" else 4)


@pytest.fixture(scope="module")
def stand(ground: Ground) -> Callable[[Tensor], Passport]:
    """Place vectors at the layer alone: no model runs but under the controls of their norm."""
    blank = examined(ground, torch.eye(32)[:1])

    def placed(theta: Tensor) -> Passport:
        exam = passport._Exam(ground, Vectors(1, 32), theta[None].float(), None)
        return replace(blank, **exam.standing(), growth=exam.growth())

    return placed


def test_bottom_directions_lie_farther_out_than_random_vectors(
    stand: Callable[[Tensor], Passport], known: Gathered
) -> None:
    """Eigenvectors by numpy: the bottom ones and their mixtures, one with nothing at the top."""
    _, turn = np.linalg.eigh(known.natural[Place(1)].moments.covariance.numpy())
    bottom = torch.tensor(turn[:, :4].T)
    for vector in (*bottom, bottom.sum(0), bottom[0] + 0.1 * torch.tensor(turn[:, -1])):
        made = stand(4 * vector / vector.norm())
        assert verdict(made) == "farther"
        assert (made.share.among_random, made.length.among_random) == (0, 1)
    # Beyond random ones by one measure alone is not enough.
    for name, percentile in (("share", 0.02), ("length", 0.98)):
        standing = replace(getattr(made, name), among_random=percentile)
        assert verdict(replace(made, **{name: standing})) == "random"


def test_random_vectors_are_seldom_called_farther(
    stand: Callable[[Tensor], Passport],
) -> None:
    """At a level of one in a hundred: of 150 eight or more are called so once in 5000 times."""
    drawn = torch.randn(150, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    told = [verdict(stand(4 * v / v.norm())) for v in drawn]
    assert told.count("farther") < 8
    assert told.count("random") > 125


@pytest.fixture(scope="module")
def unused(ground: Ground, known: Gathered) -> Passport:
    """The passport of a vector where natural activations do not differ."""
    return examined(ground, planted(known, "unused"))


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
    ground = Ground(lm, known, 1, LAYERS)
    natural = known.natural[Place(1)]
    assert natural.massive == [5]
    along, rest = torch.eye(32)[5], torch.nn.functional.normalize(natural.sample.rows[3], dim=0)
    rest = torch.nn.functional.normalize(rest * (1 - along), dim=0)
    # How much of differences of documents lies in the coordinate, by code of its own.
    rng, rows = np.random.default_rng(0), natural.sample.rows.double().numpy()
    pairs = rng.integers(len(rows), size=(20_000, 2))
    documents = natural.sample.document.numpy()[pairs]
    apart = (rows[pairs[:, 0]] - rows[pairs[:, 1]])[documents[:, 0] != documents[:, 1]]
    there = apart[:, 5] ** 2 / (apart**2).sum(1)
    usual, most = np.quantile(there, [0.5, 0.999])
    assert most < 1 - 1e-6

    for share in (1.0, (1 + most) / 2):
        vector = 4 * (math.sqrt(share) * along + math.sqrt(1 - share) * rest)
        made = examined(ground, vector[None])
        assert made.massive_share.found == pytest.approx(share)
        assert made.massive_share.percentile == pytest.approx(1, abs=2e-3)
        assert made.massive_share.natural.median == pytest.approx(usual, abs=0.02)
        assert verdict(made) == "outside"
        assert words(made).startswith(
            "At layer 1 more of it lies in massive coordinates than of 99 in a hundred differences "
            "between natural activations; activations under it "
        )
        assert made.controls == (39, 5)
        json.dumps(made.data(), allow_nan=False)
    told = StringIO()
    tables.passport(made.data(), Console(file=told, width=100))
    assert "energy in massive" in told.getvalue()

    usual_one = torch.tensor(apart[np.abs(there - usual).argmin()])[None].float()
    made = examined(ground, usual_one)
    assert made.massive_share.percentile == pytest.approx(0.5, abs=0.05)
    assert verdict(made) == "natural"
    # Share and length are of the rest alone, whether there is much of it or little.
    bare = examined(ground, usual_one * (1 - along))
    assert (bare.share.percentile, bare.length.percentile) == pytest.approx(
        (made.share.percentile, made.length.percentile), abs=1e-3
    )
    # Where natural differences lie there as wholly, nothing else of a vector is left to judge by.
    alone = replace(made, massive_share=replace(made.massive_share, found=1.0))
    assert verdict(alone) == "unknown"
    assert "too small" not in words(alone)


def test_what_is_neither_natural_nor_random_is_outside(ground: Ground, known: Gathered) -> None:
    made = examined(ground, planted(known, "unused"))
    nearer = replace(made.length, found=made.length.random.low / 1.01)
    assert verdict(replace(made, length=nearer)) == "outside"
    nearer = replace(made.share, found=made.share.random.high * 1.01)
    assert verdict(replace(made, share=nearer)) == "outside"


def test_the_numbers_at_the_layer_are_those_of_numpy(ground: Ground, known: Gathered) -> None:
    theta = planted(known, "unused") + planted(known, "natural")
    made = examined(ground, theta)
    natural = known.natural[Place(1)]
    size, turn = np.linalg.eigh(natural.moments.covariance.numpy())
    v = theta[0].double().numpy()
    falling = np.cumsum(size[::-1]) / size.sum()
    rank = int(np.argmax(falling >= 0.9)) + 1
    assert made.rank == rank
    assert made.chance.median == pytest.approx(rank / 32)
    top = turn[:, -rank:]
    assert made.share.found == pytest.approx(((v @ top) ** 2).sum() / (v**2).sum())
    d, n = 32, natural.moments.count
    rho = ((size**2).sum() + size.sum() ** 2) / ((n + 1) * ((size**2).sum() - size.sum() ** 2 / d))
    shrunk = (1 - rho) * natural.moments.covariance.numpy() + rho * size.mean() * np.eye(d)
    length = math.sqrt(v @ np.linalg.inv(shrunk) @ v)
    assert made.length.found == pytest.approx(length)
    assert made.size.found == pytest.approx(length)
    # Among differences of held-out activations of other documents, drawn by independent code.
    rng, rows = np.random.default_rng(0), natural.sample.rows.double().numpy()
    pairs = rng.integers(len(rows), size=(20_000, 2))
    documents = natural.sample.document.numpy()[pairs]
    apart = (rows[pairs[:, 0]] - rows[pairs[:, 1]])[documents[:, 0] != documents[:, 1]]
    unit = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    shares = ((unit @ top) ** 2).sum(1)
    assert made.share.percentile == pytest.approx((shares < made.share.found).mean(), abs=0.01)
    lengths = np.sqrt(np.einsum("nd,de,ne->n", apart, np.linalg.inv(shrunk), apart))
    assert made.size.percentile == pytest.approx((lengths < length).mean(), abs=0.02)
    assert made.share.natural.median == pytest.approx(np.median(shares), abs=0.01)
    assert made.massive == ()


def test_what_later_layers_see_is_that_of_each_text_alone(
    tiny_lm: LanguageModel, ground: Ground, known: Gathered
) -> None:
    theta = planted(known, "unused")
    made = examined(ground, theta)
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
    assert made.depth[-1].layer == 3
    assert made.depth[-1].distance.found == pytest.approx(percentile, abs=0.01)
    size = ((moved - still).norm(dim=1) / still.norm(dim=1)).median()
    assert made.depth[-1].size.found == pytest.approx(float(size), rel=1e-3)
    nearest = torch.cdist(natural.sample.rows, natural.bank.rows).min(1).values.sort().values
    own = torch.cdist(moved.detach(), natural.bank.rows).min(1).values
    among = torch.searchsorted(nearest, own).double() / len(nearest)
    assert made.depth[-1].nearest.found == pytest.approx(float(among.median()), abs=0.01)


def test_a_trial_is_teacher_forcing_by_hand(tiny_lm: LanguageModel, known: Gathered) -> None:
    theta = planted(known, "natural")
    trial = Trial(tiny_lm, known.texts, 1, LAYERS)
    same = []
    outcome = trial.under(partial(perturbing, tiny_lm, Vectors(1, 32), theta))
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
    assert outcome.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    assert outcome.entropy == pytest.approx(float(torch.cat(entropy).mean()), rel=1e-4)
    assert outcome.perplexity == pytest.approx(
        math.exp(float(torch.cat(surprise).mean())), rel=1e-3
    )
    assert 0.2 < outcome.same < 1
    assert outcome.same == pytest.approx(float(torch.cat(same).mean()))
    assert (trial.plain.kl, trial.plain.same) == (0, 1)
    again = trial.under(nullcontext)
    assert torch.equal(again.streams[3], trial.plain.streams[3])


def test_a_vector_within_the_natural_subspace_has_no_part_outside(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    top = of_moments(known.natural[Place(1)].moments).top(5)
    kind = within(top, 1)
    made = examine(tiny_lm, kind, 3 * kind.draw(1, torch.Generator().manual_seed(0)), known, LAYERS)
    assert made.share.found == pytest.approx(1)
    assert made.norm == pytest.approx(3)
    names = [output.name for output in made.outputs]
    assert "its part inside" in names
    assert "its part outside" not in names
    whole, part = (next(o for o in made.outputs if o.name == n) for n in names[1:3])
    assert part.kl == pytest.approx(whole.kl, rel=1e-3)


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
    made = examine(tiny_lm, kind, theta, known, [2, 3], prompts=tiny_lm.encode(["Hello."]))
    assert made.layer == 2
    # Noise has no direction to take away; an adapter's is the mean of what it changes.
    ways = () if which == "token noise" else tuple(passport.FORMS)
    assert tuple(taken.form for taken in made.taken) == ways
    assert len(made.writes) == 2 + 2 * len(ways)
    assert 0 < made.share.found < 1
    assert made.depth[0].size.found > 0
    if which == "token noise":
        assert made.norm == pytest.approx(3, rel=1e-4)
        assert made.share.found == pytest.approx(made.chance.median, abs=0.1)


def test_natural_activations_themselves_are_at_the_middle(ground: Ground, known: Gathered) -> None:
    made = examined(ground, 1e-4 * planted(known, "natural"))
    for depth in made.depth:
        assert depth.distance.found == pytest.approx(depth.still_distance, abs=0.01)
        assert depth.nearest.found == pytest.approx(depth.still_nearest, abs=0.01)
        assert 0.3 < depth.still_distance < 0.7
    assert made.outputs[1].kl < 1e-4


def test_half_of_the_corpus_must_say_the_same(ground: Ground, known: Gathered) -> None:
    made = examined(ground, planted(known, "unused"))
    assert [grown.tokens for grown in made.growth] == sorted(g.tokens for g in made.growth)
    doubt = replace(made.growth[-2], share=0.5, length=0.5)
    assert verdict(replace(made, growth=(*made.growth[:-2], doubt, made.growth[-1]))) == "unknown"
    small = replace(made.growth[-1], enough=False)
    unsure = replace(made, growth=(*made.growth[:-1], small))
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
    unused: Passport, beaten: tuple[int, int], enough: tuple[bool, bool], told: str
) -> None:
    depth = tuple(
        replace(
            d,
            enough=there,
            controls=(n, 5),
            distance=replace(d.distance, percentile=of / n),
        )
        for d, there, of, n in zip(
            (unused.depth[0], unused.depth[-1]), enough, beaten, (400, 39), strict=True
        )
    )
    growth = (*unused.growth[:-1], replace(unused.growth[-1], enough=enough[0]))
    assert words(replace(unused, depth=depth, growth=growth)) == told


def test_at_its_own_layer_it_is_placed_among_many_differences(
    tiny_lm: LanguageModel, known: Gathered, unused: Passport
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
    at = unused.depth[0]
    assert at.controls == (400, 400)
    beaten = (others < own).mean(0)
    assert at.distance.percentile == pytest.approx(beaten[0], abs=0.08)
    assert at.nearest.percentile == pytest.approx(beaten[1], abs=0.08)
    for d in unused.depth[1:]:
        assert d.controls == (39, 5)


def test_every_measure_along_the_depth_has_its_learning_curve(
    known: Gathered, unused: Passport
) -> None:
    for at in unused.depth:
        moments = known.natural[Place(at.layer)].growing
        assert [g.tokens for g in at.growth] == [some.count for some in moments]
        assert (at.growth[-1].distance, at.growth[-1].nearest) == (at.distance, at.nearest)
        assert at.growth[0].optimism > at.growth[-1].optimism > 0.9
        assert len({g.nearest.found for g in at.growth}) > 1


def test_share_and_length_stand_among_activations_too(known: Gathered, unused: Passport) -> None:
    natural = known.natural[Place(1)]
    rows = natural.sample.rows.double().numpy() - natural.moments.mean.numpy()
    size, turn = np.linalg.eigh(natural.moments.covariance.numpy())
    shares = ((rows @ turn[:, -unused.rank :]) ** 2).sum(1) / (rows**2).sum(1)
    lengths = np.sqrt(((rows @ turn) ** 2 / size).sum(1))
    assert unused.share.activations == pytest.approx((shares < unused.share.found).mean(), abs=0.01)
    assert unused.size.activations == pytest.approx((lengths < unused.size.found).mean(), abs=0.02)


def test_controls_of_one_norm_run_once(
    tiny_lm: LanguageModel, known: Gathered, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Vectors(1, tiny_lm.width)
    examine_on(ground, kind, planted(known, "unused"))
    alone = examine(tiny_lm, kind, planted(known, "natural"), known, LAYERS)
    monkeypatch.setattr(Ground, "_run", None)  # a second time is an error
    assert examine_on(ground, kind, planted(known, "natural")) == alone


def test_taking_the_direction_away_is_compared_with_equal_variance(
    ground: Ground, known: Gathered
) -> None:
    made = examined(ground, planted(known, "principal"))
    forms = {taken.form: taken for taken in made.taken}
    assert set(forms) == set(passport.FORMS)
    assert forms["oblique"].outside < 0.01 < made.unused[1]
    assert forms["origin"].outside == pytest.approx(forms["mean"].outside)  # of the same vector
    assert all(taken.kl > 0 and taken.random.low > 0 for taken in made.taken)


def test_what_is_written_without_the_direction(
    tiny_lm: LanguageModel, ground: Ground, known: Gathered
) -> None:
    """The text is that of the ablated model, and the random one's is another's."""
    prompts = tiny_lm.encode(["Hello, who is there?"])
    vector = planted(known, "principal")
    texts = dict(examined(ground, vector, prompts=prompts).writes)
    with ablating(tiny_lm, plain(vector), [1]):
        (done,) = generate(tiny_lm, prompts, [Row(0, 0)], max_new_tokens=passport.WRITTEN)
    assert texts["direction taken away, about the origin"] == done[0].text
    assert {name for name in texts if name.startswith("a random one taken away")} == {
        f"a random one taken away, {how}" for how in passport.FORMS.values()
    }


def test_depths_go_from_the_source_to_the_end() -> None:
    assert depths(9, 18, 30) == [9, 14, 18, 19, 24, 29]
    assert depths(2, 3, 4) == [2, 3]


def test_a_passport_is_json_and_one_screen(
    tiny_lm: LanguageModel, ground: Ground, known: Gathered
) -> None:
    prompts = tiny_lm.encode(["Hello, who is there?"])
    made = examined(ground, planted(known, "unused"), prompts=prompts)
    data = json.loads(json.dumps(made.data(), allow_nan=False))
    assert data["words"] == words(made)
    assert data["share"]["natural"]["median"] == made.share.natural.median
    assert [name for name, _ in data["writes"]][:2] == ["unperturbed", "the perturbation"]
    assert len(data["writes"]) == 3 + 2 * len(passport.FORMS)  # nothing of it is inside
    told = StringIO()
    tables.passport(data, Console(file=told, width=100))
    lines = told.getvalue().splitlines()
    assert len(lines) < 34
    assert f"{made.share.found:.2f}" in told.getvalue()
