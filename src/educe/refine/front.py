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
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Return the radius at which each direction has a side effect, and the side effect there.

    By secants of ``log KL`` over ``log R``, the first of slope 2, which is exact where both are
    small. What comes back is the nearest that was measured.

    Args:
        ordinary: Measures side effects.
        kind: The kind of the directions.
        directions: Unit perturbations.
        budget: The side effect, in nats a token.
        start: Radii to begin at, ``[n]``.
        passes: The most measurements.
        tolerance: A direction is done when ``log KL`` is as near as that.
    """
    aim, x = math.log(budget), start.double().log()
    slope = torch.full_like(x, 2.0)
    best, reached = x.clone(), torch.full_like(x, math.inf)
    before: tuple[Tensor, Tensor] | None = None
    open_ = torch.arange(len(x))
    for _ in range(passes):
        at = x[open_]
        y = side_effect(ordinary, kind.select(open_), directions[open_], at.exp()).log()
        nearer = (y - aim).abs() < (reached[open_] - aim).abs()
        best[open_] = torch.where(nearer, at, best[open_])
        reached[open_] = torch.where(nearer, y, reached[open_])
        if before is not None:
            own = (y - before[1][open_]) / (at - before[0][open_])
            slope[open_] = torch.where(own.isfinite() & (own > 0.5), own.clamp(max=8), slope[open_])
        # Where the model broke down there is no number to go by: half the radius.
        move = torch.where(y.isfinite(), (aim - y) / slope[open_], -math.log(2.0))
        before = (x.clone(), torch.full_like(x, math.nan).index_copy(0, open_, y))
        x[open_] = at + move.clamp(-math.log(4.0), math.log(4.0))
        open_ = ((reached - aim).abs() >= tolerance).nonzero()[:, 0]
        if not len(open_):
            break
    return best.exp(), reached.exp()


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
