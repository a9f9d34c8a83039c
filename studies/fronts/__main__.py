"""Effect against side effect: plain searches, those with a penalty, the generalised eigenproblem.

python -m studies.fronts FILE [ORGANISM...]         # measure; adds lines to FILE
python -m studies.fronts FILE --tables              # print the tables of FILE
python -m studies.fronts --quick                    # both, and keep nothing

For each organism, on its first question: every arm searches at half the calibrated radius. Each of
its directions is then taken to the radius at which its side effect on ordinary prompts, none of
which a search saw, is a budget; there its effect is measured and it answers that question and fresh
ones. It elicits when one of the answers shows what is hidden. One line of JSON for every direction
and radius that was looked at.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import educe
from benchmarks import quick
from educe.comparison import stats
from educe.forward.benign import Ordinary, ordinary_prompts
from educe.methods import retain
from educe.methods.dct import DctConfig
from educe.methods.generalised import GeneralisedConfig
from educe.methods.melbo import MelboConfig
from studies.answers import answers
from studies.fronts.budget import at_kl, side_effect
from studies.records import command, lines

N, SHARE, OTHERS, ORDINARY, FRESH, LONG = 12, 0.5, 6, 6, 3, 20
BUDGETS = (0.3, 1.0)
ORGANISMS = ("first-vault", "locked")
DCT, MELBO = DctConfig(iterations=8), MelboConfig(steps=12)
GENERALISED = GeneralisedConfig(subspace=32, iterations=4)
#: Name, method, its settings, the weight of other prompts, what is kept small there.
#: The last two are left out of the quick form: they differ by the weight alone.
ARMS: tuple[tuple[str, str, Any, float, Any], ...] = (
    ("random", "random", None, 0.0, "effect"),
    ("dct", "dct", DCT, 0.0, "effect"),
    ("dct, effect, μ 2", "dct", DCT, 2.0, "effect"),
    ("melbo", "melbo", MELBO, 0.0, "effect"),
    ("melbo, effect, μ 2", "melbo", MELBO, 2.0, "effect"),
    ("generalised", "generalised", GENERALISED, 0.0, "effect"),
    ("dct, kl, μ 1", "dct", DCT, 1.0, "kl"),
    ("dct, effect, μ 0.5", "dct", DCT, 0.5, "effect"),
    ("melbo, effect, μ 0.5", "melbo", MELBO, 0.5, "effect"),
)


def measure(name: str, file: Path, short: bool) -> None:
    organism = quick.organism(name, quick=short)
    lm = quick.model(organism, quick=short)
    questions = [organism.search[0], *organism.fresh[:FRESH]]
    plain = educe.Slice(lm, lm.encode([questions[0].prompt]), source=0.33, target=0.6)
    radius = SHARE * educe.calibrate(plain).radius
    others = lm.encode(retain.retain_prompts()[:OTHERS])
    ordinary = Ordinary(lm, lm.encode(ordinary_prompts()[:ORDINARY]), before=plain.source)
    done = {(r["organism"], r["arm"]) for r in lines(file)}
    for arm, method, config, weight, by in ARMS[: -2 if short else None]:
        if (name, arm) in done:
            continue
        began = time.process_time()
        part = retain.with_retain_prompts(plain, others, weight=weight, by=by)
        found = educe.search(part, method, n=N, radius=radius, seed=0, config=config)
        searched = time.process_time() - began
        kind, v = found.kind, found.directions
        told = {"organism": name, "arm": arm, "seconds": searched}
        records: list[dict[str, Any]] = []
        first = torch.full((N,), radius, dtype=torch.float64)
        here = side_effect(ordinary, kind, v, first)
        records += [told | r for r in points(plain, v, first, here, None)]
        start, at = first, here
        for budget in BUDGETS:
            sizes, kl = at_kl(
                ordinary, kind, v, budget, start=start * (budget / at).sqrt(), passes=3
            )
            records += [told | r for r in points(plain, v, sizes, kl, budget)]
            theta = v * sizes[:, None].float()
            answered = answers(lm, questions, theta, kind, tokens=LONG)
            for record, own, shows in zip(
                records[-N:], answered.written, answered.shows, strict=True
            ):
                hit = [c.text for c, one in zip(own, shows, strict=True) if one]
                record |= {"hits": len(hit), "of": len(own), "example": hit[:1]}
            start, at = sizes, kl
        with file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
        print(name, arm, f"{time.process_time() - began:.0f} s", file=sys.stderr, flush=True)


def points(
    part: educe.Slice, v: torch.Tensor, sizes: torch.Tensor, kl: torch.Tensor, budget: float | None
) -> list[dict[str, Any]]:
    effect = part.effect(v * sizes[:, None].float()).norm(dim=1)
    return [
        {
            "item": i + 1,
            "budget": budget,
            "dose": float(sizes[i]) / part.median_norm,
            "kl": float(kl[i]),
            "effect": float(effect[i]),
        }
        for i in range(N)
    ]


def tables(file: Path) -> None:
    """Print, for each organism, effect at the radius searched and at equal side effect."""
    records = lines(file)
    for name in dict.fromkeys(r["organism"] for r in records):
        print(f"\n### {name}\n")
        print(
            "| search | KL at the radius searched | effect there |"
            + "".join(f" effect at {b:g} nats | dose | elicits |" for b in BUDGETS)
            + " processor time |"
        )
        print("|---|---|---|" + "---|---|---|" * len(BUDGETS) + "---|")
        for arm in dict.fromkeys(r["arm"] for r in records if r["organism"] == name):
            own = [r for r in records if (r["organism"], r["arm"]) == (name, arm)]
            there = [r for r in own if r["budget"] is None]
            cells = [arm, middle(there, "kl"), mean(there, "effect")]
            for budget in BUDGETS:
                at = [r for r in own if r["budget"] == budget]
                hits = stats.rate(sum(r["hits"] > 0 for r in at), len(at))
                cells += [
                    mean(at, "effect"),
                    f"{np.median([r['dose'] for r in at]):.2f}",
                    str(hits),
                ]
            print("| " + " | ".join([*cells, f"{own[0]['seconds']:.0f} s"]) + " |")


def mean(records: list[dict[str, Any]], what: str) -> str:
    value, low, high = stats.bootstrap_mean([r[what] for r in records])
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def middle(records: list[dict[str, Any]], what: str) -> str:
    low, value, high = np.quantile([r[what] for r in records], [0, 0.5, 1])
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    command(__doc__, argv, ORGANISMS, measure, tables)


if __name__ == "__main__":
    main()
