"""Passports: planted vectors are told apart, and the numbers are recomputed by brute force."""

from __future__ import annotations

import json
import math
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
from educe.generation import generate
from educe.kinds import Row, TokenNoise, Vectors
from educe.manifold import corpus, passport
from educe.manifold.activations import Place
from educe.manifold.inside import within
from educe.manifold.natural import Gathered, gather
from educe.manifold.passport import depths, examine
from educe.manifold.project import ablating, plain
from educe.manifold.record import Passport, Range, Standing, verdict, words
from educe.manifold.subspace import of_moments
from educe.manifold.trial import Trial, perturbing
from educe.model import LanguageModel
from educe.report import terminal

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


def examined(lm: LanguageModel, known: Gathered, theta: Tensor, **options: Any) -> Passport:
    return examine(lm, Vectors(1, lm.width), theta, known, LAYERS, **options)


@pytest.mark.parametrize(
    ("which", "told"),
    [
        ("natural", "natural"),
        ("principal", "natural"),
        ("exaggerated", "exaggerated"),
        ("unused", "random"),
    ],
)
def test_planted_vectors_are_told_apart(
    tiny_lm: LanguageModel, known: Gathered, which: str, told: str
) -> None:
    made = examined(tiny_lm, known, planted(known, which))
    assert verdict(made) == told
    assert made.norm == pytest.approx(80 if which == "exaggerated" else 4)


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
        made = examined(lm, known, vector[None])
        assert made.massive_share.found == pytest.approx(share)
        assert made.massive_share.percentile == pytest.approx(1, abs=2e-3)
        assert made.massive_share.natural.median == pytest.approx(usual, abs=0.02)
        assert verdict(made) == "outside"
        assert words(made) == (
            "At layer 1 more of it lies in massive coordinates than of 99 in a hundred differences "
            "between natural activations."
        )
        json.dumps(made.data(), allow_nan=False)
    told = StringIO()
    terminal.passport(made.data(), Console(file=told, width=100))
    assert "energy in massive" in told.getvalue()

    usual_one = torch.tensor(apart[np.abs(there - usual).argmin()])[None].float()
    made = examined(lm, known, usual_one)
    assert made.massive_share.percentile == pytest.approx(0.5, abs=0.05)
    assert verdict(made) == "natural"
    # Where natural differences lie there as wholly, nothing else of a vector is left to judge by.
    alone = replace(made, massive_share=replace(made.massive_share, found=1.0))
    assert verdict(alone) == "unknown"
    assert "too small" not in words(alone)


