"""Perturbations as a source: what is searched and asked, and what a push adds, by brute force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from educe.audit.auditing import Audit
from educe.audit.roles import CONTRAST
from educe.audit.settings import SIZES, AuditOptions, begin
from educe.audit.sources import perturbations
from educe.methods import token_directions
from educe.model.language import LanguageModel
from educe.options import ModelOptions
from educe.perturbation.kinds import Vectors
from educe.rows import CONTROL, FOUND, CompletionRow, Row
from educe.run.fill import Group
from educe.run.work import at_work


@pytest.fixture
def audit(tiny64: LanguageModel, tmp_path: Path) -> Iterator[Audit]:
    options = AuditOptions(budget="quick", reference="none", max_new_tokens=3)
    run = begin(tmp_path / "run", options, ModelOptions())
    with at_work(run, tiny64) as work:
        yield Audit(work, None)
    run.close()


def test_likelihoods_under_a_push_are_those_of_plain_passes(audit: Audit) -> None:
    lm, kind = audit.lm, Vectors(1, audit.lm.width)
    v = torch.randn(2, lm.width, dtype=torch.float64)
    v /= v.norm(dim=1, keepdim=True)
    group = Group([5, 9], kind, v, torch.tensor([3.0, 4.0]))
    said = {(5, 0): (70, 71, 72), (5, 1): (), (9, 0): (80,), (9, 1): (90, 65)}
    texts = [
        CompletionRow(Row(i, audit.base[p]), 0.0, "", tokens, True)
        for (i, p), tokens in said.items()
    ]
    found = perturbations.under(lm, audit.work.batch, group, texts)
    for c in texts:
        prompt = audit.work.batch.read[c.prompt]
        line = group.numbers.index(c.perturbation)
        at = tiny.chosen("all", len(prompt), len(c.tokens))
        with torch.no_grad():
            logits, _ = tiny.run(
                lm.hf, [*prompt, *c.tokens], source=1, vector=group.theta[line], at=at
            )
        each = logits[len(prompt) - 1 : -1].log_softmax(-1)
        expected = [float(each[k, token]) for k, token in enumerate(c.tokens)]
        assert found[c] == pytest.approx(expected, rel=1e-9)


def test_every_family_answers_at_every_place_beside_its_control(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_directions, "vocabulary", lambda lm: torch.arange(40, 90))
    monkeypatch.setattr(perturbations, "PLACES", ((0.5, 0.8),))
    monkeypatch.setitem(SIZES, "quick", replace(SIZES["quick"], perturbations=2))
    monkeypatch.setattr(audit, "base", audit.base[:2])
    perturbations.look(audit)
    rows = audit.run.perturbation_rows(derived=None)
    assert len(perturbations.families(audit)) == 7
    assert Counter(p.arm for p in rows) == {FOUND: 7 * 2, CONTROL: 7 * 2}
    named = Counter(p.method for p in rows if p.arm == FOUND)
    assert named["dct inside 2-3"] == 2 == named["melbo 2-3"]
    beside = {p.method for p in rows if p.arm == CONTROL}
    assert beside == {f"random beside {name}" for name in named}
    texts = [c for c in audit.run.completion_rows() if c.perturbation]
    assert len(texts) == len(rows) * len(audit.base)
    scored = {s.of for s in audit.run.score_rows(CONTRAST)}
    assert {c.row for c in texts if c.tokens} <= scored
    # What was done stays: looking again, as after a process that was cut off, adds nothing.
    perturbations.look(audit)
    assert audit.run.perturbation_rows(derived=None) == rows
    assert len(audit.run.completion_rows()) == len(texts)
