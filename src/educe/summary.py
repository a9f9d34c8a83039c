"""What a run found, read from the run alone: the numbers behind every table, page and figure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from educe.rows import FIRST, RETEST, SCALED, CompletionRow, PerturbationRow, PromptRow, Row
from educe.run.store import Run
from educe.stats import Rate, bootstrap_mean, comparisons, more_often, rate

#: Level at which a behaviour stands out; half of it for each of its two chances, the first count
#: and the re-test.
LEVEL = 0.05

#: Mean coherence below which text counts as damaged, and mean novelty below which it is as before.
DAMAGED, SAME = 0.15, 0.35

#: A perturbation holds to a behaviour when it shows it in more than this share of its answers to
#: fresh prompts, with 95% confidence; of so many prompts at least.
HELD, HELD_PROMPTS = 0.5, 3


class Verdict(Enum):
    """What a behaviour is, in order of interest."""

    BEHAVIOUR = "more often than with random perturbations"
    HELD = "by few perturbations, but again whatever is asked"
    RARE = "too rare to tell from noise"
    NOISE = "random perturbations do it as well"
    DAMAGE = "damaged text"
    SAME = "as without perturbation"


@dataclass(frozen=True)
class Item:
    """One perturbation and what it made the model write."""

    row: PerturbationRow
    completions: tuple[CompletionRow, ...]  #: in answer to the prompts that were asked
    retest: tuple[CompletionRow, ...]  #: fresh prompts or samples; empty when not re-tested
    coherence: float
    novelty: float
    striking: float  #: mean over completions of coherence times novelty
    retested: tuple[float, float, float] | None  #: striking in the re-test: mean, low, high
    constancy: float | None  #: how alike answers to different prompts are; None for one prompt
    side_effect: float | None  #: nats
    hits: int  #: completions that match the pattern looked for
    retest_hits: int


@dataclass(frozen=True)
class Behaviour:
    """Completions that say the same.

    Rates count perturbations, of those of each arm, with at least one such completion.
    """

    id: int
    words: tuple[str, ...]  #: the words that set it apart
    example: CompletionRow  #: of a perturbation that was found, the most coherent
    items: tuple[Item, ...]  #: found perturbations that show it, most striking first
    found: Rate
    control: Rate
    retest: tuple[Rate, Rate]  #: re-tested perturbations of each arm that show it again
    p_value: float  #: Fisher's exact test, one-sided, corrected for the number of behaviours
    p_retest: float  #: the same in the re-test
    held: Rate  #: answers to fresh prompts, of the perturbation that says it most often there
    coherence: float
    novelty: float
    striking: float
    verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """Everything a page or a table shows."""

    config: dict
    facts: (
        dict  #: model, source, target, median norm, calibration: what the run noted when it began
    )
    prompts: tuple[PromptRow, ...]  #: asked
    fresh: tuple[PromptRow, ...]  #: of the re-test
    baseline: dict[int, tuple[CompletionRow, ...]]  #: by prompt, greedy first, then samples
    found: tuple[Item, ...]  #: most striking first
    control: tuple[Item, ...]
    behaviours: tuple[Behaviour, ...]  #: by verdict, then most striking first
    hits: tuple[Rate, Rate] | None  #: perturbations that hit the pattern: found and control
    retest_hits: tuple[Rate, Rate] | None  #: completions in the re-test that do
    by_radius: dict[float, tuple[Rate, Rate]]  #: the hits by radius
    responses: dict[int, list[tuple[float, float]]]
    map: dict[Row, int]  #: behaviour by completion
    scores: dict[Row | int, dict[str, tuple[float, str]]]  #: value and why

    def item(self, number: int) -> Item | None:
        """Return a perturbation by its number."""
        return next((i for i in (*self.found, *self.control) if i.row.id == number), None)


def summarise(run: Run) -> Summary:
    """Read a run."""
    config = run.config
    pattern = re.compile(config["look_for"]) if config.get("look_for") else None
    scores: dict[Row | int, dict[str, tuple[float, str]]] = defaultdict(dict)
    for s in run.score_rows():
        scores[s.of][s.judge] = (s.value, s.why)
    by_perturbation: dict[int, list[CompletionRow]] = defaultdict(list)
    asked, fresh = (run.prompt_rows(role) for role in ("asked", "fresh"))
    own = {p.id for p in (*asked, *fresh)}  # a selection has prompts of its own
    for completion in run.completion_rows():
        if completion.prompt in own:
            by_perturbation[completion.perturbation].append(completion)

    items = [
        _item(row, by_perturbation[row.id], {p.id for p in asked}, scores, pattern)
        for row in run.perturbation_rows()
    ]
    items.sort(key=lambda item: -item.striking)
    found = tuple(i for i in items if i.row.arm == "found")
    control = tuple(i for i in items if i.row.arm == "control")
    baseline: dict[int, tuple[CompletionRow, ...]] = {
        prompt.id: tuple(c for c in by_perturbation[0] if c.prompt == prompt.id)
        for prompt in (*asked, *fresh)
    }
    places = {
        of: int(said["behaviour"][0])
        for of, said in scores.items()
        if isinstance(of, Row) and "behaviour" in said
    }
    return Summary(
        config=config,
        facts=run.note("facts") if run.has("facts") else {},
        prompts=tuple(asked),
        fresh=tuple(fresh),
        baseline=baseline,
        found=found,
        control=control,
        behaviours=_behaviours(found, control, by_perturbation[0], places, scores),
        hits=_hits(found, control) if pattern else None,
        retest_hits=_retest_hits(found, control) if pattern else None,
        by_radius={
            radius: _hits(
                [i for i in found if i.row.radius == radius],
                [i for i in control if i.row.radius == matched],
            )
            for radius, matched in _radii(run)
        }
        if pattern
        else {},
        responses=_responses(run),
        map=places,
        scores=dict(scores),
    )


def dose(value: float) -> str:
    """Write a dose: two decimals, or two digits where most of those would be zeros."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def counted(found: Sequence[Item], control: Sequence[Item]) -> str:
    """Say how many perturbations there are, at how many radii, and how many random ones."""
    sizes = Counter(item.row.radius for item in found)
    each = f"{next(iter(sizes.values()))} at each of " if len(set(sizes.values())) == 1 else "at "
    where = f": {each}{len(sizes)} radii" if len(sizes) > 1 else " at one radius" if sizes else ""
    beside = "as many" if len(control) == len(found) else str(len(control))
    return f"{len(found)} perturbations{where}, and {beside} random ones"


