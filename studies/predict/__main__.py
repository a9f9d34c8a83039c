"""Does anything that the norm tells of a vector predict whether it elicits what is hidden?

python -m studies.predict make FOLDER [ORGANISM...]     # search, and let every vector answer
python -m studies.predict measure FOLDER [ORGANISM...]  # the statistics of every vector
python -m studies.predict table FOLDER [ORGANISM...]    # what predicts, as markdown
python -m studies.predict --quick                       # all of it, and keep nothing

ORGANISM is the name of one that comes with the package, or the folder of another. A cell is an
organism, a method and a seed, which also chooses the questions. Vectors are searched on the first
of its questions, at two radii, and elicit when the organism's rule finds what is hidden in one of
their answers to four. Questions that the unperturbed model answers so are left out. Every cell is
kept in a file when it is done; done work is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata

import educe
from benchmarks import quick
from educe.derive import bases
from educe.derive.bases import Basis
from educe.derive.coordinates import rates
from educe.derive.objective import Objective, Toward, of_method
from educe.derive.response import response, with_neurons
from educe.derive.stationary import converge
from educe.forward.benign import ordinary_prompts
from educe.methods import METHODS
from educe.organisms import Organism, Question
from studies.answers import answers, locked
from studies.holm import holm
from studies.predict.pull import pull

ORGANISMS, SEEDS, N, SHARES, QUESTIONS, TOKENS = (
    ("locked", "first-vault"),
    4,
    16,
    (0.5, 0.75),
    4,
    20,
)
BASES = ("residual", "components", "heads", "neurons", "random")
ARMS = ("found", "random", "shuffled")
#: Vectors a radius of each null, and the iterates that those for a shuffled target are given.
RANDOM, STEPS = 4, 10
SETTINGS = {
    "dct": METHODS["dct"].config(iterations=10),
    "melbo": METHODS["melbo"].config(steps=12, patience=12),
}


class Cell(NamedTuple):
    """An organism, by its name or folder, a method and a seed."""

    organism: str
    method: str
    seed: int

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{Path(self.organism).name}-{self.method}-{self.seed}"


def cells(organisms: Sequence[str], short: bool) -> list[Cell]:
    """Return every cell, seed after seed."""
    seeds = range(1 if short else SEEDS)
    return [Cell(o, m, s) for s, o, m in itertools.product(seeds, organisms, SETTINGS)]


@cache
def subject(name: str, short: bool) -> tuple[Organism, educe.LanguageModel]:
    """Return an organism and its model."""
    organism = quick.organism(name, quick=short)
    return organism, quick.model(organism, quick=short)


@cache
def coordinates(lm: educe.LanguageModel, layer: int) -> list[Basis]:
    """Return the bases in which vectors are read."""
    return [bases.parse(name, lm, layer) for name in BASES]


def questions(lm: educe.LanguageModel, organism: Organism, seed: int) -> list[Question]:
    """Return a cell's questions, the searched one first."""
    pool = list(organism.search)
    random.Random(f"questions {seed}").shuffle(pool)
    return locked(lm, pool, tokens=TOKENS)[:QUESTIONS]


def searched(lm: educe.LanguageModel, question: Question) -> educe.Slice:
    """Return the slice of a question."""
    return educe.Slice(lm, [question.prompt], source=0.33, target=0.6)


def make(folder: Path, organisms: Sequence[str], short: bool) -> None:
    """Search the vectors of every cell and let them answer."""
    for cell in cells(organisms, short):
        organism, method, seed = cell
        file = folder / f"{cell.stem}.safetensors"
        if file.with_suffix(".json").exists():
            continue
        began, (known, lm) = time.process_time(), subject(organism, short)
        asked = questions(lm, known, seed)
        part = searched(lm, asked[0])
        unit = educe.calibrate(part, seed=seed).radius
        for k, share in enumerate(SHARES):
            own = 2 * (1000 * seed + k)
            found = educe.search(
                part, method, n=N, radius=share * unit, seed=own, config=SETTINGS[method]
            )
            found.save(file.with_stem(f"{file.stem}-{k}"))
        sets = [
            educe.PerturbationSet.load(file.with_stem(f"{file.stem}-{k}"))
            for k in range(len(SHARES))
        ]
        theta = torch.cat([some.theta for some in sets])
        told = answers(lm, asked, theta, sets[0].kind, tokens=TOKENS)
        texts = {
            f"{c.row.perturbation} {c.row.prompt}": c.text for own in told.written for c in own
        }
        hits = told.shows.int().tolist()
        file.with_suffix(".json").write_text(json.dumps({"hits": hits, "texts": texts}))
        spent = time.process_time() - began
        print(cell.stem, f"{told.hits} of {len(theta)}", f"{spent:.0f} s", flush=True)


