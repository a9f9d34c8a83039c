"""The commands that begin with perturbations of a run and change them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from educe.cli import lighter
from educe.cli.judge import HERE, Asked
from educe.cli.opening import check_known, end, opened, some
from educe.cli.options import (
    FLAG,
    AtLeastOne,
    Count,
    Debug,
    Json,
    Natural,
    Part,
    Seed,
    Share,
    check_begun,
)
from educe.cli.streams import print_json
from educe.errors import MethodError

if TYPE_CHECKING:
    from educe.run.store import Run

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
    *numbers: Natural,
    low: Part = 0.25,
    high: AtLeastOne = 2.0,
    steps: Count = 5,
    settle: Natural = 12,
    basis: Annotated[list[str] | None, Parameter(negative="")] = None,
    nulls: Natural = 8,
    exact: Annotated[bool, FLAG] = False,
    seed: Seed = 0,
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
    settle
        the most iterates at a vector's own radius before it is followed: with 0 it is the vector
        itself, which is mostly far from a maximum
    basis
        in which coordinates are read: residual, components, heads, neurons, random, or a
        safetensors file; may be repeated; by default residual, random, and heads and neurons where
        the block has them
    nulls
        how many random vectors, and how many optimised for a shuffled target, are put beside
    exact
        solve for the turning of stationary vectors as well: slow
    seed
        of the nulls
    """
    from educe.refine.continuation import PathConfig
    from educe.refine.survey import PathPlan, path_run
    from educe.report import tables
    from educe.run.settings import encoded, stored

    with opened(run, numbers) as (found, lm, telling):
        plan = PathPlan(
            tuple(dict.fromkeys(numbers)) or _effective(found),
            PathConfig(low=low, high=high, steps=steps, settling=settle),
            bases=tuple(basis or ()),
            nulls=nulls,
            exact=exact,
            seed=seed,
        )
        settings = stored(found)
        prompts = encoded(lm, settings, settings.prompts)
        try:
            data = path_run(found, plan, lm, prompts, reporter=telling)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"educe refine path {shlex.quote(str(run))} ...") from None
        end(found, as_json, data, lambda: tables.path(data, run))


@app.command
def shrink(
    run: Path,
    /,
    *numbers: Natural,
    keep: Share = 0.8,
    by: str | None = None,
    asked: Asked = HERE,
    low: Part = 0.1,
    steps: Count = 4,
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
        a judge that educe judge list shows, whose scores are kept in the run; by default look-for
        where the run has one
    low
        the smallest radius that is looked at, as a share of a vector's own
    steps
        radii for each halving
    optimise
        improve the directions at every radius on the way
    """
    import re

    from educe.progress import reporter
    from educe.refine.shrink import Measure, ShrinkPlan, shrink_run
    from educe.report import tables
    from educe.run.settings import encoded, loaded, stored
    from educe.run.store import Run
    from educe.threads import choose

    chosen = tuple(dict.fromkeys(some(numbers)))
    telling = reporter()
    with Run.open(run) as found:
        check_begun(found)
        check_known(found, chosen)
        settings = stored(found)
        by = by or ("look-for" if settings.look_for else "exponent")
        if by == "look-for" and not settings.look_for:
            raise MethodError("the run looks for nothing: shrink --by exponent or by a judge")
        choose(telling.say)
        lm = loaded(found, settings, telling.say)
        everything = (*settings.prompts, *settings.fresh)
        questions = encoded(lm, settings, everything)
        measure: Measure | None = None
        identity = ""
        if by == "look-for":
            pattern = re.compile(settings.look_for or "")

            def measure(texts: list[str]) -> float:
                return sum(bool(pattern.search(text)) for text in texts) / len(texts)

        elif by != "exponent":
            from educe.judge import Answer, asked_in
            from educe.judge.cache import FILE, Cached

            (made,) = asked.judges([by], telling.say)
            judge, identity = Cached(made, run / FILE), made.identity
            plain = {c.prompt: c.text for c in found.completion_rows() if c.row[::2] == (0, 0)}
            asking = [asked_in(prompt) for prompt in everything]

            def measure(texts: list[str]) -> float:
                answers = [Answer(asking[j], text, (plain[j],)) for j, text in enumerate(texts)]
                return sum(score.value for score in judge.score(answers)) / len(texts)

        data = shrink_run(
            found,
            ShrinkPlan(chosen, by, keep, low, steps, optimise, identity),
            lm,
            encoded(lm, settings, settings.prompts),
            measure=measure,
            questions=questions,
            reporter=telling,
        )
    if as_json:
        print_json(data)
        return
    tables.shrunk(data, run)


def _effective(run: Run) -> tuple[int, ...]:
    """Return the most effective perturbations that were found."""
    ranked = sorted(run.perturbation_rows("found"), key=lambda p: -p.effect)
    return tuple(p.id for p in ranked[:FIRST])