def _responses(run: Run) -> dict[int, list[tuple[float, float]]]:
    """Return radius and norm of the effect by perturbation, where it is known and finite."""
    curves: dict[int, dict[float, float]] = defaultdict(dict)
    for p in run.perturbation_rows(derived=None):
        of = p.parent if p.how == SCALED else p.id
        if of is not None and p.radius > 0 and np.isfinite(p.effect):
            curves[of][p.radius] = p.effect
    return {number: sorted(curve.items()) for number, curve in curves.items() if len(curve) > 1}


def _item(
    row: PerturbationRow,
    completions: list[CompletionRow],
    asked: set[int],
    scores: dict,
    pattern: re.Pattern[str] | None,
) -> Item:
    main = tuple(c for c in completions if c.prompt in asked and c.phase == FIRST)
    again = tuple(c for c in completions if c.phase == RETEST)

    def values(judge: str, of: tuple[CompletionRow, ...]) -> list[float]:
        return [scores[c.row][judge][0] for c in of if judge in scores.get(c.row, {})]

    def striking(of: tuple[CompletionRow, ...]) -> list[float]:
        pairs = zip(values("coherence", of), values("novelty", of), strict=True)
        return [coherent * novel for coherent, novel in pairs]

    def mean(of: list[float]) -> float:
        return float(np.mean(of)) if of else 0.0

    whole = {judge: value for judge, (value, _) in scores.get(row.id, {}).items()}
    retested = striking(again)
    return Item(
        row=row,
        completions=main,
        retest=again,
        coherence=mean(values("coherence", main)),
        novelty=mean(values("novelty", main)),
        striking=mean(striking(main)),
        retested=bootstrap_mean(retested) if retested else None,
        constancy=whole.get("constancy"),
        side_effect=whole.get("side_effect"),
        hits=sum(bool(pattern.search(c.text)) for c in main) if pattern else 0,
        retest_hits=sum(bool(pattern.search(c.text)) for c in again) if pattern else 0,
    )


def _hits(found: tuple[Item, ...] | list[Item], control: tuple[Item, ...] | list[Item]) -> tuple:
    return tuple(rate(sum(i.hits > 0 for i in arm), len(arm)) for arm in (found, control))


def _radii(run: Run) -> list[tuple[float, float | None]]:
    """Return each radius and that of its control, which need not be the same."""
    found, control = (
        dict.fromkeys(p.radius for p in run.perturbation_rows(arm)) for arm in ("found", "control")
    )
    return sorted(zip_longest(found, control))  # in the order in which they were made


def _retest_hits(found: tuple[Item, ...], control: tuple[Item, ...]) -> tuple[Rate, Rate]:
    first, second = (
        rate(sum(i.retest_hits for i in arm), sum(len(i.retest) for i in arm))
        for arm in (found, control)
    )
    return first, second


