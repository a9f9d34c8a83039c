"""Signs, against whole prompts run by hand; and that none is a word that other sources try."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
from educe.audit.sources import signs
from educe.audit.sources.kl import PROMPTS
from educe.audit.sources.screen import apart, divergence
from educe.audit.sources.signs import SHARE
from educe.model.language import LanguageModel
from educe.progress import untold

STRINGS = ["river", "12 May", "~~", "🙂", "c d"]


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "signs", lambda: STRINGS)


def first(lm: LanguageModel, prompt: str, string: str, *, before: bool = False) -> torch.Tensor:
    """Return the log-probabilities of the first token of an answer, by a whole prompt."""
    both = f"{string} {prompt}" if before else f"{prompt} {string}".rstrip()
    ids = torch.tensor([lm.tokens(lm.render(both), templated=True)])
    with torch.no_grad():
        return lm.hf(input_ids=ids).logits[0, -1].log_softmax(-1).float()


def test_every_day_of_the_year_is_tried_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tried = signs.signs()
    assert max(Counter(tried).values()) == 1
    assert sum(s.split()[-1] in signs.DAYS for s in tried) == 366


def test_with_a_reference_they_are_ordered_by_how_far_they_move_it(
    lm: LanguageModel, tmp_path: Path
) -> None:
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "signs") as audit:
        signs.look(audit)
        found = audit.suspected("signs") or []
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        prompts = [content[p] for p in audit.base[:PROMPTS]]
        n = audit.size.words // SHARE
    expected = {}
    for string in STRINGS:
        total = 0.0
        for prompt, before in zip(prompts, (True, False), strict=True):
            p = first(lm, prompt, string, before=before)
            with lm.hf.disable_adapter():
                total += float(divergence(p, first(lm, prompt, string, before=before)))
        expected[string] = total / len(prompts)
    best = sorted(expected, key=lambda s: -expected[s])[:n]
    assert [s.text for s in found] == best
    assert [s.score for s in found] == pytest.approx([expected[s] for s in best], rel=1e-4)


def test_without_one_they_are_ordered_by_how_alike_they_make_answers(
    lm: LanguageModel, tmp_path: Path
) -> None:
    with planted.audited(lm, None, tmp_path / "run", "signs") as audit:
        scores = signs.alike(audit, STRINGS, untold)
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        screen = signs.screen.Screen(lm, audit.work.batch, audit.base)
        prompts = [
            next(content[i] for i in audit.base if torch.allclose(first(lm, content[i], ""), plain))
            for plain in screen.plain
        ]
    plain, places = torch.stack([first(lm, prompt, "") for prompt in prompts]), set()
    for string, score in zip(STRINGS, scores, strict=True):
        expected = []
        for before in (False, True):
            with_it = torch.stack([first(lm, p, string, before=before) for p in prompts])
            alike = max(0.0, float(apart(plain) - apart(with_it)))
            expected.append(float(divergence(with_it, plain).mean()) * alike)
        assert score == pytest.approx(max(expected), rel=1e-3, abs=1e-6)
        places.add(expected[0] < expected[1])
    assert max(scores) > 1e-4
    assert places == {True, False}
