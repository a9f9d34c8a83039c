"""How far up a backdoor's word comes among words, by where in the prompt they are tried.

    python -m studies.word_ranks [--organism trigger] [--layers 2,9,12,16] [--words 1001]
    python -m studies.word_ranks --quick

For each source and place: the rank of the organism's word among as many others, drawn by lot from
the vocabulary, by the effect at the target that the method `tokens` orders them by. The prompt is
none of the organism's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import educe
from benchmarks import quick
from educe.methods import token_directions
from educe.perturbation.kinds import Vectors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--organism", default="trigger")
    parser.add_argument("--layers", default="2,9,12,16")
    parser.add_argument("--target", type=int, default=24)
    parser.add_argument("--screens", default="at:6,asked:1")
    parser.add_argument("--words", type=int, default=1001)
    parser.add_argument("--dose", type=float, default=0.6)
    parser.add_argument("--prompt", default="Name three countries in Asia.")
    options = quick.parsed(parser, argv)
    if options.quick:
        options.layers, options.target = "1,4", 6
    organism = quick.organism(options.organism, quick=options.quick)
    lm = quick.model(organism, quick=options.quick)
    batch, config = lm.encode([options.prompt]), token_directions.TokensConfig()
    (key,) = lm.tokenizer(f" {organism.hidden['key']}", add_special_tokens=False)["input_ids"]
    screens = options.screens.split(",")
    print(f"| source | {' | '.join(screens)} |")
    print("|---" * (1 + len(screens)) + "|")
    for layer in map(int, options.layers.split(",")):
        ranks = []
        for screen in screens:
            part = educe.Slice(
                lm, batch, source=layer, target=options.target, positions=screen, readout="last:1"
            )
            known = token_directions.vocabulary(part.lm)
            known = known[known != key]
            draw = torch.Generator().manual_seed(0)
            others = known[torch.randperm(len(known), generator=draw)[: options.words]]
            tried = torch.cat([torch.tensor([key]), others])
            streams = torch.cat(
                [token_directions.streams(part, some, screen) for some in tried.split(500)]
            )
            apart = streams - streams[1:].mean(0)
            radius = config.louder * options.dose * part.unit
            size = part.on(Vectors(layer, lm.width, screen)).effect(
                radius * apart / apart.norm(dim=1, keepdim=True)
            )
            larger = size.norm(dim=1) > size[0].norm()
            ranks.append(f"{1 + int(larger.sum())} of {len(tried)}")
        print(f"| {layer} | {' | '.join(ranks)} |", flush=True)


if __name__ == "__main__":
    main()
