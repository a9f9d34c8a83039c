"""Perturbations of a run followed through the radius, with their nulls; all of it kept in the run.

    found       the vectors that were asked for, on the objective of the run's method
    shuffled    random directions optimised for ``⟨c, Δ⟩``, ``c`` the effect of one of those found
                with its coordinates shuffled, and followed in the same way
    random      random directions of the same radii, rescaled and not optimised
    elsewhere   the vectors along the found paths, on prompts that the search did not have

Of each the response along the radii is taken, at the target and in the neurons of its block's MLP.
Of those that are followed, the turning of their directions and the rates of their coordinates are
taken as well; of rescaled ones there are none.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from educe import files
from educe.errors import ModelError
from educe.forward.slice import Slice
from educe.kinds import Vectors
from educe.methods import origin
from educe.methods.state import State
from educe.model import LanguageModel
from educe.ordinary import ordinary_prompts
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.refine import bases
from educe.refine.bases import Basis
from educe.refine.continuation import PathConfig, branches, drift, follow, tangent, turning
from educe.refine.coordinates import rates
from educe.refine.objective import Objective, Toward, of_method
from educe.refine.response import response, with_neurons
from educe.rendering import PromptBatch
from educe.run.reopened import directions, slice_of
from educe.run.settings import stored
from educe.run.store import Run

#: Prompts of another kind on which the same vectors are looked at.
OTHERS = 2
#: Coordinates of each basis that the heat map of a vector shows.
SHOWN = 16


@dataclass(frozen=True)
class PathPlan:
    """What is asked for.

    Attributes:
        numbers: The perturbations, by their numbers in the run.
        config: Of the continuation.
        bases: In which coordinates are read (see `educe.refine.bases`); by default all that the
            block has and that need no corpus and no file.
        nulls: How many random vectors, and how many optimised for a shuffled target.
        exact: Solve for the derivative of stationary vectors as well, at their own radius.
        seed: Of the nulls.
    """

    numbers: tuple[int, ...]
    config: PathConfig
    bases: tuple[str, ...] = ()
    nulls: int = 8
    exact: bool = False
    seed: int = 0

    @property
    def key(self) -> str:
        """What its results are kept under."""
        told = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def path_run(
    run: Run, plan: PathPlan, lm: LanguageModel, prompts: PromptBatch, *, reporter: Any = None
) -> dict[str, Any]:
    """Follow perturbations of a run, keep what comes out in it, and return it as JSON holds it.

    Args:
        run: The run.
        plan: What is asked for.
        lm: Its model.
        prompts: Its prompts.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        MethodError: They are no vectors.
        EffectError: A radius is so large that the model breaks down.
    """
    note = f"path-{plan.key}"
    if run.has(note):
        return run.note(note)
    reporter = reporter or Silent()
    part = slice_of(run, lm, prompts)
    elsewhere = slice_of(run, lm, lm.encode(ordinary_prompts()[:OTHERS]))
    v, radius = directions(run, plan.numbers, part)
    facts = run.note("facts")
    own = of_method(facts["method"], stored(run).method_settings)
    named = [bases.parse(name, lm, part.source, reporter=reporter) for name in plan.bases]
    known = named or bases.usual(lm, part.source)
    folder = run.folder / "paths"

    found = _followed(part, own, v, radius, plan, folder / f"{plan.key}-found.state", reporter)
    draw = torch.Generator().manual_seed(plan.seed)
    few = min(plan.nulls, len(v))
    random_ones = part.kind.draw(few, draw).to(v)
    arms = {"found": _told(found, plan, known)}
    arms["found"] |= _responses(part, found["directions"], radius, plan, reporter, "found")
    if few:
        effect = part.effect(v[:few] * radius[:few, None])
        mixed = effect[:, torch.randperm(effect.shape[1], generator=draw)]
        target = Toward(mixed / mixed.norm(dim=1, keepdim=True))
        state = folder / f"{plan.key}-shuffled.state"
        shuffled = _followed(part, target, random_ones, radius[:few], plan, state, reporter)
        arms["shuffled"] = _told(shuffled, plan, known)
        arms["shuffled"] |= _responses(
            part, shuffled["directions"], radius[:few], plan, reporter, "shuffled"
        )
        still = random_ones.expand(len(plan.config.shares), *random_ones.shape)
        arms["random"] = _responses(part, still, radius[:few], plan, reporter, "random")
    arms["elsewhere"] = _responses(
        elsewhere, found["directions"], radius, plan, reporter, "other prompts"
    )
    home = plan.config.shares.index(1.0)
    settled = found["directions"][home]
    data = {
        "key": plan.key,
        "numbers": list(plan.numbers),
        "method": facts["method"],
        "source": part.source,
        "shares": plan.config.shares,
        "radius": radius.tolist(),
        "dose": (radius / part.unit).tolist(),
        "bases": [basis.name for basis in known],
        "moved": torch.rad2deg(torch.acos((settled * v).sum(1).clamp(-1, 1))).tolist(),
        "drift": drift(part, own, settled, radius, plan.config).tolist(),
        "exact": _exactly(part, own, found, radius, plan, home) if plan.exact else None,
        "arms": arms,
        "maps": _maps(found, known, plan),
        "file": f"paths/{plan.key}.safetensors",
    }
    _save(part, found, radius, plan, run.folder / data["file"])
    run.remember(note, data)
    for state in folder.glob(f"{plan.key}-*.state"):
        state.unlink()
    return data


def _followed(
    part: Slice,
    objective: Objective,
    v: Tensor,
    radius: Tensor,
    plan: PathPlan,
    file: Path,
    reporter: Any,
) -> State:
    """Follow vectors; every radius that is done is kept."""
    state = State(load_file(file, device=str(v.device))) if file.exists() else None
    what = "shuffled target" if isinstance(objective, Toward) else "path"
    with reporter.stage(f"{what} of {len(v)}", len(plan.config.shares), "radii") as step:
        step(int(state["done"].sum()) if state is not None else 0)

        def on_step(now: State) -> None:
            files.make_folder(file.parent)
            files.write_tensors(file, now, {})
            step(note=f"{int(now['left'].sum())} left their basin")

        return follow(part, objective, v, radius, plan.config, state=state, on_step=on_step)


def _turned(state: State, plan: PathPlan) -> tuple[Tensor, Tensor]:
    """Return the branch of each vector at each radius, and how its direction turns."""
    shares = plan.config.shares
    branch = branches(state["left"], shares.index(1.0))
    return branch, turning(state["directions"], shares, branch)


def _told(state: State, plan: PathPlan, known: Sequence[Basis]) -> dict[str, Any]:
    """Return what there is to say of paths: curves ``[r][n]``, and statistics by basis."""
    branch, turn = _turned(state, plan)
    home = plan.config.shares.index(1.0)
    statistics = {
        basis.name: {
            name: _plain(values)
            for name, values in rates(basis, state["directions"][home], turn[home])
            .numbers()
            .items()
        }
        for basis in known
    }
    return {
        "objective": _plain(state["objective"]),
        "sine": _plain(state["sine"]),
        "branch": branch.int().tolist(),
        "turning": _plain(turn.norm(dim=2)),
        "statistics": statistics,
    }


def _responses(
    part: Slice, v: Float[Tensor, "r n d"], radius: Tensor, plan: PathPlan, reporter: Any, what: str
) -> dict[str, Any]:
    """Return the response of vectors at every radius: curves ``[r][n]``."""
    told: dict[str, list[Any]] = defaultdict(list)
    neurons = _has_neurons(part)
    with reporter.stage(f"response, {what}", len(plan.config.shares), "radii") as step:
        for share, at in zip(plan.config.shares, v, strict=True):
            theta = at * (share * radius)[:, None]
            seen, inside = with_neurons(part, theta) if neurons else (response(part, theta), None)
            numbers = {
                "effect": seen.size,
                "exponent": seen.exponent,
                "effect_turning": seen.turning,
                "effect_spread": seen.rates.spread,
            }
            if inside is not None:
                numbers |= {
                    "neurons_exponent": inside.exponent,
                    "neurons_turning": inside.turning,
                    "neurons_variance": inside.slope_variance,
                    "neurons_spread": inside.rates.spread,
                }
            for name, values in numbers.items():
                told[name].append(_plain(values))
            step()
    return dict(told)


def _has_neurons(part: Slice) -> bool:
    """Say whether all tokens share the target's MLP; they do not in a mixture of experts."""
    try:
        part.lm.projection(part.target, "mlp")
    except ModelError:
        return False
    return True


