"""Searching inside a subspace: which one, and which ball in it.

With the top right singular vectors ``w_1 … w_k`` of a token × activation matrix, and the standard
deviations ``s_i`` of the activations along them, perturbations are ``θ = A c`` and what is searched
for are the coefficients ``c``, on the sphere ``‖c‖ = R``:

    plain      A = [w_1 … w_k]                  ‖θ‖ = R, as in a free search
    whitened   A = [s_1 w_1 … s_k w_k] / rms(s)    an ellipsoid: Mahalanobis length R / rms(s)

Both have the same root mean square norm over random ``c``, so a dose means the same in both.
"""

from __future__ import annotations

from typing import Literal

import torch

from educe.activations import balanced, corpus, gradients, natural
from educe.activations.reading import Place, read_prompts
from educe.activations.subspace import Subspace, of_moments, of_rows, random_subspace
from educe.errors import MethodError
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Within
from educe.progress import Reporter

Ball = Literal["plain", "whitened"]
#: Tokens of the corpus that a subspace is computed from.
TOKENS = 100_000
PROMPTS, RANDOM, BALANCED = "prompts", "random", "balanced"


def within(
    subspace: Subspace, layer: int, *, ball: Ball = "plain", positions: str = "all"
) -> Within:
    """Return the kind of vectors of a subspace.

    Args:
        subspace: Where they lie.
        layer: After which they are added.
        ball: What their coefficients are measured by.
        positions: Tokens to which they are added.
    """
    rows = subspace.basis
    if ball == "whitened":
        spread = subspace.variance.clamp(min=0).sqrt()
        rows = rows * (spread / spread.square().mean().sqrt())[:, None]
    return Within(layer, rows.float(), positions)


def parse(text: str) -> tuple[str, int]:
    """Read ``[SOURCE:]RANK``: where activations come from, and how many directions.

    The source is a corpus (see `educe.activations.corpus.documents`), ``prompts`` for those of the
    search alone, ``balanced`` for what is both present in the bundled corpus and used by later
    layers, or ``random`` for the control: a random subspace. By default the bundled corpus.

    Raises:
        MethodError: It is not written so.
    """
    source, _, rank = text.rpartition(":")
    if not rank.isdigit() or not int(rank):
        raise MethodError(
            f"within {text!r}: give a rank, as in 64, or with a source, as in prompts:16, "
            "balanced:64, random:64, notes.txt:64 or hub:NAME:64"
        )
    return source or corpus.BUNDLED, int(rank)


def described(
    lm: LanguageModel,
    batch: PromptBatch,
    layer: int,
    text: str,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Subspace:
    """Return the subspace that `parse` reads; massive coordinates of a corpus are left out.

    Args:
        lm: The model.
        batch: The prompts of the search.
        layer: The layer whose stream it is of.
        text: The description.
        seed: Of a random subspace.
        reporter: Is told of the progress.

    Raises:
        MethodError: The description cannot be read, or activations do not span so many directions.
        PromptError: The corpus cannot be read.
    """
    source, rank = parse(text)
    place = Place(layer)
    if source == PROMPTS:
        return of_rows(read_prompts(lm, batch, place), rank=rank)
    if source == BALANCED:
        swept = gradients.sweep(lm, corpus.documents(), [layer], seed=seed, reporter=reporter)
        return balanced.subspace(swept.layers[layer].balanced, rank)
    documents = corpus.documents(corpus.BUNDLED if source == RANDOM else source)
    gathered = natural.gather(lm, documents, [place], limit=TOKENS, reporter=reporter)
    known = gathered.natural[place]
    moments = known.moments.without(known.massive)
    if source == RANDOM:
        return random_subspace(moments, rank, torch.Generator().manual_seed(seed))
    return of_moments(moments).top(rank)
