"""Complete: a model has every weight of its checkpoint and of its adapter, and no other.

transformers and PEFT load what fits, leave at random what is missing, and log the rest. Here each
weight that is missing, not used, of another shape, or no number is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from educe.errors import ModelError

#: Weights that a message names; it counts the others.
NAMED = 2
#: A checkpoint in one file, and the list of the files of one in several.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Types in files that are no numbers as they are.
PACKED = {"I8", "U8", "I32", "F8_E4M3", "F8_E5M2"}
#: What wrappers of a model leave in the names of its weights.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")


def check_checkpoint(name: str, info: Mapping[str, Any]) -> None:
    """Compare what was in a checkpoint with what the model of its configuration has.

    Args:
        name: What was loaded.
        info: What transformers says with ``output_loading_info``.

    Raises:
        ModelError: Weights are missing, not used, or of another shape.
    """
    shapes = {key: (tuple(was), tuple(wanted)) for key, was, wanted in info["mismatched_keys"]}
    wrong = _wrong(info["missing_keys"], info["unexpected_keys"])
    wrong += [
        f"{key} has the shape {was} instead of {wanted}"
        for key, (was, wanted) in sorted(shapes.items())[:NAMED]
    ]
    if wrong:
        raise ModelError(
            f"{name} is not the model that its config.json describes: {'; '.join(wrong)}"
        )


def check_stored(name: str, files: Mapping[str, Path], hf: nn.Module) -> None:
    """Make sure that a checkpoint is one, of weights as they are.

    Args:
        name: What was loaded.
        files: Its files of weights, by name, its index among them.
        hf: The model.

    Raises:
        ModelError: There are two checkpoints; or weights are packed in whole numbers or bytes and
            no configuration says how to unpack them.
    """
    if {WHOLE, INDEX} <= files.keys():
        raise ModelError(
            f"{name} has two checkpoints, {WHOLE} and the files that {INDEX} names: take one away"
        )
    if getattr(hf.config, "quantization_config", None) is not None:
        return
    for file in files.values():
        if file.suffix != ".safetensors":
            continue
        with safe_open(str(file), framework="pt") as some:
            for key in some.keys():  # noqa: SIM118
                kind = some.get_slice(key).get_dtype()
                if kind in PACKED and key.endswith(".weight"):
                    raise ModelError(
                        f"{name}: the weight {key} is packed in {kind}, and config.json has no "
                        "quantization_config that says how: this is not the whole checkpoint"
                    )


def check_adapter(adapter: str, hf: Any) -> None:
    """Compare the weights in the files of an adapter with what the PEFT model takes.

    Args:
        adapter: The folder or Hub id that was loaded.
        hf: The PEFT model.

    Raises:
        ModelError: Weights are missing or not used.
    """
    # What is loaded first tells nobody of the names it did not know; what is loaded again does.
    name = hf.active_adapter
    came = hf.load_adapter(adapter, name)
    missing = {re.sub(rf"\.{name}(?=\.|$)", "", key) for key in came.missing_keys}
    if wrong := _wrong(missing, came.unexpected_keys):
        raise ModelError(f"the adapter {adapter} does not fit the model: {'; '.join(wrong)}")


def check_numbers(name: str, hf: nn.Module) -> None:
    """Make sure that all weights are numbers.

    Raises:
        ModelError: One holds NaN or infinity.
    """
    for key, weight in hf.named_parameters():
        quantised = weight.itemsize < 2 or hasattr(weight, "__tensor_flatten__")
        if quantised or weight.is_meta or not weight.is_floating_point():
            continue  # meta: put off the device
        if weight.numel() and not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
            raise ModelError(
                f"{name}: the weight {key} holds NaN or infinity in {weight.dtype}: the checkpoint "
                "is damaged, or this dtype cannot hold it"
            )


def _wrong(missing: Collection[str], unused: Collection[str]) -> list[str]:
    """Return what is wrong with the names of weights, or how to mend it where that is all."""
    if extra := _extra(missing, unused):
        return [
            f"it calls {min(missing)} {min(unused)}, {len(missing)} weights so; this takes "
            f'{extra!r} away in a file F: python -c "from safetensors.torch import *; '
            f"save_file({{k.replace('{extra}', ''): v for k, v in load_file('F').items()}}, 'F', "
            f"{{'format': 'pt'}})\""
        ]
    told = []
    for keys, what in ((missing, "not in the file"), (unused, "in the file and not in the model")):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            one = "is" if len(keys) == 1 else "are"
            told.append(f"{', '.join(sorted(keys)[:NAMED])}{more} {one} {what}")
    return told


def _extra(missing: Collection[str], unused: Collection[str]) -> str:
    """Return what makes the names of missing weights those of unused ones, if one thing does."""
    some = next(iter(sorted(missing)), "")
    fronts = [key.removesuffix(some) for key in unused if some and key.endswith(some)]
    for extra in (*WRAPPERS, *filter(None, fronts)):
        if missing and set(missing) <= {key.replace(extra, "") for key in unused}:
            return extra
    return ""
