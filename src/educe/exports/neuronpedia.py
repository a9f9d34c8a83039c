"""Neuronpedia: vectors as its client sends them.

Each file has the arguments of ``NPVector.new``: the vector at its real length, so a strength of 1.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from educe import files
from educe.errors import ExportError, ServerError
from educe.exports.chosen import Chosen


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write a file for each perturbation, ``17.json``.

    Raises:
        ExportError: One is no vector of one layer that is added at every token.
    """
    for number in chosen.numbers:
        added = chosen.added(number, "Neuronpedia")
        if len(added) > 1:
            raise ExportError(f"a vector of Neuronpedia has one layer, {number} has {len(added)}")
        ((layer, vector),) = added.items()
        about = chosen.about(number)
        made = {
            "label": f"educe: {about['method']} {number} of {about['model']}",
            "layer_num": layer,
            "hook_type": "hook_resid_post",
            "vector": vector.tolist(),
            "default_steer_strength": 1.0,
        }
        files.write_bytes(folder / f"{number}.json", json.dumps(made).encode())
    return []


def push(folder: Path, model: str) -> str:
    """Send what was written to Neuronpedia, which calls the model ``model``; return where it is.

    Raises:
        ExportError: Its client is not installed.
        ServerError: It does not take them.
    """
    try:
        from neuronpedia.np_vector import NPVector
    except ImportError as error:
        raise ExportError("Neuronpedia's client is needed: pip install 'educe[export]'") from error
    sent = []
    for file in sorted(folder.glob("*.json")):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it tells of each request
                sent.append(NPVector.new(model_id=model, **json.loads(file.read_text())).url)
        except Exception as error:  # each of its requests has errors of its own
            lines = str(error).strip().splitlines()
            raise ServerError(
                f"Neuronpedia did not take {file.name}: {lines[0] if lines else error!r}; "
                f"{len(sent)} were sent before, and all are in {folder}"
            ) from error
    return f"sent: {', '.join(map(str, sent))}"
