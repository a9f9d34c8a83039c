"""The chosen of each arm: which they are, their side effects, and the response to the radius."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

from educe.comparison.behaviours import Behaviour, behaviours
from educe.comparison.summary import summarise
from educe.forward.benign import ordinary_prompts
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.rows import ARMS, CONTROL, EQUAL, FOUND, ScoreRow
from educe.run.fill import Group, groups
from educe.run.scaling import scaled
from educe.run.work import Work
from educe.scores import Score
from educe.scores.side_effect import side_effects
from educe.spread import Job, Shared

#: Perturbations of each arm that are re-tested and whose side effect is measured.
CHOSEN = 8
#: How many the first behaviours send to the re-test; later ones send one.
SENT = (4, 2)
#: Response curves: how many of each arm, and the radii as shares of the largest searched.
CURVES, CURVE_SHARES = 6, (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


def choose(work: Work) -> list[int]:
    """Return those of each arm that say what is most telling; fixed once made.

    The behaviours send, in the order of the screen, the perturbations that say them most often: the
    first so many that the re-test can tell, the later ones one each. The control's are chosen in
    the same way, as if it were what was found. What is left of the places goes to the most
    interesting.
    """
    if not work.run.has("chosen"):
        seen = summarise(work.run)
        numbers: list[int] = []
        for arm, items in ((FOUND, seen.found), (CONTROL, seen.control), (EQUAL, seen.equal)):
            if not items:
                continue
            own, told = [i.row.id for i in items], seen.behaviours
            if arm != FOUND:
                rows = seen.texts.rows
                swapped = rows.assign(arm=rows.arm.cat.rename_categories({arm: FOUND, FOUND: arm}))
                told = behaviours(seen.texts.of(swapped), work.settings.samples)
            numbers += list(dict.fromkeys((*_finders(told, set(own)), *own)))[:CHOSEN]
        work.run.remember("chosen", numbers)
    return work.run.note("chosen")


def _finders(told: Sequence[Behaviour], own: set[int]) -> list[int]:
    """Return for each behaviour the perturbations of an arm that say it most often."""
    found = [mine for b in told if (mine := [n for n in b.numbers if n in own])]
    return [
        n for mine, most in zip(found, chain(SENT, repeat(1)), strict=False) for n in mine[:most]
    ]


def measure_side_effects(work: Work, chosen: list[int]) -> None:
    """Measure the side effects of the chosen that are not measured yet."""
    done = {s.perturbation for s in work.run.score_rows("side_effect", of=chosen)}
    missing = [number for number in chosen if number not in done]
    if not missing or work.settings.positions == "generated":
        return
    batch = work.lm.encode(ordinary_prompts())
    with (
        work.timed("side effects"),
        work.reporter.stage("side effects", len(missing), "perturbations") as step,
    ):
        shared = Shared((work.lm, batch))
        jobs = (
            Job(_side_effects, shared, (group,), len(group.numbers))
            for group in groups(work.run, missing)
        )
        for came in work.spread.map(jobs):
            (group,) = came.job.given
            work.run.add_scores(
                ScoreRow(number, s.judge, s.value, "nats", s.why)
                for number, s in zip(group.numbers, came.value, strict=True)
            )
            step(came.job.size, came.note)


def _side_effects(lm: LanguageModel, batch: PromptBatch, group: Group) -> list[Score]:
    """Score perturbations of one kind."""
    return list(side_effects(lm, batch, group.theta, kind=group.kind))


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
