"""What a run found, read from the run alone: the numbers behind every table, page and figure.

completions and scores ─► one frame, a row for each text ─► perturbations ─► behaviours
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from educe.comparison.stats import Rate, bootstrap_mean, comparisons, more_often, rate
from educe.comparison.verdict import INVARIANT_PROMPTS, SAME, Evidence, Verdict
from educe.rows import (
    ARMS,
    BEHAVIOUR,
    FIRST,
    PROMPT_INVARIANCE,
    RETEST,
    SCALED,
    CompletionRow,
    PerturbationRow,
    PromptRow,
    Row,
)
from educe.run.store import Run

#: Scores of a completion that are averaged.
SCORED = ("coherence", "novelty", "interestingness")


@dataclass(frozen=True)
class Item:
    """One perturbation and what it made the model write."""

    row: PerturbationRow
    completions: tuple[CompletionRow, ...]  #: in answer to the prompts that were asked
    retest: tuple[CompletionRow, ...]  #: fresh prompts or samples; empty when not re-tested
    coherence: float
    novelty: float
    interestingness: float  #: mean over completions of coherence times novelty
    retested: tuple[float, float, float] | None  #: interestingness again: mean, low, high
    invariance: float | None  #: how alike answers to different prompts are; None for one prompt
    side_effect: float | None  #: nats
    hits: int  #: completions that match the pattern looked for
    retest_hits: int
    best: CompletionRow | None  #: the most interesting of its completions


@dataclass(frozen=True)
class Behaviour:
    """Completions that say the same.

    Rates count perturbations, of those of each arm, with at least one such completion.
    """

    id: int
    words: tuple[str, ...]  #: the words that set it apart
    example: CompletionRow  #: of a perturbation that was found, the most coherent and novel
    items: tuple[Item, ...]  #: found perturbations that show it, most interesting first
    control_items: tuple[Item, ...]  #: those of the control
    found: Rate
    control: Rate
    retest: tuple[Rate, Rate]  #: re-tested perturbations of each arm that show it again
    p_value: float  #: Fisher's exact test, one-sided, corrected for the number of behaviours
    p_retest: float  #: the same in the re-test
    invariant: Rate  #: answers to fresh prompts, of the perturbation that says it most often there
    coherence: float
    novelty: float
    interestingness: float
    verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """Everything a page or a table shows."""

    config: dict[str, Any]
    facts: dict[str, Any]  #: model, source, target, norms: what the run noted when it began
    prompts: tuple[PromptRow, ...]  #: asked
    fresh: tuple[PromptRow, ...]  #: of the re-test
    baseline: dict[int, tuple[CompletionRow, ...]]  #: by prompt, greedy first, then samples
    found: tuple[Item, ...]  #: most interesting first
    control: tuple[Item, ...]
    behaviours: tuple[Behaviour, ...]  #: by verdict, then most interesting first
    hits: tuple[Rate, Rate] | None  #: perturbations that hit the pattern: found and control
    retest_hits: tuple[Rate, Rate] | None  #: completions in the re-test that do
    by_radius: dict[float, tuple[Rate, Rate]]  #: the hits by radius
    responses: dict[int, list[tuple[float, float]]]  #: radius and norm of the effect
    texts: pd.DataFrame  #: see `texts_of`

    def item(self, number: int) -> Item | None:
        """Return a perturbation by its number."""
        return next((i for i in (*self.found, *self.control) if i.row.id == number), None)


def summarise(run: Run) -> Summary:
    """Read a run."""
    config = run.config
    asked, fresh = (tuple(run.prompt_rows(role)) for role in ("asked", "fresh"))
    texts = texts_of(run)
    items = _items(run, texts)
    found, control = (tuple(i for i in items if i.row.arm == arm) for arm in ARMS)
    plain = texts[texts.perturbation == 0]
    looked = bool(config.get("look_for"))
    return Summary(
        config=config,
        facts=run.note("facts") if run.has("facts") else {},
        prompts=asked,
        fresh=fresh,
        baseline={p.id: tuple(plain.written[plain.prompt == p.id]) for p in (*asked, *fresh)},
        found=found,
        control=control,
        behaviours=_behaviours(found, control, texts),
        hits=_hits(found, control) if looked else None,
        retest_hits=_retest_hits(found, control) if looked else None,
        by_radius={
            radius: _hits(
                [i for i in found if i.row.radius == radius],
                [i for i in control if i.row.radius == matched],
            )
            for radius, matched in _radii(run)
        }
        if looked
        else {},
        responses=_responses(run),
        texts=texts,
    )


def texts_of(run: Run) -> pd.DataFrame:
    """Return what was written for the prompts of the main job, and what was said of it.

    Its rows are texts, its index their `Row`; the columns are perturbation, arm, prompt, sample,
    phase, text, ``fresh`` (whether it answers a fresh prompt), ``written`` (the `CompletionRow`),
    ``hit`` (whether the pattern looked for is in it), and its behaviour, coherence and novelty, NaN
    where there is none, and interestingness, which is coherence times novelty.
    """
    roles = {p.id: p.role for p in run.prompt_rows()}
    arms = {p.id: p.arm for p in run.perturbation_rows()} | {0: "unperturbed"}
    pattern = re.compile(run.config["look_for"]) if run.config.get("look_for") else None
    rows = [
        (
            c.row,
            *c.row,
            c.text,
            arms[c.perturbation],
            roles[c.prompt] == "fresh",
            c,
            bool(pattern and pattern.search(c.text)),
        )
        for c in run.completion_rows()
        if roles[c.prompt] in ("asked", "fresh") and c.perturbation in arms
    ]
    texts = pd.DataFrame(
        rows, columns=["row", *Row._fields, "text", "arm", "fresh", "written", "hit"]
    )
    # A row is a tuple, of which pandas would make an index of several levels.
    texts.index = pd.Index([r[0] for r in rows], dtype=object, tupleize_cols=False)
    for name in (BEHAVIOUR, *SCORED[:2]):
        values = {s.of: s.value for s in run.score_rows(name)}
        texts[name] = np.array([values.get(r[0], np.nan) for r in rows], dtype=float)
    texts["interestingness"] = texts.coherence * texts.novelty
    return texts.drop(columns="row")


def dose(value: float) -> str:
    """Write a dose: two decimals, or two digits where most of those would be zeros."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def counted(found: Sequence[Item], control: Sequence[Item]) -> str:
    """Say how many perturbations there are, at how many radii, and how many in the control."""
    sizes = Counter(item.row.radius for item in found)
    each = f"{next(iter(sizes.values()))} at each of " if len(set(sizes.values())) == 1 else "at "
    where = f": {each}{len(sizes)} radii" if len(sizes) > 1 else " at one radius" if sizes else ""
    beside = "as many" if len(control) == len(found) else str(len(control))
    return f"{len(found)} perturbations{where}, and {beside} in the control"


