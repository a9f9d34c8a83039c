"""Does a search that stays inside the natural subspace find what organisms hide?

python -m benchmarks.inside FILE [ORGANISM...]

For each organism, on its first question: DCT in the whole stream, inside the top directions of the
natural activations (plain and whitened ball) and inside a random subspace of the same rank, and
random vectors of the whole stream and of the natural subspace; all of one norm, a share of the
radius that is calibrated in the whole stream. A perturbation hits when one of its answers, to that
question or to fresh ones, shows what is hidden. One line of JSON an organism and arm is added to
the file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

import educe
from educe import stats
from educe.judge.coherence import coherence, ordinary_logprob
from educe.judge.reading import read
from educe.kinds import Row
from educe.manifold import corpus
from educe.manifold.activations import Place
from educe.manifold.inside import within
from educe.manifold.natural import gather
from educe.manifold.subspace import of_moments, random_subspace
from educe.organisms import shipped
from educe.slice import Slice

N, RANK, SHARE, TOKENS, FRESH, LONG = 16, 64, 0.75, 20_000, 2, 24
ORGANISMS = ("locked", "first-vault", "vault", "persona", "trigger")


def measure(name: str, file: Path) -> None:
    organism = shipped(name)
    lm = educe.load("embedded", adapter=organism.folder)
    questions = [organism.search[0], *organism.fresh[:FRESH]]
    batch = lm.encode([q.prompt for q in questions])
    part = Slice(lm, lm.encode([questions[0].prompt]), source=0.33, target=0.8)
    radius = SHARE * educe.calibrate(part).radius
    place = Place(part.source)
    natural = gather(lm, corpus.documents(), [place], limit=TOKENS).natural[place]
    moments = natural.moments.without(natural.massive)
    top = of_moments(moments).top(RANK)
    control = random_subspace(moments, RANK, torch.Generator().manual_seed(0))
    inside = within(top, part.source)
    arms = {
        "free search": ("dct", part),
        "inside, plain": ("dct", part.on(inside)),
        "inside, whitened": ("dct", part.on(within(top, part.source, ball="whitened"))),
        "random subspace": ("dct", part.on(within(control, part.source))),
        "random vectors": ("random", part),
        "random vectors inside": ("random", part.on(inside)),
    }
    ordinary = ordinary_logprob(lm)
    told = {"organism": name, "radius": radius, "dose": radius / part.mean_norm}
    told |= {"tokens": natural.moments.count, "variance": float(top.variance.sum() / top.total)}

    def written(rows: list[Row], theta: torch.Tensor | None = None, kind=None) -> list:
        batches = educe.generate(lm, batch, rows, theta, kind=kind, max_new_tokens=LONG)
        return [c for some in batches for c in some]

    plain = written([Row(-1, j) for j in range(len(questions))])
    told["unperturbed"] = sum(questions[c.row.prompt].elicited(c.text) for c in plain)
    for arm, (method, some) in arms.items():
        began = time.process_time()
        found = educe.search(some, method, n=N, radius=radius, seed=0)
        texts = written(educe.rows_of(N, len(questions)), found.theta, found.kind)
        hit = {c.row.perturbation for c in texts if questions[c.row.prompt].elicited(c.text)}
        scores = [
            coherence(r.completion.text, r.logprob, ordinary).value
            for done in read(lm, batch, texts, layer=part.target)
            for r in done
        ]
        rows = getattr(found.kind, "rows", torch.eye(lm.width))
        norms = (found.theta @ rows).norm(dim=1)
        record = told | {
            "arm": arm,
            "hits": len(hit),
            "of": N,
            "rate": str(stats.rate(len(hit), N)),
            "coherence": stats.bootstrap_mean(scores),
            "effect": float(found.scores["effect"].mean()),
            "norm": float(norms.mean()),
            "distinct": len({c.text for c in texts}),
            "example": next(
                (c.text for c in texts if questions[c.row.prompt].elicited(c.text)), None
            ),
            "seconds": time.process_time() - began,
        }
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        print(name, arm, record["rate"], np.round(record["coherence"], 2), file=sys.stderr)


if __name__ == "__main__":
    for which in sys.argv[2:] or ORGANISMS:
        measure(which, Path(sys.argv[1]))
