"""Texts: what was written for the prompts of the main job, as columns that fit into memory.

One pass over a run reads each text, says what it is by itself, and lets it go: a hundred bytes are
left of it, however long it is. It is known by its number in the run's file, and read again where it
is shown or its words count.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from educe.rows import BEHAVIOUR, ELSEWHERE, KEPT, CompletionRow, Row
from educe.run.schema import reading
from educe.run.store import Run
from educe.scores import asked_in
from educe.scores.traits import Traits, traits

#: Roles of the prompts of the main job.
ROLES = ("asked", "fresh", ELSEWHERE)
#: Rows that are read at once.
BATCH = 2048

_SCORES = (BEHAVIOUR, "coherence", "novelty")
#: A score without a value is infinite; one that nobody gave is missing.
_VALUES = ", ".join(f"iif({s}.judge IS NULL, NULL, coalesce({s}.value, 9e999))" for s in _SCORES)
_JOINED = " ".join(
    f"LEFT JOIN scores {s} ON {s}.completion = c.id AND {s}.judge = '{s}'" for s in _SCORES
)
_QUERY = (
    f"SELECT c.id, c.perturbation, prompt, sample, phase, text, {_VALUES} FROM completions c "
    f"{_JOINED} WHERE text IS NOT NULL AND phase != '{KEPT}' "
    f"AND prompt IN (SELECT id FROM prompts WHERE role IN {ROLES}) "
    "AND (c.perturbation = 0 OR c.perturbation IN (SELECT id FROM perturbations WHERE how = '')) "
    "ORDER BY c.perturbation, prompt, phase, sample"
)


#: The columns of a row, and those made of its text.
_TYPES: dict[str, Any] = {
    "number": np.int64,
    "perturbation": np.int32,
    "prompt": np.int32,
    "sample": np.int32,
    "phase": object,
    "text": np.int64,
    "hit": bool,
    "traits": object,
    **dict.fromkeys(_SCORES, float),
}


class Texts:
    """What was written, and what was said of it.

    Args:
        rows: A row for each text, in the order of perturbation, prompt, phase and sample. Columns:
            its ``number``; perturbation, arm, dose; prompt and its role; sample; phase; ``text``,
            which is equal for equal texts; ``hit``, whether the pattern looked for is in it;
            ``traits`` (`educe.scores.traits`); its behaviour, coherence and novelty, NaN where
            there is none; and interestingness, which is coherence times novelty.
        run: The run that has the texts themselves; it has to be open.
    """

    def __init__(self, rows: pd.DataFrame, run: Run) -> None:
        self.rows, self.run = rows, run

    def of(self, rows: pd.DataFrame) -> Texts:
        """Return these texts with other rows."""
        return type(self)(rows, self.run)

    def said(self, numbers: Iterable[int]) -> Iterator[str]:
        """Yield texts by their numbers, in order."""
        for (text,) in self._read("text", numbers):
            yield text

    def written(self, numbers: Iterable[int]) -> list[CompletionRow]:
        """Return completions by their numbers, in order."""
        columns = "perturbation, prompt, sample, phase, temperature, text, tokens, finished"
        return [
            CompletionRow(Row(*row), temperature, text, tuple(json.loads(tokens)), bool(done))
            for *row, temperature, text, tokens, done in self._read(columns, numbers)
        ]

    def _read(self, columns: str, numbers: Iterable[int]) -> Iterator[Sequence[Any]]:
        left = iter(numbers)
        while some := list(map(int, islice(left, BATCH))):
            query = (
                f"SELECT id, {columns} FROM completions WHERE id IN ({','.join(map(str, some))})"
            )
            found = {number: row for number, *row in self.run.database.execute(query)}
            yield from (found[number] for number in some)


@reading
def texts_of(run: Run) -> Texts:
    """Return what was written for the prompts of the main job, and what was said of it."""
    prompts = {p.id: p for p in run.prompt_rows()}
    asked = {p.id: asked_in(p.content) for p in prompts.values()}
    listed = run.perturbation_rows()
    pattern = re.compile(run.config["look_for"]) if run.config.get("look_for") else None
    kinds: dict[Traits, Traits] = {}

    def columns(some: Sequence[Sequence[Any]]) -> list[np.ndarray]:
        *row, phase, said, behaviour, coherence, novelty = zip(*some, strict=True)
        told = [traits(text, asked[prompt]) for text, prompt in zip(said, row[2], strict=True)]
        own = [
            *row,
            [*map(sys.intern, phase)],  # SQLite makes each anew
            # Among ten million different texts two share a hash with a chance of 3 in a million.
            [hash(text) for text in said],
            [bool(pattern and pattern.search(text)) for text in said],
            [kinds.setdefault(t, t) for t in told],
            *(behaviour, coherence, novelty),
        ]
        return list(map(_array, own, _TYPES.values()))

    found = run.database.execute(_QUERY)
    parts = [columns(some) for some in iter(lambda: found.fetchmany(BATCH), [])]
    each = zip(*parts, strict=True) if parts else ([_array((), kind)] for kind in _TYPES.values())
    rows = pd.DataFrame(dict(zip(_TYPES, map(np.concatenate, each), strict=True)))
    rows["text"] = pd.factorize(rows.text)[0]
    rows["arm"] = rows.perturbation.map({p.id: p.arm for p in listed} | {0: "unperturbed"})
    rows["dose"] = rows.perturbation.map({p.id: p.dose for p in listed} | {0: 0.0})
    rows["role"] = rows.prompt.map({p.id: p.role for p in prompts.values()})
    rows["interestingness"] = rows.coherence * rows.novelty
    return Texts(rows, run)


def _array(values: Sequence[Any], kind: Any) -> np.ndarray:
    """Return values as an array; of tuples, each stays one."""
    return np.fromiter(values, object) if kind is object else np.array(values, kind)
