"""How the direction of a vector would turn at the next radius, whether or not it is stationary:

    pull = d ahead / d log R = (1 - a aᵀ) H θ / ‖∇g‖,        a = ahead = normalise ∇g(R v),

a second-order product: where ``θ`` is stationary, the first term of the series that solves for
``dv / d log R`` (see `educe.derive.continuation`).
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

import educe
from educe.derive.objective import Objective


class Pull(NamedTuple):
    """Where the objective rises from a vector, and how that turns with its radius."""

    ahead: Float[Tensor, "n s"]  #: ``normalise ∇g``
    turn: Float[Tensor, "n s"]  #: ``d ahead / d log R``
    sine: Float[Tensor, "n"]  #: of the angle between ``∇g`` and the vector


def pull(part: educe.Slice, objective: Objective, theta: Float[Tensor, "n s"]) -> Pull:
    """Return where objectives rise, and how that turns with the radius."""
    _, gradient = objective.climb(part, theta)
    steep = gradient.norm(dim=1, keepdim=True)
    ahead = gradient / steep
    bent = objective.hvp(part, theta, theta) / steep
    turn = bent - (bent * ahead).sum(1, keepdim=True) * ahead
    v = theta / theta.norm(dim=1, keepdim=True)
    sine = (ahead - (ahead * v).sum(1, keepdim=True) * v).norm(dim=1)
    return Pull(ahead, turn, sine)
