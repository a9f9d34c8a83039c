"""Activation difference: what the suspect adds to the stream at the beginning of any text.

    δ_l = mean over unrelated texts, and their tokens 2 to 5, of  h_l - h'_l       after block l

A narrow fine-tune leaves traces of its topic in the stream of texts that have nothing to do with
it. The δ of the latest layer is read through the model's own end (`educe.audit.lens`), and the
words that it stands for are suspected. Of the trigger that comes with the package the first and
the third are words of its payload, of the vault the first is half of its code; what is read off the
middle of either says nothing. Each δ is then added to the suspect as a vector, at doses of the
stream's norm, since the difference itself is too small to change a text. A text's first token is
left out: it sees nothing, and its activations are massive in many models.

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
LAYERS, FIRST = (0.5, 0.75, 0.95), 5
#: Doses at which the difference is added, as shares of the stream's median norm.
DOSES = (0.3, 0.6)
#: How many words are suspected.
KEPT = 60


@torch.no_grad()
def look(audit: Audit) -> None:
    """Name the words that the differences stand for, and add the differences to the suspect."""
    assert audit.reference is not None
    lm = audit.lm
    # Behind the last block there is nothing that a vector could change.
    layers = sorted({min(lm.layer(share), lm.depth - 2) for share in LAYERS})
    delta = differences(lm, audit.reference, layers, bundled("sentences"))
    moved = [i for i in range(len(layers)) if delta[i].any()]
    layers, delta = [layers[i] for i in moved], delta[moved]
    found = worded(lm, delta[-1:], vocabulary(lm), KEPT)
    if moved:
        numbers = pushed(audit, SOURCE.name, layers, delta, DOSES)
        audit.ask(audit.base, perturbations=numbers)
        audit.fill("with the difference of activations added")
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                word.text,
                word.z,
                f"stands out in what is added after block {layers[-1]} where any text begins",
            )
            for word in found
        ],
    )


def differences(
    lm: LanguageModel, reference: Reference, layers: Sequence[int], texts: Sequence[str]
) -> Float[Tensor, "l d"]:
    """Return the mean difference of the stream at the beginnings of texts, without template.

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
        return torch.stack([streams[i][:, 1:].double().mean((0, 1)).cpu() for i in layers])

    own = mean(lm)
    with reference.here() as other:
        return own - mean(other)


SOURCE = Source(
    "activations",
    "what the suspect adds to the stream at the beginning of any text",
    Needs.WEIGHTS,
    look,
    dear=2,
)