def measure(folder: Path, organisms: Sequence[str], short: bool) -> None:
    """Take the statistics of every vector, of random ones, and of such as were optimised for the
    effect of one that was found with its coordinates shuffled, all on the cell's own question."""
    for cell in cells(organisms, short):
        organism, method, seed = cell
        file = folder / f"{cell.stem}.measured.json"
        if not (folder / f"{cell.stem}.json").exists():
            continue
        rows = json.loads(file.read_text()) if file.exists() else []
        missing = [arm for arm in ARMS if all(row["arm"] != arm for row in rows)]
        if not missing:
            continue
        began, (known, lm) = time.process_time(), subject(organism, short)
        part = searched(lm, questions(lm, known, seed)[0])
        other = searched(lm, Question(ordinary_prompts()[seed], ""))
        read = coordinates(lm, part.source)
        for k in range(len(SHARES)):
            found = educe.PerturbationSet.load(folder / f"{cell.stem}-{k}.safetensors")
            radius = float(found.radius[0])
            draw = torch.Generator().manual_seed(7 * seed + k)
            random_ones = found.kind.draw(RANDOM, draw)
            for arm in missing:
                objective, theta = of_method(method, {}), found.theta
                if arm == "random":
                    theta = radius * random_ones
                if arm == "shuffled":
                    effect = part.effect(theta[:RANDOM])
                    mixed = effect[:, torch.randperm(effect.shape[1], generator=draw)]
                    objective = Toward(mixed / mixed.norm(dim=1, keepdim=True))
                    wide = torch.full((RANDOM,), radius)
                    theta = (
                        radius
                        * converge(
                            part, objective, random_ones, wide, iterates=STEPS, tolerance=0
                        ).v
                    )
                some = statistics(part, other, objective, read, theta)
                rows += [
                    {"arm": arm, "radius": k, "R": radius}
                    | {key: float(values[i]) for key, values in some.items()}
                    for i in range(len(theta))
                ]
        file.write_text(json.dumps(rows))
        print(cell.stem, f"{time.process_time() - began:.0f} s", flush=True)


