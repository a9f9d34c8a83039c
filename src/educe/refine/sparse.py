"""Sparse: how few groups of coordinates carry what a vector does.

In a basis (`educe.refine.bases`) a vector is the sum of what its groups contribute,
``θ = Σ_g θ_g``. While ``μ`` grows, every contribution gets a factor, from one towards zero:

    min over 0 ≤ m ≤ 1 of   ½ ‖Δ(Σ_g m_g θ_g) - Δ(θ)‖² / ‖Δ(θ)‖²  +  μ Σ_g m_g

a lasso (Tibshirani 1996) whose groups are a coordinate each, or a head, and whose model is the
slice itself. Proximal gradient steps, accelerated (Beck & Teboulle 2009) with a restart where they
overshoot (O'Donoghue & Candès 2015), the step halved until it descends; each ``μ`` begins where the
one before ended. For a linear slice whose contributions act at right angles,
``m_g = max(0, 1 - μ ‖Δ(θ)‖² / ‖Δ(θ_g)‖²)``: soft thresholding.

A lasso shrinks what it keeps, so it only ranks the groups: by when they leave, the last first. What
is kept is kept whole. Of the effect is left, along its own direction ``u``,

    share(k) = ⟨u, Δ(sum of the first k θ_g)⟩ / ‖Δ(θ)‖

beside the same for groups by their magnitude ``‖θ_g‖`` and in random order. The sparsest vector is
that of the fewest groups whose share is no less than what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe import files
from educe.discover import origin
from educe.errors import MethodError
from educe.kinds import Vectors, Within
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.refine.bases import Basis, parse
from educe.refine.trial import Share, Trial, share, slice_of
from educe.runs import Run
from educe.slice import Slice
from educe.writing import groups

NAME = "sparse"
ORDERS = ("lasso", "magnitude", "random")
#: Weights ``μ``, and the least of them as a share of the one that leaves nothing.
WEIGHTS, LEAST = 12, 1e-3
#: Proximal steps at each weight.
STEPS = 8
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


class Contributions:
    """Vectors as sums of what the groups of a basis contribute.

    Args:
        basis: The basis.
        theta: The vectors, ``[n, width]``.
    """

    def __init__(self, basis: Basis, theta: Float[Tensor, "n d"]) -> None:
        self.basis = basis
        self.coordinates = basis.coordinates(theta)
        self.whole = basis.theta(self.coordinates)

    def weighted(self, m: Float[Tensor, "n g"]) -> Float[Tensor, "n d"]:
        """Return the vectors with a factor on each group's contribution."""
        return self.basis.theta(m[:, self.basis.group] * self.coordinates)

    def slope(self, gradient: Float[Tensor, "n d"]) -> Float[Tensor, "n g"]:
        """Return the gradient in the factors, from that in the vectors."""
        return self.basis.summed(self.basis.along(gradient) * self.coordinates)

    @property
    def magnitudes(self) -> Float[Tensor, "n g"]:
        """``‖θ_g‖``."""
        each = [
            self.basis.theta(torch.where(self.basis.group == g, self.coordinates, 0.0)).norm(dim=1)
            for g in range(len(self.basis.names))
        ]
        return torch.stack(each, 1)


def lasso(
    part: Slice,
    of: Contributions,
    *,
    weights: int = WEIGHTS,
    least: float = LEAST,
    steps: int = STEPS,
    known: tuple[Float[Tensor, "w n g"], Float[Tensor, "n"]] | None = None,
    on_weight: Callable[[Tensor, Tensor], None] = lambda path, rate: None,
) -> tuple[Float[Tensor, "w n g"], Float[Tensor, "w n"]]:
    """Return the factors along the path and the weights, which grow by a constant factor.

    The last weight is that which leaves nothing, to the first order.

    Args:
        part: The slice.
        of: The vectors.
        weights: How many weights.
        least: The first, as a share of the last.
        steps: Proximal steps at each.
        known: The beginning of the path and the step sizes, where it was left off.
        on_weight: Called with these after each weight.

    Raises:
        MethodError: A vector has no effect.
    """
    like: dict[str, Any] = {"device": part.device, "dtype": part.work_dtype}

    def effect(m: Tensor) -> Tensor:
        return part.effect(of.weighted(m).to(**like)).double().cpu()

    none = of.coordinates.new_zeros(len(of.whole), len(of.basis.names))
    aim = part.effect(of.whole.to(**like)).double().cpu()
    size = aim.square().sum(1)
    if not bool((size > 0).all()):
        raise MethodError("a vector without effect has nothing that could be sparse")

    def slope(m: Tensor, off: Tensor) -> Tensor:
        """Return the gradient of the smooth part, where ``off`` is how far the effect is off."""
        _, back = part.vjp(of.weighted(m).to(**like), off.to(**like))
        return of.slope(back) / size[:, None]

    slack = 64 * torch.finfo(part.work_dtype).eps  # what rounding makes of an effect
    most = slope(none, -aim).abs().amax(1)
    path, rate = known or (none.new_zeros(0, *none.shape), torch.ones_like(size))
    m = torch.ones_like(none) if not len(path) else path[-1]
    grid = torch.logspace(0, 1, weights, base=1 / least, dtype=torch.float64) * least
    for weight in (grid[:, None] * most)[len(path) :]:
        m, rate = _descend(effect, slope, aim, size, m, weight, rate, steps, slack)
        path = torch.cat([path, m[None]])
        on_weight(path, rate)
    return path, grid[:, None] * most


