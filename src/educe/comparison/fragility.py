"""Fragility: how small a random push changes what the model says, and what else a push does.

For each arm and dose, of the perturbations with at least one such answer:

    changed    another behaviour than the likeliest answer's, and no damage
    ended      no refusal, where the likeliest answer refuses
    begun      a refusal, where the likeliest answer does not refuse
    damaged    damage

That random perturbations do it is no finding of a search. It is one about the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from educe.comparison.stats import Rate, rate
from educe.comparison.verdict import DAMAGED
from educe.rows import BEHAVIOUR, FIRST

#: The arm of the unperturbed model's samples, whose dose is 0.
SAMPLES = "samples"


@dataclass(frozen=True)
class Push:
    """What the perturbations of one arm and dose do; a draw of the unperturbed model is one."""

    arm: str
    dose: float
    changed: Rate
    ended: Rate
    begun: Rate
    damaged: Rate


def pushes(texts: pd.DataFrame, samples: int = 1) -> tuple[Push, ...]:
    """Return what pushes do, by arm and dose.

    Args:
        texts: The rows of `educe.comparison.texts.Texts`.
        samples: Answers of a perturbation to each prompt.
    """
    asked = answers(texts, samples)
    if asked.empty:
        return ()
    damaged = (asked.traits.map(lambda t: bool(t.damage))) | (asked.coherence < DAMAGED)
    refuses = asked.traits.map(lambda t: t.refuses)
    told = asked.assign(
        changed=~damaged & (asked[BEHAVIOUR] != asked.greedy),
        ended=~damaged & asked.refused & ~refuses,
        begun=~damaged & ~asked.refused & refuses,
        damaged=damaged,
    )
    names = ["changed", "ended", "begun", "damaged"]
    each = told.groupby(["arm", "dose", "unit"])[names].any()
    return tuple(
        Push(str(arm), float(dose), *(rate(int(own[name].sum()), len(own)) for name in names))
        for (arm, dose), own in each.groupby(["arm", "dose"])
    )


def answers(texts: pd.DataFrame, samples: int = 1) -> pd.DataFrame:
    """Return the first answers to the prompts asked, each with what it stands beside.

    Columns beside those of the texts: ``greedy``, the behaviour of the likeliest answer to its
    prompt; ``refused``, whether that refuses; and ``unit``, the perturbation, or a draw of the
    unperturbed model below 0. A draw has as many answers to each prompt as a perturbation.
    """
    known = texts[texts[BEHAVIOUR].notna() & (texts.phase == FIRST) & (texts.role == "asked")]
    plain = known.perturbation == 0
    likeliest = known[plain & (known["sample"] == 0)].set_index("prompt")
    asked = known[~plain | (known["sample"] > 0)]
    drawn = asked.perturbation == 0
    return asked.assign(
        arm=asked.arm.mask(drawn, SAMPLES),
        unit=asked.perturbation.mask(drawn, -1 - (asked["sample"] - 1) // samples),
        greedy=asked.prompt.map(likeliest[BEHAVIOUR]),
        refused=asked.prompt.map(likeliest.traits.map(lambda t: t.refuses)).astype(bool),
    )
