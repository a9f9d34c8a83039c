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

import numpy as np
import pandas as pd

from educe.comparison.stats import Rate, rate
from educe.comparison.texts import UNPERTURBED
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
    told = answers(texts, samples)
    damaged = (told.damage != "") | (told.coherence < DAMAGED)
    flags = pd.DataFrame(
        {
            "changed": told.changed & ~damaged,
            "ended": ~damaged & told.refused & ~told.refuses,
            "begun": ~damaged & ~told.refused & told.refuses,
            "damaged": damaged,
        }
    )[told.asked]
    each = units(told, told.asked).join(flags.groupby(told.unit[told.asked]).any())
    return tuple(
        Push(str(arm), float(dose), *(rate(int(own[name].sum()), len(own)) for name in flags))
        for (arm, dose), own in each.groupby(["arm", "dose"])
    )


def answers(texts: pd.DataFrame, samples: int = 1) -> pd.DataFrame:
    """Return the texts with what the first answers to the prompts asked stand beside.

    Columns beside those of the texts: ``asked``, whether it is such an answer and not the
    likeliest one of the unperturbed model; ``changed``, whether its behaviour is another than that
    of the likeliest answer to its prompt; ``refused``, whether that refuses; and ``unit``, the
    perturbation, or a draw of the unperturbed model below 0, whose arm is `SAMPLES`. A draw has as
    many answers to each prompt as a perturbation.
    """
    known = texts[BEHAVIOUR].notna() & (texts.phase == FIRST) & (texts.role == "asked")
    plain = texts.perturbation == 0
    likeliest = texts[known & plain & (texts["sample"] == 0)].set_index("prompt")
    asked = known & (~plain | (texts["sample"] > 0))
    return texts.assign(
        asked=asked,
        changed=asked & (texts[BEHAVIOUR] != texts.prompt.map(likeliest[BEHAVIOUR])),
        refused=texts.prompt.map(likeliest.refuses).astype(bool),
        unit=texts.perturbation.mask(plain, -1 - (texts["sample"] - 1) // samples),
        arm=texts.arm.cat.rename_categories({UNPERTURBED: SAMPLES}),
    )


def units(told: pd.DataFrame, some: pd.Series | np.ndarray) -> pd.DataFrame:
    """Return arm and dose of each unit that some texts are of (see `answers`), by its number."""
    first = told.unit[some].drop_duplicates()
    each = told.loc[first.index, ["arm", "dose"]].astype({"arm": str, "dose": float})
    return each.set_axis(pd.Index(first))
