"""Marks: what a person says of the texts of a run, kept in it as scores are.

    star     1, or 0 where it was taken away
    label    1 where the text shows what the person looks for, 0 where it does not
    note     words, as the reason of a score that says nothing itself

A person is a judge like any other, whose scores are cached, exported and resumed with the rest.
Labels are what judges are measured on (`labelled`, `educe.scores.calibration`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from educe.errors import JudgeError
from educe.rows import Row, ScoreRow
from educe.run.store import Run

if TYPE_CHECKING:
    from educe.scores.calibration import Labelled

STAR, LABEL, NOTE = "person:star", "person:label", "person:note"
Mark = Literal["star", "label", "note"]
#: A value that there is not.
NONE = float("inf")
#: The longest note, in signs.
LONGEST = 10_000


def mark(run: Run, row: Row, what: Mark, value: bool | str | None) -> None:
    """Keep what a person says of a text, in place of what was said before.

    Args:
        run: The run.
        row: Of the text.
        what: A star, a label or a note.
        value: Whether there is a star; what the label says, or None where there is none; the note.

    Raises:
        JudgeError: A note is longer than `LONGEST`.

    Example:
        >>> from educe.run.marks import labelled, mark
        >>> made = educe.discover(folder / "m", lm, prompts, n=1, radius=2.0, max_new_tokens=4)
        >>> mark(made, educe.Row(1, prompt=0), "label", True)
        >>> [each.label for each in labelled(made)]
        [True]
    """
    if what == "note":
        note = str(value or "")
        if len(note) > LONGEST:
            raise JudgeError(f"a note of {len(note)} signs is too long: {LONGEST} at most")
        score = ScoreRow(row, NOTE, NONE, "note", note)
    elif what == "star":
        score = ScoreRow(row, STAR, float(bool(value)), "starred", "")
    else:
        score = ScoreRow(row, LABEL, NONE if value is None else float(bool(value)), "shown", "")
    run.add_scores([score])


def labelled(run: Run) -> list[Labelled]:
    """Return the texts of a run that a person has labelled, as judges are measured on them.

    Raises:
        JudgeError: There is none.
    """
    from educe.run.fill import answers  # which loads torch, as showing a run does not
    from educe.scores.calibration import Labelled

    labels = {s.of: bool(s.value) for s in run.score_rows(LABEL) if s.value != NONE}
    texts = [c for c in run.completion_rows() if c.row in labels]
    if not texts:
        raise JudgeError(
            f"no text of the run in {run.folder} has a label: give some in educe explore"
        )
    said = zip(answers(run, texts), texts, strict=True)
    return [Labelled(answer, labels[c.row]) for answer, c in said]
