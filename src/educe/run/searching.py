"""The search: perturbations at each radius, and their control, kept as files of the run.

A method that is still searching saves its state now and then, and a run that was cut off goes on
from there.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from educe import files, methods
from educe.errors import MethodError
from educe.methods.equal_effect import at_equal_effect, louder
from educe.methods.state import Progress, State
from educe.perturbation.kinds import Noise
from educe.perturbation.set import PerturbationSet
from educe.rows import ARMS, EQUAL
from educe.run.fill import add_set
from educe.run.preparing import Search

#: Seconds between two saves of a method that is still searching.
SAVE_EVERY = 5.0


def search(search: Search) -> None:
    """Search at each radius, make the control of what was found, and list both in the run."""
    work = search.work
    listed = {p.file for p in work.run.perturbation_rows()}
    for k, size in enumerate(work.run.note("facts")["radii"]):
        for arm in ("found", "control"):
            name = f"{arm}-{k}.safetensors"
            if name not in listed:
                path = work.run.tensors / name
                if not path.exists():
                    # The control draws from its own seed; each radius as well.
                    seed = 2 * (1000 * work.settings.seed + k) + (arm == "control")
                    made = (
                        _found(search, path, size, seed)
                        if arm == "found"
                        else _control(search, work.run.tensors / f"found-{k}.safetensors", seed)
                    )
                    made.save(path)
                path.with_suffix(".state").unlink(missing_ok=True)
                made = PerturbationSet.load(path)
                add_set(work.run, arm, name, made, made.scores["effect"].tolist())
    _equally_loud(search, listed)


def _equally_loud(search: Search, listed: set[str]) -> None:
    """Put random perturbations of the same effect beside those of a norm that says little."""
    work, s = search.work, search.settings
    if s.control:  # it was chosen by whoever made the perturbations
        return
    for k, _ in enumerate(work.run.note("facts")["radii"]):
        name = f"equal-{k}.safetensors"
        if name in listed:
            continue
        found, control = (
            PerturbationSet.load(work.run.tensors / f"{arm}-{k}.safetensors") for arm in ARMS
        )
        if isinstance(found.kind, Noise) or not louder(found, control):
            continue
        path = work.run.tensors / name
        if not path.exists():
            with work.reporter.stage("random, at equal effect", 1, "") as step:
                at_equal_effect(search.part, control, found).save(path)
                step()
        made = PerturbationSet.load(path)
        add_set(work.run, EQUAL, name, made, made.scores["effect"].tolist())


def _control(search: Search, found: Path, seed: int) -> PerturbationSet:
    if search.settings.control:
        radii = PerturbationSet.load(found).radius
        return _measured(search, search.read(search.settings.control), float(radii[0]))
    with search.work.reporter.stage("random", 1, "") as step:
        made = methods.control(search.part, PerturbationSet.load(found), seed=seed)
        step()
    return made


def _measured(search: Search, given: PerturbationSet, size: float) -> PerturbationSet:
    """Return those of some given perturbations that have a radius, and their effect."""
    given.check(search.work.lm)
    some = given.select([i for i, r in enumerate(given.radius.tolist()) if r == size])
    if not len(some):
        raise MethodError(f"the control has no perturbation of radius {size:g}")
    effect = search.part.on(some.kind).effect(some.theta.to(search.part.start.device))
    return replace(some, scores={**some.scores, "effect": effect.norm(dim=1).float().cpu()})


def _found(search: Search, path: Path, size: float, seed: int) -> PerturbationSet:
    if search.given is not None:
        return _measured(search, search.given, size)
    partial = path.with_suffix(".state")
    s, config = search.settings, search.config
    rounds = getattr(config, "iterations", getattr(config, "steps", 0))
    # What is only drawn has no rounds, and is drawn once over all prompts.
    steps = max(1, rounds * (len(search.part.batch) if s.over == "each" else 1))
    state = State(load_file(partial)) if partial.exists() else None
    dose = size / search.work.run.note("facts")["unit"]
    with search.work.reporter.stage(f"{s.method} at dose {dose:.2f}", steps, "") as step:
        step(sum(len(t) for name, t in (state or {}).items() if name.endswith("curve")))
        saved = time.monotonic()

        def on_step(now: State, progress: Progress) -> None:
            nonlocal saved
            reached = progress.objective
            step(note=f"objective {reached:.4g}" if reached is not None else "")
            # Not the last one: going on from it would be a step too many.
            due = not progress.done and time.monotonic() - saved > SAVE_EVERY
            if due:
                files.write_tensors(partial, now, {})
                saved = time.monotonic()

        return methods.search(
            search.part,
            s.method,
            n=s.n,
            radius=size,
            seed=seed,
            over=s.over,
            config=config,
            state=None
            if state is None
            else State({n: t.to(search.part.device) for n, t in state.items()}),
            on_step=on_step,
        )
