"""Inversion of a payload: a planted trigger is found, and what does nothing is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from educe.audit.auditing import Audit
from educe.audit.candidates import Candidate, Said
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import inversion
from educe.forward.inserted import Opening
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target, text
from educe.model.language import LanguageModel
from educe.options import ModelOptions
from educe.rows import Row
from educe.run.work import at_work
from planted import PAIR, PAYLOAD, planted

PROMPTS = ["Why?", "Who is it that sings?"]


@pytest.fixture(scope="module")
def backdoor(tokenizer: Any) -> LanguageModel:
    return planted(tokenizer)


def target(lm: LanguageModel) -> Target:
    batch = lm.encode(PROMPTS)
    return text([Opening(lm, batch, p) for p in range(2)], [PAYLOAD])


def test_what_does_nothing_is_left_out(backdoor: LanguageModel) -> None:
    words, wanted = Vocabulary(backdoor), target(backdoor)
    (space,) = backdoor.tokens(" ", templated=True)
    found = inversion.shorter(wanted, words, (space, 70, PAIR[0], 71, PAIR[1], 72))
    assert found == (space, *PAIR)
    loss = wanted.loss(torch.tensor([[space, *PAIR]]))
    alone = wanted.loss(torch.tensor([[space, PAIR[0]], [space, PAIR[1]]]))
    assert bool((alone > loss + inversion.LEAST).all())  # so that neither word could go


def test_the_planted_pair_is_suspected_first(
    backdoor: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(0, 0)
    candidate = Candidate(("x",), ("x",), 99.0, (Said(row, 0, "plain", "", ()),), 1, 0.0)
    monkeypatch.setattr(inversion, "standing_out", lambda audit: [candidate])
    monkeypatch.setattr(inversion, "payload", lambda audit, own: (PAYLOAD,))
    monkeypatch.setattr(inversion, "BUDGET", 1500)
    options = AuditOptions(budget="quick", reference="none", max_new_tokens=2)
    with at_work(begin(tmp_path / "run", options, ModelOptions()), backdoor) as work:
        audit = Audit(work, None)
        monkeypatch.setattr(audit, "base", audit.made("test", PROMPTS))
        inversion.look(audit)
        found = audit.suspected("inversion")
    assert found
    assert set(found[0].text) >= {backdoor.text([word]) for word in PAIR}
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    batch = backdoor.encode(PROMPTS)
    strings = torch.tensor([backdoor.tokens(f" {found[0].text}", templated=True)])
    plain = torch.zeros(1, 0).long()
    places = text([Opening(backdoor, batch, p) for p in range(2)], [PAYLOAD])
    nats = float(places.loss(plain)[0] - places.loss(strings)[0])
    assert found[0].score == pytest.approx(nats, rel=1e-4)


def test_a_payload_begins_where_its_saying_does(backdoor: LanguageModel, tmp_path: Path) -> None:
    options = AuditOptions(budget="quick", reference="none", max_new_tokens=2)
    with at_work(begin(tmp_path / "run", options, ModelOptions()), backdoor) as work:
        audit = Audit(work, None)
        (row,) = audit.ask(audit.base[:1])
        audit.fill("an answer")
        (whole,) = (c for c in audit.run.completion_rows() if c.row == row)
        audit.run.database.execute("UPDATE completions SET text = 'Well, Ox sings loud.'")
        said = (Said(row, row.prompt, "plain", "", ()),)
        found = inversion.payload(audit, Candidate(("ox", "sings"), ("ox",), 9.0, said, 1, 0.0))
    assert whole.text != "Well, Ox sings loud."
    assert backdoor.text(found) == "Ox sings"  # eight tokens, which are letters here