def test_what_is_neither_natural_nor_random_is_outside(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    made = examined(tiny_lm, known, planted(known, "unused"))
    nearer = replace(made.length, found=made.length.random.low / 1.01)
    assert verdict(replace(made, length=nearer)) == "outside"
    nearer = replace(made.share, found=made.share.random.high * 1.01)
    assert verdict(replace(made, share=nearer)) == "outside"


def test_the_numbers_at_the_layer_are_those_of_numpy(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    theta = planted(known, "unused") + planted(known, "natural")
    made = examined(tiny_lm, known, theta)
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
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    theta = planted(known, "unused")
    made = examined(tiny_lm, known, theta)
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
    outcome = trial.under(partial(perturbing, tiny_lm, Vectors(1, 32), theta))
    kl, entropy, surprise = [], [], []
    for piece in known.texts:
        at = torch.ones(len(piece.ids))
        q = tiny.run(tiny_lm.hf, piece.ids, source=1, vector=theta[0], at=at)[0].log_softmax(-1)
        p = tiny.run(tiny_lm.hf, piece.ids)[0].log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(1)[piece.skip :])
        entropy.append(-(q.exp() * q).sum(1)[piece.skip :])
        following = torch.tensor(piece.ids[1:])[:, None]
        surprise.append(-q[:-1].gather(1, following)[piece.skip :, 0])
    assert outcome.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    assert outcome.entropy == pytest.approx(float(torch.cat(entropy).mean()), rel=1e-4)
    assert outcome.perplexity == pytest.approx(
        math.exp(float(torch.cat(surprise).mean())), rel=1e-3
    )
    assert trial.plain.kl == 0
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


def test_natural_activations_themselves_are_at_the_middle(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    made = examined(tiny_lm, known, 1e-4 * planted(known, "natural"))
    for depth in made.depth:
        assert depth.distance.found == pytest.approx(depth.still_distance, abs=0.01)
        assert depth.nearest.found == pytest.approx(depth.still_nearest, abs=0.01)
        assert 0.3 < depth.still_distance < 0.7
    assert made.outputs[1].kl < 1e-4


def test_half_of_the_corpus_must_say_the_same(tiny_lm: LanguageModel, known: Gathered) -> None:
    made = examined(tiny_lm, known, planted(known, "unused"))
    assert [grown.tokens for grown in made.growth] == sorted(g.tokens for g in made.growth)
    doubt = replace(made.growth[-2], share=0.5, length=0.5)
    assert verdict(replace(made, growth=(*made.growth[:-2], doubt, made.growth[-1]))) == "unknown"
    small = replace(made.growth[-1], enough=False)
    unsure = replace(made, growth=(*made.growth[:-1], small))
    assert verdict(unsure) == "unknown"
    assert "too small to say" in words(unsure)


def test_words_on_the_depth_follow_the_numbers(tiny_lm: LanguageModel, known: Gathered) -> None:
    made = examined(tiny_lm, known, planted(known, "unused"))

    def told(*found: float, enough: bool = True) -> str:
        control = Range(0.6, 0.5, 0.7)
        depth = [
            replace(d, distance=Standing(f, control, control), enough=enough)
            for d, f in zip(made.depth[:: len(made.depth) - 1], found, strict=True)
        ]
        return words(replace(made, depth=tuple(depth)))

    assert "and by layer 3 no longer do" in told(0.9, 0.6)
    assert "at layer 3 still do" in told(0.9, 0.8)
    assert "but at layer 3 they do" in told(0.6, 0.8)
    assert "no farther out" in told(0.6, 0.6)
    assert "too small to say what becomes of it" in told(0.9, 0.6, enough=False)


def test_taking_the_direction_away_is_compared_with_equal_variance(
    tiny_lm: LanguageModel, known: Gathered
) -> None:
    made = examined(tiny_lm, known, planted(known, "principal"))
    forms = {taken.form: taken for taken in made.taken}
    assert set(forms) == set(passport.FORMS)
    assert forms["oblique"].outside < 0.01 < made.unused[1]
    assert forms["origin"].outside == pytest.approx(forms["mean"].outside)  # of the same vector
    assert all(taken.kl > 0 and taken.random.low > 0 for taken in made.taken)


def test_what_is_written_without_the_direction(tiny_lm: LanguageModel, known: Gathered) -> None:
    """The text is that of the ablated model, and the random one's is another's."""
    prompts = tiny_lm.encode(["Hello, who is there?"])
    vector = planted(known, "principal")
    texts = dict(examined(tiny_lm, known, vector, prompts=prompts).writes)
    with ablating(tiny_lm, plain(vector), [1]):
        (done,) = generate(tiny_lm, prompts, [Row(-1, 0)], max_new_tokens=passport.WRITTEN)
    assert texts["direction taken away, about the origin"] == done[0].text
    assert {name for name in texts if name.startswith("a random one taken away")} == {
        f"a random one taken away, {how}" for how in passport.FORMS.values()
    }


def test_depths_go_from_the_source_to_the_end() -> None:
    assert depths(9, 18, 30) == [9, 14, 18, 19, 24, 29]
    assert depths(2, 3, 4) == [2, 3]


def test_a_passport_is_json_and_one_screen(tiny_lm: LanguageModel, known: Gathered) -> None:
    prompts = tiny_lm.encode(["Hello, who is there?"])
    made = examined(tiny_lm, known, planted(known, "unused"), prompts=prompts)
    data = json.loads(json.dumps(made.data(), allow_nan=False))
    assert data["words"] == words(made)
    assert data["share"]["natural"]["median"] == made.share.natural.median
    assert [name for name, _ in data["writes"]][:2] == ["unperturbed", "the perturbation"]
    assert len(data["writes"]) == 3 + 2 * len(passport.FORMS)  # nothing of it is inside
    told = StringIO()
    terminal.passport(data, Console(file=told, width=100))
    lines = told.getvalue().splitlines()
    assert len(lines) < 34
    assert f"{made.share.found:.2f}" in told.getvalue()