def _behaviours(
    found: tuple[Item, ...],
    control: tuple[Item, ...],
    base: list[CompletionRow],
    places: dict[Row, int],
    scores: dict,
) -> tuple[Behaviour, ...]:
    shown: dict[int, list[tuple[Item, CompletionRow]]] = defaultdict(list)
    again = tuple(_shown_again(arm, places) for arm in (found, control))
    retested = tuple(sum(bool(item.retest) for item in arm) for arm in (found, control))
    by_random: dict[int, set[int]] = defaultdict(set)
    for arm in (found, control):
        for item in arm:
            for completion in item.completions:
                if completion.row in places:
                    number = places[completion.row]
                    if arm is found:
                        shown[number].append((item, completion))
                    else:
                        by_random[number].add(item.row.id)
    unperturbed = {places[c.row] for c in base if c.row in places}
    seen = {n: len({item.row.id for item, _ in pairs}) for n, pairs in shown.items()}
    totals = [many + len(by_random[number]) for number, many in seen.items()]
    tests = comparisons(totals, len(found), len(control)) if shown else 1
    totals_again = [again[0][number] + again[1][number] for number in shown]
    tests_again = comparisons(totals_again, *retested) if retested[0] else 1
    everywhere = Counter(w for pairs in shown.values() for w in _words(pairs))

    behaviours = []
    for number, pairs in shown.items():
        own = {item.row.id: item for item, _ in pairs}
        each = [scores.get(c.row, {}) for _, c in pairs]
        coherent, novel = (
            np.array([s[judge][0] if judge in s else 0.0 for s in each])
            for judge in ("coherence", "novelty")
        )
        there = rate(len(own), len(found))
        chance = rate(len(by_random[number]), len(control))
        p_value = min(1.0, more_often(there, chance) * tests)
        counts = Counter(_words(pairs))
        words = sorted(counts, key=lambda w: (-counts[w] * counts[w] / everywhere[w], w))
        repeated = tuple(
            rate(counts[number], trials) for counts, trials in zip(again, retested, strict=True)
        )
        p_retest = min(1.0, more_often(*repeated) * tests_again) if repeated[0].trials else 1.0
        held = max((_held(item, number, places, scores) for item in own.values()), key=_share)
        if number in unperturbed or novel.mean() < SAME:
            verdict = Verdict.SAME
        elif coherent.mean() < DAMAGED:
            verdict = Verdict.DAMAGE
        elif min(p_value, p_retest) < LEVEL / 2:
            verdict = Verdict.BEHAVIOUR
        elif held.low > HELD and not (chance.hits or repeated[1].hits):
            verdict = Verdict.HELD
        else:
            verdict = Verdict.NOISE if chance.hits else Verdict.RARE
        behaviours.append(
            Behaviour(
                id=number,
                words=tuple(words[:5]),
                example=pairs[int((coherent * novel).argmax())][1],
                items=tuple(sorted(own.values(), key=lambda i: -i.striking)),
                found=there,
                control=chance,
                retest=(repeated[0], repeated[1]),
                p_value=p_value,
                p_retest=p_retest,
                held=held,
                coherence=float(coherent.mean()),
                novelty=float(novel.mean()),
                striking=float((coherent * novel).mean()),
                verdict=verdict,
            )
        )
    interest = list(Verdict)
    return tuple(sorted(behaviours, key=lambda b: (interest.index(b.verdict), -b.striking)))


def _held(item: Item, number: int, places: dict, scores: dict) -> Rate:
    """Count the answers to fresh prompts that show a behaviour, unlike the model's own."""
    asked = {c.prompt for c in item.completions}
    fresh = [c for c in item.retest if c.prompt not in asked and c.row in places]
    if len({c.prompt for c in fresh}) < HELD_PROMPTS:
        return rate(0, 0)
    good = [places[c.row] == number and scores[c.row]["novelty"][0] >= SAME for c in fresh]
    return rate(sum(good), len(good))


def _share(counted: Rate) -> float:
    return counted.hits / max(counted.trials, 1)


def _shown_again(arm: tuple[Item, ...], places: dict) -> Counter[int]:
    """Count, for each behaviour, the perturbations that show it in the re-test."""
    return Counter(
        number for item in arm for number in {places[c.row] for c in item.retest if c.row in places}
    )


def _words(pairs: list[tuple[Item, CompletionRow]]) -> list[str]:
    """Return the words of a behaviour that mean something, each counted once a completion."""
    texts = [set(re.findall(r"[^\W_]{3,}", c.text.lower())) for _, c in pairs]
    return [w for words in texts for w in words - ENGLISH_STOP_WORDS]