def _descend(
    effect: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor, Tensor], Tensor],
    aim: Tensor,
    size: Tensor,
    m: Tensor,
    weight: Tensor,
    rate: Tensor,
    steps: int,
    slack: float,
) -> tuple[Tensor, Tensor]:
    """Take proximal steps at one weight; each vector has its own step size."""

    def smooth(off: Tensor) -> Tensor:
        return off.square().sum(1) / (2 * size)

    ahead, momentum = m, torch.ones_like(size)
    for _ in range(steps):
        off = effect(ahead) - aim
        gradient, here = slope(ahead, off), smooth(off)
        while True:
            new = (ahead - rate[:, None] * (gradient + weight[:, None])).clamp(0, 1)
            step = new - ahead
            bound = here + (gradient * step).sum(1) + step.square().sum(1) / (2 * rate)
            high = smooth(effect(new) - aim) > bound + slack * (here.sqrt() + slack)
            if not bool(high.any()):
                break
            rate = torch.where(high, rate / 2, rate)
        # Where the step turns back on the last one, what carried it there is dropped.
        back = ((ahead - new) * (new - m)).sum(1) > 0
        momentum = torch.where(back, torch.ones_like(momentum), momentum)
        after = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        carried = torch.where(back, torch.zeros_like(after), (momentum - 1) / after)
        ahead, m, momentum = (new + carried[:, None] * (new - m)).clamp(0, 1), new, after
        rate = rate * 1.2
    return m, rate


def ranked(path: Float[Tensor, "w n g"]) -> Int[Tensor, "n g"]:
    """Return the groups of each vector by when they leave the path, the last one first.

    Of those that leave together, by their factor before.
    """
    return path.sum(0).argsort(dim=1, descending=True, stable=True)


def curves(
    part: Slice,
    of: Contributions,
    orders: dict[str, Int[Tensor, "n g"]],
    counts: Sequence[int],
) -> dict[str, Float[Tensor, "n c"]]:
    """Return the share of the effect that the first few groups of each order keep."""
    like: dict[str, Any] = {"device": part.device, "dtype": part.work_dtype}
    aim = part.effect(of.whole.to(**like)).double().cpu()

    def kept(order: Tensor, count: int) -> Tensor:
        effect = part.effect(of.weighted(mask(order, count)).to(**like)).double().cpu()
        return (effect * aim).sum(1) / aim.square().sum(1)

    return {
        name: torch.stack([kept(order, count) for count in counts], 1)
        for name, order in orders.items()
    }


def mask(order: Int[Tensor, "n g"], count: int) -> Float[Tensor, "n g"]:
    """Return factors of one for the first groups of each order, of zero for the others."""
    return torch.zeros(order.shape, dtype=torch.float64).scatter(1, order[:, :count], 1.0)


def grid(groups: int) -> list[int]:
    """Return the counts that are looked at: 1, 2, 3, 4, 6, 8, 12 … and all."""
    steps = [n * 2**i for i in range(30) for n in (2, 3)]
    return sorted({1, *(n for n in steps if n < groups), groups})


def fewest(shares: Float[Tensor, "c"], counts: Sequence[int], keep: float) -> int:
    """Return the fewest groups from which on, in all that are looked at, enough is kept."""
    short = (shares < keep).nonzero()
    return (
        counts[int(short[-1]) + 1]
        if len(short) and short[-1] + 1 < len(counts)
        else (counts[-1] if len(short) else counts[0])
    )


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
    part, telling = slice_of(run, lm), reporter or Silent()
    numbers = list(numbers)
    theta = _vectors(run, numbers)
    place = Vectors(part.source, lm.width, part.positions)
    part = part.on(place)
    found = parse(basis, lm, part.source, reporter=telling)
    of = Contributions(found, theta)
    trial = Trial(run, NAME, {"numbers": numbers, "basis": basis, "keep": keep}, lm, part, telling)
    path = _path(part, of, trial.kept.folder / "path.safetensors", telling)

    draw = torch.Generator().manual_seed(0)
    size = len(found.names)
    orders = {"lasso": ranked(path), "magnitude": of.magnitudes.argsort(dim=1, descending=True)}
    for i in range(DRAWS):
        drawn = [torch.randperm(size, generator=draw) for _ in numbers]
        orders[f"random {i}"] = torch.stack(drawn)
    counts = grid(size)
    with telling.stage("keeping the first groups", 1, "") as step:
        seen = curves(part, of, orders, counts)
        step()
    random = torch.stack([seen.pop(f"random {i}") for i in range(DRAWS)])
    seen["random"] = random.mean(0)
    needed = [
        {name: fewest(seen[name][i], counts, keep) for name in ("lasso", "magnitude")}
        | {"random": sorted(fewest(line[i], counts, keep) for line in random)[DRAWS // 2]}
        for i in range(len(numbers))
    ]
    orders["random"] = orders["random 0"]
    rows = {"whole": of.whole} | {
        name: torch.cat(
            [
                of.weighted(mask(orders[name], needed[i]["lasso"]))[i : i + 1]
                for i in range(len(numbers))
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
            float(rows["lasso"][i].norm() / of.whole[i].norm()),
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
            "judge": run.config.get("look_for") or "striking",
            "vectors": [one.data() for one in done],
        },
    )
    trial.kept.close()
    return done


def _path(part: Slice, of: Contributions, file: Path, telling: Any) -> Float[Tensor, "w n g"]:
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

        return lasso(part, of, known=known, on_weight=on_weight)[0]


def _vectors(run: Run, numbers: Sequence[int]) -> Float[Tensor, "n d"]:
    """Return what some perturbations of a run add to the stream."""
    found: dict[int, Tensor] = {}
    for group in groups(run, numbers):
        if not isinstance(group.kind, Vectors | Within):
            raise MethodError(f"{group.kind.name} are no vectors: only these become sparse")
        added = group.kind.added(group.theta, range(len(group.numbers)), range(1))
        found |= dict(zip(group.numbers, added[:, 0, 0], strict=True))
    return torch.stack([found[number] for number in numbers])


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
