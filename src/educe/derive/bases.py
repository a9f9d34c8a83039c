"""Bases in which the vectors of a layer are read: what a coordinate of a perturbation stands for.

A basis is a list of unit directions ``b_1 … b_m`` in the stream that leaves a block, its *atoms*,
in groups. What of a vector ``θ`` lies in reach of a group is its projection onto what the group
spans, ``P_g θ``, and the coordinate's size is ``‖P_g θ‖``. What several groups can write together
is the projection onto all that they span. Both depend on no other atoms.

    residual      the coordinates of the stream themselves
    components    principal components of natural activations, largest variance first
    heads         a group for each attention head of the block: an orthonormal basis of the columns
                  of ``W_O`` that the head writes with
    neurons       the columns of ``W_down``, one for each neuron of the block's MLP
    random        a random rotation: the control, a basis that means nothing
    FILE          an orthogonal matrix, or the decoder of a sparse autoencoder (safetensors)

Atoms have norm one, and those of a head are orthonormal, since a model does the same whatever the
scale of a neuron, or the basis inside a head. Coefficients that write a vector are not used: with
more atoms than dimensions they are open, and where atoms nearly depend on one another, as the heads
of a small model do, they are a thousand times as long as the vector.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache

from educe.activations import corpus, natural
from educe.activations.reading import Place
from educe.errors import FileFormatError, ModelError
from educe.files import read_tensors
from educe.model.language import LanguageModel
from educe.orthogonal import orthonormal, upright

#: Tokens of the corpus that principal components are computed from.
TOKENS = 50_000
#: What files call a matrix of directions, and whether directions are its rows.
NAMES = dict.fromkeys(("W_dec", "w_dec", "basis", "rotation", "Q"), True) | {
    "decoder.weight": False
}


@dataclass(frozen=True)
class Basis:
    """Unit directions in the stream, in groups.

    Attributes:
        name: What it is called.
        atoms: The directions, in double precision on the processor, orthonormal within each group,
            ``[m, width]``.
        group: Which group each belongs to, ``[m]``.
        names: What the groups are called. A direction alone in its group is a coordinate.
    """

    name: str
    atoms: Float[Tensor, "m d"]
    group: Int[Tensor, "m"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, name: str, rows: Float[Tensor, "m d"], word: str) -> Basis:
        """Return the basis of some directions of any length, each its own group."""
        unit = normalize(rows.detach().cpu().double(), dim=1, eps=torch.finfo(torch.float64).tiny)
        names = tuple(f"{word} {j}" for j in range(len(unit)))
        return cls(name, unit, torch.arange(len(unit)), names)

    @cached_property
    def orthonormal(self) -> bool:
        """Whether all atoms are at right angles: then sizes are the magnitudes of coordinates."""
        m, d = self.atoms.shape
        return m <= d and torch.allclose(
            self.atoms @ self.atoms.T, torch.eye(m, dtype=self.atoms.dtype), atol=1e-4
        )

    def along(self, theta: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return the component of some vectors along every atom, ``⟨b_j, θ⟩``."""
        return theta.cpu().double() @ self.atoms.T

    def weighted(
        self, along: Float[Tensor, "n m"], factors: Float[Tensor, "n g"]
    ) -> Float[Tensor, "n d"]:
        """Return ``Σ_g factor_g P_g θ`` from the components of ``θ``, in double precision."""
        return (factors[:, self.group] * along) @ self.atoms

    def onto(self, theta: Float[Tensor, "n d"], groups: Int[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Return what of each vector its own groups can write together, in double precision."""
        chosen = torch.zeros(len(theta), len(self.names), dtype=torch.float64)
        chosen = chosen.scatter(1, groups, 1.0)
        if self.orthonormal:
            return self.weighted(self.along(theta), chosen)
        written = []
        for vector, own in zip(theta.cpu().double(), chosen.bool(), strict=True):
            columns = self.atoms[own[self.group]].T
            # By singular values: atoms may depend on one another.
            least = torch.linalg.lstsq(columns, vector[:, None], driver="gelsd").solution
            written.append((columns @ least)[:, 0])
        return torch.stack(written)

    def sizes(self, theta: Float[Tensor, "n d"]) -> Float[Tensor, "n g"]:
        """Return the norm of some vectors' projections onto the span of each group."""
        return self.summed(self.along(theta).square()).sqrt()

    def summed(self, values: Float[Tensor, "n m"]) -> Float[Tensor, "n g"]:
        """Sum over the members of each group."""
        return values.new_zeros(len(values), len(self.names)).index_add_(1, self.group, values)


def parse(
    text: str,
    lm: LanguageModel,
    layer: int,
    *,
    documents: str = corpus.BUNDLED,
    reporter: Any = None,
) -> Basis:
    """Return a basis by its name: ``residual``, ``components``, ``heads``, ``neurons``, ``random``
    or a safetensors file.

    Args:
        text: The name.
        lm: The model.
        layer: The block after which the vectors are added.
        documents: What natural activations are of (see `educe.activations.corpus.documents`).
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        ModelError: The block has no heads or no neurons that can be told apart.
        FileFormatError: The file has no such directions.
        PromptError: The corpus cannot be read, or is too small.
    """
    match text:
        case "residual":
            return residual(lm.width)
        case "random":
            return rotation(lm.width)
        case "components":
            return components(lm, layer, documents=documents, reporter=reporter)
        case "heads":
            return heads(lm, layer)
        case "neurons":
            return neurons(lm, layer)
    return from_file(text, lm.width)


def usual(lm: LanguageModel, layer: int) -> list[Basis]:
    """Return the bases of a block that need no corpus and no file.

    A mixture of experts has no neurons that all tokens share, and linear attention has no heads.
    """
    parts = []
    for own in (heads, neurons):
        with suppress(ModelError):
            parts.append(own(lm, layer))
    return [residual(lm.width), *parts, rotation(lm.width)]


def residual(width: int) -> Basis:
    """Return the coordinates of the stream themselves."""
    return Basis.of("residual", torch.eye(width, dtype=torch.float64), "coordinate")


def rotation(width: int, *, seed: int = 0) -> Basis:
    """Return a random orthonormal basis: what a statistic is in a basis that means nothing."""
    draw = torch.Generator().manual_seed(seed)
    rows = orthonormal(torch.randn(width, width, generator=draw, dtype=torch.float64))
    return Basis.of("random", rows, "direction")


def components(
    lm: LanguageModel, layer: int, *, documents: str = corpus.BUNDLED, reporter: Any = None
) -> Basis:
    """Return the principal components of natural activations, largest variance first.

    Massive coordinates, which would each be a component of their own, are left out of the
    decomposition and come last, as themselves.
    """
    place = Place(layer)
    texts = corpus.documents(documents)
    gathered = natural.gather(lm, texts, [place], limit=TOKENS, reporter=reporter)
    known = gathered.natural[place]
    massive = known.massive
    square = known.moments.without(massive).covariance
    square[massive, massive] = -1.0  # below all others
    _, vectors = torch.linalg.eigh(square)
    return Basis.of("components", upright(vectors.flip(1).T), "component")


def heads(lm: LanguageModel, layer: int) -> Basis:
    """Return the attention heads of a block: of each, an orthonormal basis of what it writes.

    Raises:
        ModelError: The block does not attend with keys and values, or has no single output matrix.
    """
    rows = _written(lm, layer, "attention")
    ids = torch.arange(2, device=lm.device)[None]
    cache = DynamicCache(config=lm.unwrapped.config)
    lm.forward(ids, torch.ones_like(ids), cache=cache)
    values = getattr(cache.layers[layer], "values", None)
    if values is None or values.ndim != 4:
        raise ModelError(
            f"block {layer} of {lm.name} has no attention with keys and values: its heads cannot "
            "be told apart"
        )
    size = int(values.shape[-1])  # a head hands on as many numbers as its values in the cache have
    if len(rows) % size:
        raise ModelError(
            f"the output projection of block {layer} of {lm.name} takes {len(rows)} numbers, which "
            f"are not heads of {size}"
        )
    parts = []
    for head in rows.split(size):
        _, value, right = torch.linalg.svd(head, full_matrices=False)
        parts.append(right[value > size * torch.finfo(torch.float32).eps * value[0]])
    group = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return Basis("heads", torch.cat(parts), group, tuple(f"head {i}" for i in range(len(parts))))


def neurons(lm: LanguageModel, layer: int) -> Basis:
    """Return what each neuron of a block's MLP writes.

    Raises:
        ModelError: The block has no single output matrix, as a mixture of experts has none.
    """
    return Basis.of("neurons", _written(lm, layer, "mlp"), "neuron")


def from_file(path: str | Path, width: int) -> Basis:
    """Read directions from a safetensors file: an orthogonal matrix, or an SAE's decoder.

    The matrix is the only one of the file or has one of the usual names, ``W_dec`` ``[m, width]``
    or ``decoder.weight`` ``[width, m]`` among them. Directions are rows if the name does not say
    otherwise and the shape allows it.

    Raises:
        FileFormatError: The file cannot be read, or has no such matrix.
    """
    tensors, _ = read_tensors(path)
    matrices = {name: value for name, value in tensors.items() if value.ndim == 2}
    name = next((name for name in NAMES if name in matrices), None)
    if name is None and len(matrices) == 1:
        (name,) = matrices
    if name is None:
        raise FileFormatError(
            f"{path} has {', '.join(tensors) or 'nothing'}: a basis is one matrix, or is called "
            f"{', '.join(NAMES)}"
        )
    rows = matrices[name]
    if rows.shape[0] == width and not (NAMES.get(name, True) and rows.shape[1] == width):
        rows = rows.T
    if rows.shape[1] != width:
        shape = f"{rows.shape[0]} by {rows.shape[1]}"
        raise FileFormatError(f"{path}: {name} is {shape}, but the stream has width {width}")
    return Basis.of(Path(path).stem, rows, "direction")


def _written(lm: LanguageModel, layer: int, part: str) -> Float[Tensor, "i d"]:
    """Return what an output projection adds to the stream for a unit of each of its inputs.

    By asking it: it may be of any class, have its matrix either way round, or an adapter beside it.
    """
    found = lm.projection(layer, part)
    module = lm.unwrapped.get_submodule(found.path)
    weight = next(module.parameters())
    ask = torch.eye(found.inputs, device=weight.device, dtype=lm.dtype)
    with torch.no_grad():
        return (module(ask) - module(torch.zeros_like(ask[:1]))).cpu().double()