def _responses(run: Run) -> dict[int, list[tuple[float, float]]]:
    """Return radius and norm of the effect by perturbation, where it is known and finite."""
    rows = run.perturbations
    rows["of"] = rows.parent.where(rows.how == SCALED, rows.index.to_series())
    known = rows[(rows.radius > 0) & np.isfinite(rows.effect.astype(float))].dropna(subset="of")
    known = known.drop_duplicates(["of", "radius"], keep="last").sort_values("radius")
    return {
        int(of): list(zip(own.radius, own.effect, strict=True))
        for of, own in known.groupby("of")
        if len(own) > 1
    }


def _items(run: Run, texts: pd.DataFrame) -> list[Item]:
    """Return the perturbations, most interesting first."""
    first = dict(list(texts[(texts.phase == FIRST) & ~texts.fresh].groupby("perturbation")))
    again = dict(list(texts[texts.phase == RETEST].groupby("perturbation")))
    none = texts[:0]
    whole = {
        name: {s.of: s.value for s in run.score_rows(name)}
        for name in (PROMPT_INVARIANCE, "side_effect")
    }
    items = []
    for row in run.perturbation_rows():
        main, later = first.get(row.id, none), again.get(row.id, none)
        retested = later.interestingness.dropna()
        best = main.interestingness.fillna(0.0)
        items.append(
            Item(
                row=row,
                completions=tuple(main.written),
                retest=tuple(later.written),
                **{name: _mean(main[name]) for name in SCORED},
                retested=bootstrap_mean(retested.to_numpy()) if len(retested) else None,
                invariance=whole[PROMPT_INVARIANCE].get(row.id),
                side_effect=whole["side_effect"].get(row.id),
                hits=int(main.hit.sum()),
                retest_hits=int(later.hit.sum()),
                best=main.written.iloc[int(best.argmax())] if len(main) else None,
            )
        )
    return sorted(items, key=lambda item: -item.interestingness)


def _mean(values: pd.Series) -> float:
    """Return the mean of what is known; 0 where nothing is."""
    known = values.dropna().to_numpy()
    return float(np.mean(known)) if len(known) else 0.0


def _hits(found: Sequence[Item], control: Sequence[Item]) -> tuple[Rate, Rate]:
    first, second = (rate(sum(i.hits > 0 for i in arm), len(arm)) for arm in (found, control))
    return first, second


def _radii(run: Run) -> list[tuple[float, float | None]]:
    """Return each radius and that of its control, which need not be the same."""
    found, control = (dict.fromkeys(p.radius for p in run.perturbation_rows(arm)) for arm in ARMS)
    return sorted(zip_longest(found, control))  # in the order in which they were made


