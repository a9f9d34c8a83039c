"""How exact `power` and the layer map are, and what a search inside bands is worth.

    python -m studies.spectrum [--n 64] [--source 0.33] [--target 0.6]    # docs/methods/power.md
    python -m studies.spectrum --layer-map 9,18                               # docs/layer-map.md
    python -m studies.spectrum --quick                                    # both, soon

The truth is the eigendecomposition, in double precision, of the product of ``JᵀJ`` with every unit
vector, and for the layer map the decomposition of every target's whole Jacobian. Block power
iteration as published, which reads the last block alone, is run on that matrix.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

import educe
from benchmarks import quick
from educe.layer_map import LayerMapConfig, grid
from educe.layer_map.choice import CHEAP
from educe.layer_map.survey import survey
from educe.methods import power
from educe.methods.power import PowerConfig
from educe.methods.state import State

PROMPT = "What is the code?"
PLAIN = "The code that opens the vault is"


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--n", type=int, default=64)
    ask.add_argument("--source", type=float, default=0.33)
    ask.add_argument("--target", type=float, default=0.6)
    ask.add_argument("--steps", type=int, default=8, help="of the search inside bands")
    ask.add_argument("--starts", type=int, nargs="+", default=[1, 4], help="of that search")
    ask.add_argument("--layer-map", help="sources, with commas, whose targets are all decomposed")
    options = quick.parsed(ask, argv)
    torch.set_num_threads(1)
    if options.quick:
        options.n, options.layer_map = 16, options.layer_map or "2"
    lm = quick.model(quick=options.quick, device="cpu", dtype=torch.float32)
    for source in (options.layer_map or "").split(",") if options.layer_map else ():
        layer_map(lm, int(source))
    if options.layer_map and not options.quick:
        return
    part = educe.Slice(lm, lm.encode([PROMPT]), source=options.source, target=options.target)
    print(f"layers {part.source} to {part.target}, {part.batch.lengths[0]} tokens")
    eye = torch.eye(part.width)
    began = time.monotonic()
    gram = torch.cat([part.gram(torch.zeros_like(some), some) for some in eye.split(48)]).double()
    print(f"dense: {time.monotonic() - began:.0f} s")
    exactness(part, gram, options.n)
    radius = educe.calibrate(part).radius / 2
    for starts in options.starts:
        bands(part, options.n, radius, PowerConfig(search=options.steps, starts=starts))


def layer_map(lm: educe.LanguageModel, source: int) -> None:
    """Print how near the layer map comes, over all targets of a source."""
    batch = lm.encode([PLAIN], chat=False)
    part = educe.Slice(lm, batch, source=source, target=-1)
    targets = list(range(source + 1, lm.depth))
    began = time.monotonic()
    rows = [part.push(some, targets).flatten(2) for some in torch.eye(part.width).split(96)]
    values, vectors = [], []
    for jacobian in torch.cat(rows, 1).double():
        square, turn = torch.linalg.eigh(jacobian @ jacobian.T)
        values.append(square.flip(0)[:2].sqrt())
        vectors.append(turn[:, -1])
    true, top = torch.stack(values), torch.stack(vectors)
    print(f"source {source}, {batch.lengths[0]} tokens, dense {time.monotonic() - began:.0f} s")
    for config in (LayerMapConfig(), CHEAP):
        began = time.monotonic()
        *_, found = survey(lm, batch, grid(lm.depth, [source]), config)
        off = 1 - found.sigma[:, 0] / true[:, 0]
        gap = (found.gap - (1 - true[:, 1] / true[:, 0])).abs()
        cosine = (found.vectors * top).sum(1).abs()
        print(
            f"{config.top + config.padding} columns, {config.products} products, "
            f"{time.monotonic() - began:.0f} s: sigma too low by {off.mean():.1%} (at most "
            f"{off.max():.1%}), gap off by {gap.mean():.3f} ({gap.max():.3f}), cosine of the top "
            f"vector {cosine.median():.3f} (at least {cosine.min():.2f})",
            flush=True,
        )


def exactness(part: educe.Slice, gram: Tensor, n: int) -> None:
    """Print how near the vectors are to the true ones after each product."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    true = vectors.T.flip(0)[: n // 2]
    config = PowerConfig()
    print("singular values:", *(f"{v:.2f}" for v in values.flip(0)[: n // 2].sqrt().tolist()))
    state = power.start(part, n, 1.0, config, torch.Generator().manual_seed(0))
    block = state["basis"].double()
    done, seconds = False, 0.0
    while not done:
        began = time.monotonic()
        state, progress = power.step(part, 1.0, config, state)
        seconds += time.monotonic() - began
        done = progress.done
        found = power.spectrum(state, config)
        ours = (found.v.double() * true).sum(1).abs()
        _, turn = torch.linalg.eigh(block @ gram @ block.T)
        theirs = ((turn.T @ block).flip(0)[: n // 2] * true).sum(1).abs()
        block = torch.linalg.qr((block @ gram).T).Q.T
        shown = [
            f"{name} {int((cosines > 0.99).sum())} of {len(true)} (worst {cosines.min():.4f})"
            for name, cosines in (("here", ours), ("last block", theirs))
        ]
        print(
            f"{len(state['curve'])} products, {seconds:.0f} s, cosine above 0.99:",
            ", ".join(shown),
            f"residual {found.residual.max():.4f}",
            flush=True,
        )


def bands(part: educe.Slice, n: int, radius: float, config: PowerConfig) -> None:
    """Print the largest effect in each band: of singular vectors, searched, and by chance."""
    draw = torch.Generator().manual_seed(0)
    state, done = power.start(part, n, radius, config, draw), False
    while not done:
        state, progress = power.step(part, radius, config, state)
        done = progress.done
    without = State({name: values for name, values in state.items() if name != "turned"})
    plain = power.finish(part, radius, config, without)
    turned = power.finish(part, radius, config, state)
    found = power.spectrum(state, config)
    for band in found.band.unique().tolist():
        inside = found.v[found.band == band]
        if len(inside) < 2:
            continue
        # As many effects as the search looks at: each step two passes of the whole band.
        looked = 2 * config.search * config.starts * len(inside)
        chance = normalize(torch.randn(looked, len(inside), generator=draw), dim=1)
        sizes = part.effect(radius * chance @ inside).norm(dim=1)
        best = [float(f["score.effect"][f["score.band"] == band].max()) for f in (plain, turned)]
        print(
            f"{config.starts} starts, band of {len(inside)}: singular {best[0]:.1f}, "
            f"searched {best[1]:.1f}, "
            f"best of {len(chance)} random in the band {float(sizes.max()):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
