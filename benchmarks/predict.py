"""Does anything that the norm tells of a vector predict whether it elicits what is hidden?

python -m benchmarks.predict make FOLDER       # search, and let every vector answer
python -m benchmarks.predict measure FOLDER    # the statistics of every vector
python -m benchmarks.predict table FOLDER      # what predicts, as markdown

A cell is an organism, a method and a seed, which also chooses the questions. Vectors are searched on
the first of its questions, at two radii, and elicit when the organism's rule finds what is hidden in
one of their answers to four. Questions that the unperturbed model answers so are left out. Every
cell is kept in a file when it is done; done work is not done again.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from pathlib import Path

import torch

import educe
from educe.discover import METHODS, search
from educe.generation import generate
from educe.kinds import Row
from educe.model import LanguageModel, PromptBatch
from educe.organisms import Question, shipped
from educe.perturb import PerturbationSet
from educe.radius import calibrate
from educe.slice import Slice

ORGANISMS, SEEDS, N, SHARES, QUESTIONS, TOKENS = ("locked", "first-vault"), 4, 16, (0.5, 0.75), 4, 20
SETTINGS = {
    "dct": METHODS["dct"].config(iterations=10),
    "melbo": METHODS["melbo"].config(steps=12, patience=12),
}


def cells() -> list[tuple[str, str, int]]:
    """Return organism, method and seed of every cell, seed after seed."""
    return [(o, m, s) for s, o, m in itertools.product(range(SEEDS), ORGANISMS, SETTINGS)]


def questions(lm: LanguageModel, name: str, seed: int) -> tuple[PromptBatch, list[str]]:
    """Return a cell's questions, the searched one first, and their rules."""
    pool = list(shipped(name).search)
    random.Random(f"questions {seed}").shuffle(pool)
    batch = lm.encode([q.prompt for q in pool], room=TOKENS)
    rows = [Row(-1, j) for j in range(len(pool))]
    texts = {c.row.prompt: c.text for some in generate(lm, batch, rows, max_new_tokens=TOKENS) for c in some}
    kept = [q for j, q in enumerate(pool) if not q.elicited(texts[j])][:QUESTIONS]
    return lm.encode([q.prompt for q in kept], room=TOKENS), [q.rule for q in kept]


def make(folder: Path) -> None:
    """Search the vectors of every cell and let them answer."""
    for name, method, seed in cells():
        file = folder / f"{name}-{method}-{seed}.safetensors"
        if file.with_suffix(".json").exists():
            continue
        began = time.monotonic()
        organism = shipped(name)
        lm = educe.load("embedded", adapter=organism.folder)
        batch, rules = questions(lm, name, seed)
        part = Slice(lm, lm.pad([batch.ids[0][batch.mask[0].bool()].tolist()]), source=0.33, target=0.6)
        unit = calibrate(part, seed=seed).radius
        for k, share in enumerate(SHARES):
            own = 2 * (1000 * seed + k)
            found = search(part, method, n=N, radius=share * unit, seed=own, config=SETTINGS[method])
            found.save(file.with_stem(f"{file.stem}-{k}"))
        sets = [PerturbationSet.load(file.with_stem(f"{file.stem}-{k}")) for k in range(len(SHARES))]
        theta = torch.cat([some.theta for some in sets])
        rows = [Row(i, j) for i in range(len(theta)) for j in range(len(rules))]
        told = torch.zeros(len(theta), len(rules), dtype=torch.bool)
        texts: dict[str, str] = {}
        written = generate(lm, batch, rows, theta, kind=sets[0].kind, max_new_tokens=TOKENS)
        for c in itertools.chain.from_iterable(written):
            question = Question("", rules[c.row.prompt])
            told[c.row.perturbation, c.row.prompt] = question.elicited(c.text)
            texts[f"{c.row.perturbation} {c.row.prompt}"] = c.text
        hits = told.int().tolist()
        file.with_suffix(".json").write_text(json.dumps({"hits": hits, "texts": texts}))
        elicit = int(told.any(1).sum())
        print(name, method, seed, f"{elicit} of {len(theta)}", f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    stage, where = sys.argv[1], Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    {"make": make}[stage](where)
