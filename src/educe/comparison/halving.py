"""Successive halving on paired prompts (Karnin, Koren & Somekh 2013; Jamieson & Talwalkar 2016).

    rung j: all survivors answer the same first k_j prompts; the best share s_j of them go on

Paired, because prompts differ more than perturbations do. The prompts of a rung are among those of
the next, so scores are kept and only the new prompts are paid for. The default schedule, 25% after
10 prompts, 25% after 30, all ranked on 60, is that of the replication of CPE (arXiv 2606.29604).
With 512 candidates it costs 8 640 completions where scoring all on 60 prompts costs 30 720.

Ties are broken by a random order drawn from the seed, never by the order of the candidates: methods
list theirs from strong to weak, and with rare hits most scores are ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from educe.errors import MethodError

#: Prompts, and the share of the survivors that goes on.
RUNGS = ((10, 0.25), (30, 0.25), (60, 1.0))

#: Scores items on prompts, ``[items, prompts]``; higher is better.
Scorer = Callable[[list[int], list[int]], Float[np.ndarray, "i p"]]


@dataclass(frozen=True)
class Halving:
    """What a successive halving left.

    Attributes:
        survivors: Those of the last rung, best first.
        scores: Every score that was asked for, ``[n, prompts]``; NaN where none was.
        spent: Scores that each rung added to those before it.
        prompts: How many prompts each rung looked at.
    """

    survivors: tuple[int, ...]
    scores: Float[np.ndarray, "n p"]
    spent: tuple[int, ...]
    prompts: tuple[int, ...]

    def mean(self, item: int) -> float:
        """Return the mean score of an item over the prompts that it was scored on."""
        return float(np.nanmean(self.scores[item]))


def halve(
    n: int,
    score: Scorer,
    *,
    prompts: int,
    rungs: Sequence[tuple[int, float]] = RUNGS,
    seed: int = 0,
) -> Halving:
    """Choose among ``n`` candidates by successive halving.

    Args:
        n: Candidates.
        score: Scores some of them on some prompts; is never asked for the same twice.
        prompts: How many prompts there are, taken in their order; shuffle them before if they are
            sorted. A rung that asks for more uses all there are.
        rungs: Prompts of each rung, not falling, and the share of the survivors that goes on,
            rounded up.
        seed: Of the random order that breaks ties.

    Raises:
        MethodError: There is no candidate or prompt, the rungs make no sense, or a score is not
            what was asked for.
    """
    checked(rungs)
    if min(n, prompts) < 1:
        raise MethodError(f"halving {n} candidates on {prompts} prompts: give at least one of each")
    table = np.full((n, prompts), np.nan)
    order = np.random.default_rng(seed).permutation(n)
    survivors, done = np.arange(n), 0
    spent, looked = [], []
    for wanted, share in rungs:
        k = min(wanted, prompts)
        if k > done:
            table[survivors, done:k] = _scored(score, survivors.tolist(), list(range(done, k)))
        spent.append(len(survivors) * (k - done))
        looked.append(k)
        done = k
        mean = table[survivors, :k].mean(1)
        ranked = survivors[np.lexsort((order[survivors], -mean))]
        survivors = ranked[: math.ceil(share * len(ranked) - 1e-9)]
    return Halving(tuple(survivors.tolist()), table, tuple(spent), tuple(looked))


def checked(rungs: Sequence[tuple[int, float]]) -> None:
    """Make sure that rungs can be climbed.

    Raises:
        MethodError: They cannot.
    """
    counts, shares = [k for k, _ in rungs], [s for _, s in rungs]
    if not rungs or counts[0] < 1 or counts != sorted(counts):
        raise MethodError(f"rungs of {counts} prompts: give at least one, none with fewer prompts")
    if not all(0 < share <= 1 for share in shares):
        raise MethodError(f"rungs that keep {shares}: give shares above 0 and at most 1")


def _scored(score: Scorer, items: list[int], prompts: list[int]) -> np.ndarray:
    values = np.asarray(score(items, prompts), float)
    if values.shape != (len(items), len(prompts)) or not np.isfinite(values).all():
        raise MethodError(
            f"scoring {len(items)} candidates on {len(prompts)} prompts gave shape "
            f"{values.shape}{', or' if values.size else ' and'} no finite numbers"
        )
    return values
