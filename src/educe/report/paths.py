"""Paths of vectors through the radius: read from a run's tables, and shown as tables and charts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from educe.comparison.account import dose
from educe.files import read_tensors
from educe.perturbation.set import PerturbationSet
from educe.report import words
from educe.report.derived import by_file
from educe.report.document import Block, Card, Fold, Part, Table, heads
from educe.report.drawing import colour, figure, over
from educe.report.words import said
from educe.rows import FOLLOWED, ON_BENIGN, RESCALED, SHUFFLED
from educe.run.store import Run

#: Of what a path has curves, by how its rows are listed; and those found, on other prompts.
OF = {FOLLOWED: "found", SHUFFLED: "shuffled target", RESCALED: "random"}
OTHER_PROMPTS = "other prompts"
#: The colours of these.
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
#: Columns of the tables, by the names of scores: of the vectors found, of them beside their nulls,
#: of the neurons of the target's MLP, which a mixture of experts has not, and of the coordinates.
VECTORS = {
    "sine": "sine",
    "drift": "drift",
    "turning": "turning",
    "exponent": "exp.",
    "effect_turning": "effect's",
    "neurons_variance": "slopes",
}
BESIDE = {name: VECTORS[name] for name in ("sine", "turning", "exponent", "effect_turning")}
NEURONS = {
    "neurons_variance": "variance of slopes",
    "neurons_spread": "spread",
    "neurons_turning": "turning",
    "neurons_exponent": "exponent",
}
COORDINATES = {
    "variance": "variance",
    "plain": "unweighted",
    "spread": "spread",
    "participation": "participation",
    "top": "top 10",
    "constant": "nearly constant",
}
#: Rates are shown within these: what is beyond has the colour of the end.
RATES = (-1.0, 3.0)


class Path(NamedTuple):
    """Vectors that were followed through the radius, and their nulls."""

    name: str
    file: str  #: of those found, in the folder of the run
    layer: int
    shares: list[float]  #: the radii, as shares of a vector's own
    bases: list[str]
    doses: dict[int, float]  #: of the vectors, by their numbers
    scores: pd.DataFrame  #: ``of``, ``number``, ``share``, ``judge``, ``value``
    #: How the largest coordinates of the vectors change: ``number``, ``basis``, ``coordinate``,
    #: its ``weight`` at the vector's own radius, ``share``, ``size`` relative to that there, and
    #: ``rate``, NaN where there is none, in a branch of a single radius.
    maps: pd.DataFrame

    @property
    def home(self) -> pd.DataFrame:
        """The scores at the vectors' own radius: a row for each vector, a column for each score."""
        own = self.scores[self.scores.share == 1.0]
        return own.pivot_table(index=["of", "number"], columns="judge", values="value", sort=False)

    @property
    def curves(self) -> dict[str, str]:
        """The curves that there are, and their titles."""
        known = set(self.scores.judge)
        return {name: title for name, title in CURVES.items() if name in known}


def paths(run: Run) -> list[Path]:
    """Return the paths of a run."""
    listed = by_file(run, *OF)
    if not listed:
        return []
    scores = run.scores
    whole = scores[scores.prompt.isna() & np.isfinite(scores.value.astype(float))]
    doses = {p.id: p.dose for p in run.perturbation_rows(derived=None)}
    found = []
    for file in listed:
        name = file.removesuffix(".safetensors")
        maps = run.tensors / f"{name}-maps.safetensors"
        if not maps.exists():
            continue
        rows = []
        for part in (file, f"{name}-shuffled.safetensors", f"{name}-random.safetensors"):
            own = listed.get(part, ())
            made = PerturbationSet.load(run.tensors / part).scores["share"].tolist() if own else ()
            at = zip(own, made, strict=True)
            rows += [(p.id, OF[p.how], p.parent, round(share, 6)) for p, share in at]
        points = pd.DataFrame(rows, columns=["perturbation", "of", "number", "share"])
        told = points.merge(whole, on="perturbation")
        told["of"] = told.of.mask(told.judge.str.endswith(ON_BENIGN), OTHER_PROMPTS)
        told["judge"] = told.judge.str.removesuffix(ON_BENIGN)
        numbers = dict.fromkeys(p.parent for p in listed[file] if p.parent is not None)
        shares = sorted(set(points.share))
        drawn = _maps(maps.as_posix(), shares)
        found.append(
            Path(
                name,
                f"tensors/{file}",
                PerturbationSet.load(run.tensors / file).kind.before,
                shares,
                list(dict.fromkeys(drawn.basis)),
                {number: doses[number] for number in numbers},
                told[["of", "number", "share", "judge", "value"]],
                drawn,
            )
        )
    return found


