"""Baked: whole models that have a perturbation in their weights, which transformers alone reads.

    vectors     into the bias of the matrix whose output the block adds to the stream last
    biases      into those of their matrices
    adapters    merged

Most architectures have no such bias. Some have one that is switched on in their configuration, as
``mlp_bias`` of Llama: it is, and all other biases that come with it are zero. What was made is run
and compared with the perturbed model before it is written.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from educe import files
from educe.errors import ExportError, ModelError
from educe.exports.chosen import Chosen
from educe.forward.generation import next_logits
from educe.model.quiet import quiet
from educe.perturbation.kinds import Adapters, Biases
from educe.perturbation.set import PerturbationSet
from educe.rows import Row
from educe.run.settings import encoded

#: How far logits of the baked model may be from those of the perturbed one, as a share of what the
#: perturbation changes, and in units of rounding.
OFF, ROUNDINGS = 0.02, 64
#: Prompts of the run on which they are compared.
PROMPTS = 4


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write a model for each perturbation, with its tokenizer, ``17/config.json`` and so on.

    Raises:
        ExportError: The architecture has no place for it.
    """
    lm = chosen.lm
    if chosen.settings.load_in_4bit or chosen.settings.load_in_8bit:
        raise ExportError("quantized weights are not changed: export a run of the model as it is")
    for number in chosen.numbers:
        one = chosen.one(number)
        hf = copy.deepcopy(lm.hf)
        if hasattr(hf, "merge_and_unload"):
            hf = hf.merge_and_unload()
        if isinstance(one.kind, Adapters):
            hf = _merged(hf, one)
        else:
            hf = _biased(chosen, number, hf, one)
        _check(chosen, number, one, hf)
        with quiet():
            hf.save_pretrained(folder / str(number))
            lm.tokenizer.save_pretrained(folder / str(number))
        about = json.dumps(chosen.about(number), indent=1)
        files.write_bytes(folder / str(number) / "educe.json", about.encode())
    return []


def _merged(hf: Any, one: PerturbationSet) -> Any:
    """Return a model with an adapter in its weights."""
    from peft import PeftModel

    with TemporaryDirectory() as scratch, quiet():
        one.save_peft(scratch, 0)
        return PeftModel.from_pretrained(hf, scratch).merge_and_unload()


def _biased(chosen: Chosen, number: int, hf: Any, one: PerturbationSet) -> Any:
    """Return a model with vectors in its biases."""
    lm = chosen.lm
    if isinstance(one.kind, Biases):
        theirs = zip(one.kind.paths, one.kind.split(one.theta), strict=True)
        vectors = {path: part[0, 0] for path, (part,) in theirs}
    else:
        paths = {module: path for path, module in lm.unwrapped.named_modules()}
        vectors = {}
        for layer, vector in chosen.added(number, "a bias").items():
            try:
                vectors[paths[lm.writers(layer)[-1]].replace(".base_layer", "")] = vector
            except ModelError as error:
                raise ExportError(f"block {layer} has no place for a vector: {error}") from error
    hf = _with_biases(hf, vectors)
    with torch.no_grad():
        for path, vector in vectors.items():
            bias = hf.get_submodule(path).bias
            bias += vector.to(bias)
    return hf


def _with_biases(hf: Any, vectors: Mapping[str, Tensor]) -> Any:
    """Return a model whose modules have biases, switched on in its configuration where need be.

    Raises:
        ExportError: There is no such switch.
    """

    def there(model: nn.Module) -> bool:
        # A norm has a bias as well, and adds it after its scale: what it returns is what counts.
        return all(getattr(model.get_submodule(path), "bias", None) is not None for path in vectors)

    if there(hf):
        return hf
    switches = [name for name, on in vars(hf.config).items() if "bias" in name and on is False]
    for name in switches:
        config = copy.deepcopy(hf.config)
        setattr(config, name, True)
        with quiet(), torch.device("meta"):
            found = there(type(hf)(config))
        if found:
            with quiet():
                made = type(hf)(config).to(hf.device, hf.dtype).eval()
            missing = set(made.load_state_dict(hf.state_dict(), strict=False).missing_keys)
            with torch.no_grad():
                for key, weight in made.named_parameters():
                    if key in missing and key.endswith(".bias"):
                        weight.zero_()
            made.generation_config = hf.generation_config
            return made
    path = next(iter(vectors))
    raise ExportError(
        f"{type(hf).__name__} has no place for a vector: {path} takes no bias, and nothing in its "
        "configuration gives it one; export it as gguf or interp-engine"
    )


@torch.no_grad()
def _check(chosen: Chosen, number: int, one: PerturbationSet, hf: Any) -> None:
    """Make sure that a baked model is the perturbed one.

    Raises:
        ExportError: It is not.
    """
    lm = chosen.lm
    batch = encoded(lm, chosen.settings, chosen.settings.prompts[:PROMPTS])
    rows = [Row(k, place) for k in (0, 1) for place in range(len(batch))]
    found: dict[Row, Tensor] = {}
    for some, logits in next_logits(lm, batch, rows, one.theta, kind=one.kind):
        found |= dict(zip(some, logits.float(), strict=True))
    for place, read in enumerate(batch.read):
        ids = torch.tensor([read], device=lm.device)
        own = hf(input_ids=ids, use_cache=False).logits[0, -1].float()
        plain, wanted = found[Row(0, place)], found[Row(1, place)]
        rounding = ROUNDINGS * torch.finfo(lm.dtype).eps * wanted.norm()
        if (own - wanted).norm() > OFF * (wanted - plain).norm() + rounding:
            raise ExportError(
                f"{type(hf).__name__} has no place for perturbation {number}: with it in the "
                "weights, the model is another one than the perturbed one"
            )
