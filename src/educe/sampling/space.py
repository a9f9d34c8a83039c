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

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
from educe.forward.slice import Slice
from educe.methods.power import PowerConfig
from educe.orthogonal import orthonormal, upright
from educe.perturbation.joint import Joint
from educe.perturbation.kinds import Kind, Within
from educe.perturbation.set import PerturbationSet
from educe.run.work import Work

#: The singular vectors of the Jacobian as they are.
SINGULAR = PowerConfig(search=0, iterations=40)
#: What spans a space and is no file.
SPEC = re.compile(r"(found|components|random):([1-9]\d{0,3}|all)")
BAND = re.compile(r"jacobian:(?:([1-9]\d{0,3})-)?([1-9]\d{0,3})")
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

    def vectors(self, coefficients: Float[Tensor, "n k"]) -> Float[Tensor, "n w"]:
        """Return what is added, one layer after the other."""
        rows = self.kind.rows.flatten(1)  # type: ignore[attr-defined]
        return coefficients.to(rows) @ rows


class _Part(NamedTuple):
    """Directions after one layer, with how far each goes beside the others."""

    layer: int
    rows: Float[Tensor, "k d"]
    names: list[str]
    spread: Float[Tensor, "k"]


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
        one = _of(layer, _orthonormal(torch.cat([part.rows for part in own]), called), called)
        merged.append(_turned(work, one) if natural_prior else one)
    spread = torch.cat([part.spread for part in merged])
    scale = radius * (spread / spread.norm()).numpy()
    names = tuple(name for part in merged for name in part.names)
    rows = torch.block_diag(*(part.rows for part in merged)).float()
    kind: Kind = Within(layers[0], rows, work.part.kind.positions)
    if len(merged) > 1:
        rows = rows.unflatten(1, (len(merged), -1))
        kind = Joint(tuple(layers), rows, work.part.kind.positions)
    return Space(kind, scale, names, radius if fixed else None)


def _part(work: Work, spec: str, numbers: Sequence[int], seed: int) -> _Part:
    """Read a spec; see above."""
    written, _, at = spec.partition("@")
    part, layer = work.part, work.part.source
    if at:
        try:
            layer = work.lm.layer(float(at))
        except ValueError:
            raise MethodError(f"basis {spec!r}: behind @ is a layer, as in found:8@12") from None
    if Path(written).is_file():
        if read_tensors(written)[1].get("format") == "educe.perturbations":
            given = as_vectors(PerturbationSet.load(written))
            called = [f"vector {i} of {Path(written).stem}" for i in range(len(given))]
            return _of(layer if at else given.kind.before, given.directions, called)
        known = bases.from_file(written, work.lm.width)
        return _of(layer, known.atoms, known.names)
    if band := BAND.fullmatch(written):
        low, high = int(band[1] or 0), int(band[2])
        if low <= high:
            return _singular(part, low, high, seed)
    if (told := SPEC.fullmatch(written)) is None:
        raise MethodError(
            f"basis {spec!r}: use found:8, jacobian:5-12, jacobian:8, components:8, "
            "components:all, random:8, or a safetensors file, each with @LAYER behind it for "
            "another layer"
        )
    name, width = told[1], work.lm.width
    many = width if told[2] == "all" else int(told[2])
    if name == "found":
        own = list(numbers) or [i.row.id for i in summarise(work.run).found[:many]]
        found = taken(work.run, own, vectors=True)
        return _of(found.kind.before, found.directions, [f"vector {n}" for n in own])
    if name == "components":
        rows = of_moments(_moments(work, layer)).top(min(many, width)).basis
    else:
        rows = torch.randn(many, width, generator=torch.Generator().manual_seed(seed))
    return _of(layer, rows, [f"{name.removesuffix('s')} {i + 1}" for i in range(len(rows))])


def _singular(part: Slice, low: int, high: int, seed: int) -> _Part:
    """Return a band of singular vectors; without its beginning, the flattest so wide."""
    most = high if low else 3 * high
    both = methods.search(part, "power", n=2 * most, radius=1.0, seed=seed, config=SINGULAR)
    one = both.select(range(0, 2 * most, 2))  # each comes with both signs
    if not low:
        low = _flattest(one.scores["singular_value"], high)
        high += low - 1
    names = [f"singular vector {i}" for i in range(low, high + 1)]
    return _of(part.source, one.directions[low - 1 : high], names)


def _of(layer: int, rows: Tensor, names: Sequence[str]) -> _Part:
    flat = torch.ones(len(rows), dtype=torch.float64)
    return _Part(layer, rows.detach().cpu().double(), list(names), flat)


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
