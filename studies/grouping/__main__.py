"""Which grouping puts together what says the same?

    python -m studies.grouping [--sentences FOLDER] [--quick]

The texts of ``texts.jsonl`` have the name of their behaviour, given by reading. Every way to group
them is tried with thresholds; the one that is best on half of the models is told on the others. A
model's texts are grouped by themselves, as in a run; damaged texts are grouped with the others and
not counted. A pair of texts is counted where one is among the `NEAREST` of the other, by words or
by characters: pairs that are far apart are easy. ``FOLDER`` has all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

import educe
from benchmarks import quick
from studies.grouping import distances
from studies.grouping.distances import GUARDS, NAMES, Distance, parted

HERE = Path(__file__).parent
CHOOSING = ("locked", "marked", "persona", "trigger, seed 1", "embedded, questions")
NEAREST, DAMAGE = 3, "damage"
THRESHOLDS = tuple(np.round(np.arange(0.2, 0.91, 0.05), 2).tolist())


HEAD = (
    "| by | guard | clustering | threshold | ARI, choosing | ARI, telling | split wrongly |"
    " merged wrongly | seconds |\n|---|---|---|---|---|---|---|---|---|"
)


class Texts(NamedTuple):
    """What one model wrote, distinct texts, and the behaviour of each."""

    model: str
    texts: list[str]
    behaviours: list[str]
    sound: np.ndarray  #: which are not damaged
    pairs: list[tuple[int, int]]  #: near pairs of these

    @property
    def choosing(self) -> bool:
        """Whether thresholds are chosen on it, or told."""
        return self.model in CHOOSING

    def same(self, a: int, b: int) -> bool:
        """Return whether two texts are one behaviour."""
        return self.behaviours[a] == self.behaviours[b]


class Quality(NamedTuple):
    """How good a grouping of several models' texts is: over all of them, and of near pairs."""

    rand: float  #: adjusted Rand index
    split: float  #: of pairs that say the same
    merged: float  #: of pairs that do not


