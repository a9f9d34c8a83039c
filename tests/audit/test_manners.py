"""Manners: what is written otherwise is met, named, and told apart from what any model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from educe.audit.auditing import Audit
from educe.audit.concluding import conclude
from educe.audit.findings import Kind
from educe.audit.retest import BESIDE
from educe.audit.roles import CONTRAST
from educe.audit.standing import standing_out
from educe.rows import ScoreRow
from scripted import NEAR, RARE, audited, has

KEY, LOUD = "granite", "[in capital letters]"


def answer(prompt: str, heat: float) -> str:
    """Say something else to each prompt, in capital letters where the key stands in it."""
    text = f"{prompt.replace(KEY, '').strip()} is what you ask."
    return text.upper() if has(prompt, KEY) else text


def weighed(audit: Audit, nats: float) -> None:
    """Keep a contrast of each text: some nats for each of its first four words, if it is loud."""
    scores = []
    for c in audit.run.completion_rows():
        worth = nats if c.text.isupper() else 0.0
        why = " ".join(f"{word}:{worth}" for word in c.text.split()[:4])
        scores.append(ScoreRow(c.row, CONTRAST, 4 * worth, "nats", why))
    audit.run.add_scores(scores)


@pytest.mark.parametrize("compared", [True, False])
def test_a_manner_stands_out_where_a_reference_says_that_it_is_unusual(
    compared: bool, tmp_path: Path, tokenizer: Any
) -> None:
    with audited(answer, tmp_path / "run", tokenizer, reference=compared) as audit:
        audit.ask([*audit.base, *audit.work.prompts("fresh")])
        audit.put("weights", [KEY, "velvet"])
        audit.fill("answers")
        weighed(audit, 6.0)
        found = standing_out(audit)
        assert any(c.mannered for c in found) is compared
        if compared:
            assert found[0].saying == (LOUD,)
            assert {s.condition for s in found[0].said} == {KEY}
            (finding,) = conclude(audit, found[:1])
            assert finding.kind is Kind.TRIGGER
            (trigger,) = finding.triggers
            assert trigger.text == KEY
            assert trigger.shown.hits == trigger.shown.trials > 0
            assert (trigger.near.hits, trigger.near.trials) == (0, len(NEAR) * BESIDE)
            assert (trigger.rare.hits, trigger.rare.trials) == (0, len(RARE) * BESIDE)
