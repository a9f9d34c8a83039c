"""Exports: perturbations and runs in the formats that other tools read, one file for each.

A format is a module with ``write(chosen, folder)`` that returns what is to be said of what it
wrote, and its line in `FORMATS`. Where a format has no place for what a perturbation does, it is
refused in a sentence: nothing is approximated without a number beside it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from educe.errors import ExportError

if TYPE_CHECKING:
    from educe.exports.chosen import Chosen

#: What each is and who reads it.
FORMATS = {
    "gguf": "control vectors of llama.cpp and repeng",
    "peft": "adapters, a folder each, for PEFT; vectors as rank-1 adapters, in expectation",
    "vllm": "the same as a stock vLLM server takes them, with the command that serves all by name",
    "interp-engine": "steering specifications of interp-engine and its server",
    "baked": "whole models with the perturbation in their weights, for transformers alone",
    "hub": "a folder for the Hub: card, safetensors, and what replays the texts; --push REPOSITORY",
    "neuronpedia": "vectors as Neuronpedia takes them; --push ID, as it calls the model",
    "parquet": "the frames of the run, texts with places on a map, for pandas or Embedding Atlas",
    "csv": "the same, for spreadsheets",
    "jsonl": "the same, a JSON object a line",
    "inspect": "an .eval log of Inspect with the run's texts and scores",
}
#: Where what writes it is, when that is not ``write`` in the module of its name.
_AT = {
    "interp-engine": "interp_engine:write",
    "inspect": "inspect_log:write",
    **{name: f"frames:{name}" for name in ("parquet", "csv", "jsonl")},
}
#: These have the run's tables and take no numbers; these send what they wrote, when told to.
WHOLE = ("parquet", "csv", "jsonl", "inspect")
PUSHED = ("hub", "neuronpedia")


def check(to: str, numbers: list[int], push: str | None) -> None:
    """Find what cannot be exported before anything is loaded.

    Raises:
        ExportError: There is no such format, or it does not take what is asked.
    """
    if to not in FORMATS:
        raise ExportError(f"there is no format {to!r}: educe exports lists {', '.join(FORMATS)}")
    if push and to not in PUSHED:
        raise ExportError(f"{to} is sent nowhere: --push goes with {' or '.join(PUSHED)}")
    if to in WHOLE and numbers:
        raise ExportError(f"{to} has the whole run: leave the numbers out")
    if to not in WHOLE and not numbers:
        raise ExportError("no perturbation: name at least one, by its number in educe show")


def export(chosen: Chosen, to: str, folder: Path, *, push: str | None = None) -> list[str]:
    """Write what was chosen of a run in a format; return what is to be said of it.

    Args:
        chosen: The run, and which of its perturbations.
        to: The format.
        folder: A new or empty folder; it is there whole or not at all.
        push: Send what was written there; without it nothing leaves this machine.

    Raises:
        ExportError: The format has no place for one of them.
        BlockedError: The folder cannot be written.
    """
    from educe import files

    check(to, chosen.numbers, push)
    where, _, write = _AT.get(to, f"{to}:write").partition(":")
    module = importlib.import_module(f"educe.exports.{where}")
    with files.whole_folder(folder) as scratch:
        said: list[str] = getattr(module, write)(chosen, scratch)
    if push:
        said.append(module.push(folder, push))
    return said
