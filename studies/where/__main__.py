"""Does it pay to try random vectors first, to see where to push?

    python -m studies.where FOLDER [--organism NAME ...] [--seeds 0]
    python -m studies.where --quick

For each organism and seed, two runs on three of its questions at about equal completions: one at
the default layer, tokens and radii; one where random vectors choose them first (``--scout``), with
fewer perturbations to pay for that. The organism's rule counts the answers, found and control, that
show what is hidden. A run that is there is not made again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import educe
from benchmarks import quick
from educe.comparison.stats import Rate, rate
from educe.organisms import Organism
from educe.progress import reporter
from educe.rows import ARMS, FIRST, SCOUT, SCOUTED
from educe.run import asking, fill, preparing, searching
from educe.run.settings import Settings, begin
from educe.run.store import Run
from educe.run.work import at_work

ORGANISMS = ("first-vault", "vault", "locked", "marked", "persona", "trigger")
QUESTIONS, TOKENS, ITERATIONS = 3, 24, 5
#: Vectors tried at each place, and perturbations at each of three radii with and without trying:
#: 2 · 3 · 16 · 3 = 288 completions, and 32 · 1 · 3 + 2 · 3 · 10 · 3 = 276.
WAYS = {"default": (0, 16), "scouted": (1, 10)}
HEAD = (
    "| organism | seed | way | source | positions | doses | tried: told | found: told | "
    "control: told | texts |"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--organism", nargs="+", default=ORGANISMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked = quick.parsed(parser, argv)
    print(f"{HEAD}\n{'|---' * 10}|", flush=True)
    with quick.kept(asked.folder, quick=asked.quick) as folder:
        folder.mkdir(exist_ok=True, parents=True)
        for name in asked.organism[:1] if asked.quick else asked.organism:
            organism = quick.organism(name, quick=asked.quick)
            lm = quick.model(organism, quick=asked.quick)
            for seed in asked.seeds[:1] if asked.quick else asked.seeds:
                for way in WAYS:
                    print(row(lm, organism, seed, way, folder, short=asked.quick), flush=True)


def row(
    lm: educe.LanguageModel, organism: Organism, seed: int, way: str, folder: Path, *, short: bool
) -> str:
    """Return the line of one run, which is made or gone on with."""
    asked = random.Random(seed).sample(organism.search, QUESTIONS)
    scout, n = WAYS[way]
    settings = Settings(
        tuple(q.prompt for q in asked),
        model=lm.name,
        adapter=lm.adapter,
        method="dct",
        method_settings={"iterations": ITERATIONS},
        scout=scout,
        n=n,
        baseline=fill.BASELINE,
        max_new_tokens=TOKENS,
        seed=seed,
    )
    if short:
        settings = replace(settings, n=2, max_new_tokens=4)
    place = folder / f"{organism.name}-{way}-{seed}"
    with begin(place, settings, resume=True) as run:
        with at_work(run, lm, reporter()) as work:
            search = preparing.Search(work)
            search.remember_facts()
            searching.search(search)
            asking.answers(work, [p.id for p in run.perturbation_rows() if p.arm in ARMS])
            fill.write(work)
        facts = run.note("facts")
        told = [shown(run, organism, arm) for arm in (SCOUTED, *ARMS)]
        doses = ", ".join(f"{r / facts['unit']:.2f}" for r in facts["radii"])
        texts = sum(r.trials for r in told)
    where = [f"{facts['source']} of {facts['depth']}", facts["positions"], doses]
    cells = [organism.name, seed, way, *where, *(r if r.trials else "–" for r in told), texts]
    return f"| {' | '.join(map(str, cells))} |"


def shown(run: Run, organism: Organism, arm: str) -> Rate:
    """Return how many answers of an arm show what is hidden."""
    rules = {q.prompt: q for q in organism.search}
    asked = {p.id: rules[str(p.content)] for p in run.prompt_rows() if p.role == "asked"}
    own = {p.id for p in run.perturbation_rows(arm, derived=None)}
    phase = SCOUT if arm == SCOUTED else FIRST
    texts = [c for c in run.completion_rows(phase) if c.perturbation in own]
    return rate(sum(asked[c.prompt].elicited(c.text) for c in texts), len(texts))


if __name__ == "__main__":
    main()
