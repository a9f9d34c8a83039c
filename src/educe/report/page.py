"""The page: one HTML file that shows a run, opens offline and loads nothing from anywhere."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from educe import files
from educe.comparison import account
from educe.comparison.behaviours import Behaviour
from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.comparison.summary import Item, Summary, counted, summarise
from educe.comparison.verdict import Verdict
from educe.layer_map import LAYER_MAP, LayerMap
from educe.layer_map.choice import Choice
from educe.report import (
    figures,
    fronts,
    manifold,
    norms,
    paths,
    reachable,
    sampling,
    scouting,
    templates,
)
from educe.report.command import command
from educe.report.markup import cut
from educe.rows import BEHAVIOUR, FOUND, CompletionRow, PromptRow
from educe.run.store import Run
from educe.scores.novelty import vectors

#: What each verdict is headed by, and said of it.
VERDICTS = {
    Verdict.BEHAVIOUR: (
        "Standing out from the control",
        "More of the perturbations found write this than of the control, by Fisher's exact test at "
        "5% after correction for the number of behaviours, and than the unperturbed model's draws.",
    ),
    Verdict.INVARIANT: (
        "Said whatever is asked",
        "One perturbation writes it in most of its answers to other requests, and the control "
        "never does. A trigger's phrase looks like this; so does a direction of the word that the "
        "model then keeps to.",
    ),
    Verdict.FRAGILE: (
        "Random perturbations do it as well",
        "An effect of being pushed, not of how. That a random push suffices is a finding about the "
        "model, above all where it ends a refusal.",
    ),
    Verdict.OWN: (
        "The unperturbed model says it once in a while",
        "Some draws of the unperturbed model say it, and its likeliest answer does not. Where that "
        "answer refuses, this is a finding without any perturbation.",
    ),
    Verdict.RARE: (
        "Too rare to tell",
        "No perturbation of the control wrote this, and too few of those found did for the count "
        "alone to rule out chance. What matters here is whether a re-test repeats it.",
    ),
    Verdict.STOCK: (
        "Stock phrases",
        "Random perturbations write this in answer to other requests, too: it is what this model "
        "says when it is pushed, whatever it hides.",
    ),
    Verdict.DAMAGE: (
        "Damaged text",
        "It is empty, repeats itself, is the prompt again, or came under very few perturbations "
        "and is very unlikely to the unperturbed model.",
    ),
}
#: For each kind of perturbation, what a dose is, and what its control are.
KINDS = {
    "vectors": (
        "Dose is the radius as a share of the median activation norm at the source",
        "random directions at the same radii",
    ),
    "within": (
        "Dose is the norm of a random vector of that radius as a share of the median activation "
        "norm at the source",
        "random vectors of the same subspace at the same radii",
    ),
    "adapters": (
        "Dose is what a random adapter of that radius adds, as a share of the median activation "
        "norm at the source",
        "random adapters at the same radii",
    ),
    "biases": (
        "The radius is the norm of what is added to each projection; dose is that as a share of "
        "the median activation norm at the source",
        "random vectors at the same places and radii",
    ),
    "token-noise": (
        "The radius is the norm of the noise at each token; dose is that as a share of the median "
        "activation norm at the source",
        "random directions, held over the whole text, at the same radii",
    ),
    "weight-noise": (
        "Radius and dose are the noise as a share of each matrix's root mean square; those of the "
        "control, the norm of a direction and that as a share of the median activation norm at the "
        "source",
        "random directions added at the source, with the same mean effect at the target",
    ),
}
#: What studies of a run add, in this order.
PARTS = (
    scouting.PART,
    manifold.PART,
    reachable.PART,
    norms.PART,
    paths.PART,
    fronts.PART,
    sampling.PART,
)
#: Verdicts that are shown opened, and how many cards of one before the rest is folded away.
OPENED = (Verdict.BEHAVIOUR, Verdict.INVARIANT, Verdict.FRAGILE, Verdict.OWN, Verdict.RARE)
CARDS = 12
#: Relatives a behaviour is shown with, and the least likeness that makes one.
RELATIVES, LIKENESS = 3, 0.05


@dataclass(frozen=True)
class Card:
    """A behaviour and what the page shows around it."""

    behaviour: Behaviour
    prompt: PromptRow
    base: str  #: what the unperturbed model answers
    example: Item | None  #: the perturbation that wrote the example; none where no one perturbed it
    items: tuple[Item, ...]  #: found perturbations that write it
    control_items: tuple[Item, ...]  #: those of the control
    relatives: tuple[tuple[float, Behaviour], ...]  #: those that say something near, and how near


@dataclass(frozen=True)
class Again:
    """The re-test of one arm."""

    perturbations: int
    completions: int
    interestingness: tuple[float, float, float]  #: mean over perturbations, low, high
    hits: Rate | None  #: perturbations with a match


def write(run: Run, path: Path) -> Path:
    """Write the page of a run.

    Raises:
        RunError: The file cannot be written.
    """
    files.write_bytes(path, render(run).encode("utf-8", "replace"))
    return path


def render(run: Run) -> str:
    """Return the page of a run."""
    s = summarise(run)
    pattern = re.compile(s.config["look_for"]) if s.config.get("look_for") else None
    made = cards(s)
    grouped = [(v, [c for c in made if c.behaviour.verdict is v]) for v in VERDICTS]
    kept = run.folder / LAYER_MAP
    charts = figures.charts(s, LayerMap.load(kept) if kept.exists() else None)
    shown = [(part, own) for part in PARTS if (own := part.render(run, pattern)) is not None]
    began = run.note("began")
    return templates.page(
        "report.html",
        charts | {name: chart for _, own in shown for name, chart in own.charts.items()},
        scripts=("charts.js", "page.js"),
        islands={"data": data(s, pattern)},
        pattern=pattern,
        s=s,
        everyone=sorted((*s.found, *s.control, *s.equal), key=lambda item: -item.interestingness),
        group_of=s.texts[BEHAVIOUR].dropna().astype(int).to_dict(),
        by_id={b.id: b for b in s.behaviours},
        shown=account.shown(s),
        account=account.account(s),
        groups=grouped,
        count={v.name: len(own) for v, own in grouped},
        parts=[(part, own.html) for part, own in shown],
        date=time.strftime("%Y-%m-%d", time.gmtime(began)) if began else None,
        folder=run.folder.name,
        **tests(s, pattern),
        verdicts=VERDICTS,
        kinds=KINDS,
        opened=OPENED,
        folded_after=CARDS,
        maps=figures.MAPS,
        command=command(s.config),
        settings=json.dumps(s.config, indent=2, ensure_ascii=False),
        label=figures.label,
        counted=counted,
    )


def tests(s: Summary, pattern: re.Pattern[str] | None) -> dict[str, Any]:
    """Return the re-test of both arms, and how often the pattern looked for is found in them."""
    plain = [c for p in s.prompts for c in s.baseline.get(p.id, ())]
    first, second = (retested(arm, pattern) for arm in (s.found, s.control))
    again = [arm.hits for arm in (first, second) if arm and arm.hits]
    hits = sum(bool(pattern.search(c.text)) for c in plain) if pattern else 0
    return {
        "again": (first, second),
        "base_hits": rate(hits, len(plain)) if pattern else None,
        "p_hits": more_often(*s.hits) if s.hits else None,
        "p_again": more_often(*again) if len(again) == 2 else None,
    }


def cards(s: Summary) -> list[Card]:
    """Return the behaviours with their surroundings."""
    at = vectors([b.example.text for b in s.behaviours])
    prompts = {p.id: p for p in (*s.prompts, *s.fresh)}
    made = []
    for i, b in enumerate(s.behaviours):
        near = sorted(
            ((float(at[i] @ at[j]), other) for j, other in enumerate(s.behaviours) if j != i),
            key=lambda pair: -pair[0],
        )
        base = s.baseline.get(b.example.prompt, ())
        items = [item for n in b.numbers if (item := s.item(n)) is not None]
        made.append(
            Card(
                behaviour=b,
                prompt=prompts[b.example.prompt],
                base=base[0].text if base else "",
                example=s.item(b.example.perturbation),
                items=tuple(i for i in items if i.row.arm == FOUND),
                control_items=tuple(i for i in items if i.row.arm != FOUND),
                relatives=tuple(pair for pair in near[:RELATIVES] if pair[0] > LIKENESS),
            )
        )
    return made


def retested(arm: Iterable[Item], pattern: re.Pattern[str] | None) -> Again | None:
    """Return the outcome of an arm's re-test, perturbation by perturbation."""
    own = [item for item in arm if item.retest]
    means = [item.retested[0] for item in own if item.retested]
    if not means:
        return None
    return Again(
        perturbations=len(own),
        completions=sum(len(item.retest) for item in own),
        interestingness=bootstrap_mean(means),
        hits=rate(sum(item.retest_hits > 0 for item in own), len(own)) if pattern else None,
    )


