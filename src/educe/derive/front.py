"""Front: how much an effect costs, in what ordinary prompts lose by it.

Every perturbation is a point: its effect ``‖Δ‖`` on the prompts searched, and its side effect, the
95th percentile of ``KL(p ‖ p_θ)`` over the first 20 tokens of ordinary answers
(`educe.forward.benign`). The *Pareto front* is those that no other beats in both
(`educe.comparison.stats.pareto`). Norms say little here: two directions compare at *equal* side
effect, each at the radius at which it has it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from educe.forward.benign import BUNDLED, Ordinary
from educe.methods.radius import surviving
from educe.perturbation.kinds import Kind
from educe.roots import Found, crossing
from educe.run.damage import OrdinaryText
from educe.run.work import Work


def at_kl(
    ordinary: Ordinary,
    kind: Kind,
    directions: Float[Tensor, "n s"],
    budget: float,
    *,
    start: Float[Tensor, "n"],
    passes: int = 4,
    tolerance: float = 0.1,
) -> Found:
    """Return the radius at which each direction has a side effect, the nearest of those measured.

    Args:
        ordinary: Measures side effects.
        kind: The kind of the directions.
        directions: Unit perturbations.
        budget: The side effect, in nats a token.
        start: Radii to begin at.
        passes: The most measurements.
        tolerance: A direction is done when ``log KL`` is as near as that.
    """

    def measure(items: Tensor, radii: Tensor) -> Tensor:
        return side_effect(ordinary, kind.select(items), directions[items], radii)

    return crossing(measure, start, budget, slope=2.0, near=tolerance, rounds=passes)


def side_effect(
    ordinary: Ordinary, kind: Kind, directions: Float[Tensor, "n s"], radius: Float[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Return the side effect of each perturbation; infinite where the model breaks down."""
    theta = kind.scaled(directions, radius.to(directions)[:, None])

    def measured(items: Tensor) -> Tensor:
        return ordinary.damage(theta[items], kind.select(items)).high.double().cpu()[:, None]

    broken = torch.full((1, 1), math.inf, dtype=torch.float64)
    return surviving(measured, torch.arange(len(theta)), broken)[:, 0]


def measure(work: Work, *, ordinary: str = BUNDLED) -> str:
    """Measure the side effect of all that a run found and of its control; return the score's name.

    Args:
        work: The run at work.
        ordinary: The ordinary prompts: bundled ones, or a file.

    Raises:
        PromptError: The file cannot be read.
        PositionsError: The perturbations leave prompts and answers as they are.
    """
    text = OrdinaryText(work, ordinary)
    numbers = [p.id for p in work.run.perturbation_rows()]
    with work.reporter.stage("side effects", len(numbers), "perturbations") as step:
        text.damage(numbers, step)
    return text.kl_p95
