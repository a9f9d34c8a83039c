"""Verdicts: what a behaviour is, by how often each arm shows it. Every threshold stands here.

as before ─► damaged ─► more often than the control ─► prompt-invariant ─► noise, or too rare
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from educe.comparison.stats import Rate

#: The chance that any behaviour of a run stands out by luck. Each behaviour has two chances, the
#: first count and the re-test, and half of this for each (Bonferroni).
LEVEL = 0.05
#: Mean coherence below which text counts as damaged. The unperturbed model's ordinary text has 1,
#: repetition and noise are near 0; text in another language or in code lies between.
DAMAGED = 0.15
#: Mean novelty below which text is as before: two thirds of its words and word pairs, by weight,
#: are in one of the unperturbed model's own answers.
SAME = 0.35
#: A behaviour is prompt-invariant when one perturbation shows it in more than this share of its
#: answers to fresh prompts, with 95% confidence: in most of them.
INVARIANT = 0.5
#: Of so many fresh prompts at least, since fewer are not whatever is asked.
INVARIANT_PROMPTS = 3


class Verdict(Enum):
    """What a behaviour is, in order of interest."""

    BEHAVIOUR = "more often than in the control"
    INVARIANT = "by few perturbations, but again whatever is asked"
    RARE = "too rare to tell from noise"
    NOISE = "the control does it as well"
    DAMAGE = "damaged text"
    SAME = "as without perturbation"


class Evidence(NamedTuple):
    """What a verdict goes by."""

    unperturbed: bool  #: whether the unperturbed model shows it too
    novelty: float  #: mean over its completions
    coherence: float
    p_value: float  #: that found shows it no more often than the control, corrected
    p_retest: float
    control: int  #: perturbations of the control that show it
    control_again: int  #: in the re-test
    invariant: Rate  #: see `INVARIANT`

    @property
    def verdict(self) -> Verdict:
        """What the behaviour is; the first that holds."""
        if self.unperturbed or self.novelty < SAME:
            return Verdict.SAME
        if self.coherence < DAMAGED:
            return Verdict.DAMAGE
        if min(self.p_value, self.p_retest) < LEVEL / 2:
            return Verdict.BEHAVIOUR
        if self.invariant.low > INVARIANT and not (self.control or self.control_again):
            return Verdict.INVARIANT
        return Verdict.NOISE if self.control else Verdict.RARE
