"""An adapter as a folder that PEFT loads, with ``W + R b aᵀ`` as its ``W + (alpha / r) B A``.

``A`` has ``aᵀ`` for rows, ``B`` has ``R b`` for columns, and ``alpha = r``. The modules are named
by their whole path, so that the folder fits exactly the blocks of the band.
"""

from __future__ import annotations

import json
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.perturbation.kinds import Adapters

#: The ranks for which vLLM has kernels.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def write(
    folder: Path, kind: Adapters, theta: Float[Tensor, "s"], *, model: str, revision: str
) -> None:
    """Write one adapter.

    Args:
        folder: Where; made if it is not there.
        kind: Which modules it changes.
        theta: The adapter at its radius.
        model: The base model's name, for whoever loads it by the folder alone.
        revision: Its revision, or an empty string.

    Raises:
        RunError: The folder cannot be written.
    """
    files.make_folder(folder)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "revision": revision or None,
        "r": kind.rank,
        "lora_alpha": kind.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(kind.paths),
        "inference_mode": True,
    }
    tensors = {}
    for path, (a, b) in zip(kind.paths, kind.split(theta[None]), strict=True):
        tensors[f"base_model.model.{path}.lora_A.weight"] = a[0]
        tensors[f"base_model.model.{path}.lora_B.weight"] = b[0].T
    # The configuration last: a folder without it is none to PEFT.
    files.write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    files.write_bytes(folder / "adapter_config.json", json.dumps(config, indent=2).encode())