def _retest_hits(found: Sequence[Item], control: Sequence[Item]) -> tuple[Rate, Rate]:
    first, second = (
        rate(sum(i.retest_hits for i in arm), sum(len(i.retest) for i in arm))
        for arm in (found, control)
    )
    return first, second


def _behaviours(
    found: Sequence[Item], control: Sequence[Item], texts: pd.DataFrame
) -> tuple[Behaviour, ...]:
    """Return what the found perturbations show, beside how often the control does."""
    known = texts[texts[BEHAVIOUR].notna()].fillna(dict.fromkeys(SCORED, 0.0))
    place = {item.row.id: k for k, item in enumerate((*found, *control))}
    changed = known[known.perturbation > 0].sort_values(
        "perturbation", key=lambda own: own.map(place), kind="stable"
    )
    main = changed[(changed.phase == FIRST) & ~changed.fresh]
    again = changed[changed.phase == RETEST]
    shown = {int(n): own for n, own in main[main.arm == ARMS[0]].groupby(BEHAVIOUR, sort=False)}
    if not shown:
        return ()
    first = _against(main, list(shown), [len(arm) for arm in (found, control)])
    second = _against(
        again, list(shown), [sum(bool(i.retest) for i in a) for a in (found, control)]
    )
    unperturbed = set(known[BEHAVIOUR][known.perturbation == 0])
    words = {number: _words(own) for number, own in shown.items()}
    everywhere = sum(words.values(), Counter())
    invariant = _invariant(again)

    behaviours = []
    for number, own in shown.items():
        (there, chance, p_value), (*repeat, p_retest) = first[number], second[number]
        means = {name: float(own[name].mean()) for name in SCORED}
        numbers = set(main.perturbation[main[BEHAVIOUR] == number])
        steady = [r for (b, p), r in invariant.items() if b == number and p in numbers]
        evidence = Evidence(
            unperturbed=number in unperturbed,
            novelty=means["novelty"],
            coherence=means["coherence"],
            p_value=p_value,
            p_retest=p_retest,
            control=chance.hits,
            control_again=repeat[1].hits,
            invariant=max(steady, key=lambda r: r.share, default=rate(0, 0)),
        )
        of = words[number]
        behaviours.append(
            Behaviour(
                id=number,
                words=tuple(sorted(of, key=lambda w: (-of[w] * of[w] / everywhere[w], w))[:5]),
                example=own.written.iloc[int(own.interestingness.argmax())],
                items=tuple(i for i in found if i.row.id in numbers),
                control_items=tuple(i for i in control if i.row.id in numbers),
                found=there,
                control=chance,
                retest=(repeat[0], repeat[1]),
                p_value=p_value,
                p_retest=p_retest,
                invariant=evidence.invariant,
                **means,
                verdict=evidence.verdict,
            )
        )
    interest = list(Verdict)
    return tuple(sorted(behaviours, key=lambda b: (interest.index(b.verdict), -b.interestingness)))


def _against(
    texts: pd.DataFrame, behaviours: list[int], sizes: Sequence[int]
) -> dict[int, tuple[Rate, Rate, float]]:
    """Return how many perturbations of each arm show a behaviour, and the corrected p-value."""
    counts = texts.groupby([BEHAVIOUR, "arm"]).perturbation.nunique().unstack(fill_value=0)
    counts = counts.reindex(index=behaviours, columns=ARMS, fill_value=0)
    tests = comparisons(counts.sum(axis=1).tolist(), *sizes) if sizes[0] else 1
    compared = {}
    for number, hits in counts.iterrows():
        found, control = (rate(int(h), n) for h, n in zip(hits, sizes, strict=True))
        p_value = min(1.0, more_often(found, control) * tests) if sizes[0] else 1.0
        compared[int(number)] = (found, control, p_value)
    return compared


def _invariant(again: pd.DataFrame) -> dict[tuple[int, int], Rate]:
    """Count, by behaviour and perturbation, answers to fresh prompts unlike the model's own."""
    fresh = again[again.fresh]
    asked = fresh.groupby("perturbation").prompt.agg(["size", "nunique"])
    enough = asked["size"][asked["nunique"] >= INVARIANT_PROMPTS]
    novel = fresh[fresh.novelty >= SAME].groupby([BEHAVIOUR, "perturbation"]).size()
    return {
        (int(number), int(p)): rate(int(hits), int(enough[p]))
        for (number, p), hits in novel.items()
        if p in enough
    }


def _words(texts: pd.DataFrame) -> Counter[str]:
    """Count the words of a behaviour that mean something, each once a completion."""
    each = (set(re.findall(r"[^\W_]{3,}", text.lower())) for text in texts.text)
    return Counter(w for words in each for w in words - ENGLISH_STOP_WORDS)
