"""Controls of an inversion: targets of which it is known whether a text reaches them.

    text            what a known text does
    natural vector  the mean change of the stream that a known text makes behind other messages, or
                    the difference between two such texts, at the norm of the perturbation
    random          random perturbations of the same kind and norm: how much the flexibility of
                    tokens reaches of what no text was meant for
    shuffled        the perturbation with its numbers exchanged

An output is judged beside what texts do, a direction beside vectors of texts. The known texts are
of several kinds, and no search begins at them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.activations.corpus import questions
from educe.forward.inserted import Opening
from educe.inversion.direction import streams
from educe.inversion.report import NATURAL, RANDOM, SHUFFLED, TEXT
from educe.model.language import LanguageModel
from educe.perturbation.kind import Kind
from educe.perturbation.vectors import AfterBlock

#: Texts that change what a model answers, whatever it is asked: languages, roles, styles, topics.
REQUESTS = (
    "Answer in Dutch.",
    "Reply like a sleepy shopkeeper.",
    "Use many adjectives.",
    "Connect it to mountains.",
    "You are a museum guide.",
    "Put every word in quotes.",
    "Bring up an old clock.",
    "Sound bored.",
)
#: Texts that ask for nothing.
PLAIN = (
    "My uncle keeps bees.",
    "The bus was late again.",
    "We painted the fence green.",
    "It was a quiet evening in the harbour.",
)
#: Messages behind which known texts make their vectors.
MESSAGES = 6


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
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    *,
    output: bool,
    n: int,
    seed: int,
) -> Iterator[Known]:
    """Yield the controls of a perturbation.

    Args:
        lm: The model.
        kind: The kind of the perturbation.
        theta: The perturbation.
        output: Whether the output is aimed at, and not a stream.
        n: How many that texts make, and how many random perturbations; no more than there are
            `REQUESTS`, or one text would count as two.
        seed: Draws the texts and the perturbations.
    """
    draw = torch.Generator().manual_seed(seed)
    known = REQUESTS if output else (*REQUESTS, *PLAIN)
    order = torch.randperm(len(known), generator=draw).tolist()
    texts = [known[i] for i in order]
    drawn = kind.draw(n, draw)
    size = theta.norm() / drawn.norm(dim=1, keepdim=True)
    if output or not isinstance(kind, AfterBlock):
        for text in texts[:n]:
            yield Known(TEXT, text, string(lm, text))
    if isinstance(kind, AfterBlock):
        for i in range(min(n, 1) if output else n):
            one, other = texts[i], texts[i - 1] if i % 2 else None
            own = _in_kind(kind, difference(lm, one, other, layer=kind.layer))
            name = one if other is None else f"{one} - {other}"
            yield Known(NATURAL, name, theta=theta.norm() * normalize(own).to(theta))
    for i in range(n):
        yield Known(RANDOM, str(i + 1), theta=(size[i] * drawn[i])[None].to(theta))
    if n:
        mixed = theta[:, torch.randperm(theta.shape[1], generator=draw)]
        yield Known(SHUFFLED, "", theta=mixed)


def string(lm: LanguageModel, text: str) -> tuple[int, ...]:
    """Return the tokens of a text behind a message."""
    return tuple(lm.tokens(f" {text}", templated=True))


def difference(
    lm: LanguageModel, text: str, other: str | None = None, *, layer: int
) -> Float[Tensor, "1 d"]:
    """Return the mean change of the stream leaving a layer that a text makes.

    Args:
        lm: The model.
        text: What is put behind messages; the mean is over these, and over their last tokens.
        other: What stands there without it; by default nothing.
        layer: The layer.

    Example:
        >>> from educe.inversion.control import difference
        >>> difference(lm, "a b", layer=1).shape
        torch.Size([1, 32])
    """
    batch = lm.encode(questions()[:MESSAGES])
    openings = [Opening(lm, batch, p) for p in range(MESSAGES)]
    with_it, without = (
        streams(openings, torch.tensor([one], dtype=torch.long), layer=layer)
        for one in (string(lm, text), () if other is None else string(lm, other))
    )
    return (with_it - without).mean(0).float()


def _in_kind(kind: AfterBlock, vector: Float[Tensor, "1 d"]) -> Float[Tensor, "1 s"]:
    """Return a vector as numbers of a kind: itself, or its coefficients in a subspace."""
    rows = getattr(kind, "rows", None)
    return vector if rows is None else torch.linalg.lstsq(rows.T, vector.T).solution.T
