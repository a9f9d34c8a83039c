"""Texts: what was written for the prompts of the main job, as columns that fit into memory.

One pass over a run reads each text, says what it is by itself, and lets it go: sixty bytes are
left of it, however long it is. It is known by its number in the run's file, and read again where it
is shown or its words count.
"""

from __future__ import annotations

import json
import re
from array import array
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
#: With the plus, SQLite reads texts in their order instead of sorting them.
_QUERY = (
    f"SELECT c.id, c.perturbation, prompt, sample, {_VALUES}, phase, text FROM completions c "
    f"{_JOINED} WHERE text IS NOT NULL AND phase != '{KEPT}' "
    f"AND prompt IN (SELECT id FROM prompts WHERE role IN {ROLES}) "
    "AND (+c.perturbation = 0 OR +c.perturbation IN (SELECT id FROM perturbations WHERE how = ''))"
    " ORDER BY c.perturbation, prompt, phase, sample"
)

#: The arm of texts without a perturbation.
UNPERTURBED = "unperturbed"
#: The columns that a run has, and those made of its texts, by the types of `array.array`.
_TYPES = {
    "number": "q",
    **dict.fromkeys(("perturbation", "prompt", "sample"), "i"),
    **dict.fromkeys(_SCORES, "d"),
    "phase": "b",
    "text": "q",
    "hit": "b",
    "traits": "i",
}
_TRAITS: dict[str, Any] = {"refuses": bool, "words": np.int32}
_TRAITS |= dict.fromkeys(("damage", "form", "persona"), "category")


class Texts:
    """What was written, and what was said of it.

    Args:
        rows: A row for each text, in the order of perturbation, prompt, phase and sample. Columns:
            its ``number``; perturbation, arm, dose; prompt and its role; sample; phase; ``text``,
            which is equal for equal texts; ``hit``, whether the pattern looked for is in it; one
            for each of its `educe.scores.traits.Traits`; and its behaviour, coherence and novelty,
            NaN where there is none. What has few values is categories: phase, role, arm, dose, and
            the words of traits.
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
    pattern = re.compile(run.config["look_for"]) if run.config.get("look_for") else None
    columns = {name: array(kind) for name, kind in _TYPES.items()}
    phases: dict[str, int] = {}
    kinds: dict[Traits, int] = {}
    found = run.database.execute(_QUERY)
    while some := found.fetchmany(BATCH):
        *own, phase, said = zip(*some, strict=True)
        told = [traits(text, asked[prompt]) for text, prompt in zip(said, own[2], strict=True)]
        each = [
            *own,
            [phases.setdefault(name, len(phases)) for name in phase],
            # Among ten million different texts two share a hash with a chance of 3 in a million.
            [hash(text) for text in said],
            [bool(pattern and pattern.search(text)) for text in said],
            [kinds.setdefault(kind, len(kinds)) for kind in told],
        ]
        for column, values in zip(columns.values(), each, strict=True):
            column.frombytes(np.array(values, column.typecode).tobytes())
    whole = {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}
    rows = pd.DataFrame(whole, copy=False).astype({"hit": bool})
    rows["text"] = pd.factorize(rows.text)[0].astype(np.int32)
    rows["phase"] = pd.Categorical.from_codes(rows.phase, list(phases))
    named = pd.DataFrame(list(kinds), columns=Traits._fields).astype(_TRAITS)
    for name in named:
        rows[name] = named[name].array.take(rows.traits)
    listed = [(p.id, p.arm, p.dose) for p in run.perturbation_rows()]
    of = pd.DataFrame([(0, UNPERTURBED, 0.0), *listed], columns=["id", "arm", "dose"])
    of = of.set_index("id").astype("category")
    rows["arm"], rows["dose"] = rows.perturbation.map(of.arm), rows.perturbation.map(of.dose)
    roles = pd.Series({p.id: p.role for p in prompts.values()}, dtype="category")
    rows["role"] = rows.prompt.map(roles)
    return Texts(rows.drop(columns="traits"), run)
