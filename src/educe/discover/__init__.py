"""Discovery: one file a method; every method sees only a `Slice`.

A method is three functions and a configuration: ``start`` draws a state, ``step`` takes it one step
further, ``finish`` measures what was found. The loop, saving in the middle and the record of what
came out are here, once for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from educe.discover import dct, linear, melbo, quadratic, random
from educe.discover.state import Progress, State
from educe.errors import MethodError, RadiusError
from educe.perturb import Origin, PerturbationSet, digest
from educe.slice import Slice


class Method(NamedTuple):
    """What a method consists of."""

    config: type
    start: Callable[..., State]
    step: Callable[..., tuple[State, Progress]]
    finish: Callable[..., State]


METHODS: dict[str, Method] = {
    "dct": Method(dct.DctConfig, dct.start, dct.step, dct.finish),
    "dct-linear": Method(linear.LinearDctConfig, linear.start, linear.step, linear.finish),
    "dct-quadratic": Method(
        quadratic.QuadraticDctConfig, quadratic.start, quadratic.step, quadratic.finish
    ),
    "melbo": Method(melbo.MelboConfig, melbo.start, melbo.step, melbo.finish),
    "random": Method(random.RandomConfig, random.start, random.step, random.finish),
}


def named(method: str) -> Method:
    """Return a method by its name.

    Raises:
        MethodError: There is no such method.
    """
    if method not in METHODS:
        raise MethodError(f"method {method!r} is unknown: use {', '.join(METHODS)}")
    return METHODS[method]


def search(
    part: Slice,
    method: str = "dct",
    *,
    n: int = 64,
    radius: float,
    seed: int = 0,
    config: Any = None,
    state: State | None = None,
    on_step: Callable[[State, Progress], None] | None = None,
) -> PerturbationSet:
    """Find perturbations of one radius.

    Args:
        part: The slice.
        method: Name of the method: a key of `METHODS`.
        n: How many.
        radius: Their norm.
        seed: The same seed gives the same perturbations.
        config: The method's settings; its defaults when left out.
        state: Where an earlier call left off, as it was given to ``on_step``.
        on_step: Called after each step.

    Raises:
        MethodError: The method is unknown or cannot work with these settings.
        RadiusError: The radius is not above zero.
        EffectError: The radius is so large that the model breaks down.
    """
    how = named(method)
    if n < 1:
        raise MethodError(f"n = {n}: ask for at least one perturbation")
    if not 0 < radius < math.inf:
        raise RadiusError(f"radius {radius:g}: it must be above zero and finite")
    config = config if config is not None else how.config()
    if state is None:
        state = how.start(part, n, radius, config, torch.Generator().manual_seed(seed))
    done = False
    while not done:
        state, progress = how.step(part, radius, config, state)
        done = progress.done
        if on_step is not None:
            on_step(state, progress)
    found = how.finish(part, radius, config, state)
    directions = found["directions"].float().cpu()
    return PerturbationSet(
        directions=directions,
        radius=torch.full((n,), radius),
        origin=origin(part),
        method=method,
        seed=seed,
        outputs=found["outputs"].float().cpu() if "outputs" in found else None,
        scores={
            name.removeprefix("score."): values.float().cpu()
            for name, values in found.items()
            if name.startswith("score.")
        },
        config=asdict(config),
    )


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
        positions=part.positions,
        readout=part.readout,
        mean_resid_norm=part.mean_norm,
        prompts_sha256=digest(part.batch.texts),
    )
