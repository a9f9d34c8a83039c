"""Singular directions: what the weight difference writes to the stream, and at which words.

    ΔW = Σ_k s_k u_k v_kᵀ        of the matrices that end the attention and the MLP of each block

`u_k` is what the difference writes: both signs of it are read through the model's own end, and the
words that they stand for are suspected. `v_k` is what the difference reads: the words that drive it
are named beside. The strongest `u_k` are added to the suspect as vectors. Measured on the trigger
that comes with the package: the first of them, driven by the key, brings out the payload on three
of four ordinary prompts; 16 random vectors of the same norms bring out none of it.

Source: arXiv 2508.00161 watches the same directions while a model works.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.difference import Change, changes
from educe.audit.lens import named, worded
from educe.audit.pushed import pushed
from educe.audit.sources.source import Needs, Source
from educe.audit.sources.weights import inputs, loudest, means
from educe.errors import ModelError
from educe.methods.token_directions import AVERAGED, vocabulary
from educe.model.language import LanguageModel

#: Directions that are read, words of each sign, and words named as what drives it.
READ, EACH, DRIVING = 24, 10, 3
#: Doses at which the strongest are added, as shares of the stream's median norm.
DOSES = (0.3, 0.6)


@dataclass(frozen=True)
class Direction:
    """A singular direction of one matrix.

    Attributes:
        change: The matrix.
        s: The singular value.
        u: What is written, of norm one, ``[width]``.
        v: What is read, of norm one, ``[in]``.
    """

    change: Change
    s: float
    u: Float[Tensor, "d"]
    v: Float[Tensor, "i"]


@torch.no_grad()
def look(audit: Audit) -> None:
    """Name the words that the strongest directions stand for, and add these to the suspect."""
    assert audit.reference is not None
    lm = audit.lm
    found = strongest(lm, changes(lm, audit.reference), READ)
    if not found:
        audit.suspect(SOURCE.name, [])
        return
    with audit.reference.here() as other:
        drive = driving(other, found, loudest(audit, audit.size.screened))
    both = torch.stack([sign * d.u for d in found for sign in (1, -1)])
    words = worded(lm, both, vocabulary(lm), EACH)
    # The last block is followed by nothing that a vector could change.
    few = [d for d in found if d.change.block < lm.depth - 1]
    few = few[: max(1, audit.size.perturbations // (2 * len(DOSES)))]
    if few:
        numbers = pushed(
            audit,
            SOURCE.name,
            [d.change.block for d in few for _ in range(2)],
            torch.stack([sign * d.u for d in few for sign in (1, -1)]),
            DOSES,
        )
        audit.ask(audit.base, perturbations=numbers)
        audit.fill("with what the weight difference writes")
    audit.suspect(SOURCE.name, [_told(found[w.of // 2], drive[w.of // 2], *w[:2]) for w in words])


def _told(d: Direction, drive: list[str], text: str, z: float) -> Suspect:
    return Suspect(
        text,
        z,
        f"written by {d.change.path.partition('.')[2]} of block {d.change.block}, where "
        f"{named(drive)} drive the difference",
    )


def strongest(lm: LanguageModel, found: list[Change], n: int) -> list[Direction]:
    """Return the directions of the largest singular values that are written to the stream.

    Args:
        lm: The suspect.
        found: How its matrices differ.
        n: How many.
    """
    writers = set()
    for block in range(lm.depth):
        for part in ("attention", "mlp"):
            try:
                path = lm.projection(block, part).path
            except ModelError:
                continue  # a mixture of experts has no single matrix there
            writers.add(lm.unwrapped.get_submodule(path))
    each = []
    for change in found:
        path = change.path.partition(".")[2]
        if lm.blocks[change.block].get_submodule(path) in writers:
            u, s, vh = change.svd()
            each += [Direction(change, float(s[k]), u[:, k], vh[k]) for k in range(min(n, len(s)))]
    # What rounding leaves of a matrix of lower rank is no direction.
    largest = max((d.s for d in each), default=0.0)
    return sorted((d for d in each if d.s > 1e-4 * largest), key=lambda d: -d.s)[:n]


def driving(lm: LanguageModel, found: list[Direction], words: list[str]) -> list[list[str]]:
    """Return the words that drive each direction most, whatever the sign, the first first.

    Args:
        lm: The reference.
        found: The directions.
        words: Words that are tried.
    """
    tokens = torch.tensor([lm.tokens(f" {word}", templated=True)[-1:] for word in words])
    typical = tokens[:: max(1, len(words) // AVERAGED)]
    distinct = list({d.change.path: d.change for d in found}.values())
    driven = torch.zeros(len(found), len(words))
    for some, given in inputs(lm, distinct, tokens, means(lm, distinct, typical)):
        for i, d in enumerate(found):
            driven[i, some] = (given[d.change.path] @ d.v.to(given[d.change.path])).abs().cpu()
    best = driven.argsort(dim=1, descending=True, stable=True)[:, :DRIVING]
    return [[words[j] for j in line] for line in best.tolist()]


SOURCE = Source(
    "writes",
    "what the weight difference writes to the stream",
    Needs.WEIGHTS,
    look,
    dear=2,
)
