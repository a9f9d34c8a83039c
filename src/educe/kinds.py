"""Kinds of perturbation: what their numbers mean, and what they change in a running model.

    vectors        h ← h + θ              one vector, added to the stream that leaves a block
    within         h ← h + θ A            the same, of a subspace: θ has k coefficients, A is [k, d]
    adapters       W ← W + R b aᵀ         on one projection of each block of a band; unit a and b
    token noise    h_t ← h_t + R g_t      fresh for each token t, g_t uniform on the sphere
    weight noise   W ← W + σ rms(W) G     on the matrices of a band of blocks, G standard normal

``θ`` is a row of numbers for every perturbation, ``[n, size]``, and differentiable. For noise it is
a single number, the size; the noise itself follows from a seed and from the place it falls on, and
is drawn on the processor, so that a perturbation can be made again from its seed alone.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from educe.errors import FileFormatError, LayerError, ModelError, SteeringError
from educe.model import LanguageModel

Keep = Callable[[Tensor], None]


class Row(NamedTuple):
    """What one completion is made from."""

    perturbation: int  #: index into the perturbations; -1 for the unperturbed model
    prompt: int  #: index into the prompts
    sample: int = 0  #: which of several samples


class Kind(ABC):
    """Where perturbations act, and how. Kinds that are equal share a batch.

    Attributes:
        name: As it stands in files.
        tensor: What the unit perturbations are called in files.
        alone: Whether only one perturbation can act at a time.
        positions: Tokens at which they act (see `educe.positions`).
    """

    name: ClassVar[str]
    tensor: ClassVar[str] = "directions"
    alone: ClassVar[bool] = False
    positions: str = "all"

    @property
    @abstractmethod
    def before(self) -> int:
        """The last layer that no perturbation reaches: work up to it is shared."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The last block that is changed, or after which something is added."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers a perturbation has."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw unit perturbations at random; float32 on the processor, the same on any device."""

    def scaled(self, directions: Float[Tensor, "n s"], radius: Any) -> Float[Tensor, "n s"]:
        """Return unit perturbations at a radius, a number or ``[n, 1]``.

        A diagonal map, and so its own transpose: it takes a gradient in ``θ`` to the gradient in
        the unit perturbations as well.
        """
        return directions * radius

    def columns(self, theta: Float[Tensor, "n s"]) -> list[Float[Tensor, "n k w"]]:
        """Return the parts that have norm one each in a unit perturbation, in order."""
        return [theta[:, None]]

    def normalised(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
        """Scale every column to norm one."""
        return torch.cat([_unit(column).flatten(1) for column in self.columns(theta)], 1)

    def unit(self, mean_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return the radius whose dose is 1: what is added is as long as the stream's mean norm.

        Args:
            mean_norm: That mean norm.
            taken: Tells the mean norm of what some modules take, by their paths.
        """
        return mean_norm

    def select(self, items: Tensor) -> Kind:
        """Return the kind of some of the perturbations; differs only where they have seeds."""
        return self

    def added(
        self, theta: Float[Tensor, "n s"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 #t d"] | None:
        """Return what is added to the stream leaving block `before`, if anything.

        Args:
            theta: Perturbations.
            items: Which of the perturbations of this kind they are; -1 for none.
            places: The place of each token, counted from the first of the answer: the last token
                of every prompt is at -1.
        """
        return None

    @contextmanager
    def changing(
        self, lm: LanguageModel, theta: Float[Tensor, "n s"], items: Sequence[int]
    ) -> Iterator[Keep]:
        """Change the blocks themselves for the time of a ``with`` statement.

        Args:
            lm: The model.
            theta: Perturbations; a batch has the rows on which each acts one after the other.
            items: Which of the perturbations of this kind they are; -1 for none.

        Yields:
            A function that keeps only some perturbations from now on.
        """
        yield lambda items: None


class AfterBlock(Kind):
    """What is added to the residual stream after one block.

    Attributes:
        layer: The block.
    """

    layer: int

    @property
    @override
    def before(self) -> int:
        return self.layer

    @property
    @override
    def last(self) -> int:
        return self.layer

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw directions uniform on the sphere (Muller 1959)."""
        return _unit(torch.randn(n, self.size, generator=generator))


@dataclass(frozen=True)
class Vectors(AfterBlock):
    """One vector each, added to the residual stream after one block.

    Attributes:
        layer: The block after which it is added.
        width: Width of the stream.
        positions: Tokens it is added to (see `educe.positions`).
    """

    name: ClassVar[str] = "vectors"
    tensor: ClassVar[str] = "vectors"

    layer: int
    width: int
    positions: str = "all"

    @property
    @override
    def size(self) -> int:
        return self.width

    @override
    def added(
        self, theta: Float[Tensor, "n d"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 1 d"]:
        return theta[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Within(AfterBlock):
    """Vectors of a subspace, added to the residual stream after one block: ``h ← h + θ A``.

    What is searched for are coefficients, so that every step stays inside. With orthonormal rows
    the ball ``‖θ‖ ≤ R`` is that of the vectors themselves; with rows as long as activations spread
    along them it is an ellipsoid (see `educe.manifold.inside`).

    Attributes:
        layer: The block after which they are added.
        rows: ``A``, float32 on the processor, ``[k, d]``.
        positions: Tokens they are added to.
    """

    name: ClassVar[str] = "within"
    tensor: ClassVar[str] = "coefficients"

    layer: int
    rows: Float[Tensor, "k d"]
    positions: str = "all"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Within)
            and (self.layer, self.positions) == (other.layer, other.positions)
            and torch.equal(self.rows, other.rows)
        )

    def __hash__(self) -> int:
        return hash((self.layer, self.positions, *self.rows.shape))

    @property
    @override
    def size(self) -> int:
        return len(self.rows)

    @override
    def added(
        self, theta: Float[Tensor, "n k"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 1 d"]:
        return (theta @ self.rows.to(theta))[:, None, None, :]


class Projected(Kind):
    """What changes the output of one projection of each block of a band.

    Attributes:
        first: The first block of the band; from 1 on.
        paths: The module of each block, by its name in the transformers model.
    """

    first: int
    paths: tuple[str, ...]

    @property
    @override
    def before(self) -> int:
        return self.first - 1

    @property
    @override
    def last(self) -> int:
        return self.first + len(self.paths) - 1

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw every column uniform on its sphere."""
        return self.normalised(torch.randn(n, self.size, generator=generator))

    @abstractmethod
    def split(self, theta: Float[Tensor, "n s"]) -> list[tuple[Tensor, ...]]:
        """Return what each block gets, every part ``[n, columns, width]``."""

    @abstractmethod
    def written(
        self, parts: tuple[Tensor, ...], x: Float[Tensor, "n m i"]
    ) -> Float[Tensor, "n #m d"]:
        """Return what is added to the output of a projection that takes ``x``."""

    @override
    @contextmanager
    def changing(
        self, lm: LanguageModel, theta: Float[Tensor, "n s"], items: Sequence[int]
    ) -> Iterator[Keep]:
        parts = self.split(theta)
        heard = [0] * len(parts)

        def change(block: int) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                heard[block] += 1
                own = tuple(part.to(output) for part in parts[block])
                x = args[0].reshape(len(own[0]), -1, args[0].shape[-1])
                rows = output.reshape(len(x), -1, output.shape[-1])
                return (rows + self.written(own, x)).reshape(output.shape)

            return hook

        def keep(items: Tensor) -> None:
            parts[:] = [tuple(part[items.to(part.device)] for part in own) for own in parts]

        modules = [lm.unwrapped.get_submodule(path) for path in self.paths]
        handles = [module.register_forward_hook(change(i)) for i, module in enumerate(modules)]
        try:
            yield keep
        finally:
            for handle in handles:
                handle.remove()
        if not all(heard):
            raise SteeringError(
                f"{self.paths[heard.index(0)]} was never called: the {self.name} would do nothing"
            )


@dataclass(frozen=True)
class Adapters(Projected):
    """Low-rank adapters ``W ← W + R b aᵀ`` on one projection of each block of a band.

    The numbers of a perturbation are, block after block, the columns of ``a`` and those of ``b``;
    each column has norm one, so every term of the sum has spectral norm ``R``. They act on every
    token, as weights do. See `adapters` for how to make one.

    Attributes:
        first: The first block of the band; from 1 on.
        paths: The module of each block, by its name in the transformers model.
        inputs: Width of what each takes.
        width: Width of what they return: that of the stream.
        rank: Columns of ``a`` and of ``b``.
    """

    name: ClassVar[str] = "adapters"
    tensor: ClassVar[str] = "factors"

    first: int
    paths: tuple[str, ...]
    inputs: tuple[int, ...]
    width: int
    rank: int = 1

    @property
    @override
    def size(self) -> int:
        return self.rank * (sum(self.inputs) + self.width * len(self.inputs))

    @override
    def split(self, theta: Float[Tensor, "n s"]) -> list[tuple[Tensor, ...]]:
        """Return ``a`` and ``b`` of each block."""
        sizes = [self.rank * width for inner in self.inputs for width in (inner, self.width)]
        parts = [part.unflatten(1, (self.rank, -1)) for part in theta.split(sizes, 1)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def joined(self, factors: Sequence[tuple[Tensor, ...]]) -> Float[Tensor, "n s"]:
        """Undo `split`."""
        return torch.cat([part.flatten(1) for pair in factors for part in pair], 1)

    @override
    def columns(self, theta: Float[Tensor, "n s"]) -> list[Float[Tensor, "n k w"]]:
        """Return ``a`` and ``b`` of each block: the columns of each, one below the other."""
        return [part for pair in self.split(theta) for part in pair]

    @override
    def scaled(self, directions: Float[Tensor, "n s"], radius: Any) -> Float[Tensor, "n s"]:
        factor = torch.as_tensor(radius, dtype=directions.dtype, device=directions.device)
        factor = factor[:, :, None] if factor.ndim else factor
        return self.joined([(a, factor * b) for a, b in self.split(directions)])

    @override
    def unit(self, mean_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return the radius at which a random adapter adds as much as the stream's mean norm.

        A random unit ``a`` meets an input ``x`` of width ``i`` with ``⟨a, x⟩² = ‖x‖² / i`` in the
        mean, so what the ``k`` columns of one block add has norm ``R ‖x‖ √(k / i)``.
        """
        norms = zip(taken(self.paths), self.inputs, strict=True)
        added = [norm * (self.rank / i) ** 0.5 for norm, i in norms]
        return mean_norm * len(added) / sum(added)

    @override
    def written(
        self, parts: tuple[Tensor, ...], x: Float[Tensor, "n m i"]
    ) -> Float[Tensor, "n m d"]:
        a, b = parts
        return x @ a.mT @ b


def adapters(
    lm: LanguageModel,
    *,
    first: int,
    blocks: int,
    projection: Literal["attention", "mlp"] = "attention",
    rank: int = 1,
) -> Adapters:
    """Return the kind of adapters on the output projections of a band of blocks.

    Args:
        lm: The model.
        first: The first block.
        blocks: How many.
        projection: Of the token mixer (attention), or of the feed-forward part.
        rank: Columns of each factor.

    Raises:
        LayerError: The band does not lie between block 1 and the last.
        ModelError: A block has no such projection.
    """
    if not (first >= 1 and blocks >= 1 and first + blocks <= lm.depth):
        raise LayerError(
            f"blocks {first} to {first + blocks - 1} cannot hold adapters: {lm.name} has blocks "
            f"0 to {lm.depth - 1}, and the band begins at 1 or later"
        )
    found = [lm.projection(block, projection) for block in range(first, first + blocks)]
    return Adapters(
        first,
        tuple(p.path for p in found),
        tuple(p.inputs for p in found),
        lm.width,
        rank,
    )


class Noise(Kind):
    """Perturbations of one number, their size; the rest follows from a seed that each has.

    Attributes:
        seeds: Of each perturbation.
    """

    seeds: tuple[int, ...]

    @property
    @override
    def size(self) -> int:
        return 1

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        """Return ones: what is random follows from the seeds."""
        return torch.ones(n, 1)

    @override
    def select(self, items: Tensor) -> Noise:
        return replace(self, seeds=tuple(self.seeds[i] for i in items))  # type: ignore[type-var]

    def seed(self, item: int) -> int:
        """Return the seed of a perturbation.

        Raises:
            SteeringError: It has none.
        """
        if item >= len(self.seeds):
            raise SteeringError(
                f"{self.name} number {item} has no seed: the kind has {len(self.seeds)}, give it "
                "one for each perturbation"
            )
        return self.seeds[item]


@dataclass(frozen=True)
class TokenNoise(Noise, AfterBlock):
    """Noise of one norm, drawn afresh for every token, in the residual stream after one block.

    A perturbation is one sequence of noise, laid on texts so that their answers begin at the same
    place in it: every prompt, and every sample of an answer, meets the same.

    Attributes:
        layer: The block after which it is added.
        width: Width of the stream.
        seeds: Of each perturbation.
        positions: Tokens it is added to.
    """

    name: ClassVar[str] = "token-noise"

    layer: int
    width: int
    seeds: tuple[int, ...]
    positions: str = "all"

    @override
    def added(
        self, theta: Float[Tensor, "n 1"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 t d"]:
        seeds = [self.seed(item) for item in items]  # any will do for none, its size is 0
        drawn = {
            seed: _unit(torch.stack([_normal((self.width,), f"{seed}:{at}") for at in places]))
            for seed in set(seeds)
        }
        noise = torch.stack([drawn[seed] for seed in seeds])[:, None]
        return theta[:, :, None, None] * noise.to(theta)


@dataclass(frozen=True)
class WeightNoise(Noise):
    """Gaussian noise on the matrices of a band of blocks, ``σ`` relative to each one's own size.

    Attributes:
        first: The first block; from 1 on.
        blocks: How many there are.
        seeds: Of each perturbation.
        modules: A regular expression; parameters whose name in their block it is found in get
            noise, if they are floating point with two dimensions or more.
    """

    name: ClassVar[str] = "weight-noise"
    alone: ClassVar[bool] = True

    first: int
    blocks: int
    seeds: tuple[int, ...]
    modules: str = ""

    @property
    @override
    def before(self) -> int:
        return self.first - 1

    @property
    @override
    def last(self) -> int:
        return self.first + self.blocks - 1

    @override
    def unit(self, mean_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return 1: ``σ`` is a share already."""
        return 1.0

    @override
    @contextmanager
    def changing(
        self, lm: LanguageModel, theta: Float[Tensor, "n 1"], items: Sequence[int]
    ) -> Iterator[Keep]:
        seed, sigma = self.seed(items[0]), theta[0, 0]
        noised = self.parameters(lm)
        try:
            for name, (module, leaf, weight) in noised.items():
                drawn = _normal(weight.shape, f"{seed}:{name}")
                # Added in float32 at least: half precision would round the noise before the sum.
                wide = weight.to(torch.promote_types(weight.dtype, drawn.dtype))
                rms = torch.linalg.vector_norm(wide) / wide.numel() ** 0.5
                noisy = torch.addcmul(wide, drawn.to(wide), sigma.to(wide) * rms)
                # Not by `setattr`, which takes nothing but a parameter, without gradient history.
                module._parameters[leaf] = noisy.to(weight.dtype)  # type: ignore[assignment]
            yield lambda kept: None
        finally:
            for module, leaf, weight in noised.values():
                module._parameters[leaf] = weight

    def parameters(self, lm: LanguageModel) -> dict[str, tuple[nn.Module, str, nn.Parameter]]:
        """Return what gets noise, by name: the module, its attribute, and the parameter.

        Raises:
            LayerError: The band does not lie between block 1 and the last.
            ModelError: Nothing in it gets noise.
        """
        if not 1 <= self.first <= self.last < lm.depth:
            raise LayerError(
                f"blocks {self.first} to {self.last} cannot get noise: {lm.name} has blocks 0 to "
                f"{lm.depth - 1}, and the band begins at 1 or later"
            )
        found = {}
        for block in range(self.first, self.last + 1):
            for inner, module in lm.blocks[block].named_modules():
                for leaf, weight in module.named_parameters(recurse=False):
                    name = f"{inner}.{leaf}".replace(".base_layer.", ".")  # beside a PEFT adapter
                    if (
                        weight.ndim >= 2
                        and weight.is_floating_point()
                        and re.search(self.modules, name)
                    ):
                        found[f"{block}.{name}"] = (module, leaf, weight)
        if not found:
            raise ModelError(
                f"no matrix in blocks {self.first} to {self.last} of {lm.name} is named like "
                f"{self.modules!r} and held in floating point: weight noise needs one"
            )
        return found


KINDS: dict[str, type[Kind]] = {
    k.name: k for k in (Vectors, Within, Adapters, TokenNoise, WeightNoise)
}


def described(kind: Kind) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `read` needs to make a kind again: what JSON can hold, and tensors."""
    parts = {f.name: getattr(kind, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    return {name: part for name, part in parts.items() if name not in tensors}, tensors


def read(
    name: str,
    plain: dict[str, Any],
    tensors: dict[str, Tensor],
    known: Mapping[str, type[Kind]] = KINDS,
) -> Kind:
    """Make a kind again from its name and what `described` gave.

    Raises:
        FileFormatError: There is no such kind.
    """
    if name not in known:
        raise FileFormatError(f"perturbations of kind {name!r} are unknown to this educe")
    lists = {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
    return known[name](**plain | lists, **tensors)


def _unit(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    return rows / rows.norm(dim=-1, keepdim=True)


def _normal(shape: Sequence[int], key: str) -> Tensor:
    """Return normal numbers that belong to a key: float32 on the processor, for any device."""
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    own = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(*shape, generator=own)
