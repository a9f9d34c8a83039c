"""vLLM: everything that a stock server needs to serve several adapters, each by its name.

    adapters/17/…      as PEFT has them; vectors in expectation
    serve.sh           the command; a request's ``model`` is then base, 17, …

Its rows run with different adapters in one batch.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from educe import files
from educe.exports import peft
from educe.exports.chosen import Chosen
from educe.perturbation.kinds import Adapters
from educe.perturbation.peft import RANKS


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write the adapters and the command.

    Raises:
        ExportError: One is no adapter and becomes none, or the model has an adapter already.
    """
    chosen.alone("a stock vLLM server")
    inside = folder / "adapters"
    inside.mkdir()
    said = peft.write(chosen, inside)
    kinds = [chosen.one(number).kind for number in chosen.numbers]
    most = max((kind.rank for kind in kinds if isinstance(kind, Adapters)), default=1)
    words = ["vllm", "serve", chosen.model, "--served-model-name", "base", "--enable-lora"]
    # One place stays empty: on the CPU, vLLM adds what is in the last one to requests for the base
    # that are written beside others (its pull request 48421).
    words += ["--max-loras", str(len(chosen.numbers) + 1)]
    words += ["--max-lora-rank", str(next(rank for rank in RANKS if rank >= most))]
    words += ["--dtype", chosen.facts["dtype"]]  # left to vLLM, float32 would be halved
    if chosen.settings.revision:
        words += ["--revision", chosen.settings.revision]
    named = [f"{number}=adapters/{number}" for number in chosen.numbers]
    command = shlex.join([*words, "--lora-modules", *named])
    script = f'#!/bin/sh\ncd "$(dirname "$0")"\nexec {command} "$@"\n'
    files.write_bytes(folder / "serve.sh", script.encode())
    (folder / "serve.sh").chmod(0o755)
    return [*said, f"start it with serve.sh, which is: {command}"]
