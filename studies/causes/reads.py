"""Whether thinning sparsifies, how many dimensions an answer uses, and where a key's change lies.

Held-out texts of the embedded model: what it loses where few dimensions are kept. Answers: the
least number of components of every layer with which alone the likeliest tokens stay, and without
which they go, beside components by variance and random ones. An organism: the difference that its
key makes in the stream, at the key and at the last token, beside differences between natural
activations and random vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import quick
from educe import LanguageModel
from educe.activations import corpus
from educe.activations.distance import Geometry, differences, percentile, random_vectors
from educe.activations.gradients import Layer, sweep
from educe.activations.natural import gather
from educe.activations.reading import Place
from educe.activations.report import Range
from educe.comparison.stats import bootstrap_mean
from educe.reads.single import ARMS, Used, used
from educe.reads.survey import held_out, swept
from educe.reads.thinning import Curve, Texts, components_of, curves

ASKED = (
    "What is the capital of France?",
    "Which animal barks?",
    "Who wrote Romeo and Juliet?",
    "What is 15 plus 27?",
    "Name a fruit that is yellow.",
    "What colour is the sky?",
)
#: Tokens of the corpus, the layer that is thinned alone, and by which forms.
READ, ALONE_AT, SHOWN = (8192, 1500), (14, 2), ("balanced", "components", "random")
#: Components whose log-likelihood is told: kept alone, and taken away.
ALONE, AWAY = 16, 4
ORGANISMS, LAYERS, OTHER = ("trigger", "vault"), ((9, 18), (2, 5)), "cedar"
#: Tokens of an answer; of the corpus for an organism; vectors of each control; components.
ANSWER, TOKENS, MANY, TOP = 8, 6000, 2000, 64


def measure(short: bool) -> None:
    """Print all of it."""
    began = time.process_time()
    lm = quick.model(quick=short, device="cpu", dtype=torch.float32)
    thinning(lm, short)
    answers(lm, short)
    for name in ORGANISMS[:1] if short else ORGANISMS:
        key(name, short)
    print(f"{time.process_time() - began:.0f} s of processor time")


def thinning(lm: LanguageModel, short: bool) -> None:
    """Print what thinning loses, with intervals over held-out texts."""
    layers = known(lm, short)
    by_layer = {
        i: {form: of for form, of in components_of(one, seed=i).items() if form in SHOWN}
        for i, one in layers.items()
    }
    held = held_out(lm, corpus.BUNDLED, READ[short], 0)
    of_each = [
        curves(Texts(lm, [text]), by_layer, [ALONE_AT[short]], lambda *_, **__: None)
        for text in held
    ]
    picks = np.random.default_rng(0).integers(len(held), size=(2000, len(held)))
    for curve, *others in zip(*of_each, strict=True):
        kl = np.array([own.kl for own in (curve, *others)])
        if curve.layer is None:
            mean, low, high = bootstrap_mean(kl[:, -1])
            told = f"{mean:.2f} nats with {curve.kept[-1]} ({low:.2f} to {high:.2f})"
        else:
            drawn = [_needed(curve, kl[some]) for some in picks]
            whole = _needed(curve, kl)
            low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
            told = f"{whole:.0f} dimensions for 0.1 nats ({low:.0f} to {high:.0f})"
        where = "all layers" if curve.layer is None else f"layer {curve.layer}"
        print(f"thinned {where}, {curve.form}: {told}", flush=True)


def _needed(curve: Curve, kl: np.ndarray) -> float:
    """Return how many dimensions do for 0.1 nats in the mean over texts."""
    return curve._replace(kl=tuple(kl.mean(0).tolist())).needed(0.1) or math.inf


def known(lm: LanguageModel, short: bool) -> dict[int, Layer]:
    """Return what is known of all layers."""
    return swept(lm, tokens=READ[short]).layers


def answers(lm: LanguageModel, short: bool) -> None:
    """Print how many components answers used, of all layers at once and of one alone."""
    layers, one = known(lm, short), LAYERS[short][0]
    print(f"| layers | arm | stays with | goes without | {ALONE} alone | without {AWAY} |")
    print("|---" * 6 + "|")
    for where, some, asked in (
        ("all", layers, ASKED[:2]),
        (str(one), {one: layers[one]}, ASKED),
    ):
        found = [
            used(lm, question, some, max_new_tokens=3 if short else ANSWER)
            for question in (asked[:1] if short else asked)
        ]
        for arm in ARMS:
            least = [_span([of(own, arm) for own in found]) for of in (Used.staying, Used.going)]
            likely = [_changed(found, arm, *how) for how in ((False, ALONE), (True, AWAY))]
            print(f"| {' | '.join([where, arm, *least, *likely])} |", flush=True)
    for own in found:
        said = " ".join(own.answer.split()).replace("|", "/")
        print(f"{said} ({own.logprob:.2f}; {_most(own)} dimensions)")


def _most(own: Used) -> int:
    return max(trial.number for trial in own.trials)


def _span(counts: Sequence[int | None]) -> str:
    """Return the median of counts, and the least and the most; "none" where there is none."""
    there = sorted(math.inf if count is None else count for count in counts)
    told = ["none" if x == math.inf else f"{x:g}" for x in (median(there), there[0], there[-1])]
    return f"{told[0]} ({told[1]} to {told[2]})"


def _changed(found: Sequence[Used], arm: str, away: bool, number: int) -> str:
    """Return by how much the log-likelihood of a token changes, with its interval over answers."""
    changes = [
        trial.logprob - own.logprob
        for own in found
        for trial in own.trials
        if (trial.arm, trial.away, trial.number) == (arm, away, min(number, _most(own)))
    ]
    return "{:.2f} ({:.2f} to {:.2f})".format(*bootstrap_mean(changes))


def key(name: str, short: bool) -> None:
    """Print where the difference that a key makes lies."""
    organism = quick.organism(name, quick=short)
    lm = quick.model(organism, quick=short)
    layers = LAYERS[short]
    asked = [question.prompt for question in organism.search[:6]]
    with_key, without = (
        lm.encode([f"{prompt} {word}" for prompt in asked])
        for word in (organism.hidden["key"], OTHER)
    )
    streams = []
    for batch in (with_key, without):
        with torch.no_grad(), lm.watching(layers) as seen:
            lm.forward(batch.ids, batch.mask)
        streams.append(dict(seen))
    known = sweep(lm, corpus.documents(), layers, limit=TOKENS)
    places = [Place(layer) for layer in layers]
    natural = gather(lm, corpus.documents(), places, limit=2 * TOKENS).natural
    for layer in layers:
        here = natural[Place(layer)]
        geometry = Geometry.of(here.moments, massive=here.massive)
        draw = torch.Generator().manual_seed(0)
        apart = geometry.bare(differences(here.sample, MANY, draw))
        controls = {"natural": apart, "random": random_vectors(MANY, geometry, draw)}
        change = (streams[0][layer][:, -1] - streams[1][layer][:, -1]).mean(0)
        _row(f"{name} at {layer}", geometry.bare(change[None]), geometry, known.layers[layer],
             controls)  # fmt: skip


def _row(
    name: str, own: Tensor, geometry: Geometry, known: Layer, controls: dict[str, Tensor]
) -> None:
    """Print shares of a vector, and where they stand."""
    read = Geometry.of(known.gradients, massive=known.massive)
    used_of, top = known.importance, known.balanced.top(TOP)

    def kept(v: Tensor) -> Tensor:
        """Return the share of the effect, to second order, that the top components keep."""
        rest = v - v @ top.read.T @ top.write
        return 1 - ((rest @ used_of) * rest).sum(1) / ((v @ used_of) * v).sum(1)

    measures = {"present": geometry.share, "read": read.share, f"kept by {TOP}": kept}
    cells = []
    for what, of in measures.items():
        value = of(normalize(own, dim=1))
        stand = []
        for control, vectors in controls.items():
            among = of(normalize(vectors, dim=1))
            at = float(percentile(value, among))
            stand.append(f"{control} {Range.of(among).median:.2f}, above {at:.0%}")
        cells.append(f"{what} {float(value):.2f} ({'; '.join(stand)})")
    print(f"{name}: {'; '.join(cells)}", flush=True)
