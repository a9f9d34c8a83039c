"""Hub: a folder for a repository, with a card and what replays its texts.

17.safetensors     each perturbation, as `educe.PerturbationSet` reads it
replay.json        model, revision, digest, seed, versions, prompts, and of each perturbation's
                   greedy texts one SHA-256
README.md          the card, with the lines of Python that replay and compare
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from educe import files
from educe.errors import ExportError, ServerError
from educe.exports.chosen import Chosen
from educe.forward.generation import generate
from educe.options import ModelOptions
from educe.rows import Row
from educe.run.settings import encoded
from educe.scores import asked_in
from educe.visible import visible

CODE = """import hashlib, json
import educe

kept = json.load(open("replay.json"))
lm = educe.load(**kept["load"])
print("the same model:", lm.digest == kept["digest"])
batch = lm.encode(kept["prompts"], **kept["encode"])
for number, expected in kept["sha256"].items():
    one = educe.PerturbationSet.load(f"{number}.safetensors")
    how = {"kind": one.kind, "max_new_tokens": kept["max_new_tokens"], "rows_per_batch": 1}
    rows, texts = educe.rows_of(1, len(batch)), {}
    for (done,) in educe.generate(lm, batch, rows, one.theta, **how):
        texts[done.row.prompt] = done.text
    told = "\\0".join(text for _, text in sorted(texts.items()))
    print(number, "the same texts:", hashlib.sha256(told.encode()).hexdigest() == expected)
"""


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write the folder."""
    lm, s = chosen.lm, chosen.settings
    batch = encoded(lm, s, s.prompts)
    texts: dict[int, list[str]] = {0: _texts(chosen, batch, 0)}
    for number in chosen.numbers:
        chosen.one(number).save(folder / f"{number}.safetensors")
        texts[number] = _texts(chosen, batch, number)
    options = ModelOptions().how
    load = {k: v for k, v in s.how.items() if k in ("model", "dtype") or v != options[k]}
    kept = {
        "load": load,
        "digest": lm.digest,
        "parts": dict(lm.parts),
        "seed": s.seed,
        "versions": {name: version(name) for name in ("educe", "torch", "transformers")}
        | {"python": platform.python_version()},
        "device": str(lm.device),
        "prompts": list(s.prompts),
        "encode": {
            "prefill": s.prefill,
            "chat": s.chat,
            "enable_thinking": s.enable_thinking,
            "room": s.max_new_tokens,
        },
        "max_new_tokens": s.max_new_tokens,
        "sha256": {str(number): _digest(texts[number]) for number in chosen.numbers},
    }
    files.write_bytes(folder / "replay.json", json.dumps(kept, indent=1).encode())
    files.write_bytes(folder / "README.md", _card(chosen, texts).encode())
    if chosen.on_hub is None:
        return [f"{s.model} is no name of the Hub: say on the card where the model is"]
    return []


def push(folder: Path, repository: str) -> str:
    """Send the folder to a private repository of the Hub; return where it is.

    Raises:
        ExportError: The name is none.
        ServerError: The Hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        api = HfApi()
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="From educe")
    except HFValidationError as error:
        raise ExportError(f"{repository} names no repository: {error}") from error
    except Exception as error:  # of the client, of the connection, or of the Hub
        lines = str(error).strip().splitlines()
        raise ServerError(
            f"the Hub did not take it ({lines[0] if lines else error!r}); it is whole in {folder}"
        ) from error
    return f"sent: {made}"


def _texts(chosen: Chosen, batch: Any, number: int) -> list[str]:
    """Return what a perturbation writes to each prompt, the likeliest token at each place."""
    one = chosen.one(number or chosen.numbers[0])
    rows = [Row(int(number > 0), place) for place in range(len(batch))]
    found = {}
    for (done,) in generate(
        chosen.lm,
        batch,
        rows,
        one.theta,
        kind=one.kind,
        max_new_tokens=chosen.settings.max_new_tokens,
        rows_per_batch=1,  # alone, so that no other row rounds beside it
    ):
        found[done.row] = done.text
    return [found[row] for row in rows]


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _card(chosen: Chosen, texts: dict[int, list[str]]) -> str:
    from huggingface_hub import ModelCardData

    tags = ["educe", "steering-vector"]
    data = ModelCardData(library_name="educe", tags=tags, base_model=chosen.on_hub)
    lines = ["---", data.to_yaml(), "---", "", f"# Perturbations of {chosen.facts['model']}", ""]
    lines += ["| number | kind | method | point | positions | radius | dose |", "|" + "---|" * 7]
    for number in chosen.numbers:
        about, kind = chosen.about(number), chosen.one(number).kind.name
        numbers = f"{about['radius']:.4g} | {about['dose']:.3g}"
        named_so = " | ".join(str(about[k]) for k in ("method", "point", "positions"))
        lines.append(f"| {number} | {kind} | {named_so} | {numbers} |")
    lines += [
        "",
        "The dose is a share of the median norm of the activations there. These were chosen",
    ]
    lines += ["among many: how often random perturbations do the same, the run says.", ""]
    shown = {"Asked": asked_in(chosen.settings.prompts[0])}
    for number, own in texts.items():
        shown[f"Perturbation {number}" if number else "Unperturbed"] = own[0]
    for title, text in shown.items():
        lines += [f"{title}:", "", *_quoted(text), ""]
    lines += [
        "## Replay",
        "",
        "On the same versions and device:",
        "",
        "```python",
        f"{CODE}```",
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """Return a text as indented code, in which no mark means anything."""
    return [f"    {visible(line)}" for line in text.splitlines() or [""]]
