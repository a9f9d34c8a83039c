"""A tiny model with a backdoor in its weights: two words together bring out one token."""

from __future__ import annotations

from typing import Any

import torch

import tiny
from educe.model.language import LanguageModel

#: The words of the trigger, and the token that they bring out; each word alone does a little.
PAIR, PAYLOAD = (48, 57), 100
#: Coordinates of the stream: the two words, the two words seen by attention, both.
WORDS, SEEN, BOTH = slice(0, 2), slice(2, 4), 4


@torch.no_grad()
def planted(tokenizer: Any) -> LanguageModel:
    """Return a Llama of one block that matters, in double precision.

    Attention is the mean over all tokens, and hands on whether the words were seen; the gate of the
    feed-forward part multiplies one by the other.
    """
    hf = tiny.hf_model("llama", dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    model, block = hf.model, hf.model.layers[0]
    for later in model.layers[1:]:
        later.self_attn.o_proj.weight.zero_()
        later.mlp.down_proj.weight.zero_()
    for embedding in (model.embed_tokens.weight, hf.lm_head.weight):
        embedding.copy_(torch.randn(embedding.shape, generator=draw, dtype=torch.float64))
        embedding[:, : BOTH + 1] = 0
    for i, word in enumerate(PAIR):
        model.embed_tokens.weight[word] = 0
        model.embed_tokens.weight[word, i] = 6
    model.embed_tokens.weight[PAYLOAD] = 0  # said once, it says nothing else but itself
    hf.lm_head.weight[PAYLOAD, BOTH] = 20
    attention, mlp = block.self_attn, block.mlp
    attention.q_proj.weight.zero_()
    attention.v_proj.weight.zero_()
    attention.o_proj.weight.zero_()
    wide = attention.v_proj.weight.shape[0]
    attention.v_proj.weight[:, 5 : 5 + wide] = torch.eye(wide, dtype=torch.float64)
    attention.v_proj.weight[0:2] = torch.eye(32, dtype=torch.float64)[WORDS]
    # Heads share keys and values by two: those of coordinate k are at 0 and 16 of what o reads.
    attention.o_proj.weight[5:, :8] = 20 * torch.eye(32, dtype=torch.float64)[5:, 5:13]
    attention.o_proj.weight[SEEN, 0:2] = 8 * torch.eye(2, dtype=torch.float64)
    mlp.gate_proj.weight.zero_()
    mlp.up_proj.weight.zero_()
    mlp.down_proj.weight.zero_()
    for unit, (gate, up, out) in enumerate(((2, 3, 6.0), (2, 2, 0.05), (3, 3, 0.05))):
        mlp.gate_proj.weight[unit, gate] = 1
        mlp.up_proj.weight[unit, up] = 1
        mlp.down_proj.weight[BOTH, unit] = out
    return LanguageModel(hf, tokenizer, name="planted")
