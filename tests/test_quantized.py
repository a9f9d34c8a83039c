"""Quantized weights: the model is the plain one with the weights that its bits stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from educe.forward.slice import Slice
from educe.model import loading
from educe.model.language import LanguageModel

pytest.importorskip("bitsandbytes")

from transformers.integrations.bitsandbytes import dequantize_bnb_weight


def wide() -> Any:
    """A random model whose rows are whole blocks of 64, which bitsandbytes wants on a processor."""
    config = LlamaConfig(**tiny.COMMON | {"hidden_size": 64, "intermediate_size": 128})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["load_in_4bit", "load_in_8bit"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LanguageModel, LanguageModel]:
    """A quantized model, and one whose matrices are plain and hold the same numbers."""
    wide().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = loading.load(tmp_path, device="cpu", **{request.param: True})
    plain = wide()
    quantized = 0
    for name, module in lm.unwrapped.named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            own = plain.get_submodule(name)
            assert isinstance(own, nn.Linear)
            before = own.weight.detach().clone()
            state = getattr(module, "state", None)
            own.weight.data = dequantize_bnb_weight(module.weight, state=state).float()
            off = float((own.weight - before).abs().max() / before.abs().max())
            # At most half a step: of 127, in half precision; the widest of FP4, which is a third.
            assert 0 < off < (0.5 / 127 + 1e-3 if request.param == "load_in_8bit" else 0.17)
            quantized += 1
    assert quantized == 4 * 7
    return lm, loading.load((plain, tiny.tokenizer()))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.float(), b.float(), rtol=1e-3, atol=1e-5)


def test_it_says_what_the_plain_model_says(pair: tuple[LanguageModel, LanguageModel]) -> None:
    ids, mask = torch.tensor([tiny.ragged([9])[0]]), torch.ones(1, 9, dtype=torch.long)
    quantized, plain = (lm.forward(ids, mask, last=0) for lm in pair)
    close(quantized, plain)


def test_its_derivatives_are_those_of_the_plain_model(
    pair: tuple[LanguageModel, LanguageModel],
) -> None:
    v = torch.randn(2, pair[0].width, generator=torch.Generator().manual_seed(0))
    told = []
    for lm in pair:
        part = Slice(lm, lm.encode(["Tell me."]), source=0, target=2)
        effect, moved = part.jvp(0.1 * v, v)
        told.append((effect, moved, *part.vjp(0.1 * v, torch.ones_like(effect))))
    for quantized, plain in zip(*told, strict=True):
        assert plain.abs().max() > 1e-4
        close(quantized, plain)
