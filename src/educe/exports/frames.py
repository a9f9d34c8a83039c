"""Frames: the tables of a run as files that every tool for tables reads.

    prompts, perturbations, completions, scores       as `educe.Run` has them; completions have what
                                                      was asked, the means of their scores by judge,
                                                      and x and y, their places on a map of texts

Embedding Atlas shows the map: ``embedding-atlas completions.parquet --text text --x x --y y``. It
is of words and not of meanings: the two main axes of TF-IDF of characters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from educe.comparison.cluster import CHARACTERS
from educe.exports.chosen import Chosen
from educe.run.schema import as_json
from educe.run.store import Run


def tables(run: Run) -> dict[str, pd.DataFrame]:
    """Return the frames of a run, with columns that files hold: numbers, texts and JSON."""
    prompts = run.prompts.reset_index()
    prompts["content"] = prompts["content"].map(as_json)
    scores, texts = run.scores, run.completions
    key = ["perturbation", "prompt", "sample", "phase"]
    wide = scores[scores["prompt"].notna()].pivot_table(index=key, columns="judge", values="value")
    texts = texts.merge(wide.reset_index(), how="left", on=key)
    texts.insert(3, "asked", texts["prompt"].map(prompts.set_index("id")["rendered"]))
    texts["tokens"] = texts["tokens"].map(lambda tokens: as_json(list(tokens)))
    texts[["x", "y"]] = places(list(texts["text"]))
    return {
        "prompts": prompts,
        "perturbations": run.perturbations.reset_index(),
        "completions": texts,
        "scores": scores,
    }


def places(texts: list[str]) -> np.ndarray:
    """Place texts on a map, those of like words near each other, ``[texts, 2]``."""
    try:
        words = TfidfVectorizer(**CHARACTERS).fit_transform(texts)
    except ValueError:  # no text has a word
        return np.zeros((len(texts), 2))
    if min(words.shape) < 3:
        return np.zeros((len(texts), 2))
    return np.asarray(TruncatedSVD(2, random_state=0).fit_transform(words))


def write_all(chosen: Chosen, folder: Path, ending: str, put: Callable[[Any, Path], Any]) -> None:
    """Write each table with a function that takes a frame and a file."""
    for name, frame in tables(chosen.run).items():
        put(frame, folder / f"{name}.{ending}")


def parquet(chosen: Chosen, folder: Path) -> list[str]:
    """Write the tables as Parquet."""
    write_all(chosen, folder, "parquet", lambda frame, file: frame.to_parquet(file, index=False))
    return []


def csv(chosen: Chosen, folder: Path) -> list[str]:
    """Write them as CSV."""
    write_all(chosen, folder, "csv", lambda frame, file: frame.to_csv(file, index=False))
    return []


def jsonl(chosen: Chosen, folder: Path) -> list[str]:
    """Write them as a JSON object a line."""
    how = {"orient": "records", "lines": True, "force_ascii": True}
    write_all(chosen, folder, "jsonl", lambda frame, file: frame.to_json(file, **how))
    return []
