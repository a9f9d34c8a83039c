"""Surveying: the layer map of some pairs of layers, computed source after source.

After Ayyub, "Power steering" (2026), who iterates on every pair alone. Here work is shared: one
forward-mode pass from a source gives ``J_t V`` for *all* its targets ``t``, and one backward pass
the sum of all ``J_tᵀ W_t``. So targets at like distances share a block Krylov space,

    V ← QR of what  Σ_t J_tᵀ J_t V / σ_t²  adds to the blocks so far,

and each target has its own Rayleigh-Ritz in it. That takes passes by the number of sources, not of
pairs. Singular values found so are lower bounds; `docs/layer-map.md` says how near they come.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.errors import LayerError, RunError
from educe.forward.slice import Slice
from educe.forward.slice.norms import median_norm
from educe.layer_map import LayerMap, LayerMapConfig, Pair
from educe.methods.power import beyond
from educe.model.batch import PromptBatch
from educe.model.digest import others
from educe.model.language import LanguageModel
from educe.orthogonal import orthonormal, upright
from educe.perturbation.origin import digest
from educe.progress import Reporter

#: An estimate of the cost is from products with so many blocks.
TRIED = 4


class Cost(NamedTuple):
    """What a layer map will take.

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


def cost(
    lm: LanguageModel, batch: PromptBatch, pairs: Sequence[Pair], config: LayerMapConfig
) -> Cost:
    """Estimate what a layer map will take, from products with the Jacobian of a few blocks."""
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
    config: LayerMapConfig | None = None,
    *,
    begun: LayerMap | None = None,
) -> Iterator[LayerMap]:
    """Give the layer map as far as it is known, each time that all targets of a source are.

    Args:
        lm: The model.
        batch: The prompts.
        pairs: The pairs that are wanted.
        config: How.
        begun: A layer map to go on with; what it has is not computed again.

    Raises:
        LayerError: No pair is wanted.
        RunError: The layer map to go on with is of another model, other prompts or other settings.
    """
    config = config or LayerMapConfig()
    if not pairs:
        raise LayerError("no pair of layers: a target lies above its source")
    layer_map = begun or _empty(lm, batch, config)
    if not layer_map.model_parts:
        raise RunError(
            f"the layer map begun with has no digest of its model {layer_map.model}: begin anew"
        )
    if changed := others(layer_map.model_parts, lm.parts):
        raise RunError(
            f"the layer map begun with is of another model ({layer_map.model}) than {lm.name} is "
            f"now: {' and '.join(changed)} differ; begin anew"
        )
    if (layer_map.prompts_sha256, layer_map.config) != (digest(batch.texts), config):
        raise RunError(
            f"the layer map begun with is of {layer_map.model} with other prompts or settings: "
            "begin anew"
        )
    for source, targets in _by_source(p for p in pairs if p not in layer_map.pairs).items():
        part = _slice(lm, batch, source, targets, config)
        draw = torch.Generator().manual_seed(config.seed)
        for near in _octaves(source, targets):
            sigma, vectors = _decomposed(part, near, config, draw)
            layer_map = replace(
                layer_map,
                pairs=(*layer_map.pairs, *(Pair(source, target) for target in near)),
                sigma=torch.cat([layer_map.sigma, sigma.float().cpu()]),
                vectors=torch.cat([layer_map.vectors, vectors.float().cpu()]),
            )
        yield layer_map


def surveyed(
    lm: LanguageModel,
    batch: PromptBatch,
    pairs: Sequence[Pair],
    config: LayerMapConfig,
    path: Path,
    reporter: Reporter,
) -> LayerMap:
    """Return the layer map in a file once it has all pairs; save it source by source.

    Args:
        lm: The model.
        batch: The prompts.
        pairs: The pairs that are wanted.
        config: How.
        path: The file; a layer map in it is gone on with.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        FileFormatError: The file holds something else.
        RunError: Its layer map is of another model, other prompts or other settings.
    """
    begun = LayerMap.load(path) if path.exists() else None
    missing = [pair for pair in pairs if begun is None or pair not in begun.pairs]
    if missing:
        reporter.say(f"{len(missing)} pairs, {cost(lm, batch, missing, config).told}")
        with reporter.stage("layer map", len(missing), "pairs") as step:
            done = len(pairs) - len(missing)
            for known in survey(lm, batch, pairs, config, begun=begun):
                files.make_folder(path.parent)  # not before there is something
                known.save(path)
                step(len(known.pairs) - done)
                done = len(known.pairs)
    return LayerMap.load(path)


def _decomposed(
    part: Slice, targets: Sequence[int], config: LayerMapConfig, draw: torch.Generator
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
    return sigma, upright(turn[:, :, -1] @ basis)


def _slice(
    lm: LanguageModel,
    batch: PromptBatch,
    source: int,
    targets: Sequence[int],
    config: LayerMapConfig,
) -> Slice:
    return Slice(
        lm,
        batch,
        source=source,
        target=max(targets),
        positions=config.positions,
        readout=config.readout,
    )


def _columns(part: Slice, config: LayerMapConfig) -> int:
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


def _empty(lm: LanguageModel, batch: PromptBatch, config: LayerMapConfig) -> LayerMap:
    """Return a layer map without pairs: with what is known of the layers alone."""
    # Any slice says which tokens count and which are read.
    part = _slice(lm, batch, 0, [1], config)
    sizes: list[list[Tensor]] = [[] for _ in lm.blocks]
    for row in range(len(batch)):
        with lm.watching(range(lm.depth)) as streams:
            lm.forward(batch.ids[row : row + 1], batch.mask[row : row + 1])
        for layer, stream in streams.items():
            sizes[layer].append(stream[0].float().norm(dim=-1, keepdim=True))
    return LayerMap(
        model=lm.name,
        model_parts=dict(lm.parts),
        prompts_sha256=digest(batch.texts),
        config=config,
        readouts=part.readouts,
        norms=torch.tensor([median_norm(torch.stack(own), part.counted) for own in sizes]),
        pairs=(),
        sigma=torch.zeros(0, config.top),
        vectors=torch.zeros(0, lm.width),
    )
