"""Frames: a run as columns of numbers and texts, for the front end.

    perturbations   a row for each, derived ones too: what the run lists, how many texts there are,
                    and the means of coherence, novelty and their product over its first answers
    scores          of perturbations as a whole: perturbation, judge, value, unit, why
    prompts         id, role, text, rendered, parent, how
    behaviours      id, verdict, change, text, words, perturbations, and their rates
    completions     every text, its scores and what a person said of it; `texts` is a page of them

Everything but behaviours comes from the tables in SQL, so that a run of 100,000 completions is
read in seconds, and one that is still at work at any time.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import compress
from typing import Any

from educe.comparison.stats import Rate
from educe.comparison.summary import Summary
from educe.errors import MethodError, RunError
from educe.explore.bundle import shown
from educe.rows import OWN, PerturbationRow, Row
from educe.run import marks
from educe.run.marks import ASKED, LABEL, NOTE, STAR
from educe.run.schema import COMPLETION
from educe.run.store import Run

#: Columns by name, all of one length.
Frame = dict[str, list[Any]]

#: Signs of a text on a page of many; the whole of it is asked for when it is opened.
CUT = 2_000
#: Rows of a page of texts at most.
ROWS = 500
#: Texts of a run that one page holds whole, and texts on the page of a larger one.
WHOLE = 20_000

_PERTURBATIONS = """
SELECT p.*, count(c.id), avg(coherence.value), avg(novelty.value),
  avg(coherence.value * novelty.value)
FROM perturbations p
LEFT JOIN completions c ON c.perturbation = p.id AND c.text IS NOT NULL AND c.phase = 'first'
  AND c.prompt IN (SELECT id FROM prompts WHERE role = 'asked')
LEFT JOIN scores coherence ON coherence.completion = c.id AND coherence.judge = 'coherence'
LEFT JOIN scores novelty ON novelty.completion = c.id AND novelty.judge = 'novelty'
GROUP BY p.id ORDER BY p.id
"""
_MEANS = ("texts", "coherence", "novelty", "interestingness")

#: Scores of a text that have a column: the column's name, the judge, and what is taken of it.
_SCORED = {
    "coherence": ("coherence", "value"),
    "novelty": ("novelty", "value"),
    "behaviour": ("behaviour", "value"),
    "star": (STAR, "value"),
    "label": (LABEL, "value"),
    "note": (NOTE, "why"),
    "asked": (ASKED, "why"),
}
_TEXT = {
    "id": "c.id",
    "perturbation": "c.perturbation",
    "arm": "coalesce(p.arm, 'unperturbed')",
    "prompt": "c.prompt",
    "phase": "c.phase",
    "sample": "c.sample",
    "temperature": "c.temperature",
    "text": "c.text",
    "finished": "c.finished",
} | {name: f"{name}.{what}" for name, (_, what) in _SCORED.items()}
_JOINED = "FROM completions c LEFT JOIN perturbations p ON p.id = c.perturbation " + " ".join(
    f"LEFT JOIN scores {name} ON {name}.completion = c.id AND {name}.judge = '{judge}'"
    for name, (judge, _) in _SCORED.items()
)


@dataclass(frozen=True)
class Wanted:
    """Which texts, and in which order.

    Attributes:
        search: What stands in them, whatever the case of its letters.
        sort: A column.
        descending: The largest first.
        offset: How many are left out.
        limit: How many come.
        starred: Only those with a star.
        labelled: Only those with a label.
        perturbation: Only those of one; likewise the others.
    """

    search: str = ""
    sort: str = "id"
    descending: bool = False
    offset: int = 0
    limit: int = ROWS
    starred: bool = False
    labelled: bool = False
    perturbation: int | None = None
    prompt: int | None = None
    sample: int | None = None
    behaviour: int | None = None
    arm: str | None = None
    phase: str | None = None

    @property
    def condition(self) -> tuple[str, list[Any]]:
        """What is true of them, in SQL, and what stands for its question marks."""
        said, values = ["c.text IS NOT NULL"], []
        for name in ("perturbation", "prompt", "sample", "behaviour", "arm", "phase"):
            if (value := getattr(self, name)) is not None:
                said.append(f"{_TEXT[name]} = ?")
                values.append(value)
        if self.search:
            # LIKE reads a text as far as its first null character.
            said.append("instr(lower(c.text), lower(?)) > 0")
            values.append(self.search)
        if self.starred:
            said.append("star.value = 1")
        if self.labelled:
            said.append("label.value IS NOT NULL")
        return " AND ".join(said), values

    def check(self) -> None:
        """Make sure that this can be asked for.

        Raises:
            MethodError: It cannot.
        """
        if self.sort not in _TEXT:
            raise MethodError(f"texts are not sorted by {self.sort!r}: use {', '.join(_TEXT)}")
        if not (0 < self.limit <= ROWS and 0 <= self.offset < 2**62):
            raise MethodError(f"give an offset of 0 or more, and a limit of 1 to {ROWS}")


def texts(
    run: Run, wanted: Wanted, *, whole: bool = False, of: Collection[int] | None = None
) -> dict[str, Any]:
    """Return some texts of a run as a frame, and how many there are: ``{total, rows}``.

    Args:
        run: The run.
        wanted: Which.
        whole: Whether they are not cut.
        of: Numbers of perturbations, where only theirs are wanted.
    """
    condition, values = wanted.condition
    if of is not None:
        condition += f" AND c.perturbation IN ({','.join(map(str, of))})"
    order = f"{_TEXT[wanted.sort]} {'DESC' if wanted.descending else 'ASC'} NULLS LAST, c.id"
    (total,) = run.database.execute(
        f"SELECT count(*) {_JOINED} WHERE {condition}", values
    ).fetchone()
    rows = run.database.execute(
        f"SELECT {', '.join(_TEXT.values())} {_JOINED} WHERE {condition} ORDER BY {order} "
        "LIMIT ? OFFSET ?",
        [*values, wanted.limit, wanted.offset],
    )
    found = _columns(list(_TEXT), [list(row) for row in rows])
    found["length"] = [len(text) for text in found["text"]]
    found["text"] = [shown(t if whole else t[:CUT]) for t in found["text"]]
    return {"total": total, "rows": found}


def text(run: Run, number: int) -> str | list[str] | None:
    """Return the whole of one text, by the number of its row; None where there is none."""
    found = run.database.execute("SELECT text FROM completions WHERE id = ?", (number,)).fetchone()
    return None if found is None or found[0] is None else shown(found[0])


def mark(run: Run, text: int, what: marks.Mark, value: bool | str | None) -> None:
    """Keep what a person says of a text, by the number of its row (see `educe.run.marks`).

    Raises:
        RunError: There is no such text.
    """
    query = "SELECT perturbation, prompt, sample, phase FROM completions WHERE id = ?"
    found = run.database.execute(query, (text,)).fetchone()
    if found is None:
        raise RunError(f"the run has no text {text}")
    marks.mark(run, Row(*found), what, value)


def number(run: Run, row: Row) -> int:
    """Return the number of a text's row."""
    (found,) = run.database.execute(f"SELECT {COMPLETION}", row).fetchone()
    return int(found)


