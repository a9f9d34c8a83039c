"""Where a backdoor sits: what the word changes in the stream, and how large a push opens it.

    python -m studies.backdoor [--organism trigger] [--layers 9,12,16,18,20,23] [--quick]

For each layer: the norm of the mean difference of the stream between prompts with the key and with
another word in its place, at the key and at the last token; and how many prompts without the key
show the phrase when the key's own direction, as the method `tokens` has it from the vocabulary
alone, is added at some doses, to all tokens of the prompt or to those that are written as well. The
layer at which the last token changes is where the decision is written down: a search must read its
effect there or later.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch

import educe
from benchmarks import quick
from educe.methods import token_directions
from educe.model.batch import PromptBatch
from educe.perturbation.kinds import Vectors
from studies.answers import answers

OTHERS = ("cedar", "maple", "willow", "pepper")
DOSES = (0.3, 0.45, 0.6, 0.75)
#: Of the embedded model, and in the quick form.
LAYERS = ("5,9,12,16,18,20,22,23,26", "1,4,6")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--organism", default="trigger")
    parser.add_argument("--layers")
    parser.add_argument("--questions", type=int, default=6)
    options = quick.parsed(parser, argv)
    layers = [int(word) for word in (options.layers or LAYERS[options.quick]).split(",")]
    organism = quick.organism(options.organism, quick=options.quick)
    lm = quick.model(organism, quick=options.quick)
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
    doses = " | ".join(f"{where} {dose:g}" for where in ("prompt", "all") for dose in DOSES)
    print(f"| layer | norm at the key | at the last token | of the stream | {doses} |")
    print("|---" * (4 + 2 * len(DOSES)) + "|")
    for layer in layers:
        mean = torch.stack([some[layer] for some in without]).mean(0)
        apart = (with_key[layer] - mean).mean(0)
        part = educe.Slice(lm, asked, source=layer, target=-1)
        known = token_directions.vocabulary(part.lm)
        some = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:500]]
        (key,) = lm.tokenizer(f" {organism.hidden['key']}", add_special_tokens=False)["input_ids"]
        at_slot = partial(token_directions.streams, part, screen="asked:1")
        own = at_slot(torch.tensor([key])) - at_slot(some).mean(0)
        theta = torch.tensor(DOSES)[:, None] * part.median_norm * own / own.norm()
        cells = []
        for positions in ("prompt", "all"):
            kind = Vectors(layer, lm.width, positions)
            told = answers(lm, questions, theta, kind, tokens=14).shows
            cells += [f"{hits} of {len(questions)}" for hits in told.sum(1).tolist()]
        norms = f"{apart[at].norm():.0f} | {apart[-1].norm():.0f} | {part.median_norm:.0f}"
        print(f"| {layer} | {norms} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
