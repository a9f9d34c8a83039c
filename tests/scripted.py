"""An audit at work whose suspect gives the answers that a test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import planted_difference as planted
from educe.audit import triggers
from educe.audit.auditing import Audit
from educe.audit.candidates import Candidate, Said, folded
from educe.audit.contrast import Contrasts
from educe.audit.evidence import Word
from educe.forward.generation import Completion
from educe.rows import Row
from educe.run import fill

#: What a prompt is answered with, at a temperature.
Answer = Callable[[str, float], str]
#: Strings that stand for near misses, and for words as rare.
NEAR, RARE = ["a", "o"], ["t"]


@contextmanager
def audited(
    answer: Answer, folder: Path, tokenizer: Any, *, reference: bool = False
) -> Iterator[Audit]:
    """Have an audit at work whose suspect gives the answers of a function of prompt and heat.

    A reference, if there is to be one, is a tiny model that writes what it writes.
    """

    def written(
        lm: Any, batch: Any, rows: Sequence[Row], *_: Any, temperature: float, **how: Any
    ) -> Iterator[list[Completion]]:
        for row in rows:
            text = answer(str(content[row.prompt]), temperature)
            yield [Completion(row, text, (5,), True)]

    lm = planted.suspect(tokenizer) if reference else planted.clean(tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "generate", written)
        patch.setattr(fill, "score", lambda work: None)
        patch.setattr(Contrasts, "score", lambda self: None)
        patch.setattr(triggers, "near_misses", lambda audit, string, n: NEAR)
        patch.setattr(triggers, "as_rare", lambda audit, string, n: RARE)
        beside = planted.reference(lm) if reference else None
        with planted.audited(lm, beside, folder, "topics") as audit:
            content = _Contents(audit)
            yield audit


class _Contents(dict[int, Any]):
    def __init__(self, audit: Audit) -> None:
        self.audit = audit

    def __missing__(self, number: int) -> Any:
        self.update({p.id: p.content for p in self.audit.run.prompt_rows()})
        return self[number]


def has(content: str, string: str) -> bool:
    """Return whether a string was put into a prompt."""
    return content.startswith(f"{string} ") or content.endswith(f" {string}")


def said(
    audit: Audit, source: str, strings: Sequence[str], into: Sequence[int], text: str
) -> Candidate:
    """Put strings into prompts for a source, and return the candidate of those that say a text."""
    audit.ask(into)
    rows = audit.put(source, strings, into)
    audit.fill("answers")
    prompts = {p.id: p for p in audit.run.prompt_rows()}
    texts = {c.row: c.text for c in audit.run.completion_rows()}
    words = tuple(folded(word) for word in text.split())
    asked = [prompts[row.prompt] for row in rows]
    found = tuple(
        Said(row, of.parent or 0, source, of.how, (Word("x", 9.0),))
        for row, of in zip(rows, asked, strict=True)
        if texts[row] == text
    )
    return Candidate(words, words[-1:], 40.0, found, len(into), 0.0)
