"""The frames of a run, read by pandas: what the run has, with places on a map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import synthetic_run
from educe.errors import ExportError
from educe.exports import FORMATS, check, export
from educe.exports.chosen import Chosen
from educe.exports.frames import places
from educe.run.store import Run

READ = {
    "parquet": pd.read_parquet,
    "csv": pd.read_csv,
    "jsonl": lambda f: pd.read_json(f, lines=True),
}
HOSTILE = "<script>alert(1)</script>\u202e, \"quoted\"\r\nand a 'second' line\x00\x1b[31m,;\t"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthetic_run.build(tmp_path_factory.mktemp("frames") / "run", n=8, extra=HOSTILE)


@pytest.mark.parametrize("to", READ)
def test_what_is_read_is_what_the_run_has(tmp_path: Path, run: Run, to: str) -> None:
    export(Chosen(run), to, tmp_path / "out")
    read: dict[str, Any] = {
        name: READ[to](tmp_path / "out" / f"{name}.{to}")
        for name in ("prompts", "perturbations", "completions", "scores")
    }
    assert len(read["perturbations"]) == len(run.perturbations)
    assert read["perturbations"]["dose"].tolist() == pytest.approx(
        run.perturbations["dose"].tolist()
    )
    texts, own = read["completions"], run.completions
    if to == "csv":  # a carriage return in quotes is a line's end there
        assert len(texts) == len(own)
    else:
        assert texts["text"].tolist() == own["text"].tolist()
        assert HOSTILE in set(texts["text"])
    assert texts["tokens"].map(json.loads).tolist() == [list(tokens) for tokens in own["tokens"]]
    scores = run.scores
    one = scores[(scores.judge == "novelty") & scores.prompt.notna()].iloc[5]
    same = (texts[["perturbation", "prompt", "sample", "phase"]] == one[:4].values).all(axis=1)
    assert texts[same]["novelty"].item() == pytest.approx(one.value)
    assert np.isfinite(texts[["x", "y"]].to_numpy()).all()


def test_texts_that_say_the_same_are_near_on_the_map() -> None:
    codes = [f"The vault code is orchid-79{i}." for i in range(10, 20)]
    weather = [f"It will rain on day {i} of the week, I think." for i in range(10)]
    at = places(codes + weather)
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)
    assert apart[:10, :10].max() < apart[:10, 10:].min()
    assert apart[10:, 10:].max() < apart[:10, 10:].min()
    assert places(["", "?"]).tolist() == [[0, 0], [0, 0]]


def test_what_is_asked_for_wrongly() -> None:
    with pytest.raises(ExportError, match="no format 'onnx': educe exports lists gguf, "):
        check("onnx", [1], None)
    with pytest.raises(ExportError, match="sent nowhere: --push goes with hub or neuronpedia"):
        check("gguf", [1], "me/x")
    with pytest.raises(ExportError, match="csv has the whole run: leave the numbers out"):
        check("csv", [1], None)
    with pytest.raises(ExportError, match="no perturbation: name at least one"):
        check("gguf", [], None)
    for name in FORMATS:
        check(name, [] if name in ("parquet", "csv", "jsonl", "inspect") else [1], None)
