"""The account: what a run shows in a few sentences, each of them a count that stands in the run.

The sentences claim what was counted and no more: how often the found perturbations, random ones and
the unperturbed model said something, and what the re-test says of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from educe.comparison.behaviours import Behaviour
from educe.comparison.fragility import SAMPLES, Push
from educe.comparison.stats import Rate
from educe.comparison.verdict import LEVEL, Change, Verdict
from educe.rows import CONTROL, EQUAL, FOUND
from educe.visible import one_line

if TYPE_CHECKING:
    from educe.comparison.summary import Summary

#: Verdicts that claim something of what was found.
CLEAR = (Verdict.BEHAVIOUR, Verdict.INVARIANT)
#: So many behaviours are told in sentences, and so many characters of each.
TOLD, LENGTH = 2, 90


def shown(s: Summary) -> list[Behaviour]:
    """Return the behaviours that a person is to read, in order."""
    return [b for b in s.behaviours if b.weight >= 0]


def dose(value: float) -> str:
    """Write a dose: two decimals, or two digits where most of those would be zeros."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def account(s: Summary) -> list[str]:
    """Return the sentences for what a run shows."""
    first = shown(s)
    clear = [b for b in first if b.verdict in CLEAR]
    said = [_told(b) for b in (clear or first)[:TOLD]]
    if not clear:
        said.insert(0, "Nothing that was found stands out from the control.")
    return [*said, *filter(None, (fragility(s), damage(s)))]


def fragility(s: Summary) -> str:
    """Say how small a random push changes what the model says, and how often."""
    event = _event(s.pushes)
    if event is None:
        return ""
    name, what = event
    arms = {arm: [p for p in s.pushes if p.arm == arm] for arm in (CONTROL, EQUAL, SAMPLES)}
    doses = [f"{_of(getattr(p, name))} at dose {dose(p.dose)}" for p in arms[CONTROL]]
    said = f"Random perturbations after block {s.facts['source']} {what} in {', '.join(doses)}"
    if arms[EQUAL]:
        loud = _sum([getattr(p, name) for p in arms[EQUAL]])
        said += f"; at the effect of those found, in {loud}"
    if arms[SAMPLES]:
        said += (
            f"; without a perturbation this happens in {_of(getattr(arms[SAMPLES][0], name))} draws"
        )
    return said + "."


def damage(s: Summary) -> str:
    """Say how many perturbations damage what the model writes."""
    arms = {arm: [p.damaged for p in s.pushes if p.arm == arm] for arm in (FOUND, CONTROL, EQUAL)}
    if not any(r.hits for own in arms.values() for r in own):
        return ""
    more = f", and {_sum(arms[EQUAL])} at equal effect" if arms[EQUAL] else ""
    return (
        f"Damaged text comes from {_sum(arms[FOUND])} of the found perturbations and from "
        f"{_sum(arms[CONTROL])} random ones{more}."
    )


def _event(pushes: tuple[Push, ...]) -> tuple[str, str] | None:
    """Return what to tell of random perturbations: a change of refusal before any other."""
    random = [p for p in pushes if p.arm in (CONTROL, EQUAL)]
    for name, what in (
        ("ended", "end a refusal"),
        ("begun", "begin a refusal"),
        ("changed", "change the answer"),
    ):
        if any(getattr(p, name).hits for p in random):
            return name, what
    return None


def _told(b: Behaviour) -> str:
    """Say of a behaviour who says it and how often."""
    text = one_line(b.example.text)
    text = text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
    said = (
        f"“{text}” ({b.change.value}) is what {_of(b.found)} found perturbations say, "
        f"{_of(b.control)} random ones"
    )
    if b.equal is not None:
        said += f", {_of(b.equal)} random ones of equal effect"
    said += f" and {_of(b.samples)} draws of the unperturbed model"
    if b.greedy.trials and not b.greedy.hits:
        said += ", never its likeliest answer"
    said += f": {b.verdict.value}."
    if b.retest.trials:
        said += (
            f" In the re-test it comes in {_of(b.retest)} answers, and in "
            f"{_of(b.retest_control)} of the control."
        )
        if b.verdict is Verdict.BEHAVIOUR and b.p_retest >= LEVEL / 2:
            said += " The re-test alone does not tell the two apart."
    if b.change is Change.HELD:
        said += f" It comes in {_of(b.elsewhere)} answers to other requests, too."
    return said


def _of(r: Rate) -> str:
    return f"{r.hits} of {r.trials}"


def _sum(rates: list[Rate]) -> str:
    return f"{sum(r.hits for r in rates)} of {sum(r.trials for r in rates)}"
