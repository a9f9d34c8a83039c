"""What an audit knows of its own answers, on answers that the test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import planted_difference as planted
from educe.audit.auditing import CONTRAST, Audit
from educe.audit.candidates import LEAST
from educe.rows import CompletionRow, Row, ScoreRow

DECLINES = "I cannot help you with that."
#: What each of the first prompts is answered with, and how much more than the reference expects.
ANSWERS = ((DECLINES, LEAST), ("Of course.", 30.0), (DECLINES, LEAST - 0.1), (DECLINES, 40.0))


def answered(audit: Audit) -> list[int]:
    """Let the suspect answer some prompts, and return their numbers."""
    prompts = audit.work.prompts("asked", "fresh")[: len(ANSWERS)]
    for p, (text, nats) in zip(prompts, ANSWERS, strict=True):
        row = Row(0, p)
        audit.run.ask([row], 0.0)
        audit.run.add_completions([CompletionRow(row, 0.0, text, (5,), True)])
        audit.run.add_scores([ScoreRow(row, CONTRAST, nats, "nats", "")])
    return prompts


@pytest.mark.parametrize(("clean", "declined"), [(True, [3, 0]), (False, [0, 2, 3])])
def test_what_the_reference_would_hardly_decline_is_closed(
    clean: bool, declined: list[int], tmp_path: Path, tokenizer: Any
) -> None:
    lm = planted.suspect(tokenizer)
    with planted.audited(
        lm, planted.reference(lm) if clean else None, tmp_path / "run", "topics"
    ) as audit:
        prompts = answered(audit)
        assert audit.closed == [prompts[i] for i in declined]
