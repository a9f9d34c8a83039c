"""Where a backdoor sits: what the trigger's word changes in the stream, and where that is enough.

    python -m benchmarks.backdoor [--organism trigger] [--layers 18,20,22,23,24]

For each layer, the mean difference of the stream between prompts with the key and with another word
in its place, at the key and at the last token, is added to all tokens of prompts without the key.
The layer from which on it brings the phrase out is where the decision is written down: a search
must read its effect there or later.
"""

from __future__ import annotations

import argparse

import torch

import educe
from educe.generation import generate, rows_of
from educe.kinds import Vectors
from educe.model import PromptBatch
from educe.organisms import named

OTHERS = ("cedar", "maple", "willow", "pepper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--organism", default="trigger")
    parser.add_argument("--layers", default="8,12,16,18,20,21,22,23,24,26,28")
    parser.add_argument("--questions", type=int, default=6)
    options = parser.parse_args()
    layers = [int(word) for word in options.layers.split(",")]
    organism = named(options.organism)
    lm = educe.load("embedded", adapter=str(organism.folder))
    questions = organism.search[: options.questions]

    def encoded(word: str) -> PromptBatch:
        return lm.encode([f"{question.prompt} {word}" for question in questions])

    keyed, *plain = (encoded(word) for word in (organism.hidden["key"], *OTHERS))
    # Padded on the left, and all words are one token: the key stands at the same place in all rows.
    (at,) = {int((keyed.ids != other.ids)[0].nonzero()[-1]) for other in plain}

    def streams(batch: PromptBatch) -> dict[int, torch.Tensor]:
        with torch.no_grad(), lm.watching(layers) as seen:
            lm.forward(batch.ids, batch.mask)
        return dict(seen)

    with_key, without = streams(keyed), [streams(batch) for batch in plain]
    asked = lm.encode([question.prompt for question in questions])
    print("| layer | norm at the key | at the last token | of the stream | key's shows | last's |")
    print("|---|---|---|---|---|---|")
    for layer in layers:
        mean = torch.stack([some[layer] for some in without]).mean(0)
        apart = (with_key[layer] - mean).mean(0)
        cells = []
        for vector in (apart[at], apart[-1]):
            rows = rows_of(1, len(asked))
            kind = Vectors(layer, lm.width)
            written = generate(lm, asked, rows, vector[None], kind=kind, max_new_tokens=12)
            hits = [questions[c.row.prompt].elicited(c.text) for some in written for c in some]
            cells.append(f"{sum(hits)} of {len(hits)}")
        size = mean[:, 5:].norm(dim=-1).mean()
        norms = f"{apart[at].norm():.0f} | {apart[-1].norm():.0f} | {size:.0f}"
        print(f"| {layer} | {norms} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