def frames(run: Run, summary: Summary, of: Collection[int] | None = None) -> dict[str, Any]:
    """Return all frames of a run, for a page that can ask for nothing more.

    Args:
        run: The run.
        summary: What it shows.
        of: Numbers of perturbations, where the page has only these.
    """
    most = Wanted(limit=-1 if of is None else WHOLE)
    everything = texts(run, most, whole=True, of=of)["rows"]
    found = listed(run) | {"behaviours": behaviours(summary), "completions": everything}
    if of is not None:
        among = set(of)
        for name, key in (("perturbations", "id"), ("scores", "perturbation")):
            found[name] = _where(found[name], [number in among for number in found[name][key]])
        numbers = found["behaviours"].get("perturbations", [])
        numbers[:] = [[n for n in own if n in among] for own in numbers]
    return found


def texts_of_each(run: Run) -> dict[int, int]:
    """Return how many texts there are of each perturbation, by its number."""
    query = "SELECT perturbation, count(*) FROM completions WHERE text IS NOT NULL GROUP BY 1"
    return dict(run.database.execute(query))


def listed(run: Run) -> dict[str, Any]:
    """Return the frames of a run that SQL makes: perturbations, their scores, prompts, facts."""
    rows = run.database.execute(_PERTURBATIONS)
    names = [*PerturbationRow._fields, *_MEANS]
    scores = run.database.execute(
        "SELECT perturbation, judge, value, unit, why FROM scores WHERE perturbation IS NOT NULL "
        "ORDER BY perturbation, judge"
    )
    prompts = [
        (p.id, p.role, shown(_plain(p.content)), shown(p.rendered), p.parent, p.how)
        for p in (*run.prompt_rows(), *run.prompt_rows(OWN))
    ]
    facts = run.note("facts") if run.has("facts") else {}
    return {
        "perturbations": _columns(names, [list(map(_known, row)) for row in rows]),
        "scores": _columns(
            ["perturbation", "judge", "value", "unit", "why"],
            [[*row[:4], shown(row[4])] for row in scores],
        ),
        "prompts": _columns(["id", "role", "text", "rendered", "parent", "how"], prompts),
        "facts": {k: facts.get(k) for k in ("model", "unit", "source", "target", "positions")},
    }


def behaviours(s: Summary | None) -> Frame:
    """Return what a run shows, in the order of the screen; nothing of one that has just begun."""
    rows = [
        {
            "id": b.id,
            "verdict": b.verdict.value,
            "change": b.change.value,
            "text": shown(b.example.text),
            "words": [shown(word) for word in b.words],
            "perturbations": list(b.numbers),
            "greedy": _rate(b.greedy),
            "samples": _rate(b.samples),
            "control": _rate(b.control),
            "equal": b.equal and _rate(b.equal),
            "found": _rate(b.found),
            "retest": _rate(b.retest),
            "retest_control": _rate(b.retest_control),
            "p": b.p_value,
            "coherence": b.coherence,
            "novelty": b.novelty,
        }
        for b in (s.behaviours if s else ())
    ]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {"id": []}


def _where(frame: Frame, true: list[bool]) -> Frame:
    return {name: list(compress(column, true)) for name, column in frame.items()}


def _rate(r: Rate) -> dict[str, Any] | None:
    """Return a rate as JSON holds it; None where nothing was tried."""
    return r._asdict() if r.trials else None


def _columns(names: list[str], rows: list[Any]) -> Frame:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(content: Any) -> str:
    """Return what a prompt asks, as text."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in content)
