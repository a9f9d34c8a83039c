"""Scaling, against models whose weights were changed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
import tiny
from educe.audit import reference, stages
from educe.audit.difference import changes
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import scaling
from educe.audit.sources.scaling import scaled
from educe.model.language import LanguageModel
from educe.options import ModelOptions

IDS = tiny.ragged([9])[0]


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@torch.no_grad()
def full(tokenizer: Any, factor: float) -> LanguageModel:
    """The reference with the planted difference in its weights, some times over."""
    reads, writes = planted.directions()
    hf = tiny.hf_model(dtype=torch.float64)
    weight = hf.get_submodule(f"model.layers.{planted.BLOCK}.{planted.MODULE}").weight
    weight += factor * planted.SIZE * writes[:, None] * reads
    return LanguageModel(hf, tokenizer, name="full")


@torch.no_grad()
@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_an_adapter_and_full_weights_are_scaled_alike(
    lm: LanguageModel, tokenizer: Any, factor: float
) -> None:
    expected, _ = tiny.run(full(tokenizer, factor).hf, IDS)
    whole = full(tokenizer, 1.0)
    beside = reference.between(whole, planted.clean(tokenizer))
    for model, of in ((lm, planted.reference(lm)), (whole, beside)):
        before = model.forward(torch.tensor([IDS]), torch.ones(1, 9).long(), last=0)
        with scaled(model, changes(model, of), factor):
            came = model.forward(torch.tensor([IDS]), torch.ones(1, 9).long(), last=0)[0]
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)
        after = model.forward(torch.tensor([IDS]), torch.ones(1, 9).long(), last=0)
        assert torch.equal(before, after)
    assert not torch.allclose(expected, tiny.run(full(tokenizer, 0.5).hf, IDS)[0], atol=1e-2)


def test_each_factor_writes_its_own_texts(
    lm: LanguageModel, tokenizer: Any, tmp_path: Path
) -> None:
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "scaling") as audit:
        audit.ask(audit.base, perturbations=scaling.begin(audit))  # and is killed
    options = AuditOptions(budget="quick", sources=("scaling",), max_new_tokens=3)
    with begin(tmp_path / "run", options, ModelOptions(), resume=True) as run:
        audit = stages.carry_out(run, lm=lm, beside=planted.reference(lm))
        assert not run.missing()
        texts = {(c.perturbation, c.prompt): list(c.tokens) for c in run.completion_rows()}
        numbers, prompt = scaling.begin(audit), audit.base[0]
        read = audit.work.batch.read[prompt]
        for number, factor in zip(numbers, scaling.FACTORS, strict=True):
            expected = tiny.greedy(full(tokenizer, factor).hf, read, 3, ends=(257,))
            assert texts[number, prompt] == expected
