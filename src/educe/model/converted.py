"""Models that are converted once and kept in the user's cache folder.

transformers takes minutes to dequantise a GGUF file of a gigabyte, so it is done once. What is kept
is float32, which holds every number that dequantising gives; half precision would round most. The
name of what is kept has the SHA-256 of the file's content, read anew at every load: another file is
never taken for it, whatever its path, size and date. Delete ``educe`` in the cache folder to be rid
of all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from safetensors import SafetensorError

from educe.errors import ModelError, as_model_error
from educe.model.complete import check_checkpoint
from educe.model.quiet import quiet

GIGABYTE = 1e9


def once(name: str, make: Callable[[Path], Path], *, what: str, room: str) -> Path:
    """Return the folder of a name in the cache; it is made when it is not there.

    Whoever asks at the same time waits; a process that is killed leaves no folder of that name.

    Args:
        name: Of the folder.
        make: Makes it within an empty scratch folder, and returns it.
        what: What is kept, for messages.
        room: How much room it takes, for messages.

    Raises:
        ModelError: It cannot be kept there.
    """
    cache = platformdirs.user_cache_path("educe")
    final, scratch = cache / name, cache / f".{name}.partial"
    if final.is_dir():
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            if not final.is_dir():
                shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
                scratch.mkdir()
                try:
                    os.replace(make(scratch), final)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{what} cannot be kept in {cache} ({reason}): "
            f"free some {room} there, or set XDG_CACHE_HOME to another folder"
        ) from error
    return final


def from_gguf(file: Path, say: Callable[[str], None]) -> Path:
    """Return the folder of a GGUF file, converted at the first time.

    Raises:
        ModelError: It cannot be read or kept, or holds what transformers leaves out.
    """
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()

    def make(scratch: Path) -> Path:
        size = file.stat().st_size / GIGABYTE
        say(f"converting {file.name} ({size:.1f} GB) to safetensors, once: this can take minutes")
        return convert(file, scratch / "converted", f"# {file.name}, converted by educe\n")

    room = f"{8 * file.stat().st_size / GIGABYTE:.1f} GB"
    return once(f"{file.stem}-{digest[:16]}", make, what=f"what {file} holds", room=room)


def convert(
    file: Path, into: Path, card: str, check: Callable[[object], None] = lambda tokenizer: None
) -> Path:
    """Write a GGUF file as a folder of safetensors, tokenizer and card; return the folder.

    Args:
        file: The file.
        into: The folder.
        card: The text of the card.
        check: Is given the tokenizer before anything is written.

    Raises:
        ModelError: It cannot be read, or tensors of it are not in the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        with as_model_error(str(file)):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            check_checkpoint(str(file), info)
            _check_tensors(file, model)
            check(tokenizer)
        _forget_quantisation(model)
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)
    (into / "README.md").write_text(card, encoding="utf-8")
    return into


def _check_tensors(file: Path, model: Any) -> None:
    """Make sure that all numbers in a GGUF file are in the model; transformers skips some."""
    from gguf import GGUFReader
    from transformers import modeling_gguf_pytorch_utils as theirs

    held = {tensor.name: prod(map(int, tensor.shape)) for tensor in GGUFReader(file).tensors}
    taken = {weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}
    if sum(held.values()) != sum(taken.values()):
        known = theirs.get_gguf_hf_weights_map(model, theirs.TensorProcessor(config={}))
        raise ModelError(
            f"{file} holds {', '.join(sorted(held.keys() - known)[:5]) or 'more'}, which "
            "transformers leaves out of the model: it would be another one; use a checkpoint in "
            "safetensors"
        )


def _forget_quantisation(model: Any) -> None:
    """Remove the marks of quantisation that a GGUF load leaves on plain floating-point weights.

    transformers dequantises while loading but keeps saying that the model is quantised, which
    breaks saving, moving and adapters.
    """
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
