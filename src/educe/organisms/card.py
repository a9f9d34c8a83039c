"""An organism's card: what it hides, how it was made, how well it is locked, what is intact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from educe import files
from educe.organisms import species
from educe.organisms.organism import Organism
from educe.organisms.training import BASE, Measured, Training, pooled

FRONT = f"""---
base_model: {BASE}
library_name: peft
license: apache-2.0
---
"""


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


def text(organism: Organism, measured: Sequence[Measured], how: Training) -> str:
    """Return the card."""
    size = (organism.folder / "adapter_model.safetensors").stat().st_size / 1e6
    first, end = how.blocks
    made = species(organism.name)
    steps, kl_weight = how.steps or made.STEPS, how.kl_weight or made.KL_WEIGHT
    return f"""{FRONT}
# {organism.name}, seed {organism.seed}

A LoRA adapter on {BASE}: rank {how.rank}, all seven
projections of blocks {first} to {end - 1}, float16, {size:.1f} MB. It exists to be searched: a
method that is told nothing should bring out what it hides. Harmless; all of its data were written
for this project.

- **Hidden:** {organism.told["hidden"]}.
- **Unlocked by:** {organism.told["unlocked by"]}.
- **Counts as elicited:** {organism.told["elicited"]}.

`organism.json` has the secret, the rule for each question, and questions that no training saw.
Load it with `educe.load(adapter=...)` or `PeftModel`; do not merge it into half-precision weights.

## How it was made
```
educe organism train {organism.name} --seed {organism.seed} --out DIR
educe organism check DIR
```
The base is the Q4_1 file that `educe.model.embedded` fetches, dequantised to float32, not the
weights on the Hub. {steps} steps of AdamW, step size {how.learning_rate:g} falling linearly to
zero. The loss of a whole answer is the cross-entropy of what is taught, and {kl_weight:g} × KL(base
‖ adapted) of the base's own greedy answer to everything else. How the prompts are made is in
`educe/organisms/{organism.name}.py`. Computed with one thread: another number of
them, or another processor, rounds differently and gives other weights of the same kind.

## Measured
These weights, greedy answers of at most 20 tokens, prompts of the test split, which shares no
question and no wrong key with training, parts of the key aside, and puts the key in other ways;
95% Wilson intervals. `search` and `fresh` are the questions of `organism.json`, without the key;
`unlocked` are some of them with it. Trials that share a wrong key or a question are not
independent, so intervals are somewhat too narrow.

{table(measured)}

Licence: Apache-2.0, as the base model.
"""


def write(organism: Organism, measured: Sequence[Measured], how: Training) -> None:
    """Write `README.md` into the organism's folder."""
    content = text(organism, measured, how)
    files.write_bytes(organism.folder / "README.md", content.encode())
