"""An adapter beside a model's own ones, and all of them written as one.

LoRA adapters add up: ``W + s₁ B₁ A₁ + s₂ B₂ A₂ = W + [B₁ B₂] [s₁ A₁; s₂ A₂]``. So the one that is
written has the sum of the ranks and is exact. PEFT's ``add_weighted_adapter`` makes the same
product, but takes the blocks from the configuration of the first adapter, and drops those of the
second that lie elsewhere. Here each matrix is named by its whole path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from educe import files
from educe.errors import ModelError
from educe.model.language import LanguageModel
from educe.model.quiet import quiet
from educe.organisms.base import public

#: What the new adapter is called in the model.
NAME = "hardening"


def check(lm: LanguageModel) -> None:
    """Make sure that the adapter of a model can be written together with another one.

    Raises:
        ModelError: It is more than a product of two matrices beside each weight.
    """
    if not isinstance(lm.hf, PeftModel):
        return
    for name in lm.hf.active_adapters:
        config = lm.hf.peft_config[name]
        more = ("use_dora", "lora_bias", "modules_to_save", "target_parameters")
        wrong = [what for what in more if getattr(config, what, None)]
        layers = [module for module in lm.unwrapped.modules() if isinstance(module, LoraLayer)]
        wrong += ["an embedding"] * any(name in layer.lora_embedding_A for layer in layers)
        if config.peft_type != PeftType.LORA or wrong or config.bias != "none":
            what = ", ".join(wrong) or config.peft_type.value
            raise ModelError(
                f"the adapter {lm.adapter} of {lm.name} is no plain LoRA adapter ({what}), so no "
                "second one can be added to it: merge it into the weights first"
            )


def places(lm: LanguageModel, above: int) -> list[str]:
    """Return the paths of the matrices of all blocks above one.

    Example:
        >>> from educe.hardening.adapter import places
        >>> places(lm, 2)[0], len(places(lm, 2))
        ('model.layers.3.self_attn.q_proj', 7)
    """
    paths = {module: path for path, module in lm.unwrapped.named_modules()}
    found = []
    for block in lm.blocks[above + 1 :]:
        taken: tuple[
            str, ...
        ] = ()  # those with an adapter, which have matrices of their own inside
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D | LoraLayer) and not name.startswith(taken):
                found.append(paths[module])
                taken = (*taken, f"{name}.")
    return found


@contextmanager
def beside(lm: LanguageModel, above: int, *, rank: int, seed: int) -> Iterator[list[Tensor]]:
    """Put a fresh adapter on all blocks above one, beside the model's own, for a `with` statement.

    Args:
        lm: The model; behind the statement it is as it was.
        above: The block.
        rank: The adapter's.
        seed: Of its initial weights, which change nothing yet.

    Yields:
        Its weights. They require no gradient yet.
    """
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=places(lm, above), task_type="CAUSAL_LM"
    )
    own = list(lm.hf.active_adapters) if isinstance(lm.hf, PeftModel) else []
    with torch.random.fork_rng():  # PEFT draws from the global generator
        torch.manual_seed(seed)
        if own:
            model = lm.hf
            model.add_adapter(NAME, config)
            model.base_model.set_adapter([*own, NAME])
        else:
            with quiet():  # transformers warns PEFT of what will be called otherwise
                model = get_peft_model(lm.hf, config, adapter_name=NAME)
    model.eval().requires_grad_(False)
    try:
        yield [weight for path, weight in model.named_parameters() if f".{NAME}." in path]
    finally:
        if own:
            model.base_model.set_adapter(own, inference_mode=True)
            model.delete_adapter(NAME)
        else:
            model.unload()
        lm.hf.requires_grad_(False)


def write(lm: LanguageModel, folder: Path) -> None:
    """Write all adapters that act in a model as one that PEFT loads on the same base.

    Raises:
        RunError: The folder cannot be written.
    """
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    transposed = False
    for path, layer in lm.unwrapped.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        transposed |= layer.fan_in_fan_out
        if names := [name for name in layer.active_adapters if name in layer.lora_A]:
            parts[path] = (
                torch.cat([layer.lora_A[n].weight.data * layer.scaling[n] for n in names]),
                torch.cat([layer.lora_B[n].weight.data for n in names], 1),
            )
    rank = max(len(a) for a, _ in parts.values())
    tensors = {}
    for path, (a, b) in parts.items():  # all of one rank, with zeros where there is less
        less = rank - len(a)
        tensors[f"base_model.model.{path}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, less))
        tensors[f"base_model.model.{path}.lora_B.weight"] = nn.functional.pad(b, (0, less))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": public(lm.name),
        "revision": lm.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(parts),
        "inference_mode": True,
    }
    files.make_folder(folder)
    files.write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    files.write_bytes(folder / "adapter_config.json", json.dumps(config, indent=2).encode())
