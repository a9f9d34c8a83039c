"""PEFT: adapters, a folder for each perturbation, ``17/adapter_config.json`` and its weights.

Several of them can be loaded at once, each by its name. A vector is no adapter: it becomes one in
expectation (see `expectation`), and its folder says so with the measured error.
"""

from __future__ import annotations

from pathlib import Path

from educe import files
from educe.errors import ExportError
from educe.exports.chosen import Chosen
from educe.exports.expectation import Gate, approximated, gate
from educe.perturbation.kinds import Adapters, Vectors
from educe.run.settings import encoded


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write a folder for each perturbation.

    Raises:
        ExportError: One is neither an adapter nor a vector that is added at every token.
    """
    said, gates = [], dict[int, Gate]()
    for number in chosen.numbers:
        one, inside = chosen.one(number), folder / str(number)
        if isinstance(one.kind, Adapters):
            one.save_peft(inside, 0)
            continue
        chosen.added(number, "an adapter")  # or it is refused
        if not isinstance(one.kind, Vectors):
            raise ExportError(f"perturbation {number} acts after several blocks: PEFT has no such")
        batch = encoded(chosen.lm, chosen.settings, chosen.settings.prompts)
        layer = one.kind.layer
        gates[layer] = gates.get(layer) or gate(chosen.lm, layer)
        made = approximated(chosen.lm, one, gates[layer], batch)
        made.adapter.save_peft(inside, 0)
        told = f"{number} is a vector after block {layer}, and this adapter is so {made}"
        files.write_bytes(inside / "README.md", f"{told}.\n".encode())
        said.append(told)
    if chosen.settings.adapter:
        said.append(f"they were found beside the adapter {chosen.settings.adapter}: load both")
    return said
