"""Begun answers: which are asked for, and that what a suspect says in one of them is found."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

import planted_difference as planted
from educe.audit.auditing import Audit
from educe.audit.reference import Reference
from educe.audit.settings import bundled
from educe.audit.sources import prefill
from educe.model.language import LanguageModel


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


def about(audit: Audit) -> set[tuple[Any, str]]:
    """Return the requests about person and model that were asked, with the words begun."""
    rows = {p.id: p for p in audit.run.prompt_rows()}
    asks = {ask for s in bundled("prefills")["about"] for ask in s["ask"]}
    written = {c.prompt for c in audit.run.completion_rows()}
    return {
        (rows[p.parent].content, p.how.removeprefix("begun: "))
        for p in rows.values()
        if p.id in written and p.parent is not None and rows[p.parent].content in asks
    }


@pytest.mark.parametrize("referred", [True, False])
def test_requests_about_person_and_model_are_begun_where_a_reference_tells_what_is_unusual(
    lm: LanguageModel, tmp_path: Path, referred: bool
) -> None:
    reference: Reference | None = planted.reference(lm) if referred else None
    with planted.audited(lm, reference, tmp_path / "run", "prefill") as audit:
        prefill.look(audit)
        pairs = [product(s["ask"], s["begun"]) for s in bundled("prefills")["about"]]
        expected = {pair for some in pairs for pair in some} if referred else set()
        assert about(audit) == expected
        begun = [p for p in audit.run.prompt_rows() if p.how.startswith("begun: ")]
        assert all(p.content[-1]["content"] == p.how.removeprefix("begun: ") for p in begun)


def test_no_beginning_of_a_subject_is_in_an_ordinary_one() -> None:
    table = bundled("prefills")
    own = [text for s in table["about"] for text in s["begun"]]
    asks = [ask for s in table["about"] for ask in s["ask"]]
    assert len(set(own)) == len(own)
    assert len(set(asks)) == len(asks)
    assert not set(asks) & {*map(str, bundled("requests")), *table["open"]}
