"""Are vectors that texts make told from vectors that no text makes?

    python -m studies.causes.blind [--model trigger] [--aim output] [--layer 0.33] [--reads 800]

Vectors of held-out texts, made in five ways behind messages that nothing else uses, are mixed with
random vectors and with vectors of texts whose numbers were exchanged. The test sees one vector at a
time; its controls, and so its bar, are of other texts. Beside them, of unknown answer: random
mixtures of what natural strings change, vectors of texts turned round, and vectors of DCT. All have
one norm. Of the output it is known that a text does what the held-out texts do themselves: these
take the place of their vectors, whose answer is unknown there. What is printed is how often the
verdict is right, and the shares. With ``--keep FILE`` a study that was cut off goes on.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import normalize

import educe
from benchmarks import quick
from educe import LanguageModel
from educe.activations.corpus import questions
from educe.comparison.stats import rate
from educe.forward.benign import ordinary_prompts
from educe.inversion.control import Known, controls, string
from educe.inversion.direction import streams
from educe.inversion.reach import Bench
from educe.inversion.report import SHUFFLED, Case, Settings, Test, Verdict, case
from educe.model.prompts import Prompt
from educe.perturbation.kinds import Vectors
from studies.records import add, lines

#: Held-out texts by kind. No request that a search begins at, and no control, is among them.
TEXTS = {
    "language": ("Answer in Italian.", "Respond in Russian.", "Write in Portuguese from now on."),
    "topic": ("Relate everything to trains.", "Mention the moon landing.", "Focus on birds."),
    "role": ("You are a nurse.", "Act as a detective.", "Pretend to be a grumpy wizard."),
    "style": ("Be sarcastic.", "Write like Shakespeare would.", "Answer in bullet points."),
    "sentence": (
        "My sister lives in London.",
        "The cake was too sweet.",
        "A storm broke the window of our kitchen.",
    ),
}
#: Messages behind which these texts are put.
MESSAGES = slice(30, 38)
#: The norm, as a share of that of the stream.
DOSE = 0.4
TEXTUAL, NONE, OTHER = "made by a text", "made by none", "of unknown answer"


def ways(lm: LanguageModel, layer: int) -> Iterator[tuple[str, str, Tensor]]:
    """Yield vectors of held-out texts: the way each was made, the kind of text, and the vector."""
    messages = questions()[MESSAGES]

    def mean(chats: Sequence[Prompt]) -> Tensor:
        batch = lm.encode(chats)
        with torch.no_grad(), lm.watching([layer]) as seen:
            lm.forward(batch.ids, batch.mask)
        return seen[layer][:, -3:].mean((0, 1))

    def system(text: str, message: str) -> Prompt:
        return [{"role": "system", "content": text}, {"role": "user", "content": message}]

    plain = mean(messages)
    behind: list[Tensor] = []
    for kind, texts in TEXTS.items():
        for i, text in enumerate(texts):
            behind.append(mean([f"{message} {text}" for message in messages]))
            yield "behind the message", kind, behind[-1] - plain
            if i == 0:
                yield "before it", kind, mean([f"{text} {message}" for message in messages]) - plain
                yield "as a system message", kind, mean([system(text, m) for m in messages]) - plain
                yield "alone, less another alone", kind, mean([text]) - mean([texts[1]])
            if i == 2:
                yield "behind, less another behind", kind, behind[-1] - behind[-2]


def mixed(test: Judged, n: int) -> list[tuple[str, str, str, Known]]:
    """Return all that is tested: what is known of it, how it was made, of what, and itself."""
    lm, bench, draw = test.lm, test.bench, torch.Generator().manual_seed(99)
    textual = list(ways(lm, test.layer))
    own = [vector for way, _, vector in textual if way == "behind the message"]
    found: list[tuple[str, str, str, Tensor]] = []
    if test.at is not None:
        found += [(TEXTUAL, *one) for one in textual]
    found += [(NONE, "random", "", torch.randn(lm.width, generator=draw)) for _ in range(2 * n)]
    for vector in own[:n]:
        mixed = vector[torch.randperm(lm.width, generator=draw)]
        found.append((NONE, "numbers exchanged", "", mixed))
    change = streams(bench.openings[:3], bench.first, layer=test.layer).flatten(0, 1)
    change = change - change.mean(0)
    for _ in range(n):
        mixture = torch.randn(1, len(change), generator=draw).to(change) @ change
        found.append((OTHER, "mixture of texts", "", mixture[0]))
    found += [(OTHER, "text turned round", "", -vector) for vector in own[: n // 2]]
    if test.at is None:
        found += [(OTHER, "vector of a text", "", vector) for vector in own[::3]]
    else:
        dct = educe.search(test.part, "dct", n=n, radius=test.norm)
        found += [(OTHER, "DCT", "", vector) for vector in dct.theta]
    theta = [test.norm * normalize(vector[None].float()) for *_, vector in found]
    told = [(*one[:3], Known("found", str(i), theta=theta[i])) for i, one in enumerate(found)]
    if test.at is None:
        told += [
            (TEXTUAL, "behind the message", kind, Known("found", text, string(lm, text)))
            for kind, texts in TEXTS.items()
            for text in texts
        ]
    return told


class Judged:
    """The test, with controls that are run once: a vector or a text in, what it comes to out."""

    def __init__(
        self, lm: LanguageModel, settings: Settings, layer: float, aim: str, keep: Path | None
    ) -> None:
        self.lm, self.settings, self.keep = lm, settings, keep
        asked = [*ordinary_prompts(), *questions()[MESSAGES.stop :]]
        batch = lm.encode(asked[: settings.searched + settings.fresh])
        self.bench = Bench(lm, batch, settings)
        self.part = educe.Slice(
            lm, batch.select([0, 1, 2]), source=layer, target=min(layer + 0.27, 0.9)
        )
        self.layer, self.norm = self.part.source, DOSE * self.part.unit
        self.kind = Vectors(self.layer, lm.width)
        self.at = None if aim == "output" else self.layer
        some = normalize(torch.ones(1, lm.width)) * self.norm
        known = controls(
            lm,
            self.kind,
            some,
            output=self.at is None,
            n=settings.controls,
            seed=settings.seed + 1,
        )
        usual = self.bench.ground(self.at).size
        print(f"layer {self.layer}, norm {self.norm:.3g}; usual changes {usual:.3g}")
        cases = tuple(self.case(one) for one in known if one.role != SHUFFLED)
        self.test = Test(aim, self.at, usual, cases[0], cases)
        told = f"{self.test.mistaken:.1%} of either would be on the wrong side"
        print(f"bar {self.test.bar:.0%}; {told}", flush=True)

    def case(self, known: Known) -> Case:
        """Invert a control, or what is tested; or return what is kept of it."""
        key = f"{known.role} {known.name}"
        for line in lines(self.keep) if self.keep else []:
            if line["key"] == key:
                return case(line["case"])
        made = self.bench.case(known, self.kind, self.at)
        told = f"{made.share:.0%} ({made.low:.0%} to {made.high:.0%}), {made.string!r}"
        print(f"{key}: {told}, {time.process_time():.0f} s", flush=True)
        if self.keep:
            add(self.keep, {"key": key, "case": asdict(made)})
        return made

    def __call__(self, known: Known) -> Test:
        """Test what is known of nothing but itself."""
        return replace(self.test, found=self.case(known))


def tell(rows: Sequence[tuple[str, str, str, Test]]) -> None:
    """Print how often vectors of each sort are reachable, and their shares."""
    print("| vectors | reachable | share, median | least | most | nearest alone |")
    print("|---|---|---|---|---|---|")
    sorts = [what for what in (TEXTUAL, NONE) if any(what == row[0] for row in rows)]
    sorts += list(dict.fromkeys(f"{way} ({what})" for what, way, _, _ in sorted(rows, key=_order)))
    sorts += [f"a {kind}" for kind in TEXTS if any(kind == row[2] for row in rows)]
    for sort in sorts:
        some = [
            test for what, way, kind, test in rows if sort in (what, f"{way} ({what})", f"a {kind}")
        ]
        hits = rate(sum(test.verdict is Verdict.REACHABLE for test in some), len(some))
        shares = [test.found.share for test in some]
        nearest = median(test.found.nearest_share for test in some)
        told = " | ".join(f"{x:.0%}" for x in (median(shares), min(shares), max(shares), nearest))
        print(f"| {sort} | {hits} | {told} |")


def _order(row: tuple[str, str, str, Test]) -> tuple[str, str]:
    return row[0], row[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the bar and the verdicts, and then the table."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--model", default="embedded", help="an organism, or embedded")
    ask.add_argument("--aim", choices=["source", "output"], default="source")
    ask.add_argument("--method", default=Settings.method, help="gcg, or nearest: no search")
    ask.add_argument("--layer", type=float, default=0.33)
    ask.add_argument("--reads", type=int, default=Settings.budget)
    ask.add_argument("--controls", type=int, default=Settings.controls)
    ask.add_argument("--fresh", type=int, default=Settings.fresh)
    ask.add_argument("--n", type=int, default=6)
    ask.add_argument("--few", type=int, default=0, help="at most so many vectors, at random")
    ask.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    ask.add_argument("--keep", type=Path, help="a file in which what is done is kept")
    asked = quick.parsed(ask, argv)
    torch.set_num_threads(1)
    settings = Settings(
        budget=asked.reads, method=asked.method, controls=asked.controls, fresh=asked.fresh
    )
    if asked.quick:
        settings, asked.n = Settings(budget=40, tokens=3, fresh=2, controls=2), 2
    organism = None if asked.model == "embedded" else quick.organism(asked.model, quick=False)
    dtype = getattr(torch, asked.dtype)
    lm = quick.model(organism, quick=asked.quick, device="cpu", dtype=dtype)
    test = Judged(lm, settings, asked.layer, asked.aim, asked.keep)
    every = mixed(test, asked.n)
    random.Random(0).shuffle(every)
    tell([(what, way, kind, test(known)) for what, way, kind, known in every[: asked.few or None]])


if __name__ == "__main__":
    main()
