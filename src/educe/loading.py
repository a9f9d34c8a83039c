"""Loading: a `LanguageModel` from a name, a folder, a file or a loaded pair.

What can be said is what transformers can be told; an adapter of PEFT stays beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from educe import embedded
from educe.errors import ModelError, as_model_error
from educe.model import LanguageModel
from educe.pair import auto_class
from educe.quiet import quiet


def load(
    model: str | Path | tuple[Any, Any] = "embedded",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Load a causal language model.

    Args:
        model: A Hub id, a folder, a ``.gguf`` file, ``"embedded"``, or a loaded pair
            ``(model, tokenizer)``.
        device: Where to put it; by default a GPU when there is one. Not with ``device_map``.
        dtype: As in transformers. ``"auto"`` is the checkpoint's own, but float32 on processors
            without bfloat16 instructions, where bfloat16 is 8 to 40 times slower.
        device_map: As in transformers.
        revision: As in transformers.
        attn_implementation: As in transformers.
        quantization_config: As in transformers.
        adapter: A folder or Hub id of a PEFT adapter, loaded beside the weights, never merged.
        trust_remote_code: As in transformers.
        progress: Called with one sentence at each slow step.

    Raises:
        ModelError: The model or adapter cannot be found or loaded, or is no stack of blocks.
    """
    if isinstance(model, tuple):
        hf, tokenizer = model
        name = getattr(getattr(hf, "config", None), "_name_or_path", "") or type(hf).__name__
    else:
        from transformers import AutoConfig, AutoTokenizer

        name = str(model)
        place = str(embedded.folder(progress=progress)) if name == "embedded" else name
        if place.startswith(("/", ".", "~")) and not Path(place).exists():
            raise ModelError(f"there is no file or folder {place}")
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        if place.endswith(".gguf"):
            if not Path(place).is_file():
                raise ModelError(f"there is no file {place}")
            place, options["gguf_file"] = str(Path(place).parent), Path(place).name
        device = device or _default_device()
        with quiet(), as_model_error(name):
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            made = auto_class(name, AutoConfig.from_pretrained(place, **options))
            hf = made.from_pretrained(
                place,
                **options,
                dtype=_dtype(dtype, device if device_map is None else None),
                device_map=device_map,
                attn_implementation=attn_implementation,
                **({"quantization_config": quantization_config} if quantization_config else {}),
            )
            if "gguf_file" in options:
                embedded.forget_quantisation(hf)
    if device is not None and device_map is None and quantization_config is None:
        with as_model_error(f"{name} on {device}"):
            hf = hf.to(device)
    if adapter is not None:
        from peft import PeftModel

        with quiet(), as_model_error(f"the adapter {adapter}"):
            hf = PeftModel.from_pretrained(hf, str(adapter))
    return LanguageModel(
        hf,
        tokenizer,
        name=name,
        revision=revision,
        adapter=str(adapter) if adapter is not None else None,
    )


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(dtype: str | torch.dtype, device: str | torch.device | None) -> str | torch.dtype:
    on_cpu = device is not None and torch.device(device).type == "cpu"
    if dtype == "auto" and on_cpu and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return dtype