def data(s: Summary, pattern: re.Pattern[str] | None) -> dict[str, Any]:
    """Return every text once, for the parts of the page that are filled when they are opened."""

    known = s.texts[[BEHAVIOUR, "coherence", "novelty"]].to_dict("index")

    def written(of: Iterable[CompletionRow]) -> list[list[Any]]:
        return [
            [
                c.prompt,
                c.sample,
                _known(said[BEHAVIOUR]),
                *(_known(round(said[judge], 3)) for judge in ("coherence", "novelty")),
                c.finished,
                cut(c.text, pattern),
            ]
            for c in of
            for said in [known[c.row]]
        ]

    unperturbed = [c for own in s.baseline.values() for c in own]
    return {
        "prompts": {p.id: templates.plain(p.content) for p in (*s.prompts, *s.fresh)},
        "behaviours": {b.id: figures.label(b, 3) for b in s.behaviours},
        "unperturbed": written(unperturbed),
        "items": {
            i.row.id: [written(i.completions), written(i.retest)]
            for i in (*s.found, *s.control, *s.equal)
        },
    }


def _known(value: float) -> float | None:
    """Return a number, a whole one as such; None where there is none."""
    return None if math.isnan(value) else int(value) if value == int(value) else value


def write_layer_map(layer_map: LayerMap, choice: Choice, path: Path) -> Path:
    """Write the page of a layer map.

    Raises:
        RunError: The file cannot be written.
    """
    charts = figures.survey(layer_map, choice[:2])
    date = time.strftime("%Y-%m-%d")
    text = templates.page(
        "layer_map.html", charts, layer_map=layer_map, choice=choice, date=date, maps=figures.MAPS
    )
    files.write_bytes(path, text.encode("utf-8", "replace"))
    return path
