"""Where to push: random vectors at several layers, tokens and doses, before anything is searched.

    share = answers that are another text and no damage / answers

Layer, tokens and dose decide more than the method does, and random vectors cost no search. The
search goes to the layer and tokens of the largest share, at a quarter, half and all of its dose:
vectors that were searched for are louder than random ones. What the random vectors said stays in
the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from educe import methods
from educe.comparison.stats import rate
from educe.comparison.verdict import DAMAGED, SAME
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.rows import SCOUT, SCOUTED, Row
from educe.run import asking
from educe.run.fill import add_set, fill
from educe.run.work import Work
from educe.scores import asked_in
from educe.scores.traits import traits

#: What is tried: sources as shares of the depth, tokens, and doses; on the prompt's tokens alone a
#: model bears about twice as much.
SOURCES, POSITIONS, DOSES = (0.2, 0.33, 0.5, 0.67), ("all", "prompt"), (0.25, 0.4, 0.6, 0.9)
#: At these shares of the best dose is searched.
LADDER = (0.25, 0.5, 1.0)
#: A target is at least so much of the depth above the source.
APART = 0.25


class Tried(NamedTuple):
    """What random vectors did at one layer, on some tokens, at one dose."""

    source: int
    positions: str
    dose: float
    changed: int  #: answers that are another text and no damage
    damaged: int  #: answers that are damage
    answers: int

    @property
    def share(self) -> float:
        """How often an answer changed without breaking."""
        return self.changed / self.answers


class Place(NamedTuple):
    """Where to search, and why there."""

    source: int
    target: int
    positions: str
    doses: list[float]
    why: str


def scouted(work: Work) -> Place:
    """Return where to search, from what random vectors do; what is missing of it is written."""
    if not work.run.has(SCOUTED):
        numbers = _listed(work)
        asking.baseline(work, work.prompts("asked"))
        asked = work.prompts("asked")
        vectors = [i for some in numbers.values() for i in some]
        work.run.ask([Row(i, j, 0, SCOUT) for i in vectors for j in asked], 0.0)
        fill(work, "where to push")
        work.run.remember(SCOUTED, [t._asdict() for t in _tallies(work, numbers)])
    tried = [Tried(**t) for t in work.run.note(SCOUTED)]
    return chosen(tried, work.lm.depth, work.lm.layer(float(work.settings.target)))


def chosen(tried: Sequence[Tried], depth: int, target: int) -> Place:
    """Choose where to search.

    Args:
        tried: What was tried; of equal shares that with less damage is taken, then the first.
        depth: Blocks of the model.
        target: The layer to read effects at; a later one where the source is too near.

    Raises:
        MethodError: Nothing changes an answer without breaking it.
    """
    best = max(tried, key=lambda t: (t.share, -t.damaged))
    if not best.changed:
        raise MethodError(
            f"of {sum(t.answers for t in tried)} answers under random vectors none changed without "
            "breaking: choose source, positions and radius yourself"
        )
    doses = [round(share * best.dose, 4) for share in LADDER]
    last = min(depth - 1, best.source + max(1, round(APART * depth)))
    why = (
        f"of {len(tried)} layers, tokens and doses tried, random vectors change most answers "
        f"without breaking them after layer {best.source} on positions {best.positions} at dose "
        f"{best.dose:g}: {rate(best.changed, best.answers)}; they break {best.damaged}"
    )
    return Place(best.source, max(target, last), best.positions, doses, why)


def _listed(work: Work) -> dict[tuple[int, str, float], list[int]]:
    """List the random vectors of each layer, tokens and dose in the run; return their numbers."""
    s, lm = work.settings, work.lm
    numbers: dict[tuple[int, str, float], list[int]] = {}
    known: dict[str, list[int]] = {}
    for p in work.run.perturbation_rows(derived=True):
        known.setdefault(p.file, []).append(p.id)
    sources = sorted({lm.layer(share) for share in SOURCES} - {lm.depth - 1})
    for i, source in enumerate(sources):
        for positions in POSITIONS:
            part = None
            for k, dose in enumerate(DOSES):
                file = f"scout-{source}-{positions}-{k}.safetensors"
                if file not in known:
                    part = part or Slice(
                        lm,
                        work.asked,
                        source=source,
                        target=max(source + 1, lm.layer(float(s.target))),
                        positions=positions,
                        readout=s.readout,
                    )
                    # Apart from the seeds of the search and its control.
                    seed = 2 * (1000 * s.seed + 999 - i)
                    made = methods.search(part, "random", n=s.scout, radius=f"{dose}d", seed=seed)
                    made.save(work.run.tensors / file)
                    effect = made.scores["effect"].tolist()
                    known[file] = add_set(work.run, SCOUTED, file, made, effect, how=SCOUTED)
                numbers[source, positions, dose] = known[file]
    return numbers


def _tallies(work: Work, numbers: Mapping[tuple[int, str, float], Sequence[int]]) -> list[Tried]:
    """Count what the vectors of each layer, tokens and dose did to the answers."""
    run = work.run
    coherence, novelty = (
        {s.of: s.value for s in run.score_rows(name)} for name in ("coherence", "novelty")
    )
    asked = {p.id: asked_in(p.content) for p in run.prompt_rows()}
    texts = defaultdict(list)
    for c in run.completion_rows(SCOUT):
        texts[c.perturbation].append(c)
    tried = []
    for where, some in numbers.items():
        own = [c for number in some for c in texts[number]]
        broken = [
            coherence[c.row] < DAMAGED or bool(traits(c.text, asked[c.prompt]).damage) for c in own
        ]
        new = [novelty[c.row] >= SAME for c in own]
        changed = sum(n and not b for n, b in zip(new, broken, strict=True))
        tried.append(Tried(*where, changed, sum(broken), len(own)))
    return tried
