"""Front: how much an effect costs, in what ordinary prompts lose by it.

Every perturbation is a point: its effect ``‖Δ‖`` on the prompts searched, and its side effect, the
95th percentile of ``KL(p ‖ p_θ)`` over the first 20 tokens of ordinary answers (`educe.ordinary`).
The *Pareto front* is those that no other beats in both (`educe.stats.pareto`). Norms say little
here: two directions compare at *equal* side effect, each at the radius at which it has it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import EffectError
from educe.kinds import Kind
from educe.model import LanguageModel
from educe.once import encoded_once
from educe.ordinary import BUNDLED, Ordinary, ordinary_prompts
from educe.progress import Silent
from educe.roots import Found, crossing
from educe.run import same_model
from educe.run.fill import groups
from educe.run.store import Run
from educe.stats import finite

#: What a run keeps its side effects under.
NOTE = "front"
#: Perturbations that are measured together, and kept in one transaction.
AT_ONCE = 8


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
    """Return the radius at which each direction has a side effect, and the side effect there.

    What comes back is the nearest that was measured.

    Args:
        ordinary: Measures side effects.
        kind: The kind of the directions.
        directions: Unit perturbations.
        budget: The side effect, in nats a token.
        start: Radii to begin at, ``[n]``.
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
    try:
        return ordinary.damage(theta, kind).high.double().cpu()
    except EffectError:
        if len(theta) == 1:
            return torch.full((1,), math.inf, dtype=torch.float64)
    each = torch.arange(len(theta)).split(1)
    return torch.cat(
        [side_effect(ordinary, kind.select(i), directions[i], radius[i]) for i in each]
    )


def measure(
    run: Run,
    lm: LanguageModel,
    *,
    ordinary: str = BUNDLED,
    reporter: Any = None,
) -> dict[int, float]:
    """Measure the side effect of every perturbation of a run, and keep it there.

    Args:
        run: The run.
        lm: Its model.
        ordinary: The ordinary prompts: bundled ones, or a file.
        reporter: Is told of the progress (see `educe.progress`).

    Returns:
        Side effects in nats a token, by the perturbations' numbers; infinite where the model breaks
        down.

    Raises:
        PromptError: The file cannot be read.
        PositionsError: The perturbations leave prompts and answers as they are.
        RunError: The model is not the run's.
    """
    same_model.check(run, lm)
    reporter = reporter or Silent()
    known: dict[str, Any] = {"ordinary": ordinary, "kl": {}}
    if run.has(NOTE) and run.note(NOTE)["ordinary"] == ordinary:
        known = run.note(NOTE)
    missing = [p.id for p in run.perturbation_rows() if str(p.id) not in known["kl"]]
    if missing:
        batch = encoded_once(lm, ordinary_prompts(ordinary), reporter.say, "ordinary prompts")
        forced: dict[int, Ordinary] = {}
        with reporter.stage("side effects", len(missing), "perturbations") as step:
            for group in groups(run, missing):
                before = group.kind.before
                if before not in forced:
                    forced[before] = Ordinary(lm, batch, before=before)
                for items in torch.arange(len(group.numbers)).split(AT_ONCE):
                    kind = group.kind.select(items)
                    kl = side_effect(
                        forced[before],
                        kind,
                        group.directions[items].to(lm.device),
                        group.radius[items],
                    )
                    known["kl"] |= {
                        str(group.numbers[i]): finite(value)
                        for i, value in zip(items.tolist(), kl.tolist(), strict=True)
                    }
                    run.remember(NOTE, known)
                    step(len(items))
    return kept(run)


def kept(run: Run) -> dict[int, float]:
    """Return the side effects that a run has, by the numbers of its perturbations."""
    if not run.has(NOTE):
        return {}
    found = run.note(NOTE)["kl"]
    return {int(key): math.inf if value is None else value for key, value in found.items()}
