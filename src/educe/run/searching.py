"""The search: perturbations at each radius, and their control, kept as files of the run.

A method that is still searching in this process saves its state now and then, and a run that was
cut off goes on from there. Workers search at several radii at once, and begin a radius anew; they
make the controls as well.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from educe import files, methods
from educe.errors import MethodError
from educe.methods.equal_effect import at_equal_effect, louder
from educe.methods.state import Progress, State
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Noise
from educe.perturbation.set import PerturbationSet
from educe.rows import ARMS, CONTROL, EQUAL, FOUND
from educe.run.fill import add_set
from educe.run.preparing import Recipe, Search
from educe.run.work import Work
from educe.spread import Job, Shared

#: Seconds between two saves of a method that is still searching.
SAVE_EVERY = 5.0


def search(search: Search) -> None:
    """Search at each radius, make the control of what was found, and list both in the run."""
    work = search.work
    listed = {p.file for p in work.run.perturbation_rows()}
    if not work.spread.here:
        _found_elsewhere(search)
        _controls_elsewhere(search)
    for k, size in enumerate(work.run.note("facts")["radii"]):
        for arm in ARMS:
            path = _place(work, arm, k)
            if path.name not in listed:
                if not path.exists():
                    seed = _seed(work, arm, k)
                    made = (
                        _found(search, path, size, seed)
                        if arm == FOUND
                        else _control(search, _place(work, FOUND, k), seed)
                    )
                    made.save(path)
                path.with_suffix(".state").unlink(missing_ok=True)
                made = PerturbationSet.load(path)
                add_set(work.run, arm, path.name, made, made.scores["effect"].tolist())
    _equally_loud(search, listed)


def _found_elsewhere(search: Search) -> None:
    """Let workers search at the radii where nothing was found yet."""
    if search.given is not None:
        return
    work, s = search.work, search.settings
    shared = Shared((work.lm, search.recipe, search.config))
    jobs = {}
    for k, size in enumerate(work.run.note("facts")["radii"]):
        path = _place(work, FOUND, k)
        jobs[path] = Job(_searched, shared, (_seed(work, FOUND, k), size, _state(path)))
    _made_elsewhere(work, f"{s.method} at {len(jobs)} radii", jobs)


def _controls_elsewhere(search: Search) -> None:
    """Let workers make the controls that are not there yet, unless they are given."""
    work = search.work
    if search.settings.control:
        return
    shared, jobs = Shared((work.lm, search.recipe)), {}
    for k, _ in enumerate(work.run.note("facts")["radii"]):
        found = _place(work, FOUND, k)
        if found.exists():
            given = PerturbationSet.load(found), _seed(work, CONTROL, k)
            jobs[_place(work, CONTROL, k)] = Job(_matched, shared, given)
    _made_elsewhere(work, f"random at {len(jobs)} radii", jobs)


def _made_elsewhere(work: Work, what: str, jobs: Mapping[Path, Job]) -> None:
    """Let workers make the perturbations of some files that are not there yet."""
    missing = [path for path in jobs if not path.exists()]
    if not missing:
        return
    with work.reporter.stage(what, len(missing), "") as step:
        asked = (jobs[path]._replace(place=i) for i, path in enumerate(missing))
        for done in work.spread.map(asked):
            done.value.save(missing[done.job.place])
            step(note=done.note)


def _matched(
    lm: LanguageModel, recipe: Recipe, found: PerturbationSet, seed: int
) -> PerturbationSet:
    """Make the control of what was found."""
    return methods.control(recipe.sliced(lm), found, seed=seed)


def _equal(
    lm: LanguageModel, recipe: Recipe, control: PerturbationSet, found: PerturbationSet
) -> PerturbationSet:
    """Make the control at the effect of what was found."""
    return at_equal_effect(recipe.sliced(lm), control, found)


def _searched(
    lm: LanguageModel,
    recipe: Recipe,
    config: Any,
    seed: int,
    size: float,
    state: State | None,
) -> PerturbationSet:
    """Search at one radius."""
    part, s = recipe.sliced(lm), recipe.settings
    how: dict[str, Any] = {
        "over": s.over,
        "config": config,
        "state": state and state.to(part.device),
    }
    return methods.search(part, s.method, n=s.n, radius=size, seed=seed, **how)


def _place(work: Work, arm: str, k: int) -> Path:
    """Return the file of an arm at the ``k``-th radius."""
    return work.run.tensors / f"{arm}-{k}.safetensors"


def _seed(work: Work, arm: str, k: int) -> int:
    """Return a seed: the control draws from its own; each radius as well."""
    return 2 * (1000 * work.settings.seed + k) + (arm == CONTROL)


def _state(place: Path) -> State | None:
    """Return where a search was cut off that saved its state, if it was."""
    partial = place.with_suffix(".state")
    return State(load_file(partial)) if partial.exists() else None


def _equally_loud(search: Search, listed: set[str]) -> None:
    """Put random perturbations of the same effect beside those of a norm that says little."""
    work, s = search.work, search.settings
    if s.control:  # it was chosen by whoever made the perturbations
        return
    wanted = {}
    for k, _ in enumerate(work.run.note("facts")["radii"]):
        found, control = (PerturbationSet.load(_place(work, arm, k)) for arm in ARMS)
        if not isinstance(found.kind, Noise) and louder(found, control):
            wanted[work.run.tensors / f"equal-{k}.safetensors"] = control, found
    if not work.spread.here:
        shared = Shared((work.lm, search.recipe))
        jobs = {path: Job(_equal, shared, sets) for path, sets in wanted.items()}
        _made_elsewhere(work, "random, at equal effect", jobs)
    for path, (control, found) in wanted.items():
        if path.name in listed:
            continue
        if not path.exists():
            with work.reporter.stage("random, at equal effect", 1, "") as step:
                at_equal_effect(search.part, control, found).save(path)
                step()
        made = PerturbationSet.load(path)
        add_set(work.run, EQUAL, path.name, made, made.scores["effect"].tolist())


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
    state = _state(path)
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
            state=state and state.to(search.part.device),
            on_step=on_step,
        )
