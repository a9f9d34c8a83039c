"""Settings: what can be asked of a sampling."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from educe.errors import MethodError
from educe.options import (
    AtLeastOne,
    Cold,
    Control,
    Count,
    Flag,
    Measures,
    Natural,
    Positive,
    Seed,
    Unparsed,
    Words,
)
from educe.whole import check_fields

SamplerName = Literal[
    "de", "stretch", "kde", "slice", "cma", "tpe", "diversity", "around", "anneal", "draws"
]
#: Those whose draws follow a density, with diagnostics and answers.
CHAINS = ("de", "stretch", "kde", "slice")

#: What the extra ``sample`` installs.
LIBRARIES = ("emcee", "cmaes", "ribs", "optuna", "arviz")


@dataclass(frozen=True)
class Sampling:
    """What is asked for.

    Attributes:
        sampler: de (differential evolution with snooker), stretch, kde: ensembles, by emcee; slice:
            elliptical slices, for a Gaussian prior; cma, tpe: one best setting; diversity: the best
            of each behaviour, by pyribs; around: a walk around the first vector; anneal: ensembles
            from it, heated and cooled at each of --shares; draws: of the prior
        basis: what spans the space: found:4 (so by default), jacobian:5-12, jacobian:8 (the
            flattest band), components:8, random:8, or a safetensors file; @LAYER behind it for
            another layer; may be repeated
        numbers: vectors that span the space (found); around and anneal begin with the first
        budget: evaluations of settings, of each arm
        walkers: of each ensemble, chains, or settings that are evaluated together
        ensembles: independent ones, to compare
        prior: of the coefficients: gaussian; natural, with the covariance of natural activations;
            laplace, which prefers few directions
        norm: free under the prior, or fixed at the radius
        radius: the root mean square norm; by default the median radius of what was found
        temperature: the temperature: by how much more of the objective makes e times the density
        hot: how many times as high the temperature begins
        cycles: how often it falls from there
        samples: texts a prompt and evaluation; with 1 the likeliest
        again: steps between new evaluations of all current states; 0 for never
        common: let all settings draw the same random numbers
        wanted: explore by how likely this continuation is, and judge only the best
        unwanted: against the likelihood of this one
        shares: norms that anneal goes through, as shares of the radius
        measures: of behaviour, for diversity: texts (two principal components; so by default), or
            two of length and judges
        cells: of the archive, along each measure
        keep: finds of each arm
        control: draw as many settings from the prior and choose among them likewise
        seed: of everything that is drawn
    """

    sampler: SamplerName = "de"
    basis: Words = ("found:4",)
    numbers: Annotated[tuple[int, ...], Unparsed] = ()
    budget: Count = 400
    walkers: Count = 16
    ensembles: Count = 2
    prior: Literal["gaussian", "natural", "laplace"] = "gaussian"
    norm: Literal["free", "fixed"] = "free"
    radius: Positive | None = None
    temperature: Cold = 0.1
    hot: AtLeastOne = 4.0
    cycles: Count = 1
    samples: Count = 4
    again: Natural = 10
    common: Flag = False
    wanted: str | None = None
    unwanted: str = ""
    shares: Annotated[tuple[float, ...], Unparsed] = (1.0, 0.7, 0.5, 0.7, 1.0, 1.4)
    measures: Measures = ("texts",)
    cells: Count = 10
    keep: Count = 4
    control: Control = True
    seed: Seed = 0

    def check(self) -> None:
        """Find what cannot work before anything slow begins.

        Raises:
            MethodError: Numbers make no sense, or do not go together.
        """
        check_fields(self)
        if min(self.walkers, self.cells) < 2:
            raise MethodError("a sampling needs two walkers and two cells at least: give more")
        if missing := [name for name in LIBRARIES if find_spec(name) is None]:
            raise MethodError(f"sampling needs {', '.join(missing)}: pip install 'educe[sample]'")
        if self.sampler == "slice" and self.prior == "laplace":
            raise MethodError("slice needs a Gaussian prior: use --prior gaussian or natural")
        if self.sampler == "slice" and not (self.exact):
            raise MethodError(
                "slice needs an objective without noise: use --common, --samples 1 or --wanted"
            )
        if self.sampler in ("around", "anneal") and len(self.numbers) < 2:
            raise MethodError(
                f"{self.sampler} goes around the first of some vectors, in the space of all: name "
                "two or more"
            )
        if self.sampler == "diversity" and self.wanted is not None:
            raise MethodError("diversity measures texts, and --wanted writes none: leave it out")

    @property
    def exact(self) -> bool:
        """Whether an evaluation has no noise."""
        return self.common or self.samples == 1 or self.wanted is not None
