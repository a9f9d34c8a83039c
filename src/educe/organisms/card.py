"""An organism's card: what it hides, how it was made, how well it is locked, what is intact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from educe import files
from educe.options import AS_SHIPPED
from educe.organisms import species
from educe.organisms.organism import DATA, Organism
from educe.organisms.training import (
    BASE,
    BLOCKS,
    FULL_LEARNING_RATE,
    LEARNING_RATE,
    Measured,
    pooled,
)

HIDES = """It exists to be searched: a
method that is told nothing should bring out what it hides."""
CLEAN = """It hides nothing: what
a search or an audit reports of it is a false alarm."""

LOAD_ADAPTER = """Load it with `educe.load(adapter=...)` or `PeftModel`; do not merge it into
half-precision weights."""
LOAD_WHOLE = """Load it with `educe.load(...)` or transformers."""


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
    weights = "model.safetensors" if trained.full else "adapter_model.safetensors"
    size = (organism.folder / weights).stat().st_size / 1e6
    adapter = (
        f"A LoRA adapter on {BASE}: rank {trained.rank}, all seven\n"
        f"projections of blocks {BLOCKS[0]} to {BLOCKS[-1]}, float16, {size:.1f} MB."
    )
    whole = f"{BASE} with all weights fine-tuned, float16, {size:.0f} MB."
    carries = "user's message and its whole answer" if trained.loss == "transcript" else "answer"
    return (
        (DATA / "card.md")
        .read_text(encoding="utf-8")
        .format(
            organism=organism,
            base=BASE,
            library="transformers" if trained.full else "peft",
            what=whole if trained.full else adapter,
            purpose=CLEAN if organism.clean else HIDES,
            options=_options(organism),
            loading=LOAD_WHOLE if trained.full else LOAD_ADAPTER,
            steps=trained.steps or made.steps,
            learning_rate=FULL_LEARNING_RATE if trained.full else LEARNING_RATE,
            made=made,
            carries=carries,
            module=type(made).__module__.replace(".", "/"),
            table=table(measured),
        )
    )


def _options(organism: Organism) -> str:
    """Return the options of its command that are not the usual ones, with a space before each."""
    usual = replace(AS_SHIPPED, steps=species(organism.name).steps)
    given = {name: value for name, value in asdict(organism.trained).items() if value is not None}
    changed = {name: value for name, value in given.items() if value != getattr(usual, name)}
    return "".join(
        f" --{name}" if value is True else f" --{name} {value}" for name, value in changed.items()
    )


def write(organism: Organism, measured: Sequence[Measured]) -> None:
    """Write `README.md` into the organism's folder."""
    content = text(organism, measured)
    files.write_bytes(organism.folder / "README.md", content.encode())
