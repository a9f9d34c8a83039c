"""The command that samples: search around what a run found, with judges as the objective."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from educe.cli.judge import HERE, Asked
from educe.cli.opening import end, going_on, opened, telling
from educe.cli.options import SCREEN, Output, RunFolder
from educe.errors import JudgeError, MethodError
from educe.options import ALONE, Natural, NonNegative, SpreadOptions, Words
from educe.sampling.settings import Sampling
from educe.whole import read_real

if TYPE_CHECKING:
    from educe.progress import Bars, Lines
    from educe.scores import Judge

#: A sampling as it is where nothing else is said.
USUAL = Sampling()


def sample(
    run: RunFolder,
    /,
    *numbers: Natural,
    judge: Words = (),
    asked: Asked = HERE,
    side_effect: NonNegative = 0.0,
    incoherence: NonNegative = 0.0,
    options: Annotated[Sampling, Parameter(name="*")] = USUAL,
    shares: str = "1,0.7,0.5,0.7,1,1.4",
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Search around what a run found, with judges as the objective; random draws likewise.

    Finds become perturbations of the run, re-tested on fresh prompts or samples. The same command
    goes on where it was cut off; every evaluation is kept in the run.

    Args:
        numbers: vectors that span the space (found); around and anneal begin with the first
        judge: as educe judge list shows them, or interestingness; with WEIGHT* before it and
            repeated, a weighted sum; by default what the run looks for, or interestingness
        side_effect: what a nat of KL on ordinary prompts costs
        incoherence: what a text costs that is not coherent at all
        shares: norms that anneal goes through, as shares of the radius
    """
    from educe.derive.listing import deriving
    from educe.report import sampling as told_of
    from educe.report import screen, tables
    from educe.rows import SAMPLING
    from educe.sampling.measures import LENGTH, TEXTS, Measure
    from educe.sampling.searching import sample as sampling
    from educe.sampling.searching import usual_terms

    own = tuple(dict.fromkeys(numbers))
    wish = replace(options, numbers=own, shares=_shares(shares))
    wish.check()
    tells = telling()
    with going_on(), opened(run) as kept:
        terms = None
        if judge:
            terms = _weighted(judge, asked, run, tells)
        with deriving(kept, numbers, reporter=tells, spread=who) as work:
            by = usual_terms(work, terms, side_effect=side_effect, incoherence=incoherence)
            measured = None
            if wish.sampler == "diversity":
                named = [name for name in wish.measures if name not in (TEXTS, LENGTH)]
                judges: dict[str, Judge] = {
                    name: asked.kept(name, run, tells.say) for name in named
                }
                measured = Measure(wish.measures, judges, work)
            told = sampling(work, wish, by, measured)
        data = kept.note(SAMPLING + told.file)
        lying = [name for name in (data["file"], data["control_file"]) if name]
        where = tables.lie(*(run / "tensors" / name for name in lying))
        end(kept, output, data, lambda: screen.tell([*told_of.blocks(data), where]))


def _weighted(
    specs: Sequence[str], asked: Asked, run: RunFolder, tells: Bars | Lines
) -> list[tuple[float, Judge | None]]:
    """Read judges with their weights.

    Raises:
        JudgeError: There is no such judge.
    """
    terms: list[tuple[float, Judge | None]] = []
    for spec in specs:
        weight, name = 1.0, spec
        if found := re.fullmatch(r"([+-]?[0-9.]+)\*(.+)", spec, re.DOTALL):
            weight, name = _number(found[1]), found[2]
        by = None if name == "interestingness" else asked.kept(name, run, tells.say)
        terms.append((weight, by))
    return terms


def _number(text: str) -> float:
    try:
        return read_real(text)
    except ValueError:
        raise JudgeError(f"weight {text!r}: write a judge as 0.5*refusal") from None


def _shares(text: str) -> tuple[float, ...]:
    """Read norms.

    Raises:
        MethodError: One is none.
    """
    try:
        made = tuple(read_real(word) for word in text.split(","))
    except ValueError:
        made = (0.0,)
    if min(made) <= 0:
        raise MethodError(f"shares {text!r}: write numbers above 0 with commas, as in 1,0.7,0.5")
    return made
