"""Are the vectors that a search finds near maxima, and how many maxima are there?

python -m studies.maxima FILE               # measure; adds lines to FILE
python -m studies.maxima FILE --tables      # print the table of FILE
python -m studies.maxima --quick            # both, and keep nothing

On the first vault's first question, DCT and MELBO search at shares of the calibrated radius. Each
vector then converges by itself, at its own radius: does it become stationary, how far does it
turn and how much does the objective grow on the way, in how many different maxima do they end, and
how many still elicit? It elicits when one of its answers to that question and fresh ones shows what
is hidden. One line of JSON a method and share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

import educe
from benchmarks import quick
from educe.comparison import stats
from educe.derive.objective import of_method
from educe.derive.stationary import converge
from educe.methods.dct import DctConfig
from educe.methods.melbo import MelboConfig
from studies.answers import answers
from studies.records import add, command, lines

ORGANISM, N, SHARES, FRESH, LONG = "first-vault", 8, (0.125, 0.25, 0.5), 3, 20
ITERATES, STATIONARY, SAME = 40, 0.02, 0.99
METHODS = {"dct": DctConfig(iterations=10), "melbo": MelboConfig(steps=24)}


def measure(name: str, file: Path, short: bool) -> None:
    organism = quick.organism(name, quick=short)
    lm = quick.model(organism, quick=short)
    questions = [organism.search[0], *organism.fresh[:FRESH]]
    part = educe.Slice(lm, lm.encode([questions[0].prompt]), source=0.33, target=0.6)
    whole = educe.calibrate(part).radius
    done = {(r["method"], r["share"]) for r in lines(file)}

    def hits(theta: torch.Tensor) -> int:
        return answers(lm, questions, theta, part.kind, tokens=LONG).hits

    for method, config in METHODS.items():
        for share in SHARES:
            if (method, share) in done:
                continue
            began = time.process_time()
            radius = torch.full((N,), share * whole)
            found = educe.search(part, method, n=N, radius=share * whole, seed=0, config=config)
            v = found.theta / found.theta.norm(dim=1, keepdim=True)
            own = of_method(method, {})
            start = converge(part, own, v, radius, iterates=0, tolerance=0)
            end = converge(part, own, v, radius, iterates=ITERATES, tolerance=STATIONARY)
            still = end.sine < STATIONARY
            turned = torch.rad2deg(torch.acos((end.v * v).sum(1).clamp(-1, 1)))
            record = {
                "method": method,
                "share": share,
                "sine": float(start.sine.median()),
                "stationary": int(still.sum()),
                "maxima": distinct(end.v[still]),
                "turned": float(turned.median()),
                "grown": float((end.value / start.value).median()),
                "hits": hits(found.theta),
                "converged hits": hits(end.v * radius[:, None]),
                "seconds": time.process_time() - began,
            }
            add(file, record)


def distinct(v: torch.Tensor) -> int:
    """Count directions, those of a cosine above `SAME` as one."""
    kept: list[torch.Tensor] = []
    for one in v:
        if all(float(one @ other) < SAME for other in kept):
            kept.append(one)
    return len(kept)


def tables(file: Path) -> None:
    print(
        "| method | radius | sine as found | stationary | maxima | turned | grown | elicit "
        "| converged, elicit |\n|---|---|---|---|---|---|---|---|---|"
    )
    for r in lines(file):
        rates = " | ".join(str(stats.rate(r[k], N)) for k in ("hits", "converged hits"))
        print(
            f"| {r['method']} | {r['share']} | {r['sine']:.2f} | {r['stationary']} of {N} "
            f"| {r['maxima']} | {r['turned']:.0f}° | {r['grown']:.1f} | {rates} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    command(__doc__, argv, (ORGANISM,), measure, tables)


if __name__ == "__main__":
    main()
