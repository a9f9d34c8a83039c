"""The chosen of each arm: which they are, their side effects, and the response to the radius."""

from __future__ import annotations

from educe.comparison.summary import summarise
from educe.forward.benign import ordinary_prompts
from educe.rows import ARMS, ScoreRow
from educe.run.fill import groups
from educe.run.scaling import scaled
from educe.run.work import Work
from educe.scores.side_effect import side_effects

#: Perturbations of each arm that are re-tested and whose side effect is measured.
CHOSEN = 8
#: Response curves: how many of each arm, and the radii as shares of the largest searched.
CURVES, CURVE_SHARES = 6, (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


def choose(work: Work) -> list[int]:
    """Return the most interesting of each arm; fixed once made, so that a resumed run agrees.

    Where several prompts were asked, half of them are those that are interesting and say the same
    whatever is asked: what is hidden behind a trigger need not be the most interesting.
    """
    if not work.run.has("chosen"):
        seen = summarise(work.run)
        several = len(work.prompts("asked")) > 1
        numbers: list[int] = []
        for arm in (seen.found, seen.control):
            first = arm[: CHOSEN // 2 if several else CHOSEN]
            others = sorted(
                arm[len(first) :], key=lambda i: -i.interestingness * (i.invariance or 0)
            )
            numbers += [i.row.id for i in (*first, *others[: CHOSEN - len(first)])]
        work.run.remember("chosen", numbers)
    return work.run.note("chosen")


def measure_side_effects(work: Work, chosen: list[int]) -> None:
    """Measure the side effects of the chosen that are not measured yet."""
    done = {s.perturbation for s in work.run.score_rows("side_effect")}
    missing = [number for number in chosen if number not in done]
    if not missing or work.settings.positions == "generated":
        return
    batch = work.lm.encode(ordinary_prompts())
    with (
        work.timed("side effects"),
        work.reporter.stage("side effects", len(missing), "perturbations") as step,
    ):
        for group in groups(work.run, missing):
            each = side_effects(work.lm, batch, group.theta, kind=group.kind)
            for number, s in zip(group.numbers, each, strict=True):
                work.run.add_scores([ScoreRow(number, s.judge, s.value, "nats", s.why)])
                step()


def measure_responses(work: Work) -> None:
    """Measure how the most interesting respond to the radius; each point is derived from one."""
    seen = summarise(work.run)
    largest = {arm: max(p.radius for p in work.run.perturbation_rows(arm)) for arm in ARMS}
    wanted = [
        (i.row.id, share * largest[i.row.arm])
        for arm in (seen.found, seen.control)
        for i in arm[:CURVES]
        for share in CURVE_SHARES
    ]
    with (
        work.timed("responses"),
        work.reporter.stage("response to radius", len(wanted), "points") as step,
    ):
        scaled(work, wanted, step)
