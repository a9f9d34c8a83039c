"""The layer map: how strongly every layer drives every later one, for all pairs of them.

For each pair the top singular values of the Jacobian, its top right singular vector, and what
follows from them. `survey` computes it, `choice` chooses two layers by it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.errors import FileFormatError
from educe.plain import read_object

FORMAT_VERSION = "2"
#: Version 1 knew its model by name alone.
READABLE = ("1", FORMAT_VERSION)

#: Its file in the folder of a run.
LAYER_MAP = "atlas.safetensors"


class Pair(NamedTuple):
    """A source and a target."""

    source: int
    target: int


@dataclass(frozen=True)
class LayerMapConfig:
    """Settings of a layer map.

    Attributes:
        top: Singular values kept for each pair.
        padding: Columns of a block beyond these.
        products: Blocks of the Krylov space, each multiplied with the Jacobians.
        positions: Tokens that are perturbed (see `educe.perturbation.positions`).
        readout: Prompt tokens that are read.
        seed: Of the first blocks.
    """

    top: int = 4
    padding: int = 2
    products: int = 4
    positions: str = "all"
    readout: str = "last:3"
    seed: int = 0


@dataclass(frozen=True)
class LayerMap:
    """What is known of some pairs.

    Attributes:
        model: The model.
        model_parts: By what it is known again (see `educe.model.digest`); nothing in files of
            version 1.
        prompts_sha256: Digest of the rendered prompts.
        config: How it was made.
        readouts: How many positions are read, over all prompts.
        norms: Median norm of the stream at each layer (see `educe.forward.slice.norms`); of a
            layer map that was made before 2026-11-28, mean norms.
        pairs: The pairs.
        sigma: Top singular values of the Jacobian of all read-out positions, ``[pairs, top]``.
        vectors: Top right singular vector, ``[pairs, width]``.
    """

    model: str
    model_parts: Mapping[str, str]
    prompts_sha256: str
    config: LayerMapConfig
    readouts: int
    norms: Float[Tensor, "layers"]
    pairs: tuple[Pair, ...]
    sigma: Float[Tensor, "n k"]
    vectors: Float[Tensor, "n d"]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.norms)

    @property
    def gap(self) -> Float[Tensor, "n"]:
        """How far the second singular value lies below the first, relative to it."""
        return 1 - self.sigma[:, 1] / self.sigma[:, 0]

    @property
    def gain(self) -> Float[Tensor, "n"]:
        """What a small dose of the top vector does: the dose it makes at the target, over it.

        The change of the target is the root mean square over read-out positions. Both doses are
        shares of the median norm of the stream, so that pairs can be compared.
        """
        source, target = (self.norms[list(layers)] for layers in zip(*self.pairs, strict=True))
        return self.sigma[:, 0] / math.sqrt(self.readouts) * source / target

    @property
    def steadiness(self) -> Float[Tensor, "n"]:
        """Mean cosine, sign aside, of the top vector with those of the source's other targets.

        1 where there is no other.
        """
        unit = F.normalize(self.vectors, dim=1)
        source = torch.tensor([pair.source for pair in self.pairs])
        other = (source[:, None] == source) & ~torch.eye(len(self.pairs), dtype=torch.bool)
        alike = torch.where(other, (unit @ unit.T).abs(), 0).sum(1)
        return torch.where(other.any(1), alike / other.sum(1).clamp(min=1), 1)

    def select(self, pairs: Collection[Pair]) -> LayerMap:
        """Return what is known of some pairs, those of them that are here."""
        at = [i for i, pair in enumerate(self.pairs) if pair in pairs]
        kept = tuple(self.pairs[i] for i in at)
        return replace(self, pairs=kept, sigma=self.sigma[at], vectors=self.vectors[at])

    def save(self, path: str | Path) -> None:
        """Write the layer map to one safetensors file, whole or not at all."""
        tensors = {
            "pairs": torch.tensor(self.pairs),
            "norms": self.norms,
            "sigma": self.sigma,
            "vectors": self.vectors,
        }
        header = {
            "format": "educe.atlas",
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "model_parts_json": json.dumps(dict(self.model_parts), sort_keys=True),
            "prompts_sha256": self.prompts_sha256,
            "readouts": str(self.readouts),
            "config_json": json.dumps(asdict(self.config), sort_keys=True),
        }
        files.write_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> LayerMap:
        """Read a layer map back, bit for bit.

        Raises:
            FileFormatError: The file is missing, truncated, or holds something else.
        """
        tensors, header = files.read_tensors(path)
        version = header.get("format_version")
        if header.get("format") != "educe.atlas" or version not in READABLE:
            raise FileFormatError(f"{path} is no layer map that this educe reads")
        try:
            return cls(
                model=header["model"],
                model_parts=json.loads("{}" if version == "1" else header["model_parts_json"]),
                prompts_sha256=header["prompts_sha256"],
                config=LayerMapConfig(**read_object(header["config_json"])),
                readouts=int(header["readouts"]),
                norms=tensors["norms"],
                pairs=tuple(Pair(*pair) for pair in tensors["pairs"].tolist()),
                sigma=tensors["sigma"],
                vectors=tensors["vectors"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def grid(
    depth: int,
    sources: Collection[int] | None = None,
    targets: Collection[int] | None = None,
) -> list[Pair]:
    """Return all pairs of the given layers, or of all layers, in which the target is above."""
    return [
        Pair(s, t)
        for s, t in itertools.combinations(range(depth), 2)
        if (sources is None or s in sources) and (targets is None or t in targets)
    ]
