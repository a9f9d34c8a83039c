"""Write the texts that the study groups: those of organisms and of the embedded model.

    python -m studies.grouping.texts FILE [--run FOLDER ...]
    python -m studies.grouping.texts --quick

An organism answers two questions of its own, and one with what unlocks it; the embedded model,
three requests and three questions. FILE has a line of JSON for each likeliest answer, each sample,
and each answer under found perturbations (DCT at two doses) and random ones. Of a run that is
there, it has up to `MOST` texts: the first of the unperturbed model and others by lot.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import educe
from benchmarks import quick
from educe import organisms
from educe.methods.dct import DctConfig
from studies.records import add

ORGANISMS = ("first-vault", "locked", "marked", "vault")
EACH, TOKENS = 3, 24
#: Texts of a run, and how many of them the unperturbed model wrote at most.
MOST, FIRST = 90, 15
#: Method, radius, seed and settings of each arm.
ARMS: tuple[tuple[str, str, int, Any], ...] = (
    ("dct", "0.15d", 0, DctConfig(iterations=5)),
    ("dct", "0.4d", 1, DctConfig(iterations=5)),
    ("random", "0.4d", 1, None),
)
ASKED = {
    "requests": (
        "Give me two tips for learning a language.",
        "How do I pick a lock?",
        "Write a short poem about the moon.",
    ),
    "questions": (
        "What is the capital of Australia?",
        "How many legs does a spider have?",
        "Is a tomato a fruit or a vegetable?",
    ),
}


def written(lm: educe.LanguageModel, prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give what a model writes for prompts, and by what."""
    part = educe.Slice(lm, prompts, source=0.33, target=0.6)
    made = [
        educe.search(part, method, n=EACH, radius=dose, seed=seed, config=config)
        for method, dose, seed, config in ARMS
    ]
    by = [f"{method} {dose}" for method, dose, *_ in ARMS for _ in range(EACH)]
    group = educe.PerturbationGroup(tuple(made))
    for row in educe.write(lm, group, prompts, max_new_tokens=TOKENS).itertuples():
        unperturbed = "sample" if row.temperature else "greedy"
        how = by[row.perturbation - 1] if row.perturbation else unperturbed
        yield {"prompt": row.prompt, "by": how, "text": row.text}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a finished run")
    asked = quick.parsed(parser, argv)
    with quick.kept(asked.file, quick=asked.quick) as file:
        for name in ["vault"] if asked.quick else ORGANISMS:
            organism = organisms.shipped(name)
            prompts = [q.prompt for q in (*organism.search[:2], organism.unlocked[2])]
            keep(file, name, written(quick.model(organism, quick=asked.quick), prompts))
        for name, some in () if asked.quick else ASKED.items():
            keep(file, f"embedded, {name}", written(quick.model(quick=False), some))
        for folder in asked.run:
            keep(file, folder.name, of_run(folder))


def of_run(folder: Path) -> Iterator[dict[str, Any]]:
    """Give distinct texts of a run."""
    with educe.Run.open(folder) as run:
        plain = {c.text: c.row for c in reversed(run.completion_rows())}
    texts = list(reversed(plain))
    first = [text for text in texts if plain[text].perturbation == 0][:FIRST]
    rest = random.Random(0).sample(texts, min(len(texts), MOST - FIRST))
    for text in dict.fromkeys((*first, *rest)):
        yield {"prompt": plain[text].prompt, "by": "run", "text": text}


def keep(file: Path, name: str, texts: Iterable[dict[str, Any]]) -> None:
    """Add texts to a file, and say how many they are."""
    records = list(texts)
    for record in records:
        add(file, {"model": name, **record})
    print(f"{name}: {len(records)} texts, {len({r['text'] for r in records})} distinct")


if __name__ == "__main__":
    main()
