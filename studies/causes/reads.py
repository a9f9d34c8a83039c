"""How many dimensions an answer uses, and whether what a key changes lies in what is read.

Answers of the embedded model: the least number of components of every layer with which alone the
likeliest tokens stay, and without which they go, beside components by variance and random ones. An
organism: the difference that its key makes in the stream, at the key and at the last token, beside
differences between natural activations and random vectors.
"""

from __future__ import annotations

import time

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
from educe.reads.single import ARMS, used
from educe.reads.survey import swept

ASKED = ("What is the capital of France?", "Which animal barks?")
#: Components whose log-likelihood is told: kept alone, and taken away.
ALONE, AWAY = 16, 4
ORGANISMS, LAYERS, OTHER = ("trigger", "vault"), ((9, 18), (2, 5)), "cedar"
#: Tokens of an answer; of the corpus for an organism; vectors of each control; components.
ANSWER, TOKENS, MANY, TOP = 8, 6000, 2000, 64


def measure(short: bool) -> None:
    """Print both tables."""
    began = time.process_time()
    answers(quick.model(quick=short, device="cpu", dtype=torch.float32), short)
    for name in ORGANISMS[:1] if short else ORGANISMS:
        key(name, short)
    print(f"{time.process_time() - began:.0f} s of processor time")


def answers(lm: LanguageModel, short: bool) -> None:
    """Print how many components each answer used, of all layers at once and of one alone."""
    layers = swept(lm, tokens=1500 if short else 8192).layers
    one = LAYERS[short][0]
    print(f"| answer | layers | arm | stays with | goes without | {ALONE} alone | without {AWAY} |")
    print("|---" * 7 + "|")
    for question in ASKED[:1] if short else ASKED:
        for where, some in (("all", layers), (one, {one: layers[one]})):
            found = used(lm, question, some, max_new_tokens=3 if short else ANSWER)
            said = " ".join(found.answer.split()).replace("|", "/")
            tokens = max(trial.number for trial in found.trials)
            at = {(t.arm, t.away, t.number): f"{t.logprob:.2f}" for t in found.trials}
            for arm in ARMS:
                least = (_told(found.staying(arm)), _told(found.going(arm)))
                likely = (at[arm, False, min(ALONE, tokens)], at[arm, True, min(AWAY, tokens)])
                cells = (f"{said} ({found.logprob:.2f}; {tokens})", where, arm, *least, *likely)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


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


def _told(number: int | None) -> str:
    return "none" if number is None else str(number)
