"""The whole job: what is read of every layer, and how far the model can be thinned.

A pass over a corpus forward and backward, one forward for statistics of the parts, one to find
where ways of reading are largest; then held-out texts under the thinned model. Each of these is
kept in the user's cache when it is done, so that a second call goes on where a first was cut off.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from educe.activations import corpus as texts
from educe.activations import gradients, reading
from educe.activations.gradients import Layer, Swept
from educe.activations.kept import once
from educe.activations.natural import LENGTH, is_held
from educe.activations.reading import Piece
from educe.errors import ModelError, PromptError
from educe.model.language import LanguageModel
from educe.progress import Reporter, Silent
from educe.reads import backwards, thinning, ways
from educe.reads.parts import Part, parts_of
from educe.reads.thinning import FORMS, NATS, Curve, Texts
from educe.reads.ways import Context, Group

#: Held-out texts on which thinning is measured, and layers that are thinned alone, along the depth.
TEXTS, ALONE = 8, 5
#: Tokens in which places are looked for where a way is large.
LOOKED = 4096
#: Held-out texts are drawn from so many times the tokens that are read.
AMONG = 10
#: Counts up whenever other numbers would come out.
FORMAT = 2


@dataclass(frozen=True)
class Survey:
    """What is read of the layers of a model, and what thinning does to it.

    Attributes:
        model: Its name.
        corpus: What the corpus is called.
        tokens: How many of its tokens were read forward and backward.
        held_out: Tokens on which thinning is measured.
        layers: What is known of each layer.
        groups: What each block reads of the layer before it; none where it is not by matrices.
        curves: What is left of the output with more and more dimensions.
    """

    model: str
    corpus: str
    tokens: int
    held_out: int
    layers: dict[int, Layer]
    groups: tuple[Group, ...]
    curves: tuple[Curve, ...]

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of thinning that were measured."""
        return tuple(form for form in FORMS if any(c.form == form for c in self.curves))

    def curve(self, form: str, layer: int | None) -> Curve:
        """Return a curve by its form and layer; None is all layers."""
        return next(c for c in self.curves if (c.form, c.layer) == (form, layer))

    def data(self) -> dict[str, Any]:
        """Return it without tensors, as JSON can hold it."""
        return {
            "model": self.model,
            "corpus": self.corpus,
            "tokens": self.tokens,
            "held_out": self.held_out,
            "thinning": [
                c._asdict() | {"needed": {str(nats): c.needed(nats) for nats in NATS}}
                for c in self.curves
            ],
            "reads": [
                {
                    "layer": group.layer,
                    "reader": group.reader,
                    "ways": group.number,
                    "value": group.value[: len(group.read)].tolist(),
                    "shown": [[c._asdict() for c in way] for way in group.shown],
                }
                for group in self.groups
            ],
        }


def swept(
    lm: LanguageModel,
    corpus: str = texts.BUNDLED,
    *,
    tokens: int = gradients.TOKENS,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Swept:
    """Return what is known of all layers: read forward and backward, or kept from before.

    Args:
        lm: The model.
        corpus: See `educe.activations.corpus.documents`.
        tokens: The most that are read.
        seed: Of what is drawn.
        reporter: Is told of the progress.

    Raises:
        PromptError: The corpus cannot be read, or is empty.
    """
    every, documents = range(lm.depth), texts.documents(corpus)
    return gradients.sweep(lm, documents, every, limit=tokens, seed=seed, reporter=reporter)


def survey(
    lm: LanguageModel,
    corpus: str = texts.BUNDLED,
    *,
    tokens: int = gradients.TOKENS,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Survey:
    """Say what is read of each layer, and how far the model can be thinned to what counts.

    The arguments are those of `swept`.

    Raises:
        PromptError: The corpus cannot be read, or is too small to hold texts out.

    Example:
        >>> from educe.reads.survey import survey
        >>> found = survey(lm, tokens=600)
        >>> found.forms
        ('weights', 'gradients', 'balanced', 'components', 'random')
        >>> found.curve("balanced", None).kept[-1]
        31
    """
    reporter = reporter or Silent()
    known = swept(lm, corpus, tokens=tokens, seed=seed, reporter=reporter)
    held = held_out(lm, corpus, tokens, seed)
    blocks = _blocks(lm, reporter)
    decides = repr((known.name, held, FORMAT, TEXTS, ALONE, LOOKED, LENGTH, thinning.GRID))
    name = hashlib.sha256(decides.encode()).hexdigest()

    def read() -> list[Group]:
        found = ways.groups(lm, known.layers, blocks)
        documents = texts.documents(corpus)
        return ways.shown(lm, documents, known.layers, found, limit=LOOKED, reporter=reporter)

    def carried() -> dict[int, Tensor]:
        documents = texts.documents(corpus)
        return backwards.carried_back(lm, documents, blocks=blocks, reporter=reporter)

    def thin() -> list[Curve]:
        return _thinned(lm, known, importance, held, seed, reporter)

    groups = once(f"ways-{name}", read, (Group, Context), reporter) if blocks else []
    importance = once(f"carried-{name}", carried, (), reporter) if blocks else {}
    curves = once(f"thinned-{name}", thin, (Curve,), reporter)
    counted = sum(len(piece.ids) - piece.skip for piece in held)
    return Survey(
        lm.name, corpus, known.tokens, counted, known.layers, tuple(groups), tuple(curves)
    )


def _blocks(lm: LanguageModel, reporter: Reporter) -> list[list[Part]]:
    """Return the parts of all blocks; none, and say why, where blocks do not read by matrices."""
    try:
        return [parts_of(lm, block) for block in range(lm.depth)]
    except ModelError as error:
        reporter.say(f"what is told from weights is left out: {error}")
        return []


def held_out(lm: LanguageModel, corpus: str, tokens: int, seed: int) -> list[Piece]:
    """Return beginnings of documents that are held out, drawn by chance; arguments as of `swept`.

    Raises:
        PromptError: There is none.
    """
    found = [
        piece._replace(ids=piece.ids[: piece.skip + LENGTH])
        for piece in reading.pieces(lm, texts.documents(corpus), limit=AMONG * tokens)
        if is_held(piece.document) and not piece.start and len(piece.ids) >= piece.skip + LENGTH
    ]
    if not found:
        raise PromptError(
            f"the corpus {corpus} has no text to measure on: give one of five documents or more, "
            f"with texts of {LENGTH} tokens or more"
        )
    return random.Random(seed).sample(found, min(TEXTS, len(found)))


def _thinned(
    lm: LanguageModel,
    known: Swept,
    importance: dict[int, Tensor],
    held: Sequence[Piece],
    seed: int,
    reporter: Reporter,
) -> list[Curve]:
    by_layer = {
        layer: thinning.components_of(of, importance.get(layer), seed=seed + layer)
        for layer, of in known.layers.items()
    }
    alone = sorted(set(np.linspace(0, lm.depth - 1, ALONE).round().astype(int).tolist()))
    forms = len(by_layer[0])
    passes = (len(alone) + 1) * forms * len(thinning.dimensions(lm.width))
    with reporter.stage("thinning", passes, "passes") as step:
        return thinning.curves(Texts(lm, held), by_layer, alone, step)
