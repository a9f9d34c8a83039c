"""Settings: what can be asked of a sampling."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from educe.errors import MethodError
from educe.options import Count, Natural, Positive, Seed
from educe.whole import AtLeast, check_fields

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
        sampler: How settings are proposed.
        basis: What spans the space (see `educe.sampling.space`).
        numbers: The vectors that ``found`` means; the first of them is what ``around`` and
            ``anneal`` begin with.
        budget: Evaluations of settings, of each arm.
        walkers: Settings that are evaluated together: walkers of each ensemble, chains, or a batch.
        ensembles: Independent ensembles.
        prior: Of the coefficients: gaussian; natural, a Gaussian with the covariance of natural
            activations; or laplace, which prefers few directions.
        norm: Whether the norm is free, under the prior, or fixed at the radius.
        radius: The root mean square norm; by default the median radius of what was found.
        temperature: By how much of the objective a setting has to be better to be e times as
            likely.
        hot: How many times as high the temperature begins.
        cycles: How often it falls from there.
        samples: Texts a prompt and evaluation.
        again: Steps between new evaluations of all current states; 0 for never.
        common: Whether all settings draw the same random numbers.
        wanted: Explore by how likely this continuation is, and judge only the best.
        unwanted: Against the likelihood of this one.
        shares: Norms that ``anneal`` goes through, as shares of the radius.
        measures: Of behaviour, for ``diversity``.
        cells: Of its archive, along each measure.
        keep: Finds of each arm.
        control: Whether draws of the prior go through the same.
        seed: Of everything that is drawn.
    """

    sampler: SamplerName = "de"
    basis: tuple[str, ...] = ("found:4",)
    numbers: tuple[int, ...] = ()
    budget: Count = 400
    walkers: Annotated[int, AtLeast(2)] = 16
    ensembles: Count = 2
    prior: Literal["gaussian", "natural", "laplace"] = "gaussian"
    norm: Literal["free", "fixed"] = "free"
    radius: Positive | None = None
    temperature: Positive = 0.1
    hot: Annotated[float, AtLeast(1)] = 4.0
    cycles: Count = 1
    samples: Count = 4
    again: Natural = 10
    common: bool = False
    wanted: str | None = None
    unwanted: str = ""
    shares: tuple[float, ...] = (1.0, 0.7, 0.5, 0.7, 1.0, 1.4)
    measures: tuple[str, ...] = ("texts",)
    cells: Annotated[int, AtLeast(2)] = 10
    keep: Count = 4
    control: bool = True
    seed: Seed = 0

    def check(self) -> None:
        """Find what cannot work before anything slow begins.

        Raises:
            MethodError: Numbers make no sense, or do not go together.
        """
        check_fields(self)
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
