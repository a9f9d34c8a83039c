"""Origin: where perturbations belong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """Where a set of perturbations belongs: the model, the place in it, and the prompts.

    Attributes:
        model_id: The model they were found in.
        model_revision: Its Hub revision, or an empty string.
        adapter: The PEFT adapter beside its weights, or an empty string.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        source: Last layer that they do not reach; vectors are added after it.
        target: Layer at which their effect was read.
        readout: Tokens over which the effect was averaged.
        unit: The radius whose dose is 1: for vectors, the median norm of the stream at the source
            (see `educe.forward.slice.norms`); in files of version 1, the mean norm.
        prompts_sha256: Digest of the rendered prompts.
        model_parts: By what the model is known again (see `educe.model.digest`); nothing in files
            of versions 1 and 2.

    Example:
        >>> found = educe.search(part, "random", n=1, radius=2.0)
        >>> found.origin.source, found.origin.target, found.origin.d_model
        (1, 3, 32)
    """

    model_id: str
    model_revision: str
    adapter: str
    d_model: int
    n_layers: int
    source: int
    target: int
    readout: str
    unit: float
    prompts_sha256: str
    model_parts: Mapping[str, str] = field(default_factory=dict)


def digest(texts: Sequence[str]) -> str:
    """Return the SHA-256 of some rendered prompts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
