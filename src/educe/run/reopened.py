"""Reopened: the slice of a run and its vectors, for what begins with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.kinds import Vectors, Within
from educe.model import LanguageModel
from educe.rendering import PromptBatch
from educe.run import same_model
from educe.run.fill import groups
from educe.run.store import Run


def slice_of(run: Run, lm: LanguageModel, prompts: PromptBatch) -> Slice:
    """Return the slice of a run, for vectors, on some prompts.

    Raises:
        RunError: The model is not the run's.
    """
    same_model.check(run, lm)
    facts = run.note("facts")
    return Slice(
        lm,
        prompts,
        source=facts["source"],
        target=facts["target"],
        positions=facts["positions"],
        readout=run.config["readout"],
    )


def vectors(run: Run, numbers: Sequence[int]) -> Float[Tensor, "n d"]:
    """Return what some perturbations of a run add to the stream.

    Raises:
        MethodError: They are no vectors.
    """
    found: dict[int, Tensor] = {}
    for group in groups(run, numbers):
        if not isinstance(group.kind, Vectors | Within):
            raise MethodError(
                f"perturbation {group.numbers[0]} is one of {group.kind.name}, which are no "
                "vectors: only vectors can be followed, shrunk and made sparse"
            )
        inside = isinstance(group.kind, Within)
        theta = group.theta @ group.kind.rows if inside else group.theta  # type: ignore[union-attr]
        found |= dict(zip(group.numbers, theta, strict=True))
    return torch.stack([found[number] for number in numbers])


def directions(
    run: Run, numbers: Sequence[int], part: Slice
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """Return the unit vectors of some perturbations and their norms, where a slice computes.

    Raises:
        MethodError: They are no vectors.
    """
    theta = vectors(run, numbers).to(part.device, part.work_dtype)
    radius = theta.norm(dim=1)
    return theta / radius[:, None], radius
