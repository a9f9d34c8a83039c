"""What every family of methods costs at the same budget, and how the cost of one grows.

A pass is one row, a perturbation on a prompt, through one block, forward or backward. The budget
allows so many passes of each block of the slice for every perturbation that is asked for. Random
perturbations and noise have nothing to spend it on: they are measured once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import Section, counting, flops, in_turns, matmul_rates, spread
from educe.forward.slice import Slice
from educe.methods import METHODS, prepared, search
from educe.methods.retain import retain_prompts, with_retain_prompts
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel

DOSE = 0.3


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        n: Perturbations.
        budget: Passes through each block of the slice for each of them.
        held: Perturbations when memory is measured: about one chunk.
        source: Layer after which they are added.
        target: Layer that is read.
        repeats: Turns.
        few: Perturbations where something else grows.
        counts: Perturbations.
        prompts: Prompts.
        tokens: Tokens of the prompt.
        depths: Blocks in the slice.
        length: Tokens of a prompt where something else grows.
        usual: Blocks where something else grows.
        below: Layer after which they are added where something grows.
    """

    n: int = 16
    budget: int = 20
    held: int = 48
    source: int = 10
    target: int = 20
    repeats: int = 1
    few: int = 8
    counts: tuple[int, ...] = (8, 32, 128)
    prompts: tuple[int, ...] = (1, 4, 8)
    tokens: tuple[int, ...] = (16, 64, 256)
    depths: tuple[int, ...] = (4, 8, 16)
    length: int = 32
    usual: int = 8
    below: int = 5


QUICK = Settings(
    n=4, budget=4, held=4, source=1, target=6,
    few=2, counts=(2, 4), prompts=(1, 2), tokens=(8, 16), depths=(2, 4), usual=2, below=1,
)  # fmt: skip


