"""The speed on a GPU: a model of the shape of a 7B model, in bfloat16, with random weights.

    python -m benchmarks.gpu [--quick]

What is published: 512 DCT factors for one prompt of 27 tokens, 10 iterations between layers 10 and
20, take 37.5 s on an H100 in single precision, and 463 s for 12 prompts (Mack & Turner 2024); CPE
with 10 prompts took 1027 s on a consumer GPU. Speed does not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console

from benchmarks import quick
from benchmarks.measuring import Section, flops, in_turns, machine, matmul_rates, show
from educe.forward.slice import Slice
from educe.methods import METHODS, prepared, search
from educe.model.language import LanguageModel


class Shape(NamedTuple):
    """Of the model and of what is run; Qwen1.5-7B's by default."""

    hidden: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 151936
    source: int = 10
    target: int = 20
    n: int = 512
    tokens: int = 27
    iterations: int = 10


TINY = Shape(32, 48, 8, 4, 262, 1, 6, 8, 9, 2)

PUBLISHED = {
    ("dct", 1): "37.5 s on an H100, float32",
    ("dct", 12): "463 s on an H100, float32",
    ("cpe", 10): "1027 s on a consumer GPU",
}


def model(shape: Shape, device: str) -> LanguageModel:
    """Make the model on the device itself."""
    config = transformers.Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
    )
    with torch.device(device):
        hf = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return LanguageModel(hf, None, name="random weights of 7B shape")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print.

    Raises:
        SystemExit: There is no GPU, and it is not the short form.
    """
    asked = quick.parsed(argparse.ArgumentParser(description=__doc__), argv)
    if not (asked.quick or torch.cuda.is_available()):
        raise SystemExit("there is no GPU here: --quick runs a tiny model on the processor")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = TINY if asked.quick else Shape()
    lm = model(shape, device)
    sections = [searches(lm, shape), chunks(lm, shape)]
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    where = f"{name}; {machine(torch.get_num_threads(), 1, None)}"
    show(sections, [], where, Console(width=140))


def slice_of(lm: LanguageModel, shape: Shape, prompts: int, **options: Any) -> Slice:
    """Return the slice for prompts of random tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocabulary, (prompts, shape.tokens), generator=draw).tolist()
    batch = lm.pad(ids, [" ".join(map(str, row)) for row in ids])
    return Slice(lm, batch, source=shape.source, target=shape.target, **options)


def searches(lm: LanguageModel, shape: Shape) -> Section:
    """Time whole searches."""
    table = Section(
        f"{shape.n} perturbations, prompts of {shape.tokens} tokens, {shape.iterations} "
        f"iterations, layers {shape.source} to {shape.target}",
        ["method", "prompts", "time", "peak memory", "published"],
    )
    for (method, prompts), published in PUBLISHED.items():
        if method not in METHODS:
            continue
        part = slice_of(lm, shape, prompts)
        config = METHODS[method].config(iterations=shape.iterations)
        radius = 0.3 * prepared(part, method, n=shape.n, config=config).unit
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        run = partial(search, part, method, n=shape.n, radius=radius, config=config)
        seconds, _ = in_turns({"": run}, 1)
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        table.rows.append(
            [method, str(prompts), f"{seconds[''][0]:.1f} s", f"{peak:.1f} GB", published]
        )
    table.notes.append("bfloat16, random weights; the model itself is in the peak.")
    return table


def chunks(lm: LanguageModel, shape: Shape) -> Section:
    """Compare sizes of a chunk, by the time of one iteration."""
    table = Section(
        "One iteration of DCT by tokens that run together",
        ["tokens", "time", "TFLOP/s", "share of the matmul rate"],
    )
    whole = slice_of(lm, shape, 1)
    theta = 0.3 * whole.unit * whole.kind.draw(shape.n, torch.Generator().manual_seed(0))
    theta = theta.to(whole.device)
    cases: dict[str, Callable[[], Any]] = {}
    for tokens in (2048, 4096, 8192, 16384, 32768):
        part = slice_of(lm, shape, 1, tokens_per_chunk=tokens)
        cases[str(tokens)] = partial(part.vjp, theta, theta)
        cases[str(tokens)]()
    work = flops(cases["16384"]) / 1e12
    seconds, _ = in_turns(cases, 3)
    for size, times in seconds.items():
        took = statistics.median(times)
        forward, backward = matmul_rates(whole, min(int(size), shape.n * shape.tokens), 3)
        best = 2 / (1 / forward + 1 / backward) / 1e3
        table.rows.append(
            [size, f"{took:.2f} s", f"{work / took:.1f}", f"{work / took / best:.0%}"]
        )
    table.notes.append(
        f"{work:.1f} TFLOP. A chunk is no larger than {shape.n * shape.tokens} tokens here."
    )
    return table


if __name__ == "__main__":
    main()
