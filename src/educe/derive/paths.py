"""Paths: perturbations of a run followed through the radius, with their nulls, as rows of the run.

    found       the vectors that were asked for, on the objective of the run's method
    shuffled    random directions optimised for ``⟨c, Δ⟩``, ``c`` the effect of one of those found
                with its coordinates shuffled, and followed in the same way
    random      random directions of the same radii, rescaled and not optimised

Every radius of every one is a row. Its scores are the response at the target and in the neurons of
its block's MLP, for those found on prompts that the search did not have, too. Of those that are
followed, the turning of their directions and the rates of their coordinates are taken as well; of
rescaled ones there are none.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from educe import files
from educe.derive import bases
from educe.derive.bases import Basis
from educe.derive.continuation import (
    PathConfig,
    drift,
    followed,
    tangent,
    turning,
    unit_vectors,
)
from educe.derive.coordinates import rates
from educe.derive.listing import add, named, taken
from educe.derive.objective import Objective, Toward, of_method
from educe.derive.projection import replaced
from educe.derive.response import response, with_neurons
from educe.derive.scaling import scaled
from educe.errors import ModelError
from educe.forward.benign import ordinary_prompts
from educe.forward.slice import Slice
from educe.methods.state import State
from educe.perturbation.set import PerturbationSet
from educe.rows import CONTROL, FOLLOWED, ON_BENIGN, RESCALED, SHUFFLED, ScoreRow
from educe.run.scaling import EXPONENT
from educe.run.work import Work

#: Benign prompts on which the same vectors are looked at.
OTHERS = 2
#: Coordinates of each basis that the heat map of a vector shows.
SHOWN = 16


def follow_run(
    work: Work,
    numbers: Sequence[int],
    config: PathConfig,
    *,
    read_in: Sequence[str] = (),
    nulls: int = 8,
    exact: bool = False,
    seed: int = 0,
) -> str:
    """Follow vectors of a run, beside their nulls.

    Args:
        work: The run at work.
        numbers: The vectors.
        config: Of the continuation.
        read_in: In which bases coordinates are read (see `educe.derive.bases`); by default all that
            the block has and that need no corpus and no file.
        nulls: How many random vectors, and how many optimised for a shuffled target.
        exact: Solve for the derivative of stationary vectors as well, at their own radius.
        seed: Of the nulls.

    Returns:
        The name of the files in which the paths are.

    Raises:
        MethodError: They are no vectors.
        EffectError: A radius is so large that the model breaks down.
    """
    part = work.part
    asked = {"config": asdict(config), "bases": list(read_in), "nulls": nulls, "exact": exact}
    name = named(FOLLOWED, numbers=list(numbers), seed=seed, **asked)
    known = [bases.parse(text, work.lm, part.source, reporter=work.reporter) for text in read_in]
    known = known or bases.usual(work.lm, part.source)
    given = taken(work.run, numbers, vectors=True)
    own = of_method(given.method, given.config)
    path = Path(work, f"{name}.safetensors", FOLLOWED, numbers, given, own, config)
    maps = work.run.tensors / f"{name}-maps.safetensors"
    if not maps.exists():
        turn = path.turning(known)
        path.score(_moves(part, own, given, path, config, exact))
        _save_maps(path, turn, known, maps)
    path.respond(part)
    path.respond(work.slice_on(work.lm.encode(ordinary_prompts()[:OTHERS])), ON_BENIGN)
    if few := min(nulls, len(numbers)):
        draw = torch.Generator().manual_seed(seed)
        v, radius = unit_vectors(given[:few], part)
        drawn = part.kind.draw(few, draw).to(v)
        effect = part.effect(v * radius[:, None])
        mixed = effect[:, torch.randperm(effect.shape[1], generator=draw)]
        target = Toward(mixed / mixed.norm(dim=1, keepdim=True))
        start = replaced(given[:few], drawn * radius[:, None], torch.arange(few))
        for file, how, objective in (("shuffled", SHUFFLED, target), ("random", RESCALED, None)):
            file = f"{name}-{file}.safetensors"
            null = Path(work, file, how, numbers[:few], start, objective, config)
            if objective is not None:
                null.turning(known)
            null.respond(part)
    return name


class Path:
    """Rows of a run along the radius: all radii of the first vector, then of the next.

    Args:
        work: The run at work.
        file: The file that holds them, among the run's tensors.
        how: How the rows are listed.
        numbers: The perturbations that they are derived from.
        given: These, as vectors.
        objective: What they are followed for; none, to rescale them.
        config: Of the continuation.

    Attributes:
        set: The perturbations.
        rows: Their numbers, ``[vector][radius]``.
        home: The place of their own radius.
    """

    def __init__(
        self,
        work: Work,
        file: str,
        how: str,
        numbers: Sequence[int],
        given: PerturbationSet,
        objective: Objective | None,
        config: PathConfig,
    ) -> None:
        self.work, self.how, self.numbers, self.shares = work, how, numbers, config.shares
        self.home, many = config.shares.index(1.0), len(config.shares)
        state = work.run.tensors / file.replace(".safetensors", ".state")

        def make() -> PerturbationSet:
            if objective is None:
                return replace(scaled(given, config.shares), method=how)
            device = str(work.part.device)
            begun = State(load_file(state, device=device)) if state.exists() else None
            with work.reporter.stage(f"path of {len(given)}", many, "radii") as step:
                step(int(begun["done"].sum()) if begun is not None else 0)

                def on_step(now: State) -> None:
                    files.write_tensors(state, now, {})
                    step(note=f"{int(now['left'].sum())} left their basin")

                part, aim = work.part, objective
                made = followed(given, part, config, objective=aim, state=begun, on_step=on_step)
            return replace(made, method=how)

        listed = add(work, file, how, numbers, make, arm=None if how == FOLLOWED else CONTROL)
        state.unlink(missing_ok=True)
        self.set = PerturbationSet.load(work.run.tensors / file)
        self.rows = [listed[i * many : (i + 1) * many] for i in range(len(numbers))]

    def by_radius(self, values: Float[Tensor, "m ..."]) -> Float[Tensor, "r n ..."]:
        """Return what the set has, by radius and vector."""
        return values.unflatten(0, (len(self.rows), -1)).transpose(0, 1)

    @property
    def directions(self) -> Float[Tensor, "r n d"]:
        """The directions, where the slice computes."""
        part = self.work.part
        return self.by_radius(self.set.directions.to(part.device, part.work_dtype))

    def turning(self, known: Sequence[Basis]) -> Float[Tensor, "r n d"]:
        """Return how the directions turn, and score it.

        What the path itself says is scored at every radius, and statistics of the coordinates at
        the vectors' own, in every basis.
        """
        told = {name: self.by_radius(self.set.scores[name]) for name in ("objective", "sine")}
        branch = told["branch"] = self.by_radius(self.set.scores["branch"])
        turn = turning(self.directions, self.shares, branch)
        told["turning"] = turn.norm(dim=2)
        for k in range(len(self.shares)):
            self.score({name: values[k] for name, values in told.items()}, k)
        for basis in known:
            own = rates(basis, self.directions[self.home], turn[self.home]).numbers()
            self.score({f"{name}:{basis.name}": values for name, values in own.items()})
        return turn

    def score(self, numbers: dict[str, Tensor], k: int | None = None) -> None:
        """Keep numbers of every vector at one radius, by default at its own; NaN is none."""
        place = self.home if k is None else k
        self.work.run.add_scores(
            ScoreRow(own[place], judge, value, UNITS.get(judge.split(":")[0], "no unit"), "")
            for judge, values in numbers.items()
            for own, value in zip(self.rows, values.tolist(), strict=True)
        )

    def respond(self, part: Slice, suffix: str = "") -> None:
        """Score the response at every radius, where it is missing."""
        known = {s.of for s in self.work.run.score_rows(f"effect_spread{suffix}")}
        places = range(len(self.shares))
        missing = [k for k in places if not {own[k] for own in self.rows} <= known]
        if not missing:
            return
        theta = self.by_radius(self.set.theta.to(part.device, part.work_dtype))
        what = f"response, {self.how}{' on ordinary prompts' if suffix else ''}"
        with self.work.reporter.stage(what, len(missing), "radii") as step:
            for k in missing:
                told = responses(part, theta[k])
                self.score({f"{name}{suffix}": some for name, some in told.items()}, k)
                step()


#: The units of what is scored; the others are shares or of no unit.
UNITS = {
    "moved": "degrees",
    "effect": "norm",
    EXPONENT: "d log effect / d log radius",
    "neurons_variance": "squared activations a squared radius",
    "branch": "number",
} | dict.fromkeys(
    ("drift", "exact", "turning", "effect_turning", "neurons_turning"),
    "radians an e-fold of the radius",
)


def responses(part: Slice, theta: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, "n"]]:
    """Return the response of vectors, by the name of each score.

    Of neurons only where all tokens share the target's MLP, which they do not in a mixture of
    experts.
    """
    try:
        part.lm.projection(part.target, "mlp")
    except ModelError:
        seen, inside = response(part, theta), None
    else:
        seen, inside = with_neurons(part, theta)
    numbers = {
        "effect": seen.size,
        "exponent": seen.exponent,
        "effect_turning": seen.turning,
        "effect_spread": seen.rates.numbers()["spread"],
    }
    if inside is not None:
        numbers |= {
            "neurons_exponent": inside.exponent,
            "neurons_turning": inside.turning,
            "neurons_variance": inside.slope_variance,
            "neurons_spread": inside.rates.numbers()["spread"],
        }
    return numbers


def _moves(
    part: Slice,
    own: Objective,
    given: PerturbationSet,
    path: Path,
    config: PathConfig,
    exact: bool,
) -> dict[str, Float[Tensor, "n"]]:
    """Return how far vectors went before they were followed, and how they turn where they are."""
    v, radius = unit_vectors(given, part)
    there = path.directions[path.home]
    told = {
        "moved": torch.rad2deg(torch.acos((there * v).sum(1).clamp(-1, 1))),
        "drift": drift(part, own, there, radius, config),
    }
    if exact:
        sine = path.by_radius(path.set.scores["sine"])[path.home]
        steady = (sine < config.tolerance).to(v.device)
        told["exact"] = torch.full_like(radius, float("nan"))
        if steady.any():
            solved = tangent(part, own.select(steady), there[steady], radius[steady])
            told["exact"][steady] = solved.turn.norm(dim=1)
    return told


def _save_maps(
    path: Path, turn: Float[Tensor, "r n d"], known: Sequence[Basis], file: pathlib.Path
) -> None:
    """Keep, of every vector and basis, how its largest coordinates change along the path.

    A coordinate is shown relative to its own size at the vector's own radius, and as its rate.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[str, list[str]] = {}
    shares = torch.tensor(path.shares, dtype=torch.float64)
    for i, number in enumerate(path.numbers):
        for basis in known:
            v, at = path.directions[:, i], f"{number}/{basis.name}"
            rate = rates(basis, v, turn[:, i])
            top = rate.weight[path.home].topk(min(SHOWN, len(basis.names))).indices
            size = basis.sizes(v)[:, top] * shares[:, None]
            names[at] = [basis.names[j] for j in top]
            tensors[f"{at}/weight"] = rate.weight[path.home, top]
            tensors[f"{at}/size"] = size / size[path.home]
            tensors[f"{at}/rate"] = rate.rate[:, top]
    files.write_tensors(file, tensors, {"names": json.dumps(names)})