def config(method: str, n: int, budget: int) -> dict[str, Any]:
    """Return the settings with which a method makes about ``budget`` passes for each of ``n``."""
    rounds = max(1, budget // 2)  # forward and backward
    settings: dict[str, dict[str, Any]] = {
        "cpe": {"iterations": rounds},
        "dct": {"iterations": rounds},
        # A row of the Jacobian is a pass forward and one backward.
        "dct-linear": {"mode": "projected", "projections": n * rounds},
        # One direction serves two perturbations; an iteration is second derivatives of it.
        "dct-quadratic": {"iterations": max(1, budget // 5)},
        "lora": {"steps": rounds, "patience": rounds},
        "melbo": {"steps": rounds, "patience": rounds},
        # So does a vector here, before it goes through one more product with other prompts.
        "generalised": {
            "subspace": n,
            "iterations": max(1, rounds - 1),
            "tolerance": 0.0,
        },
        # So does a vector here, and it goes through a product with J and one with its transpose.
        "power": {"iterations": rounds, "tolerance": 0.0},
        # All words are tried, in no more parts than there are passes.
        "tokens": {"steps": min(METHODS["tokens"].config().steps, n * budget)},
    }
    return settings.get(method, {})


def slice_for(method: str, part: Slice) -> Slice:
    """Return the slice as a method needs it: with another prompt beside it, if it compares."""
    if METHODS[method].retain != "needs":
        return part
    return with_retain_prompts(part, part.lm.encode(retain_prompts()[: len(part.batch)]))


def find(method: str, part: Slice, n: int, budget: int) -> None:
    """Let a method search."""
    chosen = METHODS[method].config(**config(method, n, budget))
    unit = prepared(part, method, n=n, config=chosen).unit
    search(part, method, n=n, radius=DOSE * unit, config=chosen)


def in_memory(method: str, bench: Any) -> None:
    """Search with as little work as there can be, for its peak memory."""
    small = bench.settings.n < Settings.held
    settings = QUICK if small else Settings()
    part = Slice(bench.lm, bench.batch, source=settings.source, target=settings.target)
    find(method, slice_for(method, part), settings.held, 2)


def costs(
    lm: LanguageModel, batch: PromptBatch, settings: Settings, peak: Callable[[str], float]
) -> Section:
    """Measure every family at the same budget.

    Args:
        lm: The model.
        batch: The prompt.
        settings: What is run.
        peak: Tells the bytes above the loaded model of a method, in a process of its own.
    """
    s = settings
    part = Slice(lm, batch, source=s.source, target=s.target)
    tokens, depth = batch.ids.shape[1], s.target - s.source
    rows = s.n * tokens
    products: list[tuple[float, float]] = []
    cases: dict[str, Callable[[], Any]] = {
        method: partial(find, method, slice_for(method, part), s.n, s.budget) for method in METHODS
    }
    timed = cases | {"": lambda: products.append(matmul_rates(part, rows, 3))}
    seconds, _ = in_turns(timed, s.repeats)
    forward, backward = (statistics.median(rates) for rates in zip(*products, strict=True))
    rate = 2 / (1 / forward + 1 / backward)
    table = Section(
        f"Every family: {s.n} perturbations at a budget of {s.budget} passes each",
        ["", "a perturbation", "passes of a block", "GFLOP", "share of the matmul rate", "memory"],
    )
    for method, case in cases.items():
        with counting(lm) as passes:
            work = flops(case) / 1e9
        took = statistics.median(seconds[method])
        ahead, back = (passes[way] / s.n / depth for way in ("forward", "backward"))
        table.rows.append(
            [
                method,
                f"{took / s.n * 1e3:.0f} ms",
                f"{ahead:.1f} forward, {back:.1f} backward",
                f"{work / s.n:.1f}",
                f"{work / took / rate:.0%}",
                f"{peak(method) / 1e9:.2f} GB",
            ]
        )
    table.notes.append(
        f"Source {s.source}, target {s.target}, one prompt of {tokens} tokens, radius {DOSE:g} of "
        f"the dose that is 1. Passes and GFLOP for each perturbation; passes are seen where a "
        "stream leaves a block, so of second derivatives, which go through the backward pass "
        "once more, not all are counted, while GFLOP has them. Matrix products alone: "
        f"{rate:.0f} GFLOP/s for forward and backward in equal parts. Memory: above the loaded "
        f"model, {s.held} perturbations, the shortest search."
    )
    return table


def growth(lm: LanguageModel, settings: Settings) -> Section:
    """Measure an iteration of DCT while one thing grows and the others stay."""
    s = settings
    draw = torch.Generator().manual_seed(0)
    table = Section(
        "How the cost of an iteration of DCT grows",
        ["", "", "time", "times the first", "its size times the first"],
    )

    def run(n: int, prompts: int, tokens: int, depth: int) -> Callable[[], Any]:
        ids = torch.randint(0, lm.config.vocab_size, (prompts, tokens), generator=draw)
        part = Slice(lm, lm.pad(ids.tolist()), source=s.below, target=s.below + depth)
        theta = DOSE * part.unit * part.kind.draw(n, draw).to(part.device)
        part.vjp(theta[:1], theta[:1])
        return lambda: part.vjp(theta, theta)

    usual = {"n": s.few, "prompts": 1, "tokens": s.length, "depth": s.usual}
    axes: dict[str, tuple[str, tuple[int, ...]]] = {
        "n": ("perturbations", s.counts),
        "prompts": ("prompts", s.prompts),
        "tokens": ("tokens", s.tokens),
        "depth": ("blocks", s.depths),
    }
    for axis, (label, sizes) in axes.items():
        cases = {str(size): run(**(usual | {axis: size})) for size in sizes}
        seconds, _ = in_turns(cases, max(3, s.repeats))
        first = min(seconds[str(sizes[0])])
        for size in sizes:
            took = seconds[str(size)]
            table.rows.append(
                [
                    label,
                    str(size),
                    spread(took),
                    f"{min(took) / first:.1f}",
                    f"{size / sizes[0]:.1f}",
                ]
            )
    table.notes.append(
        f"Where something else grows: {s.few} perturbations, one prompt of {s.length} tokens, "
        f"{s.usual} blocks. Random tokens. Ratios are of the fastest turns."
    )
    return table
