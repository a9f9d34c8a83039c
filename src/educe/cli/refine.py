"""The commands that begin with perturbations of a run and change them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from educe.cli import lighter
from educe.cli.options import FLAG, Debug, Json, check_begun
from educe.errors import MethodError, RunError

app = App(name="refine", help="Begin with perturbations of a run, and change them.")
app.command(lighter.front)
app.command(lighter.sparse)
app.command(lighter.degate)

#: How many of those found, the most effective, are followed where none is named.
FIRST = 8


@app.command
def path(
    run: Path,
    /,
    *numbers: int,
    low: float = 0.25,
    high: float = 2.0,
    steps: int = 5,
    basis: Annotated[list[str] | None, Parameter(negative="")] = None,
    nulls: int = 8,
    exact: Annotated[bool, FLAG] = False,
    seed: int = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow vectors through the radius, optimised anew at each, with their nulls.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        perturbations, as the table numbers them; by default the eight most effective found
    low
        the smallest radius, as a share of a vector's own
    high
        the largest
    steps
        radii for each doubling
    basis
        in which coordinates are read: residual, components, heads, neurons, random, or a
        safetensors file; may be repeated
    nulls
        how many random vectors, and how many optimised for a shuffled target, are put beside
    exact
        solve for the turning of stationary vectors as well: slow
    seed
        of the nulls
    """
    from educe import job
    from educe.progress import reporter
    from educe.refine.continuation import PathConfig
    from educe.refine.survey import PathPlan, path_run
    from educe.report import page, terminal
    from educe.runs import Run
    from educe.threads import choose

    if not (0 < low < 1 <= high) or steps < 1 or nulls < 0:
        raise MethodError(
            "a path goes from low, below 1, to high, with one step or more a doubling"
        )
    telling = reporter()
    with Run.open(run) as opened:
        check_begun(opened)
        chosen = _numbers(opened, numbers)
        plan = PathPlan(
            chosen,
            PathConfig(low=low, high=high, steps=steps),
            bases=tuple(basis or PathPlan.bases),
            nulls=nulls,
            exact=exact,
            seed=seed,
        )
        choose(telling.say)
        settings = job.stored(opened)
        lm = job.loaded(settings, telling.say)
        try:
            data = path_run(
                opened, plan, lm, job.encoded(lm, settings, settings.prompts), reporter=telling
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"educe refine path {shlex.quote(str(run))} ...") from None
        written = page.write(opened, run / "report.html")
    if as_json:
        print(json.dumps(data | {"report": str(written)}))
        return
    terminal.path(data, run)
    terminal.where(written)


@app.command
def shrink(
    run: Path,
    /,
    *numbers: int,
    keep: float = 0.8,
    by: str | None = None,
    low: float = 0.1,
    steps: int = 4,
    optimise: Annotated[bool, FLAG] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Shrink vectors until a share of what they do is gone.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        perturbations, as the table numbers them
    keep
        the share of what is measured at a vector's own radius that is to stay
    by
        look-for (how often the run's pattern is found in answers to all its prompts), exponent, or
        a judge that educe judge list shows; by default look-for where the run has one
    low
        the smallest radius that is looked at, as a share of a vector's own
    steps
        radii for each halving
    optimise
        improve the directions at every radius on the way
    """
    import re

    from educe import job
    from educe.progress import reporter
    from educe.refine.shrink import Measure, ShrinkPlan, shrink_run
    from educe.report import terminal
    from educe.runs import Run
    from educe.threads import choose

    if not (0 < keep <= 1 and 0 < low < 1) or steps < 1:
        raise MethodError("keep is a share up to 1, low one below 1, and steps is 1 or more")
    if not numbers:
        raise RunError("no perturbation: name at least one, by its number in educe show")
    telling = reporter()
    with Run.open(run) as opened:
        check_begun(opened)
        settings = job.stored(opened)
        by = by or ("look-for" if settings.look_for else "exponent")
        if by == "look-for" and not settings.look_for:
            raise MethodError("the run looks for nothing: shrink --by exponent or by a judge")
        choose(telling.say)
        lm = job.loaded(settings, telling.say)
        everything = (*settings.prompts, *settings.fresh)
        questions = job.encoded(lm, settings, everything)
        measure: Measure | None = None
        if by == "look-for":
            found = re.compile(settings.look_for or "")

            def measure(texts: list[str]) -> float:
                return sum(bool(found.search(text)) for text in texts) / len(texts)

        elif by != "exponent":
            from educe.judge import Answer, asked_in
            from educe.judge.naming import judge_named

            judge = judge_named(by, lm)
            plain = {c.prompt: c.text for c in opened.completions() if c.key[::2] == (0, 0)}
            asked = [asked_in(prompt) for prompt in everything]

            def measure(texts: list[str]) -> float:
                answers = [Answer(asked[j], text, (plain[j],)) for j, text in enumerate(texts)]
                return sum(score.value for score in judge.score(answers)) / len(texts)

        data = shrink_run(
            opened,
            ShrinkPlan(_numbers(opened, numbers), by, keep, low, steps, optimise),
            lm,
            job.encoded(lm, settings, settings.prompts),
            measure=measure,
            questions=questions,
            reporter=telling,
        )
    if as_json:
        print(json.dumps(data))
        return
    terminal.shrunk(data, run)


def _numbers(run: object, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return which perturbations are meant.

    Raises:
        RunError: The run does not have one of them.
    """
    known = run.perturbations()  # type: ignore[attr-defined]
    if unknown := [n for n in numbers if n not in {p.id for p in known}]:
        raise RunError(f"the run has no perturbation {unknown[0]}: see educe show for its numbers")
    ranked = sorted((p for p in known if p.arm == "found"), key=lambda p: -p.effect)
    return tuple(dict.fromkeys(numbers)) or tuple(p.id for p in ranked[:FIRST])
