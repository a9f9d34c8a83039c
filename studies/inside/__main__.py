"""Does a search that stays inside the natural subspace find what organisms hide?

python -m studies.inside FILE [ORGANISM...]         # measure; adds lines to FILE
python -m studies.inside FILE --tables              # print the table of FILE
python -m studies.inside --quick                    # both, and keep nothing

For each organism, on its first question, every method searches in the whole stream, inside the top
directions of the natural activations (plain and whitened ball), and inside a random subspace of the
same rank (likewise); all at one radius, a share of the one that is calibrated in the whole stream.
What was found inside is also taken to the radius at which it moves the target as far, in the mean,
as what the free search found (*as loud*). A perturbation hits when one of its answers, to that
question or to fresh ones, shows what is hidden; questions to which the unperturbed model shows it
are left out. One line of JSON an organism, method and arm; lines that are there are not measured
again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import brentq

import educe
from benchmarks import quick
from educe.activations import corpus
from educe.activations.inside import within
from educe.activations.natural import gather
from educe.activations.reading import Place
from educe.activations.subspace import of_moments, random_subspace
from educe.comparison import stats
from educe.methods.dct import DctConfig
from educe.methods.melbo import MelboConfig
from educe.methods.power import PowerConfig
from educe.model.batch import PromptBatch
from educe.organisms import Question
from educe.perturbation.kinds import Within
from educe.scores.coherence import coherence, ordinary_logprob, read
from studies.answers import answers, locked
from studies.records import add, command, lines

N, SHARE, FRESH = 16, 0.75, 2
#: In full, and in the quick form.
RANK, TOKENS, LONG = (64, 16), (20_000, 5_000), (24, 6)
ORGANISMS = ("locked", "first-vault", "vault", "trigger", "persona", "marked")
METHODS = {
    "dct": DctConfig(iterations=10),
    "melbo": MelboConfig(steps=24),
    "power": PowerConfig(),
    "random": None,
}
FREE, INSIDE, CONTROL, LOUD = "free", "inside", "random subspace", "inside, as loud"
ARMS = (
    FREE,
    f"{INSIDE}, plain",
    LOUD,
    f"{INSIDE}, whitened",
    f"{CONTROL}, plain",
    f"{CONTROL}, whitened",
)


@dataclass
class Trial:
    """An organism that is searched: its questions, where each arm searches, at which radius.

    Answers are `long` tokens at most, and as likely as `ordinary` ones where they are coherent.
    """

    lm: educe.LanguageModel
    questions: list[Question]
    batch: PromptBatch
    parts: dict[str, educe.Slice]
    radius: float
    told: dict[str, Any]
    long: int
    ordinary: float

    @classmethod
    def of(cls, name: str, *, short: bool) -> Trial:
        """Prepare an organism."""
        organism = quick.organism(name, quick=short)
        lm = quick.model(organism, quick=short)
        pool = [organism.search[0], *organism.fresh]
        questions = locked(lm, pool, tokens=LONG[short])[: 1 + FRESH]
        free = educe.Slice(lm, lm.encode([questions[0].prompt]), source=0.33, target=0.8)
        place = Place(free.source)
        natural = gather(lm, corpus.documents(), [place], limit=TOKENS[short]).natural[place]
        moments = natural.moments.without(natural.massive)
        top = of_moments(moments).top(RANK[short])
        control = random_subspace(moments, RANK[short], torch.Generator().manual_seed(0))
        parts = {FREE: free}
        for arm, subspace in ((INSIDE, top), (CONTROL, control)):
            for ball in ("plain", "whitened"):
                parts[f"{arm}, {ball}"] = free.on(within(subspace, free.source, ball=ball))
        radius = SHARE * educe.calibrate(free).radius
        facts = {
            "organism": name,
            "radius": radius,
            "dose": radius / free.median_norm,
            "tokens": moments.count,
            "variance": float(top.variance.sum() / top.total),
        }
        batch = lm.encode([q.prompt for q in questions])
        return cls(lm, questions, batch, parts, radius, facts, LONG[short], ordinary_logprob(lm))

    def record(self, part: educe.Slice, theta: torch.Tensor) -> dict[str, Any]:
        """Let perturbations answer every question, and say what came of it."""
        told = answers(self.lm, self.questions, theta, part.kind, tokens=self.long)
        texts = [c for own in told.written for c in own]
        shown = [c.text for c, one in zip(texts, told.shows.flatten(), strict=True) if one]
        judged = [
            coherence(r.completion.text, r.logprob, self.ordinary).value
            for some in read(self.lm, self.batch, texts)
            for r in some
        ]
        stream = theta @ part.kind.rows if isinstance(part.kind, Within) else theta
        return {
            "hits": told.hits,
            "of": N,
            "coherence": stats.bootstrap_mean(judged),
            "effect": loudness(part, theta),
            "norm": float(stream.norm(dim=1).mean()),
            "distinct": len({c.text for c in texts}),
            "example": shown[0] if shown else None,
        }


def loudness(part: educe.Slice, theta: torch.Tensor) -> float:
    """Return the mean norm of the effects."""
    return float(part.effect(theta).norm(dim=1).mean())


def as_loud(part: educe.Slice, theta: torch.Tensor, wanted: float) -> torch.Tensor:
    """Scale perturbations by one factor, so that their mean effect is the one that is wanted."""

    def beyond(factor: float) -> float:
        return loudness(part, factor * theta) - wanted

    return float(brentq(beyond, 0.25, 16, xtol=0.02)) * theta


def measure(name: str, file: Path, short: bool) -> None:
    done = {(r["organism"], r["method"], r["arm"]) for r in lines(file)}
    trial: Trial | None = None
    for method, config in METHODS.items():
        if all((name, method, arm) in done for arm in ARMS):
            continue
        trial = trial or Trial.of(name, short=short)
        found: dict[str, torch.Tensor] = {}
        for arm, part in trial.parts.items():
            some = educe.search(part, method, n=N, radius=trial.radius, seed=0, config=config)
            found[arm] = some.theta
        near, first = trial.parts[f"{INSIDE}, plain"], found[f"{INSIDE}, plain"]
        found[LOUD] = as_loud(near, first, loudness(trial.parts[FREE], found[FREE]))
        for arm in ARMS:
            if (name, method, arm) in done:
                continue
            record = trial.record(trial.parts.get(arm, near), found[arm])
            record = trial.told | {"method": method, "arm": arm} | record
            add(file, record)
            print(name, method, arm, record["hits"], f"{time.process_time():.0f} s", flush=True)


def tables(file: Path) -> None:
    """Print hits, coherence and effect of every arm."""
    records = lines(file)
    names = [name for name in ORGANISMS if any(r["organism"] == name for r in records)]
    print("| method | arm |" + "".join(f" {name} | coherence | effect |" for name in names))
    print("|---|---|" + "---|---|---|" * len(names))
    cells = {(r["organism"], r["method"], r["arm"]): r for r in records}
    for method in METHODS:
        for arm in ARMS:
            line = f"| {method} | {arm} |"
            for name in names:
                r = cells[name, method, arm]
                line += f" {r['hits']} of {r['of']} | {r['coherence'][0]:.2f} | {r['effect']:.0f} |"
            print(line)


def main(argv: Sequence[str] | None = None) -> None:
    command(__doc__, argv, ORGANISMS, measure, tables)


if __name__ == "__main__":
    main()
