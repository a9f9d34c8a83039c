"""Vectors as interp-engine takes them: what is added to the stream, after which blocks.

{"point": "resid_post", "layers": {"9": [{"method": "additive", "vector": …, "scale": 1.0}]}}
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from educe.perturbation.kinds import Joint, Vectors, Within

#: Kinds that add vectors to the stream.
VECTORS = (Vectors, Within, Joint)


def added(kind: Vectors | Within | Joint, theta: Float[Tensor, "s"]) -> dict[int, Tensor]:
    """Return what a perturbation adds to the stream after each block, in float32.

    Args:
        kind: Its kind.
        theta: Its numbers, at its radius.
    """
    theta = theta.float()
    if isinstance(kind, Joint):
        return dict(
            zip(kind.layers, torch.einsum("k,kld->ld", theta, kind.rows.float()), strict=True)
        )
    return {kind.layer: theta @ kind.rows.float() if isinstance(kind, Within) else theta}


def specification(vectors: Mapping[int, Float[Tensor, "d"]]) -> dict[str, Any]:
    """Return the steering of vectors by their blocks, as JSON has it."""
    layers = {}
    for layer, vector in vectors.items():
        payload = {
            "dtype": "float32",
            "shape": list(vector.shape),
            "data": base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii"),
        }
        layers[str(layer)] = [{"method": "additive", "vector": payload, "scale": 1.0}]
    return {"point": "resid_post", "layers": layers}
