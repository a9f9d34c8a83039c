"""Controls of an inversion: targets of which it is known whether a text reaches them.

    text            what a known text does: it is reached, by that text, in full
    natural vector  the mean change of the stream that a known text makes, at the norm of the
                    perturbation: how much of a text survives in one vector
    random          random perturbations of the same kind and norm: how much the flexibility of
                    tokens reaches of what no text was meant for
    shuffled        the answers under the perturbation, exchanged between prompts

The known texts are instructions of four to six tokens, which the search does not begin at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.forward.inserted import Opening
from educe.inversion.places import Place, Wanted
from educe.inversion.report import NATURAL, RANDOM, SHUFFLED, TEXT
from educe.inversion.targets import NOTHING, READOUT
from educe.model.language import LanguageModel
from educe.perturbation.kind import Kind
from educe.perturbation.vectors import AfterBlock

#: Texts that change what a model answers, whatever it is asked.
KNOWN = (
    "Answer in French.",
    "Reply with a poem.",
    "Answer like a pirate.",
    "Reply in capital letters.",
    "Answer with one question.",
    "Reply as a list.",
)


class Known(NamedTuple):
    """A control before it is run.

    Attributes:
        role: See `educe.inversion.report.CONTROLS`.
        name: The known text, or which of the random ones it is.
        string: The tokens of the known text.
        theta: The perturbation, where it is one.
    """

    role: str
    name: str
    string: tuple[int, ...] = ()
    theta: Float[Tensor, "1 s"] | None = None


def controls(
    lm: LanguageModel,
    openings: Sequence[Opening],
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    *,
    n: int,
    seed: int,
) -> Iterator[Known]:
    """Yield the controls of a perturbation.

    Args:
        lm: The model.
        openings: Where strings are put.
        kind: The kind of the perturbation.
        theta: The perturbation.
        n: How many known texts, and how many random perturbations.
        seed: Draws the texts and the perturbations.
    """
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(KNOWN), generator=draw).tolist()
    drawn = kind.draw(n, draw)
    size = theta.norm() / drawn.norm(dim=1, keepdim=True)
    texts = [KNOWN[i] for i in order[:n]]
    for text in texts:
        yield Known(TEXT, text, string(lm, text))
    if texts and isinstance(kind, AfterBlock):
        vector = difference(lm, openings, string(lm, texts[0]), kind.layer)
        own = _in_kind(kind, vector)
        yield Known(NATURAL, texts[0], string(lm, texts[0]), theta.norm() * normalize(own))
    for i in range(n):
        yield Known(RANDOM, str(i + 1), theta=(size[i] * drawn[i])[None].to(theta))
    if n:
        yield Known(SHUFFLED, "answers of other prompts", theta=theta)


def string(lm: LanguageModel, text: str) -> tuple[int, ...]:
    """Return the tokens of a text behind a message."""
    return tuple(lm.tokens(f" {text}", templated=True))


@torch.no_grad()
def difference(
    lm: LanguageModel, openings: Sequence[Opening], text: Sequence[int], layer: int
) -> Float[Tensor, "1 d"]:
    """Return the mean change of the stream leaving a layer that a text makes.

    Args:
        lm: The model.
        openings: Where it is put; the mean is over these, and over the last tokens of each prompt.
        text: Its tokens.
        layer: The layer.

    Example:
        >>> from educe.forward.inserted import Opening
        >>> from educe.inversion.control import difference, string
        >>> difference(lm, [Opening(lm, part.batch, 0)], string(lm, "a b"), 1).shape
        torch.Size([1, 32])
    """
    total = torch.zeros(1, lm.width)
    for opening in openings:
        place, wanted = Place(opening), Wanted(layer, READOUT)
        with_it, without = (
            place.read(strings, wanted).stream for strings in (torch.tensor([list(text)]), NOTHING)
        )
        assert with_it is not None
        assert without is not None
        total += (with_it.mean(1) - without.mean(1)).float().cpu()
    return total / len(openings)


def _in_kind(kind: AfterBlock, vector: Float[Tensor, "1 d"]) -> Float[Tensor, "1 s"]:
    """Return a vector as numbers of a kind: itself, or its coefficients in a subspace."""
    rows = getattr(kind, "rows", None)
    return vector if rows is None else torch.linalg.lstsq(rows.T, vector.T).solution.T
