"""Atlas: how strongly every layer drives every later one, for all pairs of source and target.

For each pair the top singular values of the Jacobian, its top right singular vector, and what
follows from them. After Ayyub, "Power steering" (2026), who iterates on every pair alone. Here work
is shared: one forward-mode pass from a source gives ``J_t V`` for *all* its targets ``t``, and one
backward pass the sum of all ``J_tᵀ W_t``. So targets at like distances share a block Krylov space,

    V ← QR of what  Σ_t J_tᵀ J_t V / σ_t²  adds to the blocks so far,

and each target has its own Rayleigh-Ritz in it. That takes passes by the number of sources, not of
pairs. Singular values found so are lower bounds; `docs/atlas.md` says how near they come.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.discover.linear import orthonormal
from educe.discover.power import beyond
from educe.errors import FileFormatError, LayerError, RunError
from educe.model import LanguageModel, PromptBatch
from educe.perturb import digest
from educe.slice import Slice

FORMAT_VERSION = "1"

#: Its file in the folder of a run.
ATLAS = "atlas.safetensors"

#: Where layers are chosen from, as shares of the depth: the range in which published searches that
#: found something were made. Nearer than `APART` a target is driven by what single blocks do.
SOURCES, TARGETS, APART = (0.2, 0.5), (0.5, 0.9), 0.15
#: What counts as nearly as good as the best, when a nearer target is.
NEARLY = 0.95
#: An estimate of the cost is from products with so many blocks.
TRIED = 4
#: From so many sources, at most, a choice is made cheaply.
FEW = 8


class Pair(NamedTuple):
    """A source and a target."""

    source: int
    target: int


@dataclass(frozen=True)
class AtlasConfig:
    """Settings of an atlas.

    Attributes:
        top: Singular values kept for each pair.
        padding: Columns of a block beyond these.
        products: Blocks of the Krylov space, each multiplied with the Jacobians.
        positions: Tokens that are perturbed (see `educe.positions`).
        readout: Prompt tokens that are read.
        seed: Of the first blocks.
    """

    top: int = 4
    padding: int = 2
    products: int = 4
    positions: str = "all"
    readout: str = "last:3"
    seed: int = 0


#: For a choice: two thirds of the work of the defaults.
CHEAP = AtlasConfig(top=2, padding=2)


@dataclass(frozen=True)
class Atlas:
    """What is known of some pairs.

    Attributes:
        model: The model.
        prompts_sha256: Digest of the rendered prompts.
        config: How it was made.
        readouts: How many positions are read, over all prompts.
        norms: Mean norm of the stream at each layer, the first token of each prompt left out.
        pairs: The pairs.
        sigma: Top singular values of the Jacobian of all read-out positions, ``[pairs, top]``.
        vectors: Top right singular vector, ``[pairs, width]``.
    """

    model: str
    prompts_sha256: str
    config: AtlasConfig
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
        shares of the mean norm of the stream, so that pairs can be compared.
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

    def select(self, pairs: Collection[Pair]) -> Atlas:
        """Return what is known of some pairs, those of them that are here."""
        at = [i for i, pair in enumerate(self.pairs) if pair in pairs]
        kept = tuple(self.pairs[i] for i in at)
        return replace(self, pairs=kept, sigma=self.sigma[at], vectors=self.vectors[at])

    def save(self, path: str | Path) -> None:
        """Write the atlas to one safetensors file, whole or not at all."""
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
            "prompts_sha256": self.prompts_sha256,
            "readouts": str(self.readouts),
            "config_json": json.dumps(asdict(self.config), sort_keys=True),
        }
        files.write_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> Atlas:
        """Read an atlas back, bit for bit.

        Raises:
            FileFormatError: The file is missing, truncated, or holds something else.
        """
        tensors, header = files.read_tensors(path)
        if (header.get("format"), header.get("format_version")) != ("educe.atlas", FORMAT_VERSION):
            raise FileFormatError(f"{path} is no atlas that this educe reads")
        try:
            return cls(
                model=header["model"],
                prompts_sha256=header["prompts_sha256"],
                config=AtlasConfig(**json.loads(header["config_json"])),
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


def promising(depth: int, source: int | None = None, target: int | None = None) -> list[Pair]:
    """Return the pairs that layers are chosen from.

    Args:
        depth: Number of blocks.
        source: The source, where it is given.
        target: The target, where it is given; the others are there to compare with.

    Raises:
        LayerError: There is no source for the target, or no target for the source.
    """
    low, high = (round(share * depth) for share in SOURCES)
    sources = range(low, high) if source is None else [source]
    low, high = (round(share * depth) for share in TARGETS)
    targets = {*range(low, high), *([] if target is None else [target])}
    pairs = [
        pair
        for pair in grid(depth, sources, targets)
        if pair.target - pair.source >= APART * depth or (source, target) == pair
    ]
    if not any(target in (None, pair.target) for pair in pairs):
        raise LayerError(
            f"no layer can be chosen for source {source} and target {target} in {depth} blocks: "
            f"sources are looked for between {SOURCES[0]:.0%} and {SOURCES[1]:.0%} of the depth, "
            f"targets between {TARGETS[0]:.0%} and {TARGETS[1]:.0%}; give both layers"
        )
    return pairs


def thinned(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs of a few sources, evenly spaced; targets of a source cost little."""
    sources = sorted({pair.source for pair in pairs})
    kept = sources[:: -(-len(sources) // FEW)]
    return [pair for pair in pairs if pair.source in kept]


class Choice(NamedTuple):
    """A pair of layers, and why this one."""

    source: int
    target: int
    why: str


def choose(atlas: Atlas, source: int | None = None, target: int | None = None) -> Choice:
    """Choose layers to search between.

    The source whose top direction stands out most and stays the same from wherever one looks: the
    largest product of spectral gap and steadiness among `promising` pairs. There what is found
    depends least on choices that nobody has reasons for: the rotation of singular vectors among
    each other, and the target. Of its targets with nearly that product, the nearest, since search
    pays for every block between. It says nothing of how much is hidden.

    Args:
        atlas: What is known, of some promising pairs at least.
        source: The source, where it is given.
        target: The target, where it is given.

    Raises:
        LayerError: The atlas knows no promising pair.
    """
    looked = atlas.select(promising(atlas.depth, source, target))
    rated = [
        (float(gap * steady), i)
        for i, (gap, steady) in enumerate(zip(looked.gap, looked.steadiness, strict=True))
        if target in (None, looked.pairs[i].target)
    ]
    if not rated:
        raise LayerError("the atlas has no pair of layers to choose from: survey promising ones")
    most, top = max(rated)
    best = min(
        (i for rate, i in rated if rate >= NEARLY * most),
        key=lambda i: (looked.pairs[i].source != looked.pairs[top].source, looked.pairs[i].target),
    )
    pair = looked.pairs[best]
    return Choice(
        *pair,
        why=f"of {len(rated)} pairs looked at, {pair.source} to {pair.target} has the direction "
        "that stands out most steadily, or nearly so with fewer blocks between: the next singular "
        f"value is {looked.gap[best]:.0%} lower, its mean cosine with what other targets see is "
        f"{looked.steadiness[best]:.2f}, and a small dose of it arrives {looked.gain[best]:.1f} "
        "times as large; where most is hidden this does not tell",
    )


class Cost(NamedTuple):
    """What an atlas will take.

    Attributes:
        seconds: Estimated from one small product.
        passes: Passes of a block of the model over all prompts and columns, forward and backward.
    """

    seconds: float
    passes: int

    @property
    def told(self) -> str:
        """The cost in words."""
        minutes, seconds = divmod(round(self.seconds), 60)
        time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        return f"about {time}, {self.passes} passes of a block"


def cost(lm: LanguageModel, batch: PromptBatch, pairs: Sequence[Pair], config: AtlasConfig) -> Cost:
    """Estimate what an atlas will take, from products with the Jacobian of a few blocks."""
    through = sum(
        max(near) - source
        for source, targets in _by_source(pairs).items()
        for near in _octaves(source, targets)
    )
    began = time.perf_counter()
    middle = (lm.depth - 1) // 2
    layers = [min(middle + TRIED, lm.depth - 1)]
    part = _slice(lm, batch, middle, layers, config)
    setting_up = time.perf_counter() - began
    block = part.kind.draw(_columns(part, config), torch.Generator().manual_seed(0))
    block = block.to(part.device, part.work_dtype)
    forward, backward = [], []
    for _ in range(2):  # the first time, more is done than later
        began = time.perf_counter()
        pushed = part.push(block, layers)
        half = time.perf_counter()
        part.pull(pushed, layers)
        forward.append(half - began)
        backward.append(time.perf_counter() - half)
    products = config.products
    work = (products * min(forward) + (products - 1) * min(backward)) / (layers[0] - middle)
    return Cost(setting_up * len(_by_source(pairs)) + work * through, (2 * products - 1) * through)


def survey(
    lm: LanguageModel,
    batch: PromptBatch,
    pairs: Sequence[Pair],
    config: AtlasConfig | None = None,
    *,
    begun: Atlas | None = None,
) -> Iterator[Atlas]:
    """Give the atlas as far as it is known, each time that all targets of a source are.

    Args:
        lm: The model.
        batch: The prompts.
        pairs: The pairs that are wanted.
        config: How.
        begun: An atlas to go on with; what it has is not computed again.

    Raises:
        LayerError: No pair is wanted.
        RunError: The atlas to go on with is of another model, other prompts or other settings.
    """
    config = config or AtlasConfig()
    if not pairs:
        raise LayerError("no pair of layers: a target lies above its source")
    atlas = begun or _empty(lm, batch, config)
    theirs = (atlas.model, atlas.prompts_sha256, atlas.config)
    if theirs != (lm.name, digest(batch.texts), config):
        raise RunError(
            f"the atlas begun with is of {atlas.model} with other prompts or settings: begin anew"
        )
    for source, targets in _by_source(p for p in pairs if p not in atlas.pairs).items():
        part = _slice(lm, batch, source, targets, config)
        draw = torch.Generator().manual_seed(config.seed)
        for near in _octaves(source, targets):
            sigma, vectors = _decomposed(part, near, config, draw)
            atlas = replace(
                atlas,
                pairs=(*atlas.pairs, *(Pair(source, target) for target in near)),
                sigma=torch.cat([atlas.sigma, sigma.float().cpu()]),
                vectors=torch.cat([atlas.vectors, vectors.float().cpu()]),
            )
        yield atlas


def surveyed(
    lm: LanguageModel,
    batch: PromptBatch,
    pairs: Sequence[Pair],
    config: AtlasConfig,
    path: Path,
    reporter: Any,
) -> Atlas:
    """Return the atlas in a file once it has all pairs; says what is missing, and saves it so far.

    Args:
        lm: The model.
        batch: The prompts.
        pairs: The pairs that are wanted.
        config: How.
        path: The file; an atlas in it is gone on with.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        FileFormatError: The file holds something else.
        RunError: Its atlas is of another model, other prompts or other settings.
    """
    begun = Atlas.load(path) if path.exists() else None
    missing = [pair for pair in pairs if begun is None or pair not in begun.pairs]
    if missing:
        reporter.say(f"{len(missing)} pairs, {cost(lm, batch, missing, config).told}")
        with reporter.stage("atlas", len(missing), "pairs") as step:
            done = len(pairs) - len(missing)
            for known in survey(lm, batch, pairs, config, begun=begun):
                known.save(path)
                step(len(known.pairs) - done)
                done = len(known.pairs)
    return Atlas.load(path)


def _decomposed(
    part: Slice, targets: Sequence[int], config: AtlasConfig, draw: torch.Generator
) -> tuple[Float[Tensor, "t k"], Float[Tensor, "t d"]]:
    """Return top singular values, and the top right singular vector, of each target."""
    drawn = part.kind.draw(_columns(part, config), draw)
    basis = block = orthonormal(drawn.to(part.device, part.work_dtype))
    known = part.rest.new_zeros(len(targets), 0, part.rest.numel())
    for product in range(config.products):
        pushed = part.push(block, targets)
        known = torch.cat([known, pushed.flatten(2)], 1)
        square, turn = torch.linalg.eigh(known @ known.mT)
        if product == config.products - 1:
            break
        # Each target counts alike, however long its stream is.
        pulled = part.pull(pushed / square[:, -1, None, None, None, None], targets)
        block = beyond(pulled, basis)
        basis = torch.cat([basis, block])
        if not len(block):  # the space is complete
            break
    sigma = square.flip(1)[:, : config.top].clamp(min=0).sqrt()
    return sigma, turn[:, :, -1] @ basis


def _slice(
    lm: LanguageModel, batch: PromptBatch, source: int, targets: Sequence[int], config: AtlasConfig
) -> Slice:
    return Slice(
        lm,
        batch,
        source=source,
        target=max(targets),
        positions=config.positions,
        readout=config.readout,
    )


def _columns(part: Slice, config: AtlasConfig) -> int:
    return min(config.top + config.padding, part.width)


def _by_source(pairs: Iterable[Pair]) -> dict[int, list[int]]:
    """Return the targets of each source, in order."""
    return {
        source: [pair.target for pair in own]
        for source, own in itertools.groupby(sorted(pairs), key=lambda pair: pair.source)
    }


def _octaves(source: int, targets: Sequence[int]) -> list[list[int]]:
    """Group targets by distance: 1, 2 to 3, 4 to 7, and so on.

    What drives the next blocks is not what drives far ones, and near ones cost little.
    """
    return [
        list(near)
        for _, near in itertools.groupby(targets, key=lambda target: (target - source).bit_length())
    ]


def _empty(lm: LanguageModel, batch: PromptBatch, config: AtlasConfig) -> Atlas:
    """Return an atlas without pairs: with what is known of the layers alone."""
    # Any slice says which tokens count and which are read.
    part = _slice(lm, batch, 0, [1], config)
    norms: list[list[Tensor]] = [[] for _ in lm.blocks]
    for row in range(len(batch)):
        with lm.watching(range(lm.depth)) as streams:
            lm.forward(batch.ids[row : row + 1], batch.mask[row : row + 1])
        for layer, stream in streams.items():
            norms[layer].append(stream[0].float().norm(dim=-1)[part.counted[row].to(stream.device)])
    return Atlas(
        model=lm.name,
        prompts_sha256=digest(batch.texts),
        config=config,
        readouts=part.readouts,
        norms=torch.stack([torch.cat(own).mean().cpu() for own in norms]),
        pairs=(),
        sigma=torch.zeros(0, config.top),
        vectors=torch.zeros(0, lm.width),
    )
