"""The command that samples: search around what a run found, with judges as the objective."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from educe.cli.judge import HERE, Asked
from educe.cli.opening import end, going_on, opened, telling
from educe.cli.options import SCREEN, Output, RunFolder
from educe.errors import JudgeError, MethodError
from educe.options import AtLeastOne, Count, Flag, Natural, NonNegative, Positive, Seed
from educe.whole import read_real

if TYPE_CHECKING:
    from educe.progress import Bars, Lines
    from educe.scores import Judge

Words = Annotated[list[str] | None, Parameter(negative="")]


def sample(
    run: RunFolder,
    /,
    *numbers: Natural,
    sampler: Literal[
        "de", "stretch", "kde", "slice", "cma", "tpe", "diversity", "around", "anneal", "draws"
    ] = "de",
    judge: Words = None,
    asked: Asked = HERE,
    side_effect: NonNegative = 0.0,
    incoherence: NonNegative = 0.0,
    basis: Words = None,
    prior: Literal["gaussian", "natural", "laplace"] = "gaussian",
    norm: Literal["free", "fixed"] = "free",
    radius: Positive | None = None,
    cold: Positive = 0.1,
    hot: AtLeastOne = 4.0,
    cycles: Count = 1,
    budget: Count = 400,
    walkers: Count = 16,
    ensembles: Count = 2,
    samples: Count = 4,
    again: Natural = 10,
    common: Flag = False,
    wanted: str | None = None,
    unwanted: str = "",
    shares: str = "1,0.7,0.5,0.7,1,1.4",
    measure: Words = None,
    cells: Count = 10,
    keep: Count = 4,
    control: Annotated[Flag, Parameter(negative="--no-control")] = True,
    seed: Seed = 0,
    output: Output = SCREEN,
) -> None:
    """Search around what a run found, with judges as the objective; random draws likewise.

    Finds become perturbations of the run, re-tested on fresh prompts or samples. The same command
    goes on where it was cut off; every evaluation is kept in the run.

    Args:
        numbers: vectors that span the space (found); around and anneal begin with the first
        sampler: de (differential evolution with snooker), stretch, kde: ensembles, by emcee; slice:
            elliptical slices, for a Gaussian prior; cma, tpe: one best setting; diversity: the best
            of each behaviour, by pyribs; around: a walk around the first vector; anneal: ensembles
            from it, heated and cooled at each of --shares; draws: of the prior
        judge: as educe judge list shows them, or interestingness; with WEIGHT* before it and
            repeated, a weighted sum; by default what the run looks for, or interestingness
        side_effect: what a nat of KL on ordinary prompts costs
        incoherence: what a text costs that is not coherent at all
        basis: what spans the space: found:4, jacobian:5-12, jacobian:8 (the flattest band),
            components:8, random:8, or a safetensors file; @LAYER behind it for another layer; may
            be repeated
        prior: of the coefficients: gaussian; natural, with the covariance of natural activations;
            laplace, which prefers few directions
        norm: free under the prior, or fixed at the radius
        radius: the root mean square norm; by default the median radius of what was found
        cold: the temperature: by how much the objective has to be higher for e times the density
        hot: how many times as high it begins
        cycles: how often it falls from there
        budget: evaluations of settings, of each arm
        walkers: of each ensemble, chains, or settings that are evaluated together
        ensembles: independent ones, to compare
        samples: texts a prompt and evaluation; with 1 the likeliest
        again: steps between new evaluations of all current states; 0 for never
        common: let all settings draw the same random numbers
        wanted: explore by how likely this continuation is, and judge only the best
        unwanted: against the likelihood of this one
        shares: norms that anneal goes through, as shares of the radius
        measure: of behaviour, for diversity: texts (two principal components), or two of length
            and judges
        cells: of the archive, along each measure
        keep: finds of each arm
        control: draw as many settings from the prior and choose among them likewise
        seed: of everything that is drawn
    """
    from educe.derive.listing import deriving
    from educe.report import sampling as told_of
    from educe.report import screen, tables
    from educe.rows import SAMPLING
    from educe.sampling.measures import LENGTH, TEXTS, Measure
    from educe.sampling.searching import sample as sampling
    from educe.sampling.searching import usual_terms
    from educe.sampling.settings import Sampling

    wish = Sampling(
        sampler=sampler,
        basis=tuple(basis or ["found:4"]),
        numbers=tuple(dict.fromkeys(numbers)),
        budget=budget,
        walkers=walkers,
        ensembles=ensembles,
        prior=prior,
        norm=norm,
        radius=radius,
        temperature=cold,
        hot=hot,
        cycles=cycles,
        samples=samples,
        again=again,
        common=common,
        wanted=wanted,
        unwanted=unwanted,
        shares=_shares(shares),
        measures=tuple(measure or [TEXTS]),
        cells=cells,
        keep=keep,
        control=control,
        seed=seed,
    )
    wish.check()
    tells = telling()
    with going_on(), opened(run) as kept:
        terms = None
        if judge:
            terms = _weighted(judge, asked, run, tells)
        with deriving(kept, numbers, reporter=tells) as work:
            by = usual_terms(work, terms, side_effect=side_effect, incoherence=incoherence)
            measured = None
            if sampler == "diversity":
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
