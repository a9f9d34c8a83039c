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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from educe.comparison.arrays import apart, arrays, where
from educe.comparison.fragility import SAMPLES, answers, units
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
from educe.scores.traits import ECHO, EMPTY, REPETITION, language

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
    told = answers(texts.rows, samples)
    if not (told.asked & (told.perturbation > 0)).any():
        return ()
    return tuple(_Told(texts, told).behaviours())


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
    """Answers, such as those that say one behaviour."""

    arm: pd.Categorical
    perturbation: np.ndarray
    prompt: np.ndarray
    unit: np.ndarray
    dose: np.ndarray
    number: np.ndarray
    text: np.ndarray
    refuses: np.ndarray
    damage: pd.Categorical
    form: pd.Categorical
    persona: pd.Categorical
    words: np.ndarray
    refused: np.ndarray
    coherence: np.ndarray
    novelty: np.ndarray

    @property
    def interestingness(self) -> np.ndarray:
        return self.coherence * self.novelty


class _Told:
    """The answers of a run, and the counts that all behaviours share."""

    def __init__(self, texts: Texts, told: pd.DataFrame) -> None:
        self.texts, self.told, self.every = texts, told, arrays(_Said, told)
        self.prompts = told.prompt[told.asked].unique()
        known = told[BEHAVIOUR].notna()
        self.plain = told[known & (told.perturbation == 0) & (told.phase == FIRST)]
        self.usual = arrays(_Said, self.plain)
        likeliest = self.plain[self.plain["sample"] == 0]
        self.greedy = dict(zip(likeliest.prompt, likeliest[BEHAVIOUR], strict=True))
        self.drawn = arrays(_Texts, self.plain[self.plain["sample"] > 0])
        each = units(told, told.asked)
        self.sizes = each.groupby("arm").size()
        self.doses = each[each.arm == FOUND].groupby("dose").size()
        again = known & (told.phase == RETEST) & (told.perturbation > 0)
        elsewhere = told.role == ELSEWHERE
        self.elsewhere = arrays(_Texts, told[again & elsewhere])
        self.retested = (again & ~elsewhere).to_numpy()
        self.again = arrays(_Texts, told[self.retested])
        self.sizes_again = units(told, self.retested).groupby("arm").size()

    def behaviours(self) -> list[Behaviour]:
        """Return all, in order."""
        known = self.told[BEHAVIOUR].to_numpy()
        said = apart(known, self.told.changed.to_numpy())
        counts = self._counts(said)
        recurring = (counts[SAMPLES] >= OWN) | (counts[CONTROL] >= OWN)
        shown = {b: said[b] for b in said if b >= 0 and (counts[FOUND][b] or recurring[b])}
        told = list(shown)
        self.words = {b: self._words(where(self.every, shown[b])) for b in told}
        self.everywhere: Counter[str] = Counter()
        for words in self.words.values():
            self.everywhere.update(words)
        counts = counts.loc[told]
        repeated = self._counts(apart(known, self.retested)).reindex(told, fill_value=0)
        first = self._more_often(counts, (FOUND,), CONTROL, self.sizes)
        second = self._more_often(repeated, (FOUND,), CONTROL, self.sizes_again)
        pushed = self._more_often(counts, (FOUND, CONTROL, EQUAL), SAMPLES, self.sizes)
        made = [
            self._one(b, where(self.every, at), counts.loc[b], first[b], second[b], pushed[b])
            for b, at in shown.items()
        ]
        return sorted(made, key=lambda b: (-b.weight, b.id))

    def _counts(self, said: dict[int, np.ndarray]) -> pd.DataFrame:
        """Return how many units of each arm show each behaviour, whose answers have places."""
        unit, arm, rows = self.every.unit, self.every.arm, {}
        for b, at in said.items():
            _, first = np.unique(unit[at], return_index=True)
            rows[b] = np.bincount(arm.codes[at[first]], minlength=len(arm.categories))
        counts = pd.DataFrame.from_dict(rows, orient="index", columns=list(arm.categories))
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
        return rate(sum(self.greedy[p] == b for p in self.prompts), len(self.prompts))

    def _by_dose(self, own: _Said) -> dict[float, Rate]:
        _, each = np.unique(own.unit, return_index=True)
        hits = Counter(own.dose[each].tolist())
        return {float(d): rate(hits[d], int(n)) for d, n in self.doses.items()}

    def _elsewhere(self, b: int, finders: np.ndarray) -> Rate:
        """Return how often one perturbation says it when something else is asked."""
        far = self.elsewhere
        usual = [p for p, said in self.greedy.items() if said == b]
        new = ~np.isin(far.prompt, usual)
        there = [far.perturbation == n for n in np.intersect1d(finders, far.perturbation)]
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
        damage = _most(shown.damage)
        if damage:
            return {EMPTY: Change.EMPTY, REPETITION: Change.REPETITION, ECHO: Change.ECHO}[damage]
        if elsewhere.hits >= INVARIANT_ANSWERS and elsewhere.share >= INVARIANT and not stock:
            return Change.HELD
        recurring = max(r.hits for r in rates.values()) >= RECURS
        if coherence < DAMAGED and not recurring:
            return Change.GIBBERISH
        refused, refuses = shown.refused.mean() > 0.5, shown.refuses.mean() > 0.5
        if refused != refuses:
            return Change.ENDED if refused else Change.BEGUN
        usual = where(self.usual, np.isin(self.usual.prompt, shown.prompt))
        count = len(shown.number)
        some = np.linspace(0, count - 1, min(count, LANGUAGE)).astype(int)
        spoken = language(tuple(self.texts.said(shown.number[some]))) if recurring else ""
        if spoken and spoken not in self._languages:
            return Change.LANGUAGE
        for change in (Change.PERSONA, Change.FORM):
            field = change.name.lower()
            value, plain = _most(getattr(shown, field)), getattr(usual, field)
            if value and (plain == value).sum() < UNUSUAL * len(plain):
                return change
        low, high = np.quantile(usual.words, [0.025, 0.975])
        middle = float(np.median(shown.words))
        if middle > LENGTHS * high or middle < low / LENGTHS:
            return Change.LENGTH
        return Change.USUAL if rates[SAMPLES].hits else Change.NEW


def _most(words: pd.Categorical) -> str:
    """Return what more than half of some words are, if anything."""
    counts = np.bincount(words.codes)
    most = counts.argmax()
    return str(words.categories[most]) if counts[most] > len(words) / 2 else ""


def _numbers(own: _Said) -> tuple[int, ...]:
    """Return the perturbations that say it: found ones first, those that say it most often."""
    order = np.argsort(own.perturbation, kind="stable")
    numbers, starts, often = np.unique(
        own.perturbation[order], return_index=True, return_counts=True
    )
    most = np.maximum.reduceat(np.nan_to_num(own.interestingness[order]), starts)
    arms = np.asarray(own.arm[order][starts], str)
    ranked = numbers[np.lexsort((numbers, arms, -most, -often, arms != FOUND))]
    return tuple(ranked[ranked > 0][:MOST].tolist())
