"""Which vectors does a text reach: those that were found, random ones, those made of a text?

    python -m studies.causes.prompts [--model trigger] [--dose 0.4] [--reads 600] [--n 2]
    python -m studies.causes.prompts --quick

Every target is inverted on one bench: the same prompts, the same natural strings to begin with, the
same number of reads. ``text`` is what a known text does itself; ``natural`` the vector of that text
(the mean change of the stream at the source that it makes), ``found`` vectors of DCT and ``random``
random ones, all of one norm.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

import educe
from benchmarks import quick
from educe.forward.benign import ordinary_prompts
from educe.inversion.control import difference, string
from educe.inversion.reach import Bench, Settings
from educe.inversion.targets import by_text, taught
from educe.perturbation.kinds import Vectors

#: Texts of known effect; the first is the key of the organism.
TEXTS = ("granite", "Answer in French.")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each target."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--model", default="trigger", help="an organism, or embedded")
    ask.add_argument("--dose", type=float, default=0.4)
    ask.add_argument("--reads", type=int, default=600)
    ask.add_argument("--n", type=int, default=2, help="found and random vectors")
    ask.add_argument("--fresh", type=int, default=6)
    ask.add_argument("--tokens", type=int, default=5)
    options = quick.parsed(ask, argv)
    torch.set_num_threads(1)
    if options.quick:
        options.reads, options.n, options.fresh, options.tokens = 20, 1, 2, 2
    organism = None if options.model == "embedded" else quick.organism(options.model, quick=False)
    lm = quick.model(organism, quick=options.quick, device="cpu", dtype=torch.float32)
    settings = Settings(
        tokens=options.tokens, budget=options.reads, searched=3, fresh=options.fresh, answer=4
    )
    batch = lm.encode(ordinary_prompts()[: settings.searched + settings.fresh])
    part = educe.Slice(lm, batch.select([0, 1, 2]), source=0.33, target=0.6)
    bench = Bench(lm, batch, settings, (part.source, part.target))
    kind = Vectors(part.source, lm.width)
    radius = options.dose * part.unit
    found = educe.search(part, "dct", n=options.n, radius=radius)
    control = educe.control(part, found)
    targets = [
        ("text", text, by_text(bench.openings, string(lm, text), tokens=4)) for text in TEXTS
    ]
    vectors = [
        ("natural", text, difference(lm, bench.openings, string(lm, text), part.source))
        for text in TEXTS
    ]
    vectors += [("found", f"dct {i + 1}", theta[None]) for i, theta in enumerate(found.theta)]
    vectors += [("random", str(i + 1), theta[None]) for i, theta in enumerate(control.theta)]
    targets += [
        (role, name, taught(lm, batch, kind, radius * normalize(theta), tokens=4))
        for role, name, theta in vectors
    ]
    print(f"layer {part.source}, norm {radius:.3g}")
    print("| target | of | effect | share | 95% | searched | nearest | no likelier | string |")
    print("|---|---|---|---|---|---|---|---|---|")
    for role, name, known in targets:
        case = bench.case(role, name, known)
        print(
            f"| {role} | {name} | {case.effect:.2f} | {case.share:.0%} | {case.low:.0%} to "
            f"{case.high:.0%} | {case.searched:.0%} | {case.nearest_share:.0%} | "
            f"{case.natural:.0%} | {case.string} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
