"""Manifold reports as a run keeps them: scores, and a file with the values of the controls.

The file of a perturbation is written after its scores, and deleted before others take their place:
where it is, they are of the same examination.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from educe.activations.distance import Coverage
from educe.activations.examination import Examined
from educe.activations.report import (
    OF_ABLATIONS,
    ON_TEXTS,
    Derived,
    Facts,
    ManifoldReport,
    Measure,
    Range,
    unit,
)
from educe.files import read_tensors, write_tensors
from educe.rows import Row, ScoreRow
from educe.run.store import Run

#: What files of reports are called; the perturbation's number follows.
NAME = "manifold-"
#: The prompt whose answers a report shows, by its number.
FIRST_PROMPT = 0


def file(run: Run, number: int) -> Path:
    """Return the file of a perturbation's report."""
    return run.tensors / f"{NAME}{number:06d}.safetensors"


def key(run: Run, number: int) -> str | None:
    """Return what decided the report of a perturbation, if there is one."""
    path = file(run, number)
    return read_tensors(path)[1]["key"] if path.exists() else None


def keep(run: Run, number: int, key: str, made: Examined, derived: list[int]) -> None:
    """Keep what was measured of a perturbation.

    Args:
        run: The run.
        number: The perturbation.
        key: What decides it.
        made: What was measured.
        derived: The numbers of what was derived from it, in order.
    """
    file(run, number).unlink(missing_ok=True)
    scores = {number: {judge: made.report[judge].found for judge in made.measures}}
    scores |= {of: part.scores for of, part in zip(derived, made.derived, strict=True)}
    run.add_scores(
        [
            ScoreRow(of, judge, value, unit(judge), "")
            for of, own in scores.items()
            for judge, value in own.items()
        ]
    )
    tensors = {
        f"{judge} {field}": values
        for judge, measure in made.measures.items()
        for field, values in measure._asdict().items()
    }
    report = made.report
    curves: dict[str, Any] = {
        f"coverage {layer}": sizes for layer, sizes in report.coverage.items()
    }
    curves |= {f"spectrum {name}": curve for name, curve in report.spectrum.items()}
    tensors |= {name: torch.tensor(c, dtype=torch.float64) for name, c in curves.items()}
    header = {
        "facts": asdict(report.facts),
        "judges": list(made.measures),
        "spectrum": list(report.spectrum),
        "derived": derived,
    }
    told = {name: json.dumps(value) for name, value in header.items()}
    write_tensors(file(run, number), tensors, {"key": key, **told})


def reports(run: Run) -> list[ManifoldReport]:
    """Return the manifold reports of a run, in order."""
    files = sorted(run.tensors.glob(f"{NAME}*.safetensors"))
    if not files:
        return []
    scores: dict[Row | int, dict[str, float]] = defaultdict(dict)
    for score in run.score_rows():
        if score.judge in ON_TEXTS | OF_ABLATIONS:
            scores[score.of][score.judge] = score.value
    texts = {c.row: c.text for c in run.completion_rows()}
    rows = {p.id: p for p in run.perturbation_rows(derived=None)}
    found = []
    for path in files:
        number = int(path.stem.removeprefix(NAME))
        tensors, header = read_tensors(path)
        facts, judges, spectrum, derived = (
            json.loads(header[name]) for name in ("facts", "judges", "spectrum", "derived")
        )
        measures = {
            judge: Measure(*(tensors[f"{judge} {field}"] for field in Measure._fields))
            for judge in judges
        }
        found.append(
            ManifoldReport(
                number,
                rows[number].arm,
                _facts(facts),
                {judge: measure.standings(judge) for judge, measure in measures.items()},
                {
                    layer: tuple(
                        Coverage(int(tokens), *rest)
                        for tokens, *rest in tensors[f"coverage {layer}"].tolist()
                    )
                    for layer in facts["layers"]
                },
                {name: tensors[f"spectrum {name}"].tolist() for name in spectrum},
                tuple(
                    Derived(rows[of].how, scores[of], texts.get(Row(of, FIRST_PROMPT)))
                    for of in derived
                ),
                tuple(texts.get(Row(of, FIRST_PROMPT)) for of in (0, number)),
            )
        )
    return found


def _facts(kept: dict[str, Any]) -> Facts:
    lists = {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
    return Facts(**kept | lists | {"chance": Range(**kept["chance"])})
