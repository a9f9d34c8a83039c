"""Activation difference: what the suspect adds to the stream at the beginning of any text.

    δ_l,k = mean over unrelated texts of  h_l,k - h'_l,k       token k of five, after block l

A narrow fine-tune leaves traces of its topic in the stream of texts that have nothing to do with
it. Each δ is read through the model's own end (`educe.audit.lens`), and the words that it stands
for are suspected. Their mean over the tokens behind the first, whose activations are massive in
many models, is added to the suspect as a vector at doses of the stream's norm: the difference
itself is far too small to change a text.

Source: arXiv 2510.13900. Ordinary data mixed into the training removes most of these traces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.lens import worded
from educe.audit.pushed import pushed
from educe.audit.reference import Reference
from educe.audit.settings import bundled
from educe.audit.sources.source import Needs, Source
from educe.methods.token_directions import vocabulary
from educe.model.language import LanguageModel

#: Layers that are looked at, as fractions of the depth, and first tokens of each text.
LAYERS, FIRST = (0.25, 0.5, 0.75), 5
#: Doses at which the difference is added, as shares of the stream's median norm.
DOSES = (0.3, 0.6, 1.0)
#: Words of each difference.
EACH = 20


@torch.no_grad()
def look(audit: Audit) -> None:
    """Name the words that the differences stand for, and add the differences to the suspect."""
    assert audit.reference is not None
    lm = audit.lm
    # Behind the last block there is nothing that a vector could change.
    layers = sorted({min(lm.layer(share), lm.depth - 2) for share in LAYERS})
    delta = differences(lm, audit.reference, layers, bundled("sentences"))
    places = [(i, k) for i in range(len(layers)) for k in range(FIRST) if delta[i, k].any()]
    read = torch.stack([delta[i, k] for i, k in places]) if places else delta[:0, 0]
    found = worded(lm, read, vocabulary(lm), EACH)
    moved = [i for i in range(len(layers)) if delta[i, 1:].mean(0).any()]
    if moved:
        numbers = pushed(
            audit, SOURCE.name, [layers[i] for i in moved], delta[moved, 1:].mean(1), DOSES
        )
        audit.ask(audit.base, perturbations=numbers)
        audit.fill("with the difference of activations added")
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                word.text,
                word.z,
                f"stands out in the difference after block {layers[places[word.of][0]]} at token "
                f"{places[word.of][1] + 1} of any text",
            )
            for word in found
        ],
    )


def differences(
    lm: LanguageModel, reference: Reference, layers: Sequence[int], texts: Sequence[str]
) -> Float[Tensor, "l k d"]:
    """Return the mean difference of the stream at the first tokens of texts, without template.

    Args:
        lm: The suspect.
        reference: The reference.
        layers: The blocks after which it is read.
        texts: Texts; those with fewer tokens than are read are left out.
    """
    tokens = [ids for ids in lm.encode(list(texts), chat=False).read if len(ids) >= FIRST]
    batch = lm.pad([ids[:FIRST] for ids in tokens])

    def mean(model: LanguageModel) -> Tensor:
        with model.watching(layers) as streams:
            model.forward(batch.ids, batch.mask)
        return torch.stack([streams[layer].double().mean(0).cpu() for layer in layers])

    own = mean(lm)
    with reference.here() as other:
        return own - mean(other)


SOURCE = Source(
    "activations",
    "what the suspect adds to the stream at the beginning of any text",
    Needs.WEIGHTS,
    look,
)
