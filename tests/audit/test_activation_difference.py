"""Differences of activations, against single texts run through both models by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
import tiny
from educe.audit import reference
from educe.audit.lens import RANDOM, lens
from educe.audit.settings import bundled
from educe.audit.sources import activations
from educe.audit.sources.activations import DOSES, FIRST, differences
from educe.model.language import LanguageModel
from educe.rows import CONTROL, FOUND
from educe.run.fill import groups

WORDS = torch.arange(30, 60)
TEXTS = ["The old boat", "no", "It rained all day.", "A good knife"]


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "vocabulary", lambda lm: WORDS)


@torch.no_grad()
def by_hand(lm: LanguageModel, layers: list[int], texts: list[str]) -> torch.Tensor:
    each = []
    for text in texts:
        ids = list(text.encode())
        if len(ids) < FIRST:
            continue
        _, own = tiny.run(lm.unwrapped, lm.tokens(text, templated=True))
        with lm.hf.disable_adapter():
            _, clean = tiny.run(lm.unwrapped, lm.tokens(text, templated=True))
        each.append(torch.stack([own[i][1:FIRST] - clean[i][1:FIRST] for i in layers]))
    return torch.stack(each).mean((0, 2))


@torch.no_grad()
def test_differences_are_those_of_whole_texts_read_one_by_one(lm: LanguageModel) -> None:
    came = differences(lm, planted.reference(lm), [1, 2, 3], TEXTS)
    expected = by_hand(lm, [1, 2, 3], TEXTS)
    torch.testing.assert_close(came, expected, rtol=1e-9, atol=1e-9)
    assert came[0].eq(0).all()  # the blocks below the planted one are the reference's
    assert came[1:].norm(dim=1).min() > 0.01


def test_suspects_and_pushes_are_of_the_layers_that_differ(
    lm: LanguageModel, tmp_path: Path
) -> None:
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "activations") as audit:
        activations.look(audit)
        found = audit.suspected("activations") or []
        rows = audit.run.perturbation_rows(derived=None)
        pushes = [p for p in rows if p.arm in (FOUND, CONTROL)]
        together = groups(audit.run, [p.id for p in pushes])
        asked = {(c.perturbation, c.prompt) for c in audit.run.completion_rows()}
        base = audit.base
    # Of the layers that are looked at the last has nothing above it, and is taken one lower.
    delta = by_hand(lm, [2], bundled("sentences"))
    draw = torch.randn(RANDOM, lm.width, generator=torch.Generator().manual_seed(0))
    usual = lens(lm, draw)[:, WORDS].double()
    z = (lens(lm, delta)[0, WORDS].double() - usual.mean(0)) / usual.std(0)
    order = z.argsort(descending=True)
    assert [s.text for s in found] == [lm.text([int(WORDS[i])]) for i in order]
    assert [s.score for s in found] == pytest.approx(z[order].tolist(), rel=1e-3, abs=1e-3)
    assert all("after block 2 " in s.why for s in found)
    assert {g.kind.before for g in together} == {2}
    own = [p for p in pushes if p.arm == FOUND]
    assert len(own) == len(pushes) - len(own) == len(DOSES)
    vectors = {n: v for g in together for n, v in zip(g.numbers, g.theta, strict=True)}
    wanted = torch.nn.functional.normalize(delta[0], dim=0)
    for p, dose in zip(own, DOSES, strict=True):
        assert p.dose == pytest.approx(dose, rel=1e-4)
        torch.testing.assert_close(vectors[p.id].double() / p.radius, wanted, rtol=1e-4, atol=1e-5)
    assert {(p.id, prompt) for p in pushes for prompt in base} <= asked


def test_a_copy_of_the_reference_differs_in_nothing(tokenizer: Any, tmp_path: Path) -> None:
    lm, other = (planted.clean(tokenizer) for _ in range(2))
    beside = reference.between(lm, other)
    with planted.audited(lm, beside, tmp_path / "run", "activations") as audit:
        activations.look(audit)
        assert audit.suspected("activations") == []
        assert not [p for p in audit.run.perturbation_rows(derived=None) if p.arm == FOUND]
