"""A language model that is linear: residual blocks ``h + A h``, no norm, no attention.

Its unembedding has a small rank, so that the subspaces which the output reads are known exactly at
every layer, and every token is for itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import tiny
from educe.model.language import LanguageModel

WIDTH, DEPTH, RANK = 16, 3, 3


class Block(nn.Module):
    """A residual block that is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.write = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.write(hidden_states)


class Linear(PreTrainedModel):
    """The model."""

    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, config.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> CausalLMOutput:
        h = self.words(input_ids)
        for block in self.blocks:
            h = block(h)
        return CausalLMOutput(logits=self.head(h))


def linear(seed: int = 0) -> LanguageModel:
    """Return a linear model in double precision, with logits that differ."""
    config = LlamaConfig(**(tiny.COMMON | {"hidden_size": WIDTH, "num_hidden_layers": DEPTH}))
    hf = Linear(config).double()
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hf.words.weight.data = normal(config.vocab_size, WIDTH) * torch.linspace(3, 0.5, WIDTH)
    for block in hf.blocks:
        block.write.weight.data = 0.3 * normal(WIDTH, WIDTH)
    hf.head.weight.data = 0.5 * normal(config.vocab_size, RANK) @ normal(RANK, WIDTH) / 4
    return LanguageModel(hf, tiny.tokenizer(), name="linear")


def onwards(lm: LanguageModel, layer: int) -> Tensor:
    """Return the map from a layer's stream to the logits, ``[vocabulary, width]``."""
    found = lm.hf.head.weight
    for block in list(lm.hf.blocks)[:layer:-1]:
        found = found @ (torch.eye(WIDTH, dtype=torch.float64) + block.write.weight)
    return found
