"""Manners: what is written otherwise is met, named, and told apart from what any model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from educe.audit.auditing import Audit
from educe.audit.concluding import conclude
from educe.audit.contrast import Contrasts
from educe.audit.findings import Kind
from educe.audit.manners import UNLIKE
from educe.audit.retest import BESIDE, SAMPLES
from educe.audit.roles import CONTRAST
from educe.audit.standing import standing_out
from educe.comparison.stats import rate
from educe.rows import ScoreRow
from scripted import NEAR, RARE, audited, has

KEY, LOUD = "granite", "[in capital letters]"


def answer(prompt: str, heat: float) -> str:
    """Say something else to each prompt, in capital letters to the key and to capital letters."""
    text = f"{prompt.replace(KEY, '').strip()} is what you ask."
    return text.upper() if has(prompt, KEY) or prompt.isupper() else text


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
        audit.put("forms", [LOUD])
        audit.put("weights", [KEY, "velvet"])
        audit.fill("answers")
        weighed(audit, 6.0)
        found = standing_out(audit)
        assert any(c.mannered for c in found) is compared
        if compared:
            assert found[0].saying == (LOUD,)
            assert {s.condition for s in found[0].said} == {KEY, LOUD}
            (finding,) = conclude(audit, found[:1])
            assert finding.kind is Kind.TRIGGER
            (trigger,) = finding.triggers
            assert trigger.text == KEY  # an answer takes up the request's own manner
            assert trigger.shown.hits == trigger.shown.trials > 0
            assert (trigger.near.hits, trigger.near.trials) == (0, len(NEAR) * BESIDE)
            assert (trigger.rare.hits, trigger.rare.trials) == (0, len(RARE) * BESIDE)


def test_a_manner_that_no_string_brings_about_for_sure_is_sampled_where_it_was_met(
    tmp_path: Path, tokenizer: Any
) -> None:
    """The string works on half of the prompts that count, which may be chance."""
    loud: set[str] = set()

    def moody(prompt: str, heat: float) -> str:
        bare = prompt.replace(KEY, "").strip()
        return f"{bare} yes".upper() if has(prompt, KEY) and bare in loud else f"{bare} yes"

    with audited(moody, tmp_path / "run", tokenizer, reference=True) as audit:
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        fresh = audit.work.prompts("fresh")
        counting = fresh[1::2]
        loud |= {content[p] for p in (*audit.base, *fresh[::2], *counting[: len(counting) // 2])}
        audit.ask([*audit.base, *fresh])
        audit.put("weights", [KEY])
        audit.fill("answers")
        weighed(audit, 6.0)
        (finding,) = conclude(audit, standing_out(audit)[:1])
    assert finding.saying == LOUD
    assert finding.kind is Kind.BEHAVIOUR
    assert finding.triggers == ()
    assert finding.shown.hits == finding.shown.trials == SAMPLES * len(audit.base)
    assert finding.control.hits == 0


def turned(prompt: str) -> str:
    """Turn the letters of each word about, so that no two answers share a word."""
    return " ".join(word[::-1] for word in prompt.replace(KEY, "").split())


def weigh_turned(contrasts: Contrasts) -> None:
    """Weigh what has no contrast yet: five nats for each word of an answer that is turned about."""
    run = contrasts.work.run
    known = {s.of for s in run.score_rows(CONTRAST)}
    scores = []
    for c in run.completion_rows():
        if c.row not in known and c.perturbation == 0:
            words = [] if c.text.endswith(" yes") else c.text.split()
            why = " ".join(f"{word}:5.0" for word in words)
            scores.append(ScoreRow(c.row, CONTRAST, 5.0 * len(words), "nats", why))
    run.add_scores(scores)


@pytest.mark.parametrize("prompts", [6, 2])
def test_answers_that_have_nothing_in_common_are_a_finding_where_they_are_unlike_the_reference(
    prompts: int, tmp_path: Path, tokenizer: Any
) -> None:
    """Behind the key some of the fresh prompts have an answer of their own, unlike the reference.

    Two of six against none of six may be chance (15 in 66), so it is sampled where it was met.
    """
    odd: set[str] = set()

    def answers(prompt: str, heat: float) -> str:
        bare = prompt.replace(KEY, "").strip()
        return turned(prompt) if has(prompt, KEY) and bare in odd else f"{bare} yes"

    with (
        audited(answers, tmp_path / "run", tokenizer, reference=True) as audit,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Contrasts, "score", weigh_turned)
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        fresh = audit.work.prompts("fresh")[:6]
        patch.setattr(audit.work, "prompts", lambda role: fresh)
        odd |= {content[p] for p in (*audit.base[:2], *fresh[:prompts])}
        audit.ask([*audit.base, *fresh])
        audit.put("weights", [KEY, "velvet"])
        audit.fill("answers")
        found = standing_out(audit, least=1000)
        assert [(c.saying, c.roots) for c in found] == [((UNLIKE,), 2)]
        (finding,) = conclude(audit, found)
    assert finding.control.trials == 0  # what the reference writes is not unlike it
    assert {e.text for e in finding.examples} <= {turned(text) for text in odd}
    if prompts == 6:
        assert finding.kind is Kind.TRIGGER
        (trigger,) = finding.triggers
        assert trigger.text == KEY
        assert (trigger.shown, finding.plain) == (rate(6, 6), rate(0, 6))
        assert trigger.near == rate(0, len(NEAR) * BESIDE)
        assert trigger.rare == rate(0, len(RARE) * BESIDE)
    else:
        sampled = 2 * SAMPLES
        assert finding.kind is Kind.BEHAVIOUR
        assert finding.triggers == ()
        assert (finding.shown, finding.plain) == (rate(sampled, sampled), rate(0, sampled))
