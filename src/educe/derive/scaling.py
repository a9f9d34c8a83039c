"""Scaled: perturbations of the same direction at other radii, and in the opposite direction.

    θ_s = s θ        with s a share of the perturbation's own radius; flipped, s = -1

Of adapters only what they write is scaled: the gate, which decides when they write, stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from educe.perturbation.set import PerturbationSet


def scaled(found: PerturbationSet, shares: Sequence[float]) -> PerturbationSet:
    """Return perturbations at shares of their radius: all of the first one, then of the next.

    Args:
        found: Perturbations of any kind.
        shares: What their radii are multiplied by; below zero in the opposite direction.

    Example:
        >>> found = educe.search(part, "random", n=2, radius=2.0)
        >>> made = educe.derive.scaled(found, [0.5, 1, 2])
        >>> made.radius.tolist(), made.scores["parent"].tolist()
        ([1.0, 2.0, 4.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    """
    parents = torch.arange(len(found)).repeat_interleave(len(shares))
    share = torch.tensor(shares, dtype=found.radius.dtype).repeat(len(found))
    made = derived(found, parents, share=share)
    return replace(made, radius=made.radius * share)


def flipped(found: PerturbationSet) -> PerturbationSet:
    """Return perturbations in the opposite direction, at the same size.

    Example:
        >>> found = educe.search(part, "random", n=2, radius=2.0)
        >>> bool((educe.derive.flipped(found).theta == -found.theta).all())
        True
    """
    return scaled(found, [-1.0])


def derived(
    found: PerturbationSet, parents: Sequence[int] | Tensor, **scores: Float[Tensor, "n"]
) -> PerturbationSet:
    """Return perturbations of a set, which may repeat, with the row of each as its parent.

    What was measured of them is left out: it need not be true of what they become. The ``number``
    that a parent has in its run is kept.

    Args:
        found: The set.
        parents: Rows of it.
        scores: What is known of each.
    """
    rows = torch.as_tensor(parents, dtype=torch.long)
    known = {"parent": rows.float()} | {name: some.float().cpu() for name, some in scores.items()}
    if "number" in found.scores:
        known["number"] = found.scores["number"][rows]
    return replace(found.select(rows.tolist()), outputs=None, scores=known)