def _maps(file: str, shares: list[float]) -> pd.DataFrame:
    tensors, header = read_tensors(file)
    frames = []
    for place, names in json.loads(header["names"]).items():
        number, basis = place.split("/", 1)
        weight, size, rate = (tensors[f"{place}/{part}"] for part in ("weight", "size", "rate"))
        cells = pd.MultiIndex.from_product([shares, names], names=["share", "coordinate"])
        values = {"size": size.flatten(), "rate": rate.flatten()}
        frame = pd.DataFrame(values, cells).reset_index()
        weights = np.tile(weight, len(shares))
        frames.append(frame.assign(number=int(number), basis=basis, weight=weights))
    return pd.concat(frames, ignore_index=True)


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return the vectors of a run that were followed through the radius."""
    cards = [card(path) for path in paths(run)]
    return words.part("paths", cards) if cards else None


def card(path: Path) -> Card:
    """Return vectors that were followed, and their nulls."""
    columns = heads("vector", "dose", "moved", *(f"{n}:.2g" for n in VECTORS.values()), "left at")
    blocks: list[Block] = [
        Table(columns, vectors(path), said("tables", "path-vectors")),
        _table("at their own radius", BESIDE, middles(path, BESIDE)),
    ]
    if "neurons_variance" in path.curves:
        table = _table("of", NEURONS, middles(path, NEURONS), said("tables", "path-neurons"))
        blocks.append(Fold("Neurons of the target's MLP, median and range", [table], open=True))
    in_bases = {
        f"{basis}, {of}": line
        for basis in path.bases
        for of, line in middles(path, [f"{name}:{basis}" for name in COORDINATES]).items()
    }
    table = _table("basis, of", COORDINATES, in_bases, said("tables", "path-bases"))
    blocks.append(Fold("In each basis", [table], open=True))
    blocks += [
        figure("path", curves(path, name), f"{name}-{path.name}", title=title.capitalize())
        for name, title in path.curves.items()
    ]
    for number in path.doses:
        maps = [
            figure(
                "path-map", heat(own), f"{number}-{basis}-{path.name}", number=number, basis=basis
            )
            for basis, own in path.maps[path.maps.number == number].groupby("basis", sort=False)
        ]
        blocks.append(
            Fold(f"Coordinates of #{number}", maps, open=number == next(iter(path.doses)))
        )
    shares = f"{path.shares[0]:.2g} to {path.shares[-1]:.2g} of their radius"
    badges = [f"layer {path.layer}", shares, path.file]
    return Card(" ".join(f"#{number}" for number in path.doses), badges, blocks)


def _table(
    first: str, columns: dict[str, str], rows: dict[str, list[str | None]], caption: str = ""
) -> Table:
    """Return a table of medians and ranges."""
    lines = [[name, *line] for name, line in rows.items()]
    return Table(heads(first, *columns.values()), lines, caption or None)


def middles(path: Path, columns: Iterable[str]) -> dict[str, list[str | None]]:
    """Return median and range of scores of the vectors and of each null, at their own radius."""
    told = {}
    for of in COLOURS:
        if of in path.home.index.get_level_values("of"):
            own = path.home.loc[of]
            line = [ranged(own[name]) if name in own else None for name in columns]
            if any(line):
                told[of] = line
    return told


def ranged(values: pd.Series) -> str | None:
    """Write the median of some numbers and what they lie between."""
    known = values.dropna()
    if known.empty:
        return None
    return f"{known.median():.2g} ({known.min():.2g} to {known.max():.2g})"


def vectors(path: Path) -> list[list[str | float | None]]:
    """Return a row for each vector found: number, dose, how far it moved, scores, where it left."""
    rows = []
    for number, size in path.doses.items():
        own = path.home.loc[("found", number)].dropna()
        told = [float(own[name]) if name in own else None for name in VECTORS]
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


def curves(path: Path, name: str) -> alt.LayerChart:
    """Draw a curve of every vector found, and the median and range of each null."""
    own = path.scores[path.scores.judge == name].rename(columns={"value": "at"})
    bands = own.groupby(["share", "of"])["at"].agg(at="median", low="min", high="max").reset_index()
    roles = {of: role for of, role in COLOURS.items() if of in set(own.of)}
    along = alt.X(
        "share:Q", scale=alt.Scale(type="log", nice=False), title="radius, share of its own"
    )
    # Slopes are of different sizes.
    scale = alt.Scale(type="log", nice=False) if name == "neurons_variance" else alt.Scale()
    axis = alt.Axis(tickCount=5, format=".3~g")
    up, low = (alt.Y(f"{of}:Q", title=CURVES[name], scale=scale, axis=axis) for of in ("at", "low"))
    by = colour("of", roles, columns=4)
    every = over(own[own.of == "found"]).mark_line(strokeWidth=1, opacity=0.35)
    median = over(bands).mark_line(strokeWidth=2.5)
    spread = over(bands[bands.of != "found"]).mark_area(opacity=0.13)
    each = every.encode(along, up, by, detail="number:N", tooltip=["number:N", "share:Q", "at:Q"])
    return (
        spread.encode(along, low, alt.Y2("high:Q"), by)
        + each
        + median.encode(along, up, by, tooltip=["of:N", "share:Q", "at:Q"])
    ).properties(height=240)


def heat(own: pd.DataFrame) -> alt.Chart:
    """Draw how the largest coordinates of a vector change along its path."""
    names = list(dict.fromkeys(own.coordinate))
    rows = own.dropna(subset="rate").assign(
        exact=own.rate, rate=own.rate.clip(*RATES), share=own.share.map("{:.2f}".format)
    )
    scale = alt.Scale(scheme="purpleorange", domain=list(RATES), domainMid=1)
    drawn = over(rows[["share", "coordinate", "rate", "exact", "size"]]).encode(
        alt.X("share:O", sort=None, title="radius, share of its own"),
        alt.Y("coordinate:N", sort=names, title=None),
        alt.Color("rate:Q", scale=scale, legend=alt.Legend(title="rate", orient="right")),
        tooltip=["coordinate:N", "share:N", "exact:Q", "size:Q"],
    )
    return drawn.mark_rect().properties(height=18 * len(names))
