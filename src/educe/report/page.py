"""The page: one HTML file that shows a run, opens offline and loads nothing from anywhere."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import altair
import jinja2
import vl_convert
from markupsafe import Markup

from educe import files
from educe.activations import stored
from educe.activations.report import ManifoldReport, words
from educe.atlas import ATLAS, Atlas
from educe.atlas.choice import Choice
from educe.comparison.norm import Norm, norm_of
from educe.judge.novelty import vectors
from educe.report import derived, figures, fronts, manifold, norms, paths
from educe.report.command import command
from educe.report.markup import cut, island, marked, plainly
from educe.report.tables import SCORED
from educe.rows import CompletionRow, PromptRow
from educe.run.store import Run
from educe.stats import Rate, bootstrap_mean, more_often, rate
from educe.summary import Behaviour, Item, Summary, Verdict, counted, dose, summarise
from educe.visible import visible

#: What each verdict is headed by, and said of it.
VERDICTS = {
    Verdict.BEHAVIOUR: (
        "Standing out from the random control",
        "More of the perturbations found write this than random ones do, by Fisher's exact test at "
        "5% after correction for the number of behaviours.",
    ),
    Verdict.HELD: (
        "Held to, whatever is asked",
        "Too few perturbations write this to tell their number from chance, but one of them writes "
        "it in most answers to fresh prompts, where no random one does. A trigger's phrase looks "
        "like this; so does a direction of the word that the model then keeps to.",
    ),
    Verdict.RARE: (
        "Too rare to tell",
        "No random perturbation wrote this, and too few of those found did for the count alone to "
        "rule out chance. What matters here is whether a re-test repeats it.",
    ),
    Verdict.NOISE: (
        "Random perturbations do it as well",
        "Written about as often under random perturbations: an effect of being perturbed, not of "
        "how.",
    ),
    Verdict.DAMAGE: (
        "Damaged text",
        "The unperturbed model finds this text very unlikely, or it repeats itself.",
    ),
    Verdict.SAME: (
        "As without perturbation",
        "The unperturbed model writes the same, or nearly.",
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
#: Verdicts that are shown opened, and how many cards of one before the rest is folded away.
OPENED, CARDS = (Verdict.BEHAVIOUR, Verdict.HELD, Verdict.RARE), 12
#: Relatives a behaviour is shown with, and the least likeness that makes one.
RELATIVES, LIKENESS = 3, 0.05


@dataclass(frozen=True)
class Card:
    """A behaviour and what the page shows around it."""

    behaviour: Behaviour
    prompt: PromptRow
    base: str  #: what the unperturbed model answers
    example: Item  #: the perturbation that wrote the example
    relatives: tuple[tuple[float, Behaviour], ...]  #: those that say something near, and how near
    random: tuple[Item, ...]  #: random perturbations that show it too


@dataclass(frozen=True)
class Again:
    """The re-test of one arm."""

    perturbations: int
    completions: int
    striking: tuple[float, float, float]  #: mean over perturbations, low, high
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
    unperturbed = [c for p in s.prompts for c in s.baseline.get(p.id, ())]
    grouped = [(v, [c for c in cards(s) if c.behaviour.verdict is v]) for v in Verdict]
    first, second = (retested(arm, pattern) for arm in (s.found, s.control))
    began = run.note("began")
    atlas = run.folder / ATLAS
    examined, followed = stored.reports(run), paths.paths(run)
    costs, sparse, scans = derived.fronts(run), derived.sparse(run), derived.scans(run)
    charts = figures.charts(s, Atlas.load(atlas) if atlas.exists() else None)
    norm = norm_of(run)
    return _template("template.html", pattern).render(
        s=s,
        V=Verdict,
        verdicts=VERDICTS,
        kinds=KINDS,
        opened=OPENED,
        shown=CARDS,
        groups=grouped,
        count={v.name: len(own) for v, own in grouped},
        again=(first, second),
        base_hits=rate(sum(bool(pattern.search(c.text)) for c in unperturbed), len(unperturbed))
        if pattern
        else None,
        p_hits=more_often(*s.hits) if s.hits else None,
        p_again=more_often(first.hits, second.hits)
        if first and second and first.hits and second.hits
        else None,
        date=time.strftime("%Y-%m-%d", time.gmtime(began)) if began else None,
        name=run.folder.name,
        command=command(s.config),
        settings=json.dumps(s.config, indent=2, ensure_ascii=False),
        palette=figures.PALETTE,
        charts=charts
        | {k: v for one in examined for k, v in manifold.charts(one).items()}
        | (norms.charts(norm) if norm else {})
        | {k: v for path in followed for k, v in paths.charts(path).items()}
        | fronts.charts(list(costs.values()), sparse, scans),
        paths=Markup(_paths(followed)) if followed else "",
        manifold=Markup(_manifold(examined, pattern)) if examined else "",
        norm=Markup(_norm(norm, pattern)) if norm else "",
        costs=Markup(_fronts(costs, sparse, scans, pattern)) if costs or sparse or scans else "",
        data=data(s, pattern),
        bundle=bundle(),
        telling=lambda item: figures.telling(item, s),
        label=figures.label,
        counted=counted,
    )


def _manifold(examined: list[ManifoldReport], pattern: re.Pattern[str] | None) -> str:
    """Return the part of the page that shows manifold reports."""

    def chart(report: ManifoldReport, name: str, title: str, text: str) -> Markup:
        return _figure(f"{name}-{report.number}", title, text)

    return _template("manifold.html", pattern).render(
        reports=examined,
        words=words,
        on_texts=manifold.on_texts,
        ablated=manifold.ablated,
        texts=manifold.texts,
        chart=chart,
    )


def _norm(told: Norm, pattern: re.Pattern[str] | None) -> str:
    """Return the part of the page that shows what the norm tells."""
    return _template("norms.html", pattern).render(
        told=told, chart=_figure, drawn=norms.drawn(told), norms=norms, scored=SCORED
    )


def _paths(followed: Sequence[paths.Path]) -> str:
    """Return the part of the page that shows vectors followed through the radius."""

    def beside(path: paths.Path, columns: dict[str, str]) -> list[list[str]]:
        return [[of, *line.values()] for of, line in paths.middles(path, columns).items()]

    return _template("paths.html").render(
        paths=followed,
        columns={
            "vectors": paths.VECTORS,
            "beside": paths.BESIDE,
            "neurons": paths.NEURONS,
            "coordinates": paths.COORDINATES,
        },
        vectors=paths.vectors,
        beside=beside,
        coordinates=lambda p: [[basis, of, *s.values()] for basis, of, s in paths.in_bases(p)],
        curves=paths.curves_of,
        chart=_figure,
    )


def _fronts(
    costs: dict[str, list[derived.Point]],
    sparse: Sequence[derived.Sparse],
    scans: Sequence[derived.Scan],
    pattern: re.Pattern[str] | None,
) -> str:
    """Return the part of the page that shows what perturbations cost beside what they do."""
    return _template("fronts.html", pattern).render(
        fronts={judge: (points, derived.within(points)) for judge, points in costs.items()},
        sparse=sparse,
        scans=scans,
        looked=bool(pattern),
        chart=_figure,
    )


def _figure(which: str, title: str, text: str) -> Markup:
    """Return the place of a chart, with what it shows."""
    return Markup(
        '<figure class="chart" data-testid="chart-{0}"><figcaption><h5>{1}</h5><p>{2}</p>'
        '</figcaption><div class="canvas" id="chart-{0}" role="img" aria-label="{1}"></div>'
        "</figure>"
    ).format(*map(visible, (which, title, text)))


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
        example = s.item(b.example.perturbation)
        assert example is not None
        made.append(
            Card(
                behaviour=b,
                prompt=prompts[b.example.prompt],
                base=base[0].text if base else "",
                example=example,
                relatives=tuple(pair for pair in near[:RELATIVES] if pair[0] > LIKENESS),
                random=tuple(
                    item
                    for item in s.control
                    if any(c.row in s.map and s.map[c.row] == b.id for c in item.completions)
                ),
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
        striking=bootstrap_mean(means),
        hits=rate(sum(item.retest_hits > 0 for item in own), len(own)) if pattern else None,
    )


def data(s: Summary, pattern: re.Pattern[str] | None) -> dict[str, Any]:
    """Return every text once, for the parts of the page that are filled when they are opened."""

    def written(of: Iterable[CompletionRow]) -> list[list[Any]]:
        return [
            [
                c.prompt,
                c.sample,
                s.map.get(c.row),
                *(round(v[j][0], 3) if j in v else None for j in ("coherence", "novelty")),
                c.finished,
                cut(c.text, pattern),
            ]
            for c in of
            for v in [s.scores.get(c.row, {})]
        ]

    unperturbed = [c for own in s.baseline.values() for c in own]
    return {
        "prompts": {p.id: plain(p.content) for p in (*s.prompts, *s.fresh)},
        "behaviours": {b.id: figures.label(b, 3) for b in s.behaviours},
        "unperturbed": written(unperturbed),
        "items": {
            i.row.id: [written(i.completions), written(i.retest)] for i in (*s.found, *s.control)
        },
    }


def plain(content: Any) -> str:
    """Return what a prompt asks, as text."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in content)