def _exactly(
    part: Slice, own: Objective, found: State, radius: Tensor, plan: PathPlan, home: int
) -> list[float | None]:
    """Return the turning rate of the vectors that are stationary, by the implicit function."""
    steady = found["sine"][home] < plan.config.tolerance
    rate = torch.full_like(radius, float("nan"))
    if steady.any():
        solved = tangent(
            part, own.select(steady), found["directions"][home][steady], radius[steady]
        )
        rate[steady] = solved.turn.norm(dim=1)
    return _plain(rate)


def _maps(found: State, known: Sequence[Basis], plan: PathPlan) -> dict[str, Any]:
    """Return, of every vector and basis, how its largest coordinates change along the path.

    A coordinate is shown relative to its own size at the vector's own radius, and as its rate.
    """
    _, turn = _turned(found, plan)
    home = plan.config.shares.index(1.0)
    maps: dict[str, Any] = {}
    for i, number in enumerate(plan.numbers):
        own: dict[str, Any] = {}
        for basis in known:
            v, rate = found["directions"][:, i], rates(basis, found["directions"][:, i], turn[:, i])
            top = rate.weight[home].topk(min(SHOWN, len(basis.names))).indices
            shares = torch.tensor(plan.config.shares, dtype=torch.float64)
            size = basis.sizes(v)[:, top] * shares[:, None]
            own[basis.name] = {
                "names": [basis.names[j] for j in top],
                "weight": _plain(rate.weight[home, top]),
                "size": _plain(size / size[home]),
                "rate": _plain(rate.rate[:, top]),
            }
        maps[str(number)] = own
    return maps


def _save(part: Slice, found: State, radius: Tensor, plan: PathPlan, file: Path) -> None:
    """Write the vectors of all paths as one set, which other commands take."""
    shares = plan.config.shares
    branch, _ = _turned(found, plan)
    n = len(radius)
    flat = {
        "number": torch.tensor(plan.numbers, dtype=torch.float32).repeat(len(shares)),
        "share": torch.tensor(shares, dtype=torch.float32).repeat_interleave(n),
        "branch": branch.float().flatten().cpu(),
        "sine": found["sine"].float().flatten().cpu(),
        "objective": found["objective"].float().flatten().cpu(),
    }
    PerturbationSet(
        kind=Vectors(part.source, part.width, part.positions),
        directions=found["directions"].flatten(0, 1).float().cpu(),
        radius=(flat["share"].to(radius) * radius.repeat(len(shares))).float().cpu(),
        origin=origin(part),
        method="path",
        seed=plan.seed,
        scores=flat,
        config=asdict(plan.config),
    ).save(file)


def _plain(values: Tensor) -> Any:
    """Return numbers as JSON holds them; what is not finite is null."""

    def clean(x: Any) -> Any:
        if isinstance(x, list):
            return [clean(y) for y in x]
        return x if abs(x) < float("inf") else None

    return clean(values.tolist())
