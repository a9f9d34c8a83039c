"""What reading a corpus costs: processor time and peak memory over its size.

python -m benchmarks.reading

Each size is a process of its own. Natural activations of the embedded model at three layers; the
bundled corpus, and once it is used up the same again with the words of each document shuffled: for
time and memory it is as good as any.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

SIZES, LAYERS = (0, 25_000, 50_000, 100_000), (9, 18, 29)


def documents() -> Iterator[str]:
    from educe.manifold import corpus

    known = list(corpus.documents())
    rng = random.Random(0)
    for text in known:
        yield text if isinstance(text, str) else text[-1]["content"]
    for text in known:
        words = (text if isinstance(text, str) else text[-1]["content"]).split()
        yield " ".join(rng.sample(words, len(words)))


def measure(tokens: int) -> None:
    import educe

    lm = educe.load("embedded")
    before, began = peak(), time.process_time()
    if tokens:
        gathered = educe.gather(lm, documents(), [educe.Place(k) for k in LAYERS], limit=tokens)
        natural = gathered.natural[educe.Place(LAYERS[0])]
        tokens = natural.moments.count + natural.held.count
    took = time.process_time() - began
    print(f"| {tokens} | {took:.0f} s | {before:.2f} GB | {peak():.2f} GB |", flush=True)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
    else:
        print("| tokens | processor time | peak with the model alone | peak |\n|---|---|---|---|")
        for size in SIZES:
            subprocess.run([sys.executable, "-m", "benchmarks.reading", str(size)], check=True)
