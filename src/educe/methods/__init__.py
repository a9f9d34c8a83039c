"""Discovery: one file a method; every method sees only a `Slice`.

A method is three functions and a configuration: ``start`` draws a state, ``step`` takes it one step
further, ``finish`` measures what was found. Methods that do not look for vectors say of which kind
their perturbations are. The loop, saving in the middle, the record of what came out and the matched
control are here, once for all methods.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_type_hints

import torch

from educe.errors import MethodError, RadiusError
from educe.forward.slice import Slice
from educe.methods import (
    cpe,
    dct,
    generalised,
    linear,
    lora,
    melbo,
    noise,
    power,
    quadratic,
    random,
    token_directions,
)
from educe.methods.over import Ground, Over, grounds, joined, parted, together
from educe.methods.radius import DIRECTIONS, of_one
from educe.methods.state import Progress, State
from educe.perturbation.kinds import Kind, Noise, Vectors, Within
from educe.perturbation.origin import Origin, digest
from educe.perturbation.set import PerturbationSet
from educe.rows import CONTROL
from educe.whole import check_fields, check_value, check_whole


def _vectors(part: Slice, n: int, config: Any, seed: int) -> Kind:
    return part.kind if isinstance(part.kind, Within) else _anywhere(part, n, config, seed)


def _anywhere(part: Slice, n: int, config: Any, seed: int) -> Kind:
    return Vectors(part.source, part.width, part.positions)


def _as_given(part: Slice, n: int, config: Any, seed: int) -> Kind:
    return part.kind


class Method(NamedTuple):
    """What a method consists of."""

    config: type
    start: Callable[..., State]
    step: Callable[..., tuple[State, Progress]]
    finish: Callable[..., State]
    kind: Callable[[Slice, int, Any, int], Kind] = _vectors  #: of n perturbations from a seed
    #: What ``--radius auto`` looks at where the ladder of `educe.methods.radius` does not suit: it
    #: is for vectors of any direction. Adapters that were searched for break down far below it,
    #: noise does nothing yet, and tokens have a size of their own.
    radii: str = "auto"
    #: Whether it keeps other prompts as they are (see `educe.methods.retain`): it does not, it can
    #: when they have a weight, or it always needs some.
    retain: Literal["no", "can", "needs"] = "no"


def _of(module: ModuleType, config: type, **more: Any) -> Method:
    return Method(config, module.start, module.step, module.finish, **more)


METHODS: dict[str, Method] = {
    "cpe": _of(cpe, cpe.CpeConfig, kind=cpe.kind, radii="1,2,4"),
    "dct": _of(dct, dct.DctConfig, retain="can"),
    "dct-linear": _of(linear, linear.LinearDctConfig),
    "dct-quadratic": _of(quadratic, quadratic.QuadraticDctConfig),
    "generalised": _of(generalised, generalised.GeneralisedConfig, retain="needs"),
    "lora": _of(lora, lora.LoraConfig, kind=lora.kind, radii="0.2,0.3,0.4", retain="can"),
    "melbo": _of(melbo, melbo.MelboConfig, retain="can"),
    "power": _of(power, power.PowerConfig),
    "noise": _of(random, noise.NoiseConfig, kind=noise.kind, radii="1.5x,2x,2.5x"),
    "random": _of(random, random.RandomConfig, kind=_as_given),
    "tokens": _of(token_directions, token_directions.TokensConfig, kind=_anywhere, radii="0.6d"),
}


def named(method: str) -> Method:
    """Return a method by its name.

    Raises:
        MethodError: There is no such method.
    """
    if method not in METHODS:
        raise MethodError(f"method {method!r} is unknown: use {', '.join(METHODS)}")
    return METHODS[method]


def described() -> dict[str, dict[str, Any]]:
    """Return what each method is in one line, and its settings with their defaults."""
    return {
        name: {
            "summary": str(inspect.getmodule(how.config).__doc__).splitlines()[0],
            "settings": asdict(how.config()),
        }
        for name, how in METHODS.items()
    }


def configured(method: str, settings: Mapping[str, Any]) -> Any:
    """Return a method's configuration.

    Raises:
        MethodError: The method has no such setting, or it takes other values.
    """
    config = named(method).config
    hints = get_type_hints(config, include_extras=True)
    for name, value in settings.items():
        if name not in hints:
            known = ", ".join(hints) or "none"
            raise MethodError(f"{method} has no setting {name!r}; its settings: {known}")
        check_value(f"{method}: {name}", value, hints[name])
    return config(**settings)


def search(
    part: Slice,
    method: str = "dct",
    *,
    n: int = 64,
    radius: float | str,
    seed: int = 0,
    over: Over = "mean",
    config: Any = None,
    state: State | None = None,
    on_step: Callable[[State, Progress], None] | None = None,
) -> PerturbationSet:
    """Find perturbations of one radius.

    Args:
        part: The slice.
        method: One of `METHODS`.
        n: How many.
        radius: Their norm, or what scales them in their kind (see `educe.perturbation.kinds`): a
            number, or a share of the calibrated radius (``"0.5x"``) or of the activations' norm
            (``"0.6d"``). The slice is calibrated once.
        seed: The same seed gives the same perturbations.
        over: What is made large where there are several prompts (see `educe.methods.over`); for
            perturbations that are only drawn it says nothing.
        config: The method's settings; its defaults when left out.
        state: Where an earlier call left off, as it was given to ``on_step``.
        on_step: Called after each step.

    Raises:
        MethodError: The method is unknown or cannot work with these settings.
        RadiusError: The radius cannot be read, is not one, is not above zero, or is so small that
            it is lost in rounding.
        EffectError: The radius is so large that the model breaks down.

    Example:
        >>> found = educe.search(part, "dct", n=4, radius=2.0)
        >>> found
        PerturbationSet(4 vectors by dct; layers 1 to 3 of llama; positions all; ...)
        >>> again = educe.search(part, "dct", n=4, radius=2.0)
        >>> found.theta.equal(again.theta)
        True
        >>> half = educe.search(part, "dct", n=4, radius="0.5x")
        >>> abs(half.radius[0].item() / educe.calibrate(part).radius - 0.5) < 1e-6
        True
    """
    how = named(method)
    check_whole("n", n)
    check_whole("seed", seed, 0, 2**63 - 1)  # the job's are larger than those that are asked for
    config = how.config() if config is None else config
    check_fields(config, f"{method}: {{}}")
    if isinstance(radius, str):
        # Of as many as are calibrated with, as the main job has it.
        trial = prepared(part, method, n=DIRECTIONS, config=config)
        radius = of_one(how.radii if radius == "auto" else radius, trial)
    if not 0 < radius < math.inf:
        raise RadiusError(f"radius {radius:g}: it must be above zero and finite")
    part = prepared(part, method, n=n, config=config, seed=seed)
    over = "mean" if how.start is random.start or len(part.batch.texts) == 1 else over
    found = _searched(part, how, grounds(part, over, n), radius, config, seed, state, on_step)
    directions = found["directions"].float().cpu()
    return PerturbationSet(
        kind=part.kind,
        directions=directions,
        radius=torch.full((len(directions),), radius),
        origin=origin(part),
        method=method,
        seed=seed,
        outputs=found["outputs"].float().cpu() if "outputs" in found else None,
        scores={
            name.removeprefix("score."): values.float().cpu()
            for name, values in found.items()
            if name.startswith("score.")
        },
        config=asdict(config)
        | _retaining(part, method)
        | ({} if over == "mean" else {"over": over}),
    )


def _searched(
    part: Slice,
    how: Method,
    where: list[Ground],
    radius: float,
    config: Any,
    seed: int,
    state: State | None,
    on_step: Callable[[State, Progress], None] | None,
) -> State:
    """Search on each ground, one after the other, and return what all found."""
    if state is None:
        draw = torch.Generator().manual_seed(seed)
        states = [how.start(one.searched, one.n, radius, config, draw) for one in where]
    else:
        states = parted(state, len(where))
    for i, one in enumerate(where):
        done = False
        while not done:
            states[i], progress = how.step(one.searched, radius, config, states[i])
            done = progress.done
            if on_step is not None:
                last = done and i == len(where) - 1
                on_step(joined(states), progress._replace(done=last))
    ended = zip(where, states, strict=True)
    found = together([how.finish(one.measured, radius, config, own) for one, own in ended])
    if len(where) > 1:  # on all prompts, as the control's
        theta = part.kind.scaled(found["directions"], radius)
        found["score.effect"] = part.effect(theta).norm(dim=1)
    return found


def _retaining(part: Slice, method: str) -> dict[str, Any]:
    """Say what weight retain prompts had in a search."""
    others = part.retain
    if others is None or named(method).retain != "can":
        return {}
    return {"retain": others.weight, "retain_by": others.by}


def retains(method: str, weight: float) -> bool:
    """Return whether a method needs other prompts beside its slice, at a weight ``μ`` of them.

    Raises:
        MethodError: It cannot keep them as they are, or the weight is no weight.
    """
    how = named(method).retain
    if not 0 <= weight < math.inf:
        raise MethodError(f"retain is {weight:g}: give 0 or a number above it")
    if weight and how != "can":
        able = ", ".join(name for name, other in METHODS.items() if other.retain == "can")
        raise MethodError(f"{method} has no weight for other prompts, only these have: {able}")
    return bool(weight) or how == "needs"


def prepared(part: Slice, method: str, *, n: int, config: Any, seed: int = 0) -> Slice:
    """Return the slice on which a method works: for perturbations of its kind.

    Raises:
        MethodError: The slice's positions are not those at which its perturbations act.
    """
    kind = named(method).kind(part, n, config, seed)
    if isinstance(part.kind, Within) and kind != part.kind:
        raise MethodError(
            f"{method} cannot search inside a subspace, only methods can that look for vectors of "
            "any direction: dct, melbo, power and the like"
        )
    if kind.positions != part.positions:
        raise MethodError(
            f"{method} makes {kind.name}, which act on all tokens: leave positions at 'all'"
        )
    return part.on(kind)


def control(part: Slice, found: PerturbationSet, *, seed: int | None = None) -> PerturbationSet:
    """Return the matched control of some perturbations.

    Random ones of their kind and radii; for noise, random directions (see `noise.control`).

    Args:
        part: The slice on which they were found.
        found: The perturbations.
        seed: Of what is drawn; by default the next after theirs.

    Raises:
        ModelError: The perturbations belong to a model of another size.
        LayerError: They do not belong to the slice.

    Example:
        >>> found = educe.search(part, "dct", n=4, radius=2.0)
        >>> control = educe.control(part, found)
        >>> control
        PerturbationSet(4 vectors by random; ...; radius 2 ...)
    """
    found.check(part.lm)
    seed = found.seed + 1 if seed is None else seed
    if isinstance(found.kind, Noise):
        part, radius = noise.control(part, found, seed=seed)
        radii = torch.full((len(found),), radius)
    else:
        part, radii = part.on(found.kind), found.radius
    made = search(part, "random", n=len(found), radius=float(radii[0]), seed=seed)
    if bool((radii != radii[0]).any()):
        made = replace(made, radius=radii)
        effect = part.effect(made.theta.to(part.device, part.work_dtype)).norm(dim=1)
        made = replace(made, scores={"effect": effect.float().cpu()})
    return replace(made, config={**made.config, "arm": CONTROL})


def origin(part: Slice) -> Origin:
    """Say where perturbations found on a slice belong."""
    lm = part.lm
    return Origin(
        model_id=lm.name,
        model_revision=lm.revision or "",
        adapter=lm.adapter or "",
        d_model=lm.width,
        n_layers=lm.depth,
        source=part.source,
        target=part.target,
        readout=part.readout,
        unit=part.unit,
        prompts_sha256=digest(part.batch.texts),
        model_parts=dict(lm.parts),
    )