@functools.cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    version = ".".join(altair.SCHEMA_VERSION.split(".")[:2])
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return script.replace("</script", "<\\/script").replace("\r", "")


def write_atlas(atlas: Atlas, choice: Choice, path: Path) -> Path:
    """Write the page of an atlas.

    Raises:
        RunError: The file cannot be written.
    """
    text = _template("atlas.html").render(
        atlas=atlas,
        choice=choice,
        charts=figures.survey(atlas, choice[:2]),
        date=time.strftime("%Y-%m-%d"),
        palette=figures.PALETTE,
        bundle=bundle(),
    )
    files.write_bytes(path, text.encode("utf-8", "replace"))
    return path


def _template(name: str, pattern: re.Pattern[str] | None = None) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=plainly,
    )
    environment.filters |= {
        "marked": lambda text: marked(text, pattern),
        "shown": marked,
        "plain": plain,
        "distinct": lambda texts: Counter(texts).most_common(),
        "island": island,
        "sha256": _sha256,
        "dose": dose,
        "percent": lambda x: f"{x:.0%}",
        "rate": lambda r: f"{r.share:.0%} ({r.low:.0%} to {r.high:.0%})" if r.trials else "",
        "mean": lambda m: f"{m[0]:.2f} ({m[1]:.2f} to {m[2]:.2f})",
        "p": lambda p: "below 0.0001" if p < 1e-4 else f"{p:.2g}",
        "interval": figures.interval,
        "shorten": figures.shorten,
    }
    source = resources("educe.report").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source)


def _sha256(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
