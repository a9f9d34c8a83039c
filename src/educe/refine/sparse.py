"""Sparse: how few groups of coordinates carry what a vector does.

A lasso (`educe.refine.lasso`) ranks the groups of a basis. Of the first ``k`` is kept what they can
write of the vector together, its projection ``P_k θ`` onto all that they span. Of the effect is
left, along its own direction ``u``,

    share(k) = ⟨u, Δ(P_k θ)⟩ / ‖Δ(θ)‖

beside the same for groups by their size ``‖P_g θ‖`` and in random order. The sparsest vector is
that of the fewest groups whose share is no less than what is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import origin
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.refine.bases import Basis, parse
from educe.refine.lasso import WEIGHTS, fewest, grid, lasso, ranked, shares
from educe.refine.trial import Share, Trial, finished_slice, share
from educe.run.reopened import vectors
from educe.run.store import Run

NAME = "sparse"
ORDERS = ("lasso", "magnitude", "random")
#: Random orders that a curve is the mean of.
DRAWS = 4


@dataclass(frozen=True)
class Curve:
    """What is left of an effect when only some groups are kept.

    Attributes:
        counts: How many.
        shares: The share of the effect along its direction, by order.
        needed: The fewest groups that keep the share asked for, by order; at random, the median.
    """

    counts: tuple[int, ...]
    shares: dict[str, tuple[float, ...]]
    needed: dict[str, int]


@dataclass(frozen=True)
class Sparse:
    """What a vector came to.

    Attributes:
        number: In its run.
        curve: Its curve.
        kept: Names of the groups that the sparsest vector keeps, the most important first.
        norm: Its norm as a share of the vector's.
        scores: Of what is written by the whole vector, and by as many groups in each order.
        again: The same on fresh prompts or samples.
        texts: The first text of each.
    """

    number: int
    curve: Curve
    kept: tuple[str, ...]
    norm: float
    scores: dict[str, Share]
    again: dict[str, Share]
    texts: dict[str, str]

    def data(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        named = {
            name: {key: value._asdict() for key, value in getattr(self, name).items()}
            for name in ("scores", "again")
        }
        return asdict(self) | named


def sparsify(
    run: Run,
    numbers: Sequence[int],
    lm: LanguageModel,
    *,
    basis: str = "residual",
    keep: float = 0.8,
    reporter: Any = None,
) -> list[Sparse]:
    """Make vectors of a run sparse in a basis, and let the model write under what is left.

    Args:
        run: A finished run.
        numbers: Vectors, by their numbers in it.
        lm: Its model.
        basis: See `educe.refine.bases.parse`.
        keep: The share of the effect that is to be kept.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        MethodError: The perturbations are no vectors, or the share is none.
        RunError: The run is not finished.
    """
    if not 0 < keep < 1:
        raise MethodError(f"keep {keep:g}: give a share between 0 and 1")
    part, telling = finished_slice(run, lm), reporter or Silent()
    numbers = list(numbers)
    theta = vectors(run, numbers).double()
    found = parse(basis, lm, part.source, reporter=telling)
    asked = {"numbers": numbers, "basis": basis, "keep": keep}
    with Trial(run, NAME, asked, lm, part, telling) as trial:
        return _tried(trial, found, theta, numbers, keep)


def _tried(
    trial: Trial, found: Basis, theta: Float[Tensor, "n d"], numbers: list[int], keep: float
) -> list[Sparse]:
    """Find how few groups are enough, and let the vectors of these write."""
    part, telling = trial.part, trial.reporter
    path = _path(part, found, theta, trial.kept.folder / "path.safetensors", telling)

    draw = torch.Generator().manual_seed(0)
    size = len(found.names)
    orders = {
        "lasso": ranked(path),
        "magnitude": found.sizes(theta).argsort(dim=1, descending=True),
    }
    for i in range(DRAWS):
        drawn = [torch.randperm(size, generator=draw) for _ in numbers]
        orders[f"random {i}"] = torch.stack(drawn)
    counts = grid(size)
    seen = {}
    with telling.stage("keeping the first groups", len(orders), "orders") as step:
        for name, order in orders.items():
            seen[name] = shares(part, found, theta, order, counts)
            step()
    random = torch.stack([seen.pop(f"random {i}") for i in range(DRAWS)])
    seen["random"] = random.mean(0)
    needed = [
        {name: fewest(seen[name][i], counts, keep) for name in ("lasso", "magnitude")}
        | {"random": sorted(fewest(line[i], counts, keep) for line in random)[DRAWS // 2]}
        for i in range(len(numbers))
    ]
    orders["random"] = orders["random 0"]
    rows = {"whole": theta} | {
        name: torch.cat(
            [
                found.onto(theta[i : i + 1], orders[name][i : i + 1, : own["lasso"]])
                for i, own in enumerate(needed)
            ]
        )
        for name in ORDERS
    }
    listed = {name: trial.add(name, name, _set(part, some)) for name, some in rows.items()}
    everything = [number for own in listed.values() for number in own]
    scores = trial.scores(everything, what="whole and sparse vectors")
    again = trial.again(everything, what="their re-test")
    done = [
        Sparse(
            number,
            Curve(
                tuple(counts),
                {name: tuple(seen[name][i].tolist()) for name in ORDERS},
                needed[i],
            ),
            tuple(found.names[g] for g in orders["lasso"][i, : needed[i]["lasso"]].tolist()),
            float(rows["lasso"][i].norm() / theta[i].norm()),
            {name: share(scores[own[i]], trial.rule) for name, own in listed.items()},
            {name: share(again[own[i]], trial.rule) for name, own in listed.items()},
            {name: trial.text(own[i]) for name, own in listed.items()},
        )
        for i, number in enumerate(numbers)
    ]
    trial.kept.remember(
        "result",
        {
            "basis": found.name,
            "groups": size,
            "keep": keep,
            "judge": trial.run.config.get("look_for") or "striking",
            "vectors": [one.data() for one in done],
        },
    )
    return done


def _path(
    part: Slice, basis: Basis, theta: Float[Tensor, "n d"], file: Path, telling: Any
) -> Float[Tensor, "w n g"]:
    """Follow the path, or go on with it; every weight is kept."""
    known = None
    if file.exists():
        tensors, _ = files.read_tensors(file)
        known = tensors["path"], tensors["rate"]
    with telling.stage("lasso path", WEIGHTS, "weights") as step:
        step(0 if known is None else len(known[0]))

        def on_weight(path: Tensor, rate: Tensor) -> None:
            files.write_tensors(file, {"path": path, "rate": rate}, {})
            step()

        return lasso(part, basis, theta, known=known, on_weight=on_weight)[0]


def _set(part: Slice, theta: Float[Tensor, "n d"]) -> PerturbationSet:
    """Return some vectors as a set; each has its own radius."""
    size = theta.norm(dim=1)
    return PerturbationSet(
        kind=part.kind,
        directions=(theta / size[:, None]).float(),
        radius=size.float(),
        origin=origin(part),
        method=NAME,
        seed=0,
    )
