"""Pushed: directions that a source found, added to the suspect's stream beside random ones.

    h ← h + dose · R · u / ‖u‖      after a block, at every token; R the stream's median norm there

They are perturbations of the run: found ones and, as its control, as many random directions of the
same norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from educe.audit.auditing import Audit
from educe.forward.slice import Slice
from educe.methods import control, origin
from educe.perturbation.set import PerturbationSet
from educe.perturbation.vectors import Vectors
from educe.rows import CONTROL, FOUND
from educe.run.fill import add_set


def pushed(
    audit: Audit,
    name: str,
    layers: Sequence[int],
    directions: Float[Tensor, "n d"],
    doses: Sequence[float],
) -> list[int]:
    """List directions at some doses among the perturbations, once; return their numbers.

    Args:
        audit: The audit.
        name: The source that found them.
        layers: The block after which each is added; none is the last.
        directions: Not zero.
        doses: Shares of the stream's median norm.
    """
    numbers: list[int] = []
    for layer in dict.fromkeys(layers):
        of = torch.tensor([i for i, own in enumerate(layers) if own == layer])
        part = Slice(
            audit.lm,
            audit.work.batch.select(audit.base).trimmed(),
            source=layer,
            target=audit.lm.depth - 1,
        )
        seed = audit.rng(f"{name} {layer}").randrange(2**31)
        found = _at(part, name, directions[of], doses, seed)
        for arm, made in ((FOUND, found), (CONTROL, control(part, found))):
            numbers += _listed(audit, part, f"{name}-{layer}-{arm}.safetensors", arm, made)
    return numbers


def _listed(audit: Audit, part: Slice, file: str, arm: str, made: PerturbationSet) -> list[int]:
    """Return the numbers of a set, which is added where it is new."""
    known = audit.run.perturbation_rows(derived=None)
    if numbers := [p.id for p in known if p.file == file]:
        return numbers
    made.save(audit.run.tensors / file)
    effect = part.effect(made.theta.to(part.device, part.work_dtype)).norm(dim=1)
    return add_set(audit.run, arm, file, made, effect.tolist())


def _at(
    part: Slice, name: str, directions: Float[Tensor, "n d"], doses: Sequence[float], seed: int
) -> PerturbationSet:
    """Return directions at doses after the source of a slice."""
    unit = directions / directions.norm(dim=1, keepdim=True)
    radius = torch.tensor(doses).repeat_interleave(len(unit)) * part.unit
    return PerturbationSet(
        Vectors(part.source, part.width),
        unit.float().cpu().repeat(len(doses), 1),
        radius,
        origin(part),
        name,
        seed,
    )
