"""Spaces: the few directions in which is searched, and how far.

    θ = Σ_i s_i z_i b_i            b orthonormal rows; z has unit variance under the prior

    found:K          the K most interesting vectors of the run, or those that are named
    jacobian:A-B     right singular vectors A to B of the slice's Jacobian; jacobian:K is the
                     flattest band of K among the first 3 K: there these are nearly equal
    components:K     principal components of natural activations; components:all in full width
    random:K         a random subspace: the control of all others
    FILE             directions of a safetensors file, or a set of vectors

``@LAYER`` behind one puts its directions after another block; several may be given, and then all of
their coefficients are searched together. By default ``s_i = R/√k``, so that the root mean square
norm is the radius R. With the natural prior the directions are turned to where natural activations
vary most inside the subspace, and ``s_i`` is in proportion to their standard deviation. With a
fixed norm ``θ`` is scaled to R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from educe import methods
from educe.activations import corpus, natural
from educe.activations.inside import TOKENS
from educe.activations.reading import Place
from educe.activations.subspace import Moments, of_moments
from educe.comparison.summary import summarise
from educe.derive import bases
from educe.derive.listing import taken
from educe.derive.projection import as_vectors
from educe.errors import MethodError
from educe.files import read_tensors
from educe.methods.power import PowerConfig
from educe.orthogonal import orthonormal, upright
from educe.perturbation.joint import Joint
from educe.perturbation.kinds import Kind, Within
from educe.perturbation.set import PerturbationSet
from educe.run.work import Work

#: The singular vectors of the Jacobian as they are.
SINGULAR = PowerConfig(search=0, iterations=40)
#: The least share of a direction that is new beside those before it.
NEW = 1e-3


@dataclass(frozen=True)
class Space:
    """Where is searched.

    Attributes:
        kind: Of the perturbations; their numbers are coefficients.
        scale: The coefficient of one standard deviation of the prior, ``[k]``.
        names: Of the directions.
        fixed: The norm that all have; None where it is free.
    """

    kind: Kind
    scale: Float[np.ndarray, "k"]
    names: tuple[str, ...]
    fixed: float | None = None

    def __len__(self) -> int:
        return len(self.scale)

    def coefficients(self, z: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Return what settings stand for."""
        made = z * self.scale
        if self.fixed is None:
            return made
        return self.fixed * made / np.linalg.norm(made, axis=1, keepdims=True)

    def setting(self, coefficients: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
        """Return the setting that stands for some coefficients."""
        return coefficients / self.scale

    def vectors(self, coefficients: Float[Tensor, "n k"]) -> Float[Tensor, "n w"]:
        """Return what is added, one layer after the other."""
        rows = self.kind.rows.flatten(1)  # type: ignore[attr-defined]
        return coefficients.to(rows) @ rows


class _Part:
    """Directions after one layer."""

    def __init__(self, layer: int, rows: Tensor, names: Sequence[str], spread: Tensor) -> None:
        self.layer, self.rows, self.names, self.spread = layer, rows, list(names), spread


def space(
    work: Work,
    specs: Sequence[str],
    numbers: Sequence[int] = (),
    *,
    radius: float,
    natural_prior: bool = False,
    fixed: bool = False,
    seed: int = 0,
) -> Space:
    """Return a space.

    Args:
        work: The run at work.
        specs: What spans it, as above.
        numbers: The vectors that ``found`` means.
        radius: The root mean square norm, or the fixed one.
        natural_prior: Scale directions by natural activations.
        fixed: Whether the norm is fixed.
        seed: Of random directions.

    Raises:
        MethodError: Something is not written so, or the directions depend on one another.
    """
    parts = [_part(work, spec, numbers, seed + i) for i, spec in enumerate(specs)]
    layers = sorted({part.layer for part in parts})
    merged = []
    for layer in layers:
        own = [part for part in parts if part.layer == layer]
        called = [name for part in own for name in part.names]
        rows = _orthonormal(torch.cat([part.rows for part in own]), called)
        merged.append(_Part(layer, rows, called, torch.ones(len(rows), dtype=torch.float64)))
    if natural_prior:
        merged = [_turned(work, part) for part in merged]
    positions = work.part.kind.positions
    spread = torch.cat([part.spread for part in merged])
    scale = radius * (spread / spread.norm()).numpy()
    names = tuple(name for part in merged for name in part.names)
    if len(merged) == 1:
        kind: Kind = Within(layers[0], merged[0].rows.float(), positions)
    else:
        rows = torch.block_diag(*(part.rows for part in merged)).float()
        kind = Joint(tuple(layers), rows.unflatten(1, (len(merged), -1)), positions)
    return Space(kind, scale, names, radius if fixed else None)


def _part(work: Work, spec: str, numbers: Sequence[int], seed: int) -> _Part:
    """Read a spec; see above."""
    told, _, at = spec.partition("@")
    name, _, many = told.partition(":")
    part = work.part
    layer = work.lm.layer(_number(at, spec)) if at else part.source
    if name == "found":
        own = list(numbers) or [i.row.id for i in summarise(work.run).found][: _count(many, spec)]
        found = taken(work.run, own, vectors=True)
        return _of(found.kind.before, found.directions, [f"vector {n}" for n in own])
    if name == "jacobian":
        low, high = _band(many, spec)
        most = high if low else 3 * high
        both = methods.search(
            part,
            "power",
            n=2 * most,
            radius=1.0,
            seed=seed,
            config=SINGULAR,
        )
        one = both.select(range(0, 2 * most, 2))  # each comes with both signs
        if not low:
            low = _flattest(one.scores["singular_value"], high)
            high = low + high - 1
        rows = one.directions[low - 1 : high]
        return _of(part.source, rows, [f"singular vector {i}" for i in range(low, high + 1)])
    if name == "components":
        width = work.lm.width
        rank = width if many == "all" else _count(many, spec)
        inside = of_moments(_moments(work, layer)).top(min(rank, width))
        return _of(layer, inside.basis, [f"component {i + 1}" for i in range(rank)])
    if name == "random":
        drawn = torch.Generator().manual_seed(seed)
        rows = torch.randn(_count(many, spec), work.lm.width, generator=drawn)
        return _of(layer, rows, [f"random {i + 1}" for i in range(len(rows))])
    if not Path(told).is_file():
        raise MethodError(
            f"basis {spec!r}: use found:8, jacobian:5-12, components:8, random:8, or a safetensors "
            "file, each with @LAYER behind it for another layer"
        )
    if read_tensors(told)[1].get("format") == "educe.perturbations":
        given = as_vectors(PerturbationSet.load(told))
        names = [f"vector {i} of {Path(told).stem}" for i in range(len(given))]
        return _of(given.kind.before if not at else layer, given.directions, names)
    known = bases.from_file(told, work.lm.width)
    return _of(layer, known.atoms, known.names)


def _of(layer: int, rows: Tensor, names: Sequence[str]) -> _Part:
    return _Part(layer, rows.detach().cpu().double(), names, torch.ones(len(rows)))


def _orthonormal(rows: Tensor, names: Sequence[str]) -> Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    if len(unit) > unit.shape[1]:
        raise MethodError(
            f"{len(unit)} directions in a stream of width {unit.shape[1]}: give fewer"
        )
    basis = orthonormal(unit)
    new = (basis * unit).sum(1)
    if float(new.min()) < NEW:
        raise MethodError(
            f"{names[int(new.argmin())]} lies in the span of the directions before it: leave it out"
        )
    return basis


def _moments(work: Work, layer: int) -> Moments:
    place = Place(layer)
    known = natural.gather(
        work.lm, corpus.documents(corpus.BUNDLED), [place], limit=TOKENS, reporter=work.reporter
    ).natural[place]
    return known.moments.without(known.massive)


def _turned(work: Work, part: _Part) -> _Part:
    """Turn directions to where natural activations vary most among them."""
    inside = part.rows @ _moments(work, part.layer).covariance @ part.rows.T
    variance, turn = torch.linalg.eigh(inside)
    rows = upright(turn.flip(1).T @ part.rows)
    names = [f"natural {i + 1} of layer {part.layer}" for i in range(len(rows))]
    if float(variance[-1]) <= 0:
        raise MethodError("natural activations do not vary in this subspace: use another prior")
    return _Part(part.layer, rows, names, variance.flip(0).clamp(min=0).sqrt())


def _flattest(sizes: Tensor, many: int) -> int:
    """Return where the band of so many begins, from 1, whose last is nearest to its first."""
    ratio = sizes[many - 1 :] / sizes[: len(sizes) - many + 1]
    return int(ratio.argmax()) + 1


def _band(text: str, spec: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    first, last = (_count(low, spec), _count(high, spec)) if dash else (0, _count(text, spec))
    if first > last:
        raise MethodError(f"basis {spec!r}: the band ends before it begins")
    return first, last


def _count(text: str, spec: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 10_000:
        raise MethodError(f"basis {spec!r}: give how many directions, as in found:8")
    return int(text)


def _number(text: str, spec: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MethodError(f"basis {spec!r}: behind @ stands a layer, as in found:8@12") from None
