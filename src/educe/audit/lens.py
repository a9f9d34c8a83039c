"""The lens: which words a direction of the residual stream stands for.

    z(w) = (a(w) - mean a'(w)) / std a'(w),     a = unembed(norm( √d u / ‖u‖ ))

The direction is handed on as the stream that leaves the last block, so the model's own end reads
it, whatever that end is. `√d` is the norm of a stream whose coordinates have the size of one. `a'`
are the logits of random directions: rare pieces of words have long rows in the unembedding, and
stand first in whatever is read without this. Measured on the trigger that comes with the package,
four words of what it hides had median ranks from 51 to 374 of 31,693 by `a`, and from 1 to 61 by
`z`.

Source: the logit lens (nostalgebraist 2020), of differences as in arXiv 2510.13900.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.model.language import LanguageModel

#: Random directions that a direction is compared with.
RANDOM = 256


class Worded(NamedTuple):
    """A word that a direction stands for.

    Attributes:
        text: The word.
        z: By how many standard deviations its logit is above what random directions give it.
        of: Which direction.
    """

    text: str
    z: float
    of: int


@torch.no_grad()
def lens(lm: LanguageModel, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
    """Return the logits that directions stand for.

    Example:
        >>> from educe.audit.lens import lens
        >>> lens(lm, torch.randn(3, lm.width)).shape[0]
        3
    """
    unit = directions / directions.norm(dim=1, keepdim=True) * lm.width**0.5
    ids = torch.zeros(len(unit), 1, dtype=torch.long, device=lm.device)
    with lm.starting(lm.depth - 1, unit[:, None].to(lm.device, lm.dtype)):
        return lm.forward(ids, torch.ones_like(ids))[:, 0]


def worded(
    lm: LanguageModel, directions: Float[Tensor, "n d"], words: Int[Tensor, "w"], each: int
) -> list[Worded]:
    """Return the first words of every direction, then their second ones, and so on, each once.

    Args:
        lm: The model.
        directions: Directions of the stream; not zero.
        words: Token numbers of the words that are told apart.
        each: Words of each direction.
    """
    if not len(directions):
        return []
    random = torch.randn(RANDOM, lm.width, generator=torch.Generator().manual_seed(0))
    usual, logits = (lens(lm, some).cpu()[:, words].double() for some in (random, directions))
    z = (logits - usual.mean(0)) / usual.std(0)
    best = z.argsort(dim=1, descending=True, stable=True)[:, :each]
    found: dict[str, Worded] = {}
    for place in best.T.tolist():
        for of, i in enumerate(place):
            text = lm.text([int(words[i])]).strip()
            found.setdefault(text, Worded(text, float(z[of, i]), of))
    return list(found.values())


def named(some: Sequence[str]) -> str:
    """Name words for a person."""
    return ", ".join(f"'{text}'" for text in some)
