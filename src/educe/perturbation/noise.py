"""Noise: of a perturbation only the size is given, the rest follows from its seed.

    token noise    h_t ← h_t + R g_t      fresh for each token t, g_t uniform on the sphere
    weight noise   W ← W + σ rms(W) G     on the matrices of a band of blocks, G standard normal

``θ`` is that size. The noise itself follows from a seed and from the place it falls on, and is
drawn on the processor, so that a perturbation can be made again from its seed alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from educe.errors import LayerError, ModelError, SteeringError
from educe.model.language import LanguageModel
from educe.perturbation.kind import At, Keep, Kind, everywhere, normed
from educe.perturbation.vectors import AfterBlock


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

    Example:
        >>> kind = TokenNoise(1, lm.width, seeds=(0, 1, 2))
        >>> noise = kind.added(torch.full((3, 1), 2.0), [0, 1, 2], range(-4, 0))
        >>> noise.shape, bool(torch.allclose(noise.norm(dim=-1), torch.tensor(2.0)))
        (torch.Size([3, 1, 4, 32]), True)
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
            seed: normed(torch.stack([_normal((self.width,), f"{seed}:{at}") for at in places]))
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

    Example:
        >>> kind = WeightNoise(first=2, blocks=1, seeds=(0,), modules="down_proj")
        >>> list(kind.parameters(lm))
        ['2.mlp.down_proj.weight']
        >>> part.on(kind).effect(torch.tensor([[0.1]])).shape
        torch.Size([1, 32])
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
    def unit(self, median_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return 1: ``σ`` is a share already."""
        return 1.0

    @override
    @contextmanager
    def changing(
        self,
        lm: LanguageModel,
        theta: Float[Tensor, "n 1"],
        items: Sequence[int],
        at: At = everywhere,
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


def _normal(shape: Sequence[int], key: str) -> Tensor:
    """Return normal numbers that belong to a key: float32 on the processor, for any device."""
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    own = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(*shape, generator=own)
