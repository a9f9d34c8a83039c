"""Digests: by what a model is known again, and what of it has changed when it is another.

    checksum of a tensor = SHA-256 of Σᵢ wᵢ xᵢ (mod 2⁶⁴) of every 65,536 of its numbers

`xᵢ` are the bits of a number, taken as an integer, and the odd weights `wᵢ` are the same for every
model. Integer sums are exact, so the device, the number of threads and the order do not matter, and
since `wᵢ` is odd, another `xᵢ` always gives another sum. All weights are read, on their own device.

Floating-point numbers shorter than 32 bits are read as float32, which is exact: a checkpoint in
bfloat16 has the same weights when it is loaded as float32, and only the dtype is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

#: Numbers that share a sum: few enough for a processor's cache.
CHUNK = 1 << 16
#: Chunks that a device other than a processor sums at once.
AT_ONCE = 256
#: Keys of configurations that say where a model comes from, not what it computes.
ORIGIN = {
    *("architectures", "base_model_name_or_path", "dtype", "inference_mode", "peft_version"),
    *("revision", "torch_dtype", "transformers_version", "use_cache"),
}


def parts(hf: nn.Module, tokenizer: Any) -> dict[str, str]:
    """Return a SHA-256 for each part of a model, and its dtypes in words.

    The parts are ``weights`` (names, shapes and values of parameters and persistent buffers, those
    of an adapter too), ``configuration``, ``tokenizer`` (with its chat template) and ``dtype``.
    """
    weights, dtypes = hashlib.sha256(), set()
    for name, tensor in _tensors(hf):
        weights.update(f"{name} {tuple(tensor.shape)} ".encode())
        weights.update(checksum(tensor))
        if tensor.is_floating_point():
            dtypes.add(str(tensor.dtype).removeprefix("torch."))
    return {
        "weights": weights.hexdigest(),
        "configuration": _sha256(_known(_configuration(hf))),
        "tokenizer": _sha256(_tokenizer(tokenizer)),
        "dtype": ", ".join(sorted(dtypes)),
    }


def whole(of: Mapping[str, str]) -> str:
    """Return one SHA-256 of all parts."""
    return _sha256(dict(of))


def others(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the parts in which a model is another now, of those that were kept."""
    return [part for part in now if now[part] != was.get(part, now[part])]


def checksum(tensor: Tensor) -> bytes:
    """Return 32 bytes that another value anywhere in a tensor changes."""
    flat, sums = tensor.detach().reshape(-1), hashlib.sha256()
    factors = _factors(tensor.device)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    for some in flat.split(CHUNK * (1 if tensor.device.type == "cpu" else AT_ONCE)):
        rows = pad(_bits(some), (0, -len(some) % CHUNK)).view(-1, CHUNK)
        sums.update((rows * factors).sum(1).cpu().numpy().astype("<i8").tobytes())
    return sums.digest()


def _bits(flat: Tensor) -> Tensor:
    """Return numbers as integers, so that different numbers are different integers."""
    if flat.dtype == torch.float64:
        return flat.view(torch.int64)
    if flat.is_floating_point():
        return flat.float().view(torch.int32)
    return flat.to(torch.int64)


def _factors(device: torch.device) -> Tensor:
    """Return odd numbers without a pattern, ``[CHUNK]``."""
    mixed = torch.arange(1, CHUNK + 1) * -0x61C8864680B583EB
    return ((mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47 | 1).to(device)


def _tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and persistent buffers by name; what was put off the device is fetched."""
    from accelerate.utils import align_module_device

    for path, module in hf.named_modules():
        with align_module_device(module):
            own: dict[str, Any] = {}
            module._save_to_state_dict(own, f"{path}." if path else "", keep_vars=True)
            for name, value in own.items():
                if isinstance(value, Tensor):  # a module may keep something else beside
                    # What torch.compile put around a module does not make it another.
                    yield from _plain(name.replace("_orig_mod.", ""), value)


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor, or those that a quantised one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{part}", getattr(tensor, part))


def _configuration(hf: Any) -> dict[str, Any]:
    """Return what decides, beside the weights, what a model computes and where its texts end."""
    adapters = getattr(hf, "peft_config", {})
    model = hf.get_base_model() if hasattr(hf, "get_base_model") else hf
    generation = getattr(model, "generation_config", None)
    return {
        "model": type(getattr(model, "_orig_mod", model)).__name__,
        "config": model.config.to_diff_dict(),
        "ends": getattr(generation, "eos_token_id", None),
        "adapters": {name: _differing(config) for name, config in adapters.items()},
        "adapting": _adapting(hf) if adapters else {},
    }


def _adapting(hf: Any) -> dict[str, Any]:
    """Return which adapters act on each module they change, and how strongly, as switched now."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        path.replace("_orig_mod.", ""): {
            "active": [] if module.disable_adapters else list(module.active_adapters),
            "scaling": dict(getattr(module, "scaling", {})),
        }
        for path, module in hf.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def _differing(adapter: Any) -> dict[str, Any]:
    """Return the settings of an adapter that are not those of its kind."""
    usual = type(adapter)().to_dict()
    return {key: value for key, value in adapter.to_dict().items() if value != usual.get(key)}


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return what decides how a prompt becomes token numbers."""
    if tokenizer is None:
        return {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for passing in ("padding", "truncation"):  # left behind by the latest call
        pipeline.pop(passing, None)
    return {
        "pipeline": pipeline,
        "template": getattr(tokenizer, "chat_template", None),
        "special": tokenizer.special_tokens_map,
    }


def _sha256(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()


def _known(of: Any) -> Any:
    """Return a configuration as JSON can hold it, without what names its origin."""
    if isinstance(of, Mapping):
        kept = {str(key): value for key, value in of.items()}
        return {k: _known(v) for k, v in kept.items() if k not in ORIGIN and k[:1] != "_"}
    if isinstance(of, set | frozenset):
        return sorted(map(str, of))
    if isinstance(of, list | tuple):
        return [_known(value) for value in of]
    return of
