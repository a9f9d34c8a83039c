"""interp-engine: steering specifications, as its server takes them and its schema reads them.

    {"point": "resid_post", "layers": {"9": [{"method": "additive", "vector": …, "scale": 1.0}]}}

``SteeringWire(**json).to_spec(width)`` is the engine's own object.
"""

from __future__ import annotations

import json
from pathlib import Path

from educe import files
from educe.exports.chosen import Chosen
from educe.perturbation import steering


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write a file for each perturbation, ``17.json``.

    Raises:
        ExportError: One is no vector, or is not added at every token.
    """
    for number in chosen.numbers:
        added = chosen.added(number, "interp-engine")
        told = json.dumps(steering.specification(added), indent=1)
        files.write_bytes(folder / f"{number}.json", told.encode())
    return []
