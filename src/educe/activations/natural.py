"""What is known of natural activations at a place: moments, some of them, and some held out.

Every fifth document is held out. The others are in four parts, an eighth, an eighth, a quarter and
a half of them, so that their sums are the same corpus at an eighth, a quarter, a half and all of
its size: moments add up, and the learning curve costs nothing. Of the activations themselves a
uniform sample of fixed size is kept. So memory depends on the width and on the number of places,
not on the corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.activations import reading
from educe.activations.kept import once
from educe.activations.reading import Piece, Place
from educe.activations.subspace import Moments
from educe.errors import PromptError
from educe.model import digest
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.progress import Reporter, Silent

#: Every so many documents one is held out, and which of eight others belong to which part.
HELD, PARTS = 5, (0, 1, 2, 2, 3, 3, 3, 3)
#: Activations that are kept: to look for the nearest among, and held out.
BANK, SAMPLE = 4096, 2048
#: Beginnings of held-out documents to run the perturbed model on, drawn uniformly: how many, and
#: their counted tokens.
TEXTS, LENGTH = 12, 24
#: Coordinates whose mean square is so many times the median one are massive; but where more than
#: this share of all are, they are no exceptions.
MASSIVE, EXCEPTIONS = 100.0, 0.01
#: Counts up whenever other numbers would be gathered, or kept in another way.
FORMAT = 3


class Sample(NamedTuple):
    """Activations drawn uniformly from all that went by (those with the smallest random keys)."""

    rows: Float[Tensor, "n d"]
    document: Int[Tensor, "n"]
    key: Float[Tensor, "n"]

    @classmethod
    def none(cls, width: int) -> Sample:
        """Return an empty sample."""
        return cls(torch.zeros(0, width), torch.zeros(0, dtype=torch.long), torch.zeros(0))

    def joined(self, rows: Tensor, document: Tensor, key: Tensor, most: int) -> Sample:
        """Return the sample after some more activations went by."""
        keys = torch.cat([self.key, key])
        stay = keys.argsort(stable=True)[:most]
        return Sample(
            torch.cat([self.rows, rows])[stay],
            torch.cat([self.document, document])[stay],
            keys[stay],
        )


@dataclass(frozen=True)
class Natural:
    """Natural activations at one place."""

    place: Place
    parts: tuple[Moments, ...]  #: of the corpus; each is as large as those before it together
    held: Moments  #: of the held-out documents
    bank: Sample  #: of activations that are not held out
    sample: Sample  #: of those that are
    first_norm: float  #: mean norm of activations of first tokens, which are left out of all else

    @property
    def growing(self) -> list[Moments]:
        """Moments of an eighth, a quarter, a half and all of the corpus, as far as it goes."""
        return [some for some in accumulate(self.parts) if some.count]

    @property
    def moments(self) -> Moments:
        """Moments of all that is not held out."""
        return self.growing[-1]

    @property
    def massive(self) -> list[int]:
        """Coordinates whose mean square is far above that of the others."""
        return massive_coordinates(self.moments)

    @property
    def norm(self) -> float:
        """Root mean square norm of an activation."""
        return float(self.moments.about(torch.zeros_like(self.moments.mean)).trace().sqrt())


def massive_coordinates(moments: Moments) -> list[int]:
    """Return coordinates whose mean square is far above that of the others."""
    square = moments.covariance.diagonal() + moments.mean.square()
    large = (square > MASSIVE * square.median()).nonzero()[:, 0].tolist()
    return large if len(large) <= max(1, EXCEPTIONS * len(square)) else []


class Gathered(NamedTuple):
    """What one pass over a corpus leaves."""

    natural: dict[Place, Natural]
    texts: list[Piece]  #: beginnings of some documents that are held out
    documents: int
    massive: int  #: tokens that were left out for a massive activation
    name: str = ""  #: what it is kept by


def gather(
    lm: LanguageModel,
    documents: Iterable[Prompt],
    places: Sequence[Place],
    *,
    limit: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Gathered:
    """Read a corpus and keep what describes its activations, in the user's cache as well.

    What was gathered of the same model, tokens and places before is not read again.

    Args:
        lm: The model.
        documents: Texts and chats (see `educe.activations.corpus`).
        places: Where activations are read. A token that is massive at one is left out at all.
        limit: Stop after so many tokens.
        seed: Of the samples.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        PromptError: The corpus is so small that nothing of it can be held out.
    """
    pieces = list(reading.pieces(lm, documents, limit=limit))
    settings = {
        "format": FORMAT,
        "model": digest.whole(digest.parts(lm.hf, lm.tokenizer)),  # as its weights are now
        "device": lm.device.type,
        "places": places,
        "seed": seed,
        "reading": [reading.MASSIVE, reading.TOKENS_PER_BATCH, reading.AHEAD],
        "keeping": [HELD, PARTS, BANK, SAMPLE],
        "texts": [TEXTS, LENGTH],
        "pieces": pieces,
    }
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def make() -> Gathered:
        return gathered(lm, pieces, places, seed=seed, reporter=reporter)._replace(name=name)

    return once(name, make, (Gathered, Natural, Place, Moments, Sample, Piece), reporter)


def gathered(
    lm: LanguageModel,
    pieces: Sequence[Piece],
    places: Sequence[Place],
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Gathered:
    """Read pieces of documents and keep nothing for the next time; see `gather`."""
    if not pieces:
        raise PromptError("the corpus is empty: give documents of at least two tokens")
    draw = torch.Generator().manual_seed(seed)
    seen: dict[Place, _Growing] = {}
    # Batches come by length, so the first texts to come are the shortest: chosen by chance as well.
    choice = torch.Generator().manual_seed(seed)
    texts: list[tuple[float, Piece]] = []
    tokens = massive = 0
    total = sum(len(piece.ids) - piece.skip for piece in pieces)
    with (reporter or Silent()).stage("reading the corpus", total, "tokens") as step:
        for batch in reading.read(lm, pieces, places):
            key = torch.rand(len(batch.document), generator=draw)
            for place, rows in batch.rows.items():
                known = seen.setdefault(place, _Growing(rows.shape[1]))
                known.add(rows, batch.document, key, batch.first[place], len(batch.pieces))
            begun = [
                piece._replace(ids=piece.ids[: piece.skip + LENGTH])
                for piece in batch.pieces
                if is_held(piece.document)
                and piece.start == 0
                and len(piece.ids) - piece.skip >= LENGTH
            ]
            chances = torch.rand(len(begun), generator=choice).tolist()
            texts = nsmallest(TEXTS, [*texts, *zip(chances, begun, strict=True)], itemgetter(0))
            tokens += len(batch.document)
            massive += batch.massive
            step(len(batch.document))
    documents = 1 + max(piece.document for piece in pieces)
    natural = {place: known.done(place) for place, known in seen.items()}
    fitted = all(sum(part.count for part in one.parts) > 1 for one in natural.values())
    held = all(len(one.sample.document.unique()) > 1 for one in natural.values())
    if not (texts and fitted and held):
        raise PromptError(
            f"the corpus has {tokens} tokens in {documents} documents: give one of which a fifth "
            f"can be held out, with texts of {LENGTH} tokens or more"
        )
    return Gathered(natural, [text for _, text in texts], documents, massive)


def is_held(document: int | Tensor) -> Any:
    """Return whether documents are held out, by their numbers."""
    return document % HELD == HELD - 1


class _Growing:
    """What `Natural` has, while it is gathered."""

    def __init__(self, width: int) -> None:
        self.parts = [Moments.none(width) for _ in range(max(PARTS) + 1)]
        self.held = Moments.none(width)
        self.bank, self.sample = Sample.none(width), Sample.none(width)
        self.first, self.pieces = 0.0, 0

    def add(
        self, rows: Tensor, document: Tensor, key: Tensor, first_norm: float, pieces: int
    ) -> None:
        """Take in a batch."""
        held = is_held(document)
        fitted = document - document // HELD  # their number among those that are not held out
        part = torch.tensor(PARTS)[fitted % len(PARTS)]
        for i in range(len(self.parts)):
            self.parts[i] += Moments.of(rows[~held & (part == i)])
        self.held += Moments.of(rows[held])
        self.bank = self.bank.joined(rows[~held], document[~held], key[~held], BANK)
        self.sample = self.sample.joined(rows[held], document[held], key[held], SAMPLE)
        self.first += first_norm * pieces
        self.pieces += pieces

    def done(self, place: Place) -> Natural:
        """Return what was gathered."""
        first = self.first / self.pieces
        return Natural(place, tuple(self.parts), self.held, self.bank, self.sample, first)
