"""Marks: what a person says of the texts of a run, kept in it as scores are.

    star     1, or 0 where it was taken away
    label    1 where the text shows what the person looks for, 0 where it does not
    note     words, as the reason of a score that says nothing itself

A person is a judge like any other, whose scores are cached, exported and resumed with the rest.
Labels are what judges are measured on (`labelled`, `educe.scores.calibration`).

A text that a person had written, at another radius or for a prompt of their own, is no part of the
run. With `keep` it is in the run's tables, so that it can be marked, and counts for nothing there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from educe.errors import JudgeError
from educe.rows import KEPT, OWN, CompletionRow, PromptRow, Row, ScoreRow
from educe.run.store import Run

if TYPE_CHECKING:
    from educe.scores.calibration import Labelled

STAR, LABEL, NOTE = "person:star", "person:label", "person:note"
#: The judge whose reason is how a text that is kept was asked for, in the words of ``educe write``.
ASKED = "person:asked"
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


def keep(run: Run, text: CompletionRow, asked: str, own: PromptRow | None = None) -> Row:
    """Keep a text that a person had written, once; return by which row it is known.

    Args:
        run: The run.
        text: The text, under the perturbation that was named first; its sample is given here.
        asked: How it was asked for.
        own: The person's own prompt, if it answers none of the run's; its number is given here.

    Raises:
        BlockedError: The run cannot be written.
    """
    prompt = text.prompt
    if own is not None:
        known = run.prompt_rows(OWN)
        same = (p.id for p in known if p.rendered == own.rendered)
        prompt = next(same, -1 - len(known))
        run.add_prompts([own._replace(id=prompt, role=OWN)])
    beside = [c for c in run.completion_rows(KEPT, of=[text.perturbation]) if c.prompt == prompt]
    told = {s.of: s.why for s in run.score_rows(ASKED, of=[text.perturbation])}
    for c in beside:
        if (c.text, told.get(c.row)) == (text.text, asked):
            return c.row
    row = Row(text.perturbation, prompt, len(beside), KEPT)
    run.add_completions([text._replace(row=row)])
    run.add_scores([ScoreRow(row, ASKED, NONE, "asked", asked)])
    return row


def labelled(run: Run) -> list[Labelled]:
    """Return the texts of a run that a person has labelled, as judges are measured on them.

    Raises:
        JudgeError: There is none.
    """
    from educe.run.fill import answers  # which loads torch, as showing a run does not
    from educe.scores.calibration import Labelled

    labels = {s.of: bool(s.value) for s in run.score_rows(LABEL) if s.value != NONE}
    texts = [c for c in (*run.completion_rows(), *run.completion_rows(KEPT)) if c.row in labels]
    if not texts:
        raise JudgeError(
            f"no text of the run in {run.folder} has a label: give some in educe explore"
        )
    said = zip(answers(run, texts), texts, strict=True)
    return [Labelled(answer, labels[c.row]) for answer, c in said]