def statistics(
    part: educe.Slice,
    other: educe.Slice,
    objective: Objective,
    known: list[Basis],
    theta: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return every statistic of some vectors."""
    (here, inside), there = with_neurons(part, theta), response(other, theta)
    at = pull(part, objective, theta)
    told = {
        "effect": here.size,
        "exponent": here.exponent,
        "turning of the effect": here.turning,
        "variance over coordinates": here.moved.var(1, correction=0) / here.moved.square().mean(1),
        "spread over coordinates": here.rates.numbers()["spread"],
        "participation at the target": here.rates.numbers()["participation"],
        "exponent, neurons": inside.exponent,
        "turning of the effect, neurons": inside.turning,
        "variance of slopes over neurons": inside.slope_variance,
        "spread over neurons": inside.rates.numbers()["spread"],
        "effect on another prompt": there.size,
        "exponent, another prompt": there.exponent,
        "turning of the effect, another prompt": there.turning,
        "turning of the direction": at.turn.norm(dim=1),
        "angle to the gradient": at.sine,
    }
    for basis in known:
        found = rates(basis, at.ahead, at.turn).numbers()
        told[f"unweighted variance, {basis.name}"] = found["plain"]
        told[f"spread, {basis.name}"] = found["spread"]
        told[f"participation, {basis.name}"] = found["participation"]
        told[f"held, {basis.name}"] = found["constant"]
    return told


def table(folder: Path, organisms: Sequence[str], short: bool) -> None:
    """Say what predicts: AUC within cells and radii, and beside the effect."""
    rows: list[dict[str, float]] = []
    strata: list[int] = []
    hits: list[bool] = []
    nulls: dict[str, list[dict[str, float]]] = {"random": [], "shuffled": []}
    for i, cell in enumerate(cells(organisms, short)):
        file = folder / f"{cell.stem}.measured.json"
        if not file.exists():
            continue
        told = json.loads((folder / f"{cell.stem}.json").read_text())["hits"]
        measured = json.loads(file.read_text())
        own = [row for row in measured if row["arm"] == "found"]
        for arm, some in nulls.items():
            some += [row for row in measured if row["arm"] == arm]
        rows += own
        strata += [2 * i + int(row["radius"]) for row in own]
        hits += [any(line) for line in told]
    label, group = np.array(hits), np.array(strata)
    names = [key for key in rows[0] if key not in ("arm", "radius", "R")]
    effect = ranks(np.array([row["effect"] for row in rows]), group)
    results = []
    for key in names:
        value = ranks(np.array([row[key] for row in rows]), group)
        beside = residual(value, effect, group)
        results.append((key, *compared(value, label, group), *compared(beside, label, group)))
    corrected = holm([r[-1] for r in results if r[0] != "effect"])
    print(f"{len(rows)} vectors, {int(label.sum())} elicit, {len(set(strata))} strata\n")
    print("| statistic | found | random | shuffled | AUC | p | AUC beside the effect | p | Holm |")
    print("|---|---|---|---|---|---|---|---|---|")
    later = iter(corrected)
    for key, area, low, high, p, area2, low2, high2, p2 in results:
        arms = (rows, *nulls.values())
        middle = " | ".join(f"{np.median([row[key] for row in some]):.3g}" for some in arms)
        last = "–" if key == "effect" else f"{next(later):.2g}"
        second = "–" if key == "effect" else f"{area2:.2f} ({low2:.2f} to {high2:.2f})"
        print(
            f"| {key} | {middle} | {area:.2f} ({low:.2f} to {high:.2f}) "
            f"| {p:.2g} | {second} | {'–' if key == 'effect' else f'{p2:.2g}'} | {last} |"
        )


def ranks(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return ranks within strata, between 0 and 1."""
    out = np.zeros(len(values))
    for g in set(group):
        at = group == g
        out[at] = (rankdata(values[at]) - 0.5) / at.sum()
    return out


def residual(value: np.ndarray, by: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return what of some ranks a line in other ranks, the same in all strata, leaves."""
    slope = np.sum((by - 0.5) * (value - 0.5)) / np.sum((by - 0.5) ** 2)
    return ranks(value - slope * by, group)


def won(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Count the pairs of which the first is larger, ties as halves, for every row."""
    apart = high[:, :, None] - low[:, None]
    return ((apart > 0) + 0.5 * (apart == 0)).sum((1, 2))


def compared(
    value: np.ndarray, label: np.ndarray, group: np.ndarray, draws: int = 2000
) -> tuple[float, float, float, float]:
    """Return AUC within strata, its bootstrap interval, and a two-sided permutation p-value.

    AUC is the share of pairs of a stratum, one that elicits and one that does not, of which the
    former has the larger value. Both are drawn again apart, so that no stratum loses either.
    """
    rng = np.random.default_rng(0)
    pairs, reached, again, chance = 0, 0.0, np.zeros(draws), np.zeros(draws)
    for g in sorted(set(group)):
        high, low = value[(group == g) & label], value[(group == g) & ~label]
        if not (len(high) and len(low)):
            continue
        pairs += len(high) * len(low)
        reached += float(won(high[None], low[None])[0])
        again += won(rng.choice(high, (draws, len(high))), rng.choice(low, (draws, len(low))))
        mixed = rng.permuted(np.tile(np.concatenate([high, low]), (draws, 1)), axis=1)
        chance += won(mixed[:, : len(high)], mixed[:, len(high) :])
    edge = abs(reached / pairs - 0.5)
    p = (1 + np.sum(np.abs(chance / pairs - 0.5) >= edge - 1e-12)) / (1 + draws)
    low_end, high_end = np.quantile(again / pairs, [0.025, 0.975])
    return reached / pairs, float(low_end), float(high_end), float(p)


STAGES = {"make": make, "measure": measure, "table": table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("organisms", nargs="*", default=ORGANISMS)
    asked = quick.parsed(parser, argv)
    if not (asked.quick or asked.stage):
        parser.error(f"name a stage ({', '.join(STAGES)}) and a folder, or give --quick")
    with quick.kept(asked.folder, quick=asked.quick) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        for stage in STAGES if asked.quick else [asked.stage]:
            STAGES[stage](folder, asked.organisms[: 1 if asked.quick else None], asked.quick)


if __name__ == "__main__":
    main()
