"""GGUF: control vectors, as llama.cpp and repeng read them.

A file has a tensor ``direction.N`` for each layer, the vector that is added after block ``N`` at
every token. The format says neither unit, operation nor place, so the vector has its real length,
for a coefficient of 1, and the rest stands in keys of our own, which other readers pass over.
"""

from __future__ import annotations

from pathlib import Path

import gguf

from educe.errors import ExportError
from educe.exports.chosen import Chosen

ARCHITECTURE = "controlvector"


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write a file for each perturbation, ``17.gguf``.

    Raises:
        ExportError: One is no vector, is added after block 0 or not at every token.
    """
    for number in chosen.numbers:
        added = chosen.added(number, "a control vector")
        if 0 in added:
            raise ExportError(
                f"perturbation {number} is added after block 0, where llama.cpp takes no control "
                "vector: search with --source 1 or later"
            )
        out = gguf.GGUFWriter(str(folder / f"{number}.gguf"), ARCHITECTURE)
        out.add_string(f"{ARCHITECTURE}.model_hint", chosen.config.model_type)
        out.add_uint32(f"{ARCHITECTURE}.layer_count", len(added))
        out.add_float32(f"{ARCHITECTURE}.coeff_hint", 1.0)
        for key, value in chosen.about(number).items():
            put = out.add_string if isinstance(value, str) else out.add_float32
            put(f"educe.{key}", value)
        for layer, vector in added.items():
            out.add_tensor(f"direction.{layer}", vector.numpy())
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
    said = ["vectors have their real length: scale 1 in llama.cpp, coefficient 1 in repeng"]
    if chosen.settings.adapter:
        said.append(f"merge the adapter {chosen.settings.adapter} into the model that reads them")
    return said
