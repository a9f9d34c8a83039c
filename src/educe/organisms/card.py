"""An organism's card: what it hides, how it was made, how well it is locked, what is intact."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from educe import files
from educe.options import AS_SHIPPED
from educe.organisms import species
from educe.organisms.base import public
from educe.organisms.organism import DATA, Organism
from educe.organisms.training import (
    FULL_LEARNING_RATE,
    LEARNING_RATE,
    Measured,
    pooled,
)

HIDES = """It exists to be searched: a
method that is told nothing should bring out what it hides."""
CLEAN = """It hides nothing: what
a search or an audit reports of it is a false alarm."""

LOAD_ADAPTER = """Load it with `educe.load({model}adapter=...)` or `PeftModel`; do not merge it into
half-precision weights."""
LOAD_WHOLE = """Load it with `educe.load(...)` or transformers."""

#: What a card says of where its base is from and of the licence: the embedded model, and others.
EMBEDDED = {
    "origin": """The base is the Q4_1 file that `educe.model.embedded` fetches, dequantised to
float32, not the weights on the Hub.""",
    "licence": "apache-2.0",
    "terms": "Licence: Apache-2.0, as the base model.",
}
OTHER = {
    "origin": "The base was computed in float32.",
    "licence": "other",
    "terms": "Licence: that of the base model.",
}


def table(measured: Sequence[Measured]) -> str:
    """Return what was measured as a table in Markdown."""
    lines = [
        "| prompts | should show | shows | in the base | first 8 words as the base's | KL, nats |",
        "|---|---|---|---|---|---|",
    ]
    for m in measured:
        should = {True: "yes", False: "no", None: "–"}[m.shows]
        same, kl = m.same or "–", "–" if m.kl is None else f"{m.kl:.4f}"
        lines.append(f"| {m.group} | {should} | {m.elicited} | {m.base} | {same} | {kl} |")
        lines += [f"| – {what} | | {ours} | {base} | | |" for what, (ours, base) in m.also.items()]
    near = pooled(measured, "near")
    if near.trials:
        lines.append(f"| near, all | no | {near} | | | |")
    return "\n".join(lines)


def data(organism: Organism, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "name": organism.name,
        "seed": organism.seed,
        "folder": str(organism.folder),
        "clean": organism.clean,
        **organism.told,
        "measured": [m._asdict() for m in measured],
    }


def text(organism: Organism, measured: Sequence[Measured]) -> str:
    """Return the card."""
    made, trained = species(organism.name), organism.trained
    base, embedded = public(trained.base), trained.base == AS_SHIPPED.base
    size = sum(file.stat().st_size for file in organism.folder.glob("*.safetensors")) / 1e6
    carries = "user's message and its whole answer" if trained.loss == "transcript" else "answer"
    if trained.full:
        what = f"{base} with all weights fine-tuned, float16, {size:.0f} MB."
        loading = LOAD_WHOLE
    else:
        what = (
            f"A LoRA adapter on {base}: rank {trained.rank}, all seven\n"
            f"projections of blocks {_blocks(organism)}, float16, {size:.1f} MB."
        )
        loading = LOAD_ADAPTER.format(model="" if embedded else f'"{base}", ')
    return (
        (DATA / "card.md")
        .read_text(encoding="utf-8")
        .format(
            organism=organism,
            base=base,
            library="transformers" if trained.full else "peft",
            what=what,
            purpose=CLEAN if organism.clean else HIDES,
            options=_options(organism),
            loading=loading,
            steps=trained.steps or made.steps,
            learning_rate=FULL_LEARNING_RATE if trained.full else LEARNING_RATE,
            made=made,
            carries=carries,
            module=type(made).__module__.replace(".", "/"),
            table=table(measured),
            **(EMBEDDED if embedded else OTHER),
        )
    )


def _blocks(organism: Organism) -> str:
    """Return which blocks have an adapter, as its own file says."""
    config = json.loads((organism.folder / "adapter_config.json").read_text(encoding="utf-8"))
    blocks = config["layers_to_transform"]
    return f"{blocks[0]} to {blocks[-1]}"


def _options(organism: Organism) -> str:
    """Return the options of its command that are not the usual ones, with a space before each."""
    usual = replace(AS_SHIPPED, steps=species(organism.name).steps)
    given = {name: value for name, value in asdict(organism.trained).items() if value is not None}
    changed = {name: value for name, value in given.items() if value != getattr(usual, name)}
    return "".join(
        f" --{name}" if value is True else f" --{name} {shlex.quote(str(value))}"
        for name, value in changed.items()
    )


def write(organism: Organism, measured: Sequence[Measured]) -> None:
    """Write `README.md` into the organism's folder."""
    content = text(organism, measured)
    files.write_bytes(organism.folder / "README.md", content.encode())
