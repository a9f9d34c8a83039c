"""Combined: what lies between two perturbations, and the mean of some that share an effect.

    between     θ_t = R_t (sin((1-t) Ω) u + sin(t Ω) v) / sin Ω,    R_t = R_u^{1-t} R_v^t
    average     θ = R Σ_i s_i v_i / ‖Σ_i s_i v_i‖,                 R the mean radius, s_i = ±1

Between unit directions the way is along the great circle, with Ω their angle, so that nothing is
shorter on the way; a straight line would pass near zero between opposite ones. Signs in an average
are those of the cosine with the first. Of hundreds of copies of one behaviour it has been said that
their average recovers the supervised direction: `agreement` has the cosine of growing averages with
one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from educe.derive.projection import as_vectors, replaced
from educe.errors import MethodError
from educe.perturbation.set import PerturbationSet

#: Directions that are nearer to opposite than this have no one way between them.
OPPOSITE = 1e-4


def between(found: PerturbationSet, shares: Sequence[float] = (0.25, 0.5, 0.75)) -> PerturbationSet:
    """Return what lies between each two vectors: all shares of the first pair, then of the next.

    The parent is the nearer one, the first at one half; the score ``share`` says how far the way
    went from the first.

    Args:
        found: Vectors.
        shares: Of the way, 0 at the first and 1 at the second.

    Raises:
        MethodError: They are no vectors, or two are opposite.

    Example:
        >>> found = educe.search(part, "random", n=2, radius=2.0)
        >>> made = educe.derive.between(found, [0.0, 0.5, 1.0])
        >>> torch.allclose(made.theta[[0, 2]], found.theta, atol=1e-5), made.radius.tolist()
        (True, [2.0, 2.0, 2.0])
    """
    unit, radius = _polar(found)
    rows: list[Tensor] = []
    parents: list[int] = []
    told: list[float] = []
    for i in range(len(found)):
        for j in range(i + 1, len(found)):
            cosine = (unit[i] @ unit[j]).clamp(-1, 1)
            if cosine < -1 + OPPOSITE:
                raise MethodError(f"vectors {i} and {j} are opposite: there is no one way between")
            angle = torch.arccos(cosine).clamp(min=1e-9)
            for t in shares:
                way = torch.sin((1 - t) * angle) * unit[i] + torch.sin(t * angle) * unit[j]
                size = radius[i] ** (1 - t) * radius[j] ** t
                rows.append(size * way / way.norm())
                parents.append(i if t <= 0.5 else j)
                told.append(t)
    if not rows:
        raise MethodError("there is one vector: name two, to look between them")
    share = torch.tensor(told)
    return replaced(found, torch.stack(rows), torch.tensor(parents), share=share)


def averaged(found: PerturbationSet) -> PerturbationSet:
    """Return the mean of vectors that share an effect, as a set of one; the first is its parent.

    Args:
        found: Vectors.

    Raises:
        MethodError: They are no vectors.

    Example:
        >>> found = educe.search(part, "random", n=3, radius=2.0)
        >>> made = educe.derive.averaged(found)
        >>> len(made), made.radius.tolist(), made.scores["parent"].tolist()
        (1, [2.0], [0.0])
    """
    unit, radius = _polar(found)
    return replaced(found, radius.mean() * _mean(unit)[None], torch.zeros(1, dtype=torch.long))


def agreement(found: PerturbationSet, supervised: Float[Tensor, "d"]) -> Float[Tensor, "n"]:
    """Return the cosine of a supervised direction with the average of the first 1, 2, … vectors.

    Args:
        found: Vectors.
        supervised: A direction, as `educe contrast` finds one.

    Raises:
        MethodError: They are no vectors.

    Example:
        >>> from educe.derive.combining import agreement
        >>> copies = educe.search(part, "random", n=2, radius=2.0)
        >>> agreement(copies, copies.directions[0]).shape
        torch.Size([2])
    """
    unit, _ = _polar(found)
    wanted = supervised.double() / supervised.double().norm()
    return torch.stack([_mean(unit[: n + 1]) @ wanted for n in range(len(unit))])


def _polar(found: PerturbationSet) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """Return unit vectors and norms; of one with a negative radius, those of its other sign."""
    theta = as_vectors(found).theta.double()
    size = theta.norm(dim=1)
    return theta / size[:, None], size


def _mean(unit: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    sign = torch.where(unit @ unit[0] < 0, -1.0, 1.0).to(unit)
    mean = (sign[:, None] * unit).mean(0)
    return mean / mean.norm()
