"""Does the corpus know that code, lists, tables and other languages are natural?

python -m studies.forms [LAYER...] [--quick]

What is examined are differences between forms of text: the mean activation over four texts of a
form less that over four of prose, and 500 differences between single tokens of them. None of these
texts is in the corpus. The verdict is that of a manifold report; single differences are counted as
`studies.standing` does. Beside share and length, at norm one, is which part of the natural
differences has a smaller one. A random vector, and 500 of them, are the control. All of it without
the varied part of the bundled corpus (``varied.txt``), and with the corpus as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

import educe
from benchmarks import quick
from educe.activations import corpus
from educe.activations.distance import differences, learning, random_vectors
from educe.activations.natural import Natural, gather
from educe.activations.reading import Place, pieces, read
from educe.activations.report import Facts, ManifoldReport, Measure, verdict
from educe.model.prompts import Prompt
from studies.standing.__main__ import outside

N, MANY = 500, 2000
#: Layers, and the most tokens of the corpus: in full, and in the quick form.
LAYERS, TOKENS = ((9, 18), (2,)), (100_000, 12_000)
#: The forms in ``forms.txt``, in which lines with ``%`` alone are between texts, four of each.
FORMS, EACH = ("prose", "code", "lists", "tables", "German"), 4


def documents(*, varied: bool) -> Iterator[Prompt]:
    """Return the bundled corpus, with its varied part or without."""
    left_out = [] if varied else corpus.varied()
    return (document for document in corpus.documents() if document not in left_out)


def tokens(lm: educe.LanguageModel, places: Sequence[Place]) -> dict[str, dict[Place, Tensor]]:
    """Return the activations of all tokens of each form."""
    texts = Path(__file__).with_name("forms.txt").read_text(encoding="utf-8").split("\n%\n")
    found = {}
    for at, form in enumerate(FORMS):
        some = pieces(lm, texts[EACH * at : EACH * (at + 1)])
        batches = list(read(lm, some, places))
        found[form] = {p: torch.cat([b.rows[p] for b in batches]).double() for p in places}
    return found


class Judging:
    """Says where vectors stand among natural activations at a place."""

    def __init__(self, natural: Natural) -> None:
        self.layer, self.learned = natural.place.layer, learning(natural)
        self.home = self.learned[-1][0]
        draw = torch.Generator().manual_seed(0)
        self.apart = differences(natural.sample, MANY, draw)
        self.drawn = random_vectors(MANY, self.home, draw)
        self.unit = self.bare(self.apart)

    def bare(self, vectors: Tensor) -> Tensor:
        """Return vectors without their massive coordinates, at norm one."""
        return normalize(self.home.bare(vectors), dim=1)

    def report(self, vector: Tensor) -> ManifoldReport:
        """Return a report with what the verdict looks at, for which no model runs."""
        whole, own = vector[None], self.bare(vector[None])

        def placed(judge: str, measures: Sequence[Any], found: Tensor, among: Tensor) -> Any:
            values = (torch.stack([m(v) for m in measures], 1) for v in (found, among, self.drawn))
            own, natural, random = values
            return Measure(own[0], natural, random).standings(judge)

        geometries = [geometry for geometry, _ in self.learned]
        shares, lengths = ([getattr(g, name) for g in geometries] for name in ("share", "length"))
        facts = SimpleNamespace(layer=self.layer)
        return ManifoldReport(
            0,
            "found",
            cast(Facts, facts),
            {
                "energy_massive": placed("energy_massive", [self.home.massive], whole, self.apart),
                "energy_top": placed("energy_top", shares, own, self.unit),
                "mahalanobis": placed("mahalanobis", lengths, own, self.unit),
                "mahalanobis_own": placed("mahalanobis_own", [self.home.length], whole, self.apart),
            },
            {self.layer: tuple(known for _, known in self.learned)},
            {},
            (),
        )

    def line(self, what: str, vector: Tensor, single: Tensor) -> str:
        """Return the cells of a vector, and of some others of its kind."""
        told = self.report(vector)
        far = int(outside(self.home, self.bare(single), self.unit).sum())
        shown = (
            f"{at.found:.2f} ({at.percentile:.1%})"
            for at in (told["energy_top"], told["mahalanobis"])
        )
        return " | ".join((what, *shown, verdict(told), f"{far} of {len(single)}"))


def examined(rows: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Return differences by what they are called: one of means, and some of single tokens."""
    draw = torch.Generator().manual_seed(1)
    prose, *others = rows
    for form in others:
        first, second = (
            rows[of][torch.randint(len(rows[of]), (N,), generator=draw)] for of in (form, prose)
        )
        yield f"{form} less {prose}", rows[form].mean(0) - rows[prose].mean(0), first - second
    drawn = torch.randn(N + 1, rows[prose].shape[1], generator=draw, dtype=torch.float64)
    yield "random", drawn[0], drawn[1:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layers", type=int, nargs="*", help="by default 9 and 18")
    asked = quick.parsed(parser, argv)
    lm = quick.model(quick=asked.quick)
    places = [Place(layer) for layer in asked.layers or LAYERS[asked.quick]]
    forms = tokens(lm, places)
    print("| corpus | layer | difference | share | length | verdict | single ones outside |")
    print("|---|---|---|---|---|---|---|")
    for name, varied in (("without varied", False), ("bundled", True)):
        gathered = gather(lm, documents(varied=varied), places, limit=TOKENS[asked.quick])
        for place in places:
            judging = Judging(gathered.natural[place])
            rows = {form: some[place] for form, some in forms.items()}
            for difference in examined(rows):
                print(f"| {name} | {place.layer} | {judging.line(*difference)} |", flush=True)


if __name__ == "__main__":
    main()
