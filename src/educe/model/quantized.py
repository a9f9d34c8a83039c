"""Quantized weights, by bitsandbytes: they stay in 4 or 8 bits, and products with them are plain.

bitsandbytes' own matrix products have no forward-mode derivatives, on a processor no derivatives at
all, and those of 8 bits round a token's activations by what other tokens have. So each is replaced
by the product with the weights that its bits stand for, in the type of the activations.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from educe.errors import ModelError


def quantization(four: bool, eight: bool, other: Any = None) -> Any:
    """Return how the weights of a model are quantized, for transformers; None if they are not.

    Args:
        four: Whether to 4 bits.
        eight: Whether to 8 bits.
        other: A configuration of transformers, instead.

    Raises:
        ModelError: More than one is asked for, or bitsandbytes is missing.
    """
    if not (four or eight):
        return other
    if (four and eight) or other is not None:
        raise ModelError(
            "weights are quantized in one way: give load_in_4bit, load_in_8bit, or a "
            "quantization_config"
        )
    if find_spec("bitsandbytes") is None:
        option = "load_in_4bit" if four else "load_in_8bit"
        raise ModelError(f"{option} needs bitsandbytes: pip install 'educe[quantized]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=eight)


def make_plain(hf: nn.Module) -> None:
    """Let every matrix that bitsandbytes has quantized be multiplied in the plain way."""
    if getattr(hf, "quantization_method", None) != "bitsandbytes":
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in hf.modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            inner = "_old_forward" if hasattr(module, "_old_forward") else "forward"  # accelerate's
            setattr(module, inner, partial(_product, module))


def _product(module: Any, x: Tensor) -> Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None))
    bias = module.bias
    return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
