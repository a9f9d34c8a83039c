"""An organism's card: what it hides, how it was made, how well it is locked, what is intact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from educe import files
from educe.organisms import species
from educe.organisms.organism import DATA, Organism
from educe.organisms.training import BASE, BLOCKS, LEARNING_RATE, RANK, Measured, pooled


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
    lines.append(f"| near, all | no | {near} | | | |")
    return "\n".join(lines)


def data(organism: Organism, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "name": organism.name,
        "seed": organism.seed,
        "folder": str(organism.folder),
        **organism.told,
        "measured": [m._asdict() for m in measured],
    }


def text(organism: Organism, measured: Sequence[Measured]) -> str:
    """Return the card."""
    return (
        (DATA / "card.md")
        .read_text(encoding="utf-8")
        .format(
            organism=organism,
            made=species(organism.name),
            base=BASE,
            rank=RANK,
            first=BLOCKS[0],
            last=BLOCKS[-1],
            learning_rate=LEARNING_RATE,
            size=(organism.folder / "adapter_model.safetensors").stat().st_size / 1e6,
            table=table(measured),
        )
    )


def write(organism: Organism, measured: Sequence[Measured]) -> None:
    """Write `README.md` into the organism's folder."""
    content = text(organism, measured)
    files.write_bytes(organism.folder / "README.md", content.encode())
