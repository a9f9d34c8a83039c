"""What reading a corpus costs: processor time and peak memory over its size.

python -m benchmarks.gathering [--quick]

Each size is a process of its own. Natural activations of the embedded model at three layers; the
bundled corpus, and once it is used up the same again with the words of each document shuffled: for
time and memory it is as good as any. The quick form reads a little, in this process.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import quick
from benchmarks.measuring import peak_memory
from educe.activations import corpus
from educe.activations.natural import gathered
from educe.activations.reading import Place, pieces

#: In full, and in the quick form.
SIZES = ((0, 25_000, 50_000, 100_000), (0, 6_000))
LAYERS = ((9, 18, 29), (2, 4, 7))


def documents() -> Iterator[str]:
    known = list(corpus.documents())
    rng = random.Random(0)
    for text in known:
        yield text if isinstance(text, str) else text[-1]["content"]
    for text in known:
        words = (text if isinstance(text, str) else text[-1]["content"]).split()
        yield " ".join(rng.sample(words, len(words)))


def measure(tokens: int, *, short: bool = False) -> None:
    lm = quick.model(quick=short)
    before, began = peak_memory() / 1e9, time.process_time()
    if tokens:
        places = [Place(layer) for layer in LAYERS[short]]
        some = list(pieces(lm, documents(), limit=tokens))
        natural = gathered(lm, some, places).natural[places[0]]
        tokens = natural.moments.count + natural.held.count
    took = time.process_time() - began
    print(
        f"| {tokens} | {took:.0f} s | {before:.2f} GB | {peak_memory() / 1e9:.2f} GB |", flush=True
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int, nargs="?", help="only this, in this process")
    asked = quick.parsed(parser, argv)
    if asked.size is not None:
        measure(asked.size)
        return
    print("| tokens | processor time | peak with the model alone | peak |\n|---|---|---|---|")
    for size in SIZES[asked.quick]:
        if asked.quick:
            measure(size, short=True)
        else:
            command = [sys.executable, "-m", "benchmarks.gathering", str(size)]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


if __name__ == "__main__":
    main()
