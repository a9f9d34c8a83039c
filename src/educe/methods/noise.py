"""Noise: fuzzing proper. Nothing is searched; many draws, each of which can be made again.

    token      h_t ← h_t + R g_t      at the source, g_t uniform on the sphere, fresh for each token
    rollout    h_t ← h_t + R g        one g for the whole rollout: what `random` draws
    weights    W ← W + σ rms(W) G     on matrices of blocks source+1 .. target, G standard normal

Roger, "Fuzzing LLMs sometimes makes them reveal their secrets" (2025); Abu Baker & Babu-Saheer,
arXiv 2606.29646 (2026). Weight noise is often written ``W + σ G``; here ``σ`` is relative to each
matrix's own root mean square, so that one size suits matrices of unlike scale.

A perturbation is one draw, held over all prompts and samples, so that a hit can be re-tested. That
is a direction, or a seed, in the kind of the set and so in its file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods.radius import of_effect
from educe.perturbation.kinds import Kind, TokenNoise, Vectors, WeightNoise
from educe.perturbation.set import PerturbationSet


@dataclass(frozen=True)
class NoiseConfig:
    """Settings of noise.

    Attributes:
        per: What a draw is made for: each ``token``, a whole ``rollout``, or the ``weights``.
        modules: Which matrices get weight noise: those whose name in their block this regular
            expression is found in, such as ``self_attn`` or ``down_proj``; by default, all.

    Example:
        >>> config = NoiseConfig(per="weights", modules="down_proj")
        >>> educe.search(part, "noise", n=2, radius=0.1, config=config).kind.name
        'weight-noise'
    """

    per: Literal["token", "rollout", "weights"] = "token"
    modules: str = ""

    def __post_init__(self) -> None:
        if self.modules and self.per != "weights":
            raise MethodError(f"noise: modules are for weights, and per is {self.per!r}")
        try:
            re.compile(self.modules)
        except re.error as error:
            raise MethodError(
                f"noise: modules {self.modules!r} is no regular expression: {error}"
            ) from error


def kind(part: Slice, n: int, config: NoiseConfig, seed: int) -> Kind:
    """Return the kind of noise, with a seed for each of ``n`` draws."""
    if config.per == "rollout":
        return Vectors(part.source, part.width, part.positions)
    own = torch.randint(2**31, (n,), generator=torch.Generator().manual_seed(seed))
    seeds = tuple(own.tolist())
    if config.per == "token":
        return TokenNoise(part.source, part.width, seeds, part.positions)
    return WeightNoise(part.source + 1, part.target - part.source, seeds, config.modules)


def control(part: Slice, found: PerturbationSet, *, seed: int) -> tuple[Slice, float]:
    """Return a slice for directions, and their radius, as the matched control of noise.

    Other noise of the same kind would be the same distribution, found or not. A random direction
    held over the whole text asks what the noise does that a steady push does not. For token noise
    it has the same norm at each token (matched in effect, which averages over tokens and so cancels
    fresh noise, it would be far weaker); weights have no norm in the stream, so there it has the
    same mean effect.
    """
    part = part.on(Vectors(part.source, part.width, found.kind.positions))
    if isinstance(found.kind, TokenNoise):
        return part, float(found.radius[0])
    effect = float(found.scores["effect"].mean())
    return part, of_effect(part, effect, directions=len(found), seed=seed)
