"""Adapters by other means than educe's: PEFT's own layers, on modules named here by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import tiny

# Output projections in a block: of the token mixer, and of the feed-forward part.
NAMES = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),  # matrices that are stored the other way round
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", ""),  # its fc2 takes tokens without their rows
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "phi3": ("self_attn.o_proj", "mlp.down_proj"),
    "olmo2": ("self_attn.o_proj", "mlp.down_proj"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "mixtral": ("self_attn.o_proj", ""),  # experts
}


def paths(architecture: str, hf: Any, blocks: range, projection: str) -> list[str]:
    name = NAMES[architecture][projection == "mlp"]
    return [f"{tiny.path(hf)}.{block}.{name}" for block in blocks]


def adapted(
    hf: Any, modules: list[str], a: list[Tensor], b: list[Tensor], radius: float, **more: Any
) -> Any:
    """Return a model with ``W + radius Σ_k b_k a_kᵀ`` for each module, by PEFT.

    Args:
        hf: A transformers model; a copy is changed.
        modules: Their names.
        a: Rows ``a_k`` for each module, ``[rank, inputs]``.
        b: Rows ``b_k`` for each module, ``[rank, width]``.
        radius: The factor.
        more: Goes to PEFT's configuration.
    """
    rank = len(a[0])
    # Another scale than educe's own folders have: here alpha / r is what it is to be.
    config = LoraConfig(r=rank, lora_alpha=radius * rank, target_modules=modules, **more)
    with torch.random.fork_rng():
        tuned = get_peft_model(copy.deepcopy(hf), config, autocast_adapter_dtype=False)
    for name, first, second in zip(modules, a, b, strict=True):
        layer = tuned.get_base_model().get_submodule(name)
        layer.lora_A["default"].weight.data = first.to(hf.dtype)
        layer.lora_B["default"].weight.data = second.T.to(hf.dtype)
    return tuned.eval()
