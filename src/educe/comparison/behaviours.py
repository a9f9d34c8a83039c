"""Behaviours: answers that say the same and are not the likeliest one, with four rates each.

    greedy     the prompts whose likeliest answer says it
    samples    the unperturbed model's draws that say it; a draw answers all prompts once
    control    the random perturbations with at least one such answer
    found      the perturbations that were found, likewise

So the unperturbed model goes through the same count as the perturbed ones. Nothing is hidden
because a sample said it: that a refusal ends in one draw of ten is a finding, without a
perturbation. Rates leave out the prompts whose likeliest answer says the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from educe.comparison.arrays import apart, arrays, where
from educe.comparison.fragility import SAMPLES, answers
from educe.comparison.stats import Rate, comparisons, more_often, rate
from educe.comparison.texts import Texts
from educe.comparison.verdict import (
    DAMAGED,
    INVARIANT,
    INVARIANT_ANSWERS,
    LENGTHS,
    OWN,
    RECURS,
    UNUSUAL,
    Change,
    Evidence,
    Verdict,
    weight,
)
from educe.rows import BEHAVIOUR, CONTROL, ELSEWHERE, EQUAL, FIRST, FOUND, RETEST, CompletionRow
from educe.scores.traits import ECHO, EMPTY, REPETITION, Traits, language

#: Texts of a behaviour that are read for its words, the commonest first, and for its language, from
#: all over the run; and perturbations that say it and are named.
WORDS, LANGUAGE, MOST = 20_000, 300, 10_000


@dataclass(frozen=True)
class Behaviour:
    """Answers that say the same. Rates count perturbations, or draws of the unperturbed model."""

    id: int
    words: tuple[str, ...]  #: the words that set it apart
    example: CompletionRow  #: its commonest text, of a found perturbation if any
    numbers: tuple[int, ...]  #: perturbations that say it: found first, the most often, `MOST`
    change: Change
    verdict: Verdict
    greedy: Rate  #: prompts
    samples: Rate
    control: Rate
    equal: Rate | None  #: the control at equal effect, where there is one
    found: Rate
    by_dose: dict[float, Rate]  #: of those found
    retest: Rate  #: answers of the found ones that say it, in the re-test
    retest_control: Rate  #: those of the control's, chosen in the same way
    retest_samples: Rate  #: samples of the unperturbed model for the same prompts
    elsewhere: Rate  #: answers to other requests, of the found one that says it most often there
    p_value: float  #: that found shows it no more often than the control; Fisher, corrected
    p_retest: float  #: the same in the re-test
    p_samples: float  #: that perturbations show it no more often than the samples
    coherence: float
    novelty: float
    interestingness: float
    weight: float  #: where it stands on the screen, see `educe.comparison.verdict.weight`


def behaviours(texts: Texts, samples: int = 1) -> tuple[Behaviour, ...]:
    """Return what a run shows, the most telling first.

    Args:
        texts: What was written.
        samples: Answers of a perturbation to each prompt.
    """
    asked = answers(texts.rows, samples)
    if not (asked.perturbation > 0).any():
        return ()
    return tuple(_Told(texts, asked).behaviours())


class _Texts(NamedTuple):
    """Some texts, among which every behaviour is counted."""

    behaviour: np.ndarray
    perturbation: np.ndarray
    prompt: np.ndarray
    arm: np.ndarray

    def says(self, b: int, some: np.ndarray) -> Rate:
        """Return how many of some of them say a behaviour."""
        return rate(int((some & (self.behaviour == b)).sum()), int(some.sum()))


class _Said(NamedTuple):
    """The answers that say one behaviour."""

    arm: np.ndarray
    perturbation: np.ndarray
    prompt: np.ndarray
    unit: np.ndarray
    dose: np.ndarray
    number: np.ndarray
    text: np.ndarray
    traits: np.ndarray
    refused: np.ndarray
    coherence: np.ndarray
    novelty: np.ndarray
    interestingness: np.ndarray


class _Told:
    """The answers of a run, and the counts that all behaviours share."""

    def __init__(self, texts: Texts, asked: pd.DataFrame) -> None:
        self.texts, known = texts, texts.rows[texts.rows[BEHAVIOUR].notna()]
        self.plain = known[(known.perturbation == 0) & (known.phase == FIRST)]
        likeliest = self.plain[self.plain["sample"] == 0]
        self.greedy = dict(zip(likeliest.prompt, likeliest[BEHAVIOUR], strict=True))
        self.drawn = arrays(_Texts, self.plain[self.plain["sample"] > 0])
        self.usual = {prompt: list(own) for prompt, own in self.plain.groupby("prompt").traits}
        self.asked, self.changed = asked, asked[asked[BEHAVIOUR] != asked.greedy]
        self.sizes = asked.groupby("arm").unit.nunique()
        self.doses = asked[asked.arm == FOUND].groupby("dose").unit.nunique()
        again = known[(known.phase == RETEST) & (known.perturbation > 0)]
        self.elsewhere = arrays(_Texts, again[again.role == ELSEWHERE])
        self.retested = again[again.role != ELSEWHERE]
        self.again = arrays(_Texts, self.retested)

    def behaviours(self) -> list[Behaviour]:
        """Return all, in order."""
        shown = apart(_Said, self.changed, BEHAVIOUR)
        counts = self._counts(self.changed)
        recurring = (counts[SAMPLES] >= OWN) | (counts[CONTROL] >= OWN)
        told = [b for b in shown if b >= 0 and (counts[FOUND][b] or recurring[b])]
        self.words = {b: self._words(shown[b]) for b in told}
        self.everywhere: Counter[str] = Counter()
        for words in self.words.values():
            self.everywhere.update(words)
        counts = counts.loc[told]
        again = self.retested
        retested = again.groupby("arm").perturbation.nunique()
        repeated = self._counts(again.assign(unit=again.perturbation)).reindex(told, fill_value=0)
        first = self._more_often(counts, (FOUND,), CONTROL, self.sizes)
        second = self._more_often(repeated, (FOUND,), CONTROL, retested)
        pushed = self._more_often(counts, (FOUND, CONTROL, EQUAL), SAMPLES, self.sizes)
        made = [self._one(b, shown[b], counts.loc[b], first[b], second[b], pushed[b]) for b in told]
        return sorted(made, key=lambda b: (-b.weight, b.id))

    def _counts(self, some: pd.DataFrame) -> pd.DataFrame:
        """Return how many units of each arm show each behaviour."""
        counts = some.groupby([BEHAVIOUR, "arm"]).unit.nunique().unstack(fill_value=0)
        return counts.reindex(columns=[FOUND, CONTROL, EQUAL, SAMPLES], fill_value=0)

    def _more_often(
        self, counts: pd.DataFrame, arms: Sequence[str], than: str, sizes: pd.Series
    ) -> dict[float, float]:
        """Return corrected p-values that some arms together show more than another."""
        n, m = int(sum(sizes.get(a, 0) for a in arms)), int(sizes.get(than, 0))
        if not n or not m:
            return dict.fromkeys(counts.index, 1.0)
        hits, others = counts[list(arms)].sum(axis=1), counts[than]
        tests = comparisons((hits + others).tolist(), n, m)
        return {
            b: min(1.0, more_often(rate(int(hits[b]), n), rate(int(others[b]), m)) * tests)
            for b in counts.index
        }

    def _one(
        self, b: int, own: _Said, counts: pd.Series, p: float, p_retest: float, p_push: float
    ) -> Behaviour:
        rates = {arm: rate(int(counts[arm]), int(self.sizes.get(arm, 0))) for arm in counts.index}
        arm = next(arm for arm in (FOUND, CONTROL, EQUAL, SAMPLES) if arm in own.arm)
        found, shown = where(own, own.arm == FOUND), where(own, own.arm == arm)
        finders = np.unique(found.perturbation)
        again, far = self.again, self.elsewhere
        theirs = np.isin(again.perturbation, finders)
        elsewhere = self._elsewhere(b, finders)
        stock = far.says(b, far.arm != FOUND).hits
        coherence = float(np.nan_to_num(shown.coherence).mean())
        change = self._change(shown, rates, coherence, elsewhere, stock)
        retest, loud = again.says(b, theirs), again.says(b, again.arm == EQUAL)
        samples = self.drawn.says(b, np.isin(self.drawn.prompt, again.prompt[theirs]))
        evidence = Evidence(
            change=change,
            found=rates[FOUND],
            control=rates[CONTROL],
            equal=rates[EQUAL] if EQUAL in self.sizes else None,
            samples=rates[SAMPLES],
            p_value=p,
            p_retest=p_retest,
            p_samples=p_push,
            stock=stock,
            p_again_equal=more_often(retest, loud),
            p_again_samples=more_often(retest, samples),
        )
        of = self.words[b]
        return Behaviour(
            id=b,
            words=tuple(sorted(of, key=lambda w: (-of[w] * of[w] / self.everywhere[w], w))[:5]),
            example=self._example(shown),
            numbers=_numbers(own),
            change=change,
            verdict=evidence.verdict,
            greedy=self._greedy(b),
            by_dose=self._by_dose(found),
            retest=retest,
            retest_control=again.says(b, again.arm != FOUND),
            retest_samples=samples,
            elsewhere=elsewhere,
            p_value=p,
            p_retest=p_retest,
            p_samples=p_push,
            interestingness=float(np.nan_to_num(shown.interestingness).mean()),
            weight=weight(evidence, coherence),
            samples=rates[SAMPLES],
            control=rates[CONTROL],
            found=rates[FOUND],
            equal=evidence.equal,
            coherence=coherence,
            novelty=float(np.nan_to_num(shown.novelty).mean()),
        )

    def _greedy(self, b: int) -> Rate:
        prompts = self.asked.prompt.unique()
        return rate(sum(self.greedy[p] == b for p in prompts), len(prompts))

    def _by_dose(self, own: _Said) -> dict[float, Rate]:
        hits = Counter(dose for dose, _ in {*zip(own.dose, own.unit, strict=True)})
        return {float(d): rate(hits[d], int(n)) for d, n in self.doses.items()}

    def _elsewhere(self, b: int, finders: np.ndarray) -> Rate:
        """Return how often one perturbation says it when something else is asked."""
        far = self.elsewhere
        usual = [p for p, said in self.greedy.items() if said == b]
        new = ~np.isin(far.prompt, usual)
        there = [far.perturbation == n for n in finders]
        return max(
            (rate(far.says(b, own & new).hits, int(own.sum())) for own in there if own.any()),
            key=lambda r: r.share,
            default=rate(0, 0),
        )

    def _words(self, own: _Said) -> Counter[str]:
        """Count the words of a behaviour that mean something, each once a completion."""
        _, first, times = np.unique(own.text, return_index=True, return_counts=True)
        some = np.argsort(-times, kind="stable")[:WORDS]
        words: Counter[str] = Counter()
        for text, count in zip(self.texts.said(own.number[first[some]]), times[some], strict=True):
            for word in set(re.findall(r"[^\W_]{3,}", text.lower())) - ENGLISH_STOP_WORDS:
                words[word] += int(count)
        return words

    def _example(self, shown: _Said) -> CompletionRow:
        """Return the commonest text, of the perturbation under which it is most interesting."""
        _, which, times = np.unique(shown.text, return_inverse=True, return_counts=True)
        order = np.lexsort((np.nan_to_num(shown.interestingness), times[which]))
        (example,) = self.texts.written(shown.number[order[-1:]])
        return example

    @cached_property
    def _languages(self) -> set[str]:
        """The languages of the unperturbed model's answers, each prompt's together."""
        each = self.plain.groupby("prompt").number
        return {language(tuple(self.texts.said(own))) for _, own in each}

    def _change(
        self,
        shown: _Said,
        rates: dict[str, Rate],
        coherence: float,
        elsewhere: Rate,
        stock: int,
    ) -> Change:
        """Return what kind of change some answers are; the first that holds."""
        traits: list[Traits] = list(shown.traits)
        damage = _most(t.damage for t in traits)
        if damage:
            return {EMPTY: Change.EMPTY, REPETITION: Change.REPETITION, ECHO: Change.ECHO}[damage]
        if elsewhere.hits >= INVARIANT_ANSWERS and elsewhere.share >= INVARIANT and not stock:
            return Change.HELD
        recurring = max(r.hits for r in rates.values()) >= RECURS
        if coherence < DAMAGED and not recurring:
            return Change.GIBBERISH
        refused = shown.refused.mean() > 0.5
        refuses = np.mean([t.refuses for t in traits]) > 0.5
        if refused != refuses:
            return Change.ENDED if refused else Change.BEGUN
        usual: list[Traits] = [t for p in set(shown.prompt) for t in self.usual.get(p, ())]
        some = np.linspace(0, len(traits) - 1, min(len(traits), LANGUAGE)).astype(int)
        spoken = language(tuple(self.texts.said(shown.number[some]))) if recurring else ""
        if spoken and spoken not in self._languages:
            return Change.LANGUAGE
        for change in (Change.PERSONA, Change.FORM):
            field = change.name.lower()
            value = _most(getattr(t, field) for t in traits)
            plain = [getattr(t, field) for t in usual]
            if value and plain.count(value) < UNUSUAL * len(plain):
                return change
        low, high = np.quantile([t.words for t in usual], [0.025, 0.975])
        middle = float(np.median([t.words for t in traits]))
        if middle > LENGTHS * high or middle < low / LENGTHS:
            return Change.LENGTH
        return Change.USUAL if rates[SAMPLES].hits else Change.NEW


def _most(values: Iterable[str]) -> str:
    """Return what more than half of some values are, if anything."""
    counts = Counter(values)
    value, count = counts.most_common(1)[0]
    return value if count > counts.total() / 2 else ""


def _numbers(own: _Said) -> tuple[int, ...]:
    """Return the perturbations that say it: found ones first, those that say it most often."""
    order = np.argsort(own.perturbation, kind="stable")
    numbers, starts, often = np.unique(
        own.perturbation[order], return_index=True, return_counts=True
    )
    most = np.maximum.reduceat(np.nan_to_num(own.interestingness[order]), starts)
    arms = own.arm[order][starts].astype(str)
    ranked = numbers[np.lexsort((numbers, arms, -most, -often, arms != FOUND))]
    return tuple(ranked[ranked > 0][:MOST].tolist())
