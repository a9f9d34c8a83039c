"""Paths of vectors through the radius: read from a run's tables, and shown as tables and charts."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from educe.comparison.account import dose
from educe.files import read_tensors
from educe.perturbation.set import PerturbationSet
from educe.report.derived import by_file
from educe.report.figures import PALETTE, dressed
from educe.report.part import Part, Shown, together
from educe.report.templates import figure, fragment
from educe.rows import FOLLOWED, RESCALED, SHUFFLED
from educe.run.store import Run

#: Of what a path has curves, by how its rows are listed; and those found on other prompts, of which
#: scores end so.
OF = {FOLLOWED: "found", SHUFFLED: "shuffled target", RESCALED: "random"}
OTHER_PROMPTS, ELSEWHERE = "other prompts", ":ordinary"
#: Of what there are curves, and their colours.
COLOURS = {
    "found": "accent",
    "shuffled target": "rare",
    "random": "control",
    "other prompts": "fragile",
}
CURVES = {
    "turning": "turning of the direction",
    "exponent": "response exponent",
    "effect_turning": "turning of the effect",
    "neurons_variance": "variance of slopes over neurons",
}
#: Columns of the tables: of the vectors found, of them beside their nulls, of the neurons of the
#: target's MLP, which a mixture of experts has not, and of the coordinates in each basis.
VECTORS = {
    "sine": "Stationarity",
    "drift": "Drift",
    "turning": "Turning",
    "exponent": "Exponent",
    "effect_turning": "Turning of the effect",
    "neurons_variance": "Slopes",
}
BESIDE = {name: VECTORS[name] for name in ("sine", "turning", "exponent", "effect_turning")}
NEURONS = {
    "neurons_variance": "Variance of slopes",
    "neurons_spread": "Spread",
    "neurons_turning": "Turning",
    "neurons_exponent": "Exponent",
}
COORDINATES = {
    "variance": "Variance",
    "plain": "unweighted",
    "spread": "Spread",
    "participation": "Participation",
    "top": "Top 10",
    "constant": "Nearly constant",
}
#: Rates are shown within these: what is beyond has the colour of the end.
RATES = (-1.0, 3.0)
#: Curves whose values are of different sizes.
LOGARITHMIC = ("neurons_variance",)


@dataclass(frozen=True)
class Map:
    """How the largest coordinates of a vector change along its path: ``[radius][coordinate]``."""

    names: list[str]
    weight: list[float]  #: at its own radius
    size: list[list[float]]  #: relative to its own size there
    rate: list[list[float | None]]  #: None where there is none, in a branch of a single radius


@dataclass(frozen=True)
class Path:
    """Vectors that were followed through the radius, and their nulls."""

    name: str
    file: str  #: of those found, in the folder of the run
    layer: int
    shares: list[float]  #: the radii, as shares of a vector's own
    bases: list[str]
    doses: dict[int, float]  #: of the vectors, by their numbers
    scores: pd.DataFrame  #: ``of``, ``number``, ``share``, ``judge``, ``value``
    maps: dict[int, dict[str, Map]]  #: by number and basis

    @property
    def home(self) -> pd.DataFrame:
        """The scores at the vectors' own radius: a row for each vector, a column for each score."""
        own = self.scores[self.scores.share == 1.0]
        return own.pivot_table(index=["of", "number"], columns="judge", values="value", sort=False)

    def data(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        maps = {n: {b: asdict(m) for b, m in own.items()} for n, own in self.maps.items()}
        return told | {"scores": self.scores.to_dict("records"), "maps": maps}


def paths(run: Run) -> list[Path]:
    """Return the paths of a run."""
    listed = by_file(run, *OF)
    values: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for s in run.score_rows():
        if isinstance(s.of, int):
            values[s.of].append((s.judge, s.value))
    doses = {p.id: p.dose for p in run.perturbation_rows(derived=None)}
    found = []
    for file in listed:
        name = file.removesuffix(".safetensors")
        maps = run.tensors / f"{name}-maps.safetensors"
        if not maps.exists():
            continue
        parts = [file, *(f"{name}-{null}.safetensors" for null in ("shuffled", "random"))]
        rows = []
        for part in [part for part in parts if part in listed]:
            made = PerturbationSet.load(run.tensors / part)
            for p, share in zip(listed[part], made.scores["share"].tolist(), strict=True):
                for judge, value in values[p.id]:
                    of = OTHER_PROMPTS if judge.endswith(ELSEWHERE) else OF[p.how]
                    judge = judge.removesuffix(ELSEWHERE)
                    rows.append((of, p.parent, round(share, 6), judge, value))
        scores = pd.DataFrame(rows, columns=["of", "number", "share", "judge", "value"])
        scores = scores[scores.value < float("inf")]
        numbers = dict.fromkeys(p.parent for p in listed[file] if p.parent is not None)
        followed = PerturbationSet.load(run.tensors / file)
        drawn = _maps(maps.as_posix())
        found.append(
            Path(
                name,
                f"tensors/{file}",
                followed.kind.before,
                sorted({round(x, 6) for x in followed.scores["share"].tolist()}),
                list(drawn[next(iter(numbers))]),
                {number: doses[number] for number in numbers},
                scores,
                drawn,
            )
        )
    return found


def _maps(file: str) -> dict[int, dict[str, Map]]:
    tensors, header = read_tensors(file)
    maps: dict[int, dict[str, Map]] = defaultdict(dict)
    for place, names in json.loads(header["names"]).items():
        number, basis = place.split("/", 1)
        weight, size, rate = (tensors[f"{place}/{part}"] for part in ("weight", "size", "rate"))
        rates = [[x if abs(x) < float("inf") else None for x in row] for row in rate.tolist()]
        maps[int(number)][basis] = Map(names, weight.tolist(), size.tolist(), rates)
    return dict(maps)


def middles(path: Path, columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return median and range of scores of the vectors and of each null, at their own radius."""
    told = {}
    for of in COLOURS:
        if of in path.home.index.get_level_values("of"):
            own = path.home.loc[of]
            line = {name: ranged(own[name]) if name in own else "" for name in columns}
            if any(line.values()):
                told[of] = line
    return told


def in_bases(path: Path) -> list[tuple[str, str, dict[str, str]]]:
    """Return basis, whose they are, and median and range of each statistic of coordinates."""
    return [
        (basis, of, {name: line[f"{name}:{basis}"] for name in COORDINATES})
        for basis in path.bases
        for of, line in middles(path, [f"{name}:{basis}" for name in COORDINATES]).items()
    ]


def ranged(values: pd.Series) -> str:
    """Write the median of some numbers and what they lie between."""
    known = values.dropna()
    if known.empty:
        return ""
    low, middle, high = np.quantile(known, [0.0, 0.5, 1.0])
    return f"{middle:.2g} ({low:.2g} to {high:.2g})"


def vectors(path: Path) -> list[list[str]]:
    """Return a row of text for each vector found: number, dose, how far it moved, and scores."""
    rows = []
    for number, size in path.doses.items():
        own = path.home.loc[("found", number)].dropna()
        told = [f"{own[name]:.2g}" if name in own else "" for name in VECTORS]
        away = " ".join(f"{share:.2g}" for share in left(path, number)) or "nowhere"
        rows.append([f"#{number}", dose(size), f"{own['moved']:.0f}°", *told, away])
    return rows


def left(path: Path, number: int) -> list[float]:
    """Return the shares of its radius at which a vector left its basin."""
    s = path.scores
    own = s[(s.of == "found") & (s.number == number) & (s.judge == "branch")]
    branch = own.set_index("share").value.sort_index()
    steps = zip(branch.index, branch.index[1:], strict=False)
    return [b if b > 1 else a for a, b in steps if branch[a] != branch[b]]


def curves_of(path: Path) -> dict[str, str]:
    """Return the curves that a path has, and their titles."""
    known = set(path.scores.judge)
    return {name: title for name, title in CURVES.items() if name in known}


def charts(path: Path) -> dict[str, dict[str, Any]]:
    """Return the specifications of a path's charts, by name."""
    drawn: dict[str, Any] = {f"path-{name}": curves(path, name) for name in curves_of(path)}
    for number, maps in path.maps.items():
        drawn |= {f"path-map-{number}-{basis}": heat(path, own) for basis, own in maps.items()}
    return {f"{name}-{path.name}": dressed(chart) for name, chart in drawn.items()}


def curves(path: Path, name: str) -> alt.LayerChart:
    """Draw a curve of every vector found, and the median and range of each null."""
    own = path.scores[path.scores.judge == name].rename(columns={"value": "at"})
    bands = own.groupby(["share", "of"])["at"].agg(at="median", low="min", high="max").reset_index()
    lines = own[own.of == "found"][["share", "at", "of", "number"]]
    shown = {of: colour for of, colour in COLOURS.items() if of in set(own.of)}
    along = alt.X(
        "share:Q", scale=alt.Scale(type="log", nice=False), title="radius, share of its own"
    )
    scale = alt.Scale(type="log", nice=False) if name in LOGARITHMIC else alt.Scale()
    axis = alt.Axis(tickCount=5, format=".3~g")
    up = alt.Y("at:Q", title=CURVES[name], scale=scale, axis=axis)
    low = alt.Y("low:Q", title=CURVES[name], scale=scale, axis=axis)
    colour = alt.Color(
        "of:N",
        scale=alt.Scale(domain=list(shown), range=[PALETTE[c][0] for c in shown.values()]),
        legend=alt.Legend(title=None, orient="top", columns=4),
    )
    every = _drawn(lines).mark_line(strokeWidth=1, opacity=0.35)
    median = _drawn(bands).mark_line(strokeWidth=2.5)
    spread = _drawn(bands[bands.of != "found"]).mark_area(opacity=0.13)
    return (
        spread.encode(along, low, alt.Y2("high:Q"), colour)
        + every.encode(
            along, up, colour, alt.Detail("number:N"), tooltip=["number:N", "share:Q", "at:Q"]
        )
        + median.encode(along, up, colour, tooltip=["of:N", "share:Q", "at:Q"])
    ).properties(height=240)


def heat(path: Path, own: Map) -> alt.Chart:
    """Draw how the largest coordinates of a vector change along its path."""
    rows = [
        {
            "share": f"{share:.2f}",
            "coordinate": name,
            "rate": min(max(rate, RATES[0]), RATES[1]),
            "exact": rate,
            "size": own.size[k][j],
        }
        for k, share in enumerate(path.shares)
        for j, name in enumerate(own.names)
        for rate in [own.rate[k][j]]
        if rate is not None
    ]
    colour = alt.Scale(scheme="purpleorange", domain=list(RATES), domainMid=1)
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            alt.X("share:O", sort=None, title="radius, share of its own"),
            alt.Y("coordinate:N", sort=own.names, title=None),
            alt.Color("rate:Q", scale=colour, legend=alt.Legend(title="rate", orient="right")),
            tooltip=["coordinate:N", "share:N", "exact:Q", "size:Q"],
        )
        .properties(height=18 * len(own.names))
    )


def _drawn(frame: pd.DataFrame) -> alt.Chart:
    return alt.Chart(alt.Data(values=frame.to_dict("records")))


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return the vectors of a run that were followed through the radius."""

    def beside(path: Path, columns: dict[str, str]) -> list[list[str]]:
        return [[of, *line.values()] for of, line in middles(path, columns).items()]

    followed = paths(run)
    html = fragment(
        "paths.html",
        paths=followed,
        columns={
            "vectors": VECTORS,
            "beside": BESIDE,
            "neurons": NEURONS,
            "coordinates": COORDINATES,
        },
        vectors=vectors,
        beside=beside,
        coordinates=lambda p: [[basis, of, *s.values()] for basis, of, s in in_bases(p)],
        curves=curves_of,
        chart=figure,
    )
    return Shown(html, together(map(charts, followed))) if followed else None


PART = Part("paths", "Through the radius", render)