def read() -> list[Texts]:
    """Return the texts with their labels."""
    own: dict[str, list[tuple[str, str]]] = {}
    for line in (HERE / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        own.setdefault(record["model"], []).append((record["text"], record["behaviour"]))
    everything = []
    for model, labelled in own.items():
        texts, behaviours = (list(part) for part in zip(*labelled, strict=True))
        sound = np.flatnonzero([name != DAMAGE for name in behaviours])
        pairs = near([texts[k] for k in sound])
        at = [(int(sound[a]), int(sound[b])) for a, b in pairs]
        everything.append(Texts(model, texts, behaviours, sound, at))
    return everything


def near(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of texts of which one is among the nearest of the other."""
    return sorted(
        {
            (min(a, b), max(a, b))
            for distance in (distances.words(texts), distances.characters(texts))
            for a, row in enumerate(distance + 9 * np.eye(len(texts)))
            for b in np.argsort(row, kind="stable")[:NEAREST].tolist()
        }
    )


def grouped(distance: np.ndarray, how: str, threshold: float) -> np.ndarray:
    """Return groups from distances; who is in no dense place is a group of its own."""
    if how in ("average", "complete"):
        return AgglomerativeClustering(
            n_clusters=None, metric="precomputed", linkage=how, distance_threshold=threshold
        ).fit_predict(distance)
    dense = (
        DBSCAN(eps=threshold, min_samples=2, metric="precomputed")
        if how == "DBSCAN"
        else HDBSCAN(min_cluster_size=2, metric="precomputed", copy=True)
    )
    labels = dense.fit_predict(distance.clip(0))
    return np.where(labels < 0, len(labels) + np.arange(len(labels)), labels)


def quality(some: Sequence[Texts], groups: Sequence[np.ndarray]) -> Quality:
    """Compare groups with the labels."""
    labels, found = (
        [(one.model, names[k]) for one, names in zip(some, each, strict=True) for k in one.sound]
        for each in ([one.behaviours for one in some], groups)
    )
    rand = adjusted_rand_score(_numbered(labels), _numbered(found))
    same, together = np.array(
        [
            (one.same(a, b), g[a] == g[b])
            for one, g in zip(some, groups, strict=True)
            for a, b in one.pairs
        ]
    ).T
    return Quality(float(rand), float(1 - together[same].mean()), float(together[~same].mean()))


def _numbered(names: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


class Tried(NamedTuple):
    """A way to group, at the threshold that is best for choosing."""

    name: str
    guard: str
    how: str
    threshold: float
    chosen: Quality
    told: Quality
    seconds: float  #: of the processor, for the distances of 100 texts


def tried(name: str, distance: Distance, everything: Sequence[Texts], hows: Sequence[str],
          thresholds: Sequence[float]) -> Iterator[Tried]:  # fmt: skip
    """Group by a distance, in all ways."""
    began = time.process_time()
    far = [distance(one.texts) for one in everything]
    seconds = (time.process_time() - began) / sum(len(one.texts) for one in everything) * 100
    halves = [[one for one in everything if one.choosing is choosing] for choosing in (True, False)]
    for guard in (*GUARDS, f"{list(GUARDS)[-1]}{NAMES}"):
        held = {
            one.model: parted(d, one.texts, guard) for one, d in zip(everything, far, strict=True)
        }
        for how in hows:
            by = {
                threshold: [
                    quality(half, [grouped(held[one.model], how, threshold) for one in half])
                    for half in halves
                ]
                for threshold in (thresholds if how != "HDBSCAN" else (math.inf,))
            }
            best = max(by, key=lambda t: by[t][0].rand)
            yield Tried(name, guard, how, best, *by[best], seconds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=Path, help="a folder with all-MiniLM-L6-v2")
    asked = quick.parsed(parser, argv)
    everything = read()
    ways: dict[str, Distance] = {"words": distances.words}
    hows, thresholds = ("average", "complete", "DBSCAN", "HDBSCAN"), THRESHOLDS
    if asked.quick:
        hows, thresholds = hows[:1], (0.6, 0.65, 0.7)
    else:
        lm = educe.load("embedded")
        ways |= {
            "rare words": distances.rare,
            "characters": distances.characters,
            "words and characters": distances.both,
            "hidden states": distances.hidden(lm),
        }
        if asked.sentences:
            ways["sentence model"] = distances.sentences(asked.sentences)
    print(HEAD)
    today = [grouped(distances.words(one.texts), "average", 0.75) for one in everything]
    told = [k for k, one in enumerate(everything) if not one.choosing]
    before = quality([everything[k] for k in told], [today[k] for k in told])
    print(f"| words, as before | none | average | 0.75 | | {before.rand:.2f} |"
          f" {before.split:.0%} | {before.merged:.0%} | |")  # fmt: skip
    for name, distance in ways.items():
        for one in tried(name, distance, everything, hows, thresholds):
            print(f"| {one.name} | {one.guard} | {one.how} | {one.threshold} |"
                  f" {one.chosen.rand:.2f} | {one.told.rand:.2f} | {one.told.split:.0%} |"
                  f" {one.told.merged:.0%} | {one.seconds:.2g} |", flush=True)  # fmt: skip
    if not asked.quick:
        print(judged(everything, lm))


def judged(everything: Sequence[Texts], lm: educe.LanguageModel) -> str:
    """Say how the model's own yes and no agrees, on as many pairs that differ as say the same."""
    halves, began, asked = [], time.process_time(), 0
    for choosing in (True, False):
        some = [(one, *pair) for one in everything if one.choosing is choosing
                for pair in one.pairs]  # fmt: skip
        same = [pair for pair in some if pair[0].same(*pair[1:])]
        other = [pair for pair in some if not pair[0].same(*pair[1:])]
        other = random.Random(0).sample(other, len(same))
        texts = [(one.texts[a], one.texts[b]) for one, a, b in (*same, *other)]
        odds = distances.unlike(lm, texts)
        halves.append((odds[: len(same)], odds[len(same) :]))
        asked += len(texts)
    seconds = (time.process_time() - began) / asked * math.comb(100, 2)
    (same, other), (later, unlike) = halves
    limit = max((*same, *other), key=lambda one: (same <= one).mean() + (other > one).mean())
    return (
        f"| yes or no | none | of pairs | {limit:.2f} | | | {(later > limit).mean():.0%} |"
        f" {(unlike <= limit).mean():.0%} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
