"""Front: how much an effect costs, in what ordinary prompts lose by it.

Every perturbation is a point: its effect ``‖Δ‖`` on the prompts searched, and its side effect, the
95th percentile of ``KL(p ‖ p_θ)`` over the first 20 tokens of ordinary answers
(`educe.forward.benign`). The *Pareto front* is those that no other beats in both
(`educe.comparison.stats.pareto`).
"""

from __future__ import annotations

from educe.forward.benign import BUNDLED
from educe.run.damage import OrdinaryText
from educe.run.work import Work


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
