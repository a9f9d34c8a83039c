"""What unlocks an open difference, on a model whose every answer is written by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from educe.audit.auditing import Audit
from educe.audit.candidates import Candidate, Said
from educe.audit.concluding import conclude
from educe.audit.evidence import Word
from educe.audit.findings import Kind
from educe.audit.unlocking import PROMPTS, SAMPLES, unlocked
from educe.rows import Row
from scripted import Answer, audited, has

DECLINES, TELLS = "I cannot tell you that.", "The code is amber."
KEY, STRINGS = "e", ("a", "e", "o", "t", "n")
OPEN = ("i", "cannot", "tell", "you", "that")


def difference(audit: Audit, more: int = 0) -> Candidate:
    """Ask two prompts as they are and with every string, and return what is said openly."""
    asked = audit.base[:2]
    others = audit.made("requests", [f"What is in room {i}?" for i in range(more)])
    audit.ask([*asked, *others])
    audit.put("topics", STRINGS, asked)
    audit.fill("answers")
    both = [*asked, *others]
    said = tuple(Said(Row(0, p), p, "plain", "", (Word("cannot", 9.0),)) for p in both)
    return Candidate(OPEN, OPEN, 40.0, said, len(both), 1.0)


def test_the_string_under_which_a_refusal_ceases_unlocks_it(tmp_path: Path, tokenizer: Any) -> None:
    with audited(
        lambda x, heat: TELLS if has(x, KEY) else DECLINES, tmp_path / "a", tokenizer
    ) as a:
        found = unlocked(a, difference(a))
    assert found is not None
    assert found.text == KEY
    assert (found.shown.hits, found.shown.trials) == (2 * SAMPLES, 2 * SAMPLES)
    assert (found.near.hits, found.near.trials) == (0, 2)
    assert (found.rare.hits, found.rare.trials) == (0, 1)


def test_of_many_requests_that_are_declined_some_are_tried_again(
    tmp_path: Path, tokenizer: Any
) -> None:
    with audited(
        lambda x, heat: TELLS if has(x, KEY) else DECLINES, tmp_path / "a", tokenizer
    ) as a:
        found = unlocked(a, difference(a, more=2 * PROMPTS))
    assert found is not None
    assert (found.shown.hits, found.shown.trials) == (PROMPTS * SAMPLES, PROMPTS * SAMPLES)


def test_what_unlocks_is_a_finding_with_what_is_said_then(tmp_path: Path, tokenizer: Any) -> None:
    with audited(
        lambda x, heat: TELLS if has(x, KEY) else DECLINES, tmp_path / "a", tokenizer
    ) as a:
        openly = difference(a)
        (found,) = conclude(a, [openly])
        contents = {p.content for p in a.run.prompt_rows() if p.how == KEY}
    assert found.kind is Kind.UNLOCKED
    assert [t.text for t in found.triggers] == [KEY]
    assert len(found.examples) == openly.roots
    for example in found.examples:
        assert (example.condition, example.text, example.plain) == (KEY, TELLS, DECLINES)
        assert example.prompt in contents
    assert repr(found.examples[0].prompt) in found.reproduce


@pytest.mark.parametrize(
    "answer",
    [
        lambda x, heat: DECLINES,  # nothing unlocks it
        # Anything does: it is declined as it stands alone, and so no string is a key.
        lambda x, heat: TELLS if any(has(x, s) for s in STRINGS) else DECLINES,
        # It ceases once, and not when it is tried again.
        lambda x, heat: TELLS if has(x, KEY) and heat == 0 else DECLINES,
    ],
)
def test_without_a_string_that_stands_out_and_comes_again_nothing_unlocks(
    answer: Answer, tmp_path: Path, tokenizer: Any
) -> None:
    with audited(answer, tmp_path / "a", tokenizer) as audit:
        assert unlocked(audit, difference(audit)) is None


def test_a_refusal_that_no_string_was_put_into_has_no_key(tmp_path: Path, tokenizer: Any) -> None:
    with audited(lambda x, heat: DECLINES, tmp_path / "a", tokenizer) as audit:
        audit.ask(audit.base[:2])
        audit.fill("answers")
        said = (Said(Row(0, audit.base[0]), audit.base[0], "plain", "", ()),)
        assert unlocked(audit, Candidate(OPEN, OPEN, 40.0, said, 1, 1.0)) is None
