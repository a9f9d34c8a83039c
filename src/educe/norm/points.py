"""Points: what perturbations do at radii, measured once and kept in their run.

At a point, a perturbation has a signed radius. Measured are the effect and its exponent, the damage
to ordinary text, and what is written to the prompts of the run: its coherence, its novelty, and its
score by a judge. Each is a mean over prompts, of the most likely tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from educe.comparison.stats import finite
from educe.errors import EffectError
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.judge import Answer, Judge, asked_in
from educe.judge.coherence import coherence, ordinary_logprob
from educe.judge.novelty import novelty
from educe.judge.reading import read
from educe.kinds import Kind
from educe.model import LanguageModel
from educe.norm.response import growth
from educe.ordinary import Ordinary
from educe.rendering import PromptBatch
from educe.rows import Row
from educe.run.fill import Group, groups
from educe.run.store import Run

#: Points that are measured and kept together.
BATCH = 8


@dataclass(frozen=True)
class Point:
    """What a perturbation does at a radius; None where the model breaks down.

    Attributes:
        number: In its run.
        radius: Negative for the other sign.
        effect: ``‖Δ‖``.
        exponent: ``e(R)``.
        kl: Mean divergence on ordinary text, nats a token.
        high: The 95th percentile of it.
        coherence: Of what is written.
        novelty: Of what is written.
        score: By the judge; 0 where there is none.
        best: The highest score among the prompts.
        text: What is written to the first prompt.
    """

    number: int
    radius: float
    effect: float | None
    exponent: float | None
    kl: float | None
    high: float | None
    coherence: float
    novelty: float
    score: float
    best: float
    text: str


class Points:
    """The points of a run, and how to measure more.

    Args:
        run: The run.
        lm: Its model.
        part: Its slice.
        batch: Its prompts.
        ordinary: Ordinary text.
        judge: What scores answers, besides coherence and novelty.
        reporter: Is told of the progress (see `educe.progress`).

    Attributes:
        groups: Every perturbation of the run, by its kind.
    """

    def __init__(
        self,
        run: Run,
        lm: LanguageModel,
        part: Slice,
        batch: PromptBatch,
        ordinary: Ordinary,
        judge: Judge | None,
        reporter: Any,
    ) -> None:
        self.run, self.lm, self.part, self.batch = run, lm, part, batch
        self.ordinary, self.judge, self.reporter = ordinary, judge, reporter
        self.groups = groups(run)
        self._home: dict[int, tuple[Group, int]] = {
            number: (group, place)
            for group in self.groups
            for place, number in enumerate(group.numbers)
        }
        self._asked = [asked_in(p.content) for p in run.prompt_rows("asked")]
        self._plain: dict[int, list[str]] = defaultdict(list)
        for c in run.completion_rows():
            if c.perturbation == 0:
                self._plain[c.prompt].append(c.text)
        whom = [judge.identity if judge else "", *ordinary.batch.texts, str(ordinary.tokens)]
        digest = hashlib.sha256("\0".join(whom).encode()).hexdigest()[:12]
        self._note, self._damage = f"norm-points-{digest}", f"norm-damage-{digest}"
        kept = run.note(self._note) if run.has(self._note) else []
        self._known = {_key(p["number"], p["radius"]): Point(**p) for p in kept}
        self._high: dict[str, float | None] = (
            run.note(self._damage) if run.has(self._damage) else {}
        )
        self._fluent: float | None = None

    def at(self, wanted: Iterable[tuple[int, float]], what: str) -> list[Point]:
        """Return the points of some perturbations at some radii, in order.

        What is not known yet is measured, a few at a time, and kept.

        Args:
            wanted: Numbers and signed radii.
            what: These, for a person.
        """
        wanted = list(wanted)
        missing: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for number, radius in dict.fromkeys(wanted):
            if _key(number, radius) not in self._known:
                missing[self.groups.index(self._home[number][0])].append((number, radius))
        total = sum(map(len, missing.values()))
        if total:
            with self.reporter.stage(f"at radii: {what}", total, "points") as step:
                for group, pairs in missing.items():
                    for first in range(0, len(pairs), BATCH):
                        some = pairs[first : first + BATCH]
                        for point in self._measured(self.groups[group], some):
                            self._known[_key(point.number, point.radius)] = point
                        self.run.remember(self._note, [asdict(p) for p in self._known.values()])
                        step(len(some))
        return [self._known[_key(*pair)] for pair in wanted]

    def high(self, numbers: Sequence[int], radii: Sequence[float]) -> list[float]:
        """Return the 95th percentile of the divergence alone; infinite where the model breaks down.

        It is what a search for a radius asks for, again and again; so it is kept as well.
        """
        keys = [_key(*pair) for pair in zip(numbers, radii, strict=True)]
        for key, number, radius in zip(keys, numbers, radii, strict=True):
            if key in self._high:
                continue
            if key in self._known:
                high = self._known[key].high
            else:
                kind, theta = self._one(number, radius)
                high = self._damaged(kind, theta)[0][1]
            self._high[key] = high
        self.run.remember(self._damage, self._high)
        return [math.inf if (high := self._high[key]) is None else high for key in keys]

    def radius(self, number: int) -> float:
        """Return the radius at which a perturbation was used."""
        group, place = self._home[number]
        return float(group.radius[place])

    # -- measuring ---------------------------------------------------------------------------

    def _one(self, number: int, radius: float) -> tuple[Kind, Tensor]:
        group, place = self._home[number]
        kind = group.kind.select(torch.tensor([place]))
        return kind, kind.scaled(group.directions[place : place + 1], radius)

    def _damaged(self, kind: Kind, theta: Tensor) -> list[tuple[float | None, float | None]]:
        try:
            damage = self.ordinary.damage(theta.to(self.part.device), kind)
            return list(zip(damage.mean.tolist(), damage.high.tolist(), strict=True))
        except EffectError:
            if len(theta) == 1:
                return [(None, None)]
            each = torch.arange(len(theta))[:, None]
            return [pair for i in each for pair in self._damaged(kind.select(i), theta[i])]

    def _measured(self, group: Group, pairs: Sequence[tuple[int, float]]) -> list[Point]:
        places = torch.tensor([self._home[number][1] for number, _ in pairs])
        radii = torch.tensor([radius for _, radius in pairs])
        kind, directions = group.kind.select(places), group.directions[places]
        theta = kind.scaled(directions, radii[:, None])
        v = directions.to(self.part.device, self.part.work_dtype)
        effect, exponent = (
            column[:, 0].tolist() for column in growth(self.part.on(kind), v, radii[:, None])
        )
        damage = self._damaged(kind, theta)
        written = self._written(kind, theta)
        return [
            Point(number, radius, finite(size), finite(e), mean, high, *own)
            for (number, radius), size, e, (mean, high), own in zip(
                pairs, effect, exponent, damage, written, strict=True
            )
        ]

    def _written(self, kind: Kind, theta: Tensor) -> list[tuple[float, float, float, float, str]]:
        """Return coherence, novelty, mean and best score, and the first text of each."""
        rows = rows_of(len(theta), len(self.batch))
        length = self.run.config["max_new_tokens"]
        came = generate(self.lm, self.batch, rows, theta.float(), kind=kind, max_new_tokens=length)
        texts = {c.row: c for some in came for c in some}
        read_by = read(self.lm, self.batch, list(texts.values()), layer=self.part.target)
        logprobs = {r.completion.row: r.logprob for some in read_by for r in some}
        if self._fluent is None:
            self._fluent = ordinary_logprob(self.lm)
        found = []
        for i in range(len(theta)):
            own = [texts[Row(i + 1, j)] for j in range(len(self.batch))]
            fluent = [coherence(c.text, logprobs[c.row], self._fluent).value for c in own]
            # Against the unperturbed texts alone: a point depends on no other point.
            new = [novelty(c.text, self._plain[c.row.prompt]).value for c in own]
            scores = [0.0]
            if self.judge is not None:
                answers = [
                    Answer(self._asked[c.row.prompt], c.text, tuple(self._plain[c.row.prompt]))
                    for c in own
                ]
                scores = [score.value for score in self.judge.score(answers)]
            found.append((_mean(fluent), _mean(new), _mean(scores), max(scores), own[0].text))
        return found


def _key(number: int, radius: float) -> str:
    return f"{number}@{radius:.7g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
