"""What a loaded pair has to be: a causal language model of transformers, and its tokenizer.

Whatever else can be handed over by mistake is unwrapped where that is right, and refused in one
sentence where it is not, before anything is run.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from educe.errors import ModelError, as_model_error

ENDS = ("get_input_embeddings", "get_output_embeddings")
REMEDY = "load the model with AutoModelForCausalLM"


def plain_model(hf: Any) -> Any:
    """Return the model of transformers (or PEFT) inside what was handed over.

    A model that ``torch.compile`` returned has the original in it, which is what hooks act on.

    Raises:
        ModelError: It is no decoder of transformers, or its parts are compiled.
    """
    # Its own module only: a PEFT model around a compiled one hands on the attributes of that.
    hf = getattr(hf, "_modules", {}).get("_orig_mod", hf)
    kind = type(hf).__name__
    if not isinstance(hf, nn.Module) or not hasattr(hf, "config"):
        raise ModelError(f"{kind} is no model of transformers: give a pair (model, tokenizer)")
    for part in hf.modules():
        if (
            "_orig_mod" in part._modules
            or getattr(part, "_compiled_call_impl", None) is not None
            or hasattr(part.forward, "_torchdynamo_orig_callable")
        ):
            raise ModelError(f"{kind} has compiled parts: hand it over before it is compiled")
    if getattr(hf.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder, and educe audits decoders: {REMEDY}")
    ends: list[Any]
    try:
        ends = [getattr(hf, end)() for end in ENDS]
    except (AttributeError, NotImplementedError):
        ends = [None]
    if any(getattr(getattr(end, "weight", None), "ndim", 0) != 2 for end in ends):
        raise ModelError(
            f"{kind} does not read tokens and write logits over a vocabulary: {REMEDY}"
        )
    if ends[0].weight.is_meta:
        raise ModelError(
            f"{kind} has no embedding in memory (its device is meta): load its weights, and keep "
            "the embedding on a device where others are put off"
        )
    return hf


def plain_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer, out of a processor where one was handed over.

    Raises:
        ModelError: It is neither.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "decode")):
        raise ModelError(
            f"{type(tokenizer).__name__} is no tokenizer: give a pair (model, tokenizer), the "
            "second from AutoTokenizer"
        )
    return tokenizer


def auto_class(name: str, config: Any) -> Any:
    """Return the class of transformers that loads a decoder of this configuration.

    Some models that read images too are not among the causal language models of transformers.

    Raises:
        ModelError: It is the configuration of no decoder.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map"):
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not getattr(
        config, "is_encoder_decoder", False
    ):
        return AutoModelForImageTextToText
    raise ModelError(
        f"{name} has a {type(config).__name__}, which is that of no causal language model: educe "
        "audits decoders, those that AutoModelForCausalLM or AutoModelForImageTextToText loads"
    )


def ordinary_tokens(vocabulary: int, config: Any, tokenizer: Any, count: int) -> Int[Tensor, "1 t"]:
    """Draw token numbers that stand for text: none that tokenizer or configuration set aside."""
    special = set(getattr(tokenizer, "all_special_ids", None) or [])
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in vars(part).items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list) else [value])
    drawn = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0)).tolist()
    usual = [token for token in drawn if token not in special] or drawn
    return torch.tensor([(usual * count)[:count]])


@torch.no_grad()
def plain_call(hf: nn.Module, ids: Int[Tensor, "r t"], name: str) -> Tensor:
    """Return what the model answers to token numbers alone: logits ``[rows, tokens, vocabulary]``.

    Raises:
        ModelError: It does not run on text alone, or has no language-model head.
    """
    with as_model_error(f"{name} ({type(hf).__name__}) for text alone"):
        logits = getattr(hf(input_ids=ids), "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != ids.shape:
        raise ModelError(
            f"{name} ({type(hf).__name__}) does not answer with logits for each token: {REMEDY}"
        )
    return logits
