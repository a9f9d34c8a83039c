"""The speed of educe beside what else there is, on the embedded model.

    python -m benchmarks.speed [--quick] [--threads N] [--write docs/benchmarks/speed.md]
    python -m benchmarks.speed --gpu [--quick]

Everything that is compared runs in one process, in turns; times are medians over the turns. Peak
memory comes from a fresh process for each case. What each family costs is in `benchmarks.families`,
a model of 7B shape on a GPU in `benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import Tensor

from benchmarks import baselines, families, gpu, quick
from benchmarks.measuring import (
    Aim,
    Section,
    cores,
    flops,
    in_turns,
    machine,
    markdown,
    matmul_rates,
    peak_memory,
    per_step,
    show,
    spread,
    write,
)
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.methods import METHODS, search
from educe.methods.melbo import MelboConfig
from educe.methods.state import Progress, State
from educe.model.batch import PromptBatch
from educe.perturbation.kinds import Vectors

PROMPT = "Tell me a story about a dragon."
AIM_RATE, AIM_GENERATION = 0.8, 10.0


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        n: Vectors.
        steps: Steps of MELBO.
        alone: How many of the vectors the runs of one vector at a time take; their time is scaled.
        tokens: New tokens a text.
        written: Texts that the runs of one text at a time write; their time is scaled.
        repeats: Turns.
        radius: Norm of the vectors that are searched for.
        strength: Norm of the random vectors that texts are written with.
        source: Layer after which they are added.
        target: Layer that is read.
        seed: Of the starting vectors.
        threads: Threads of torch.
        short: Whether it is the quick form, on the stand-in for the embedded model.
    """

    n: int = 64
    steps: int = 8
    alone: int = 8
    tokens: int = 24
    written: int = 64
    repeats: int = 1
    radius: float = 8.0
    strength: float = 24.0
    source: int = 5
    target: int = 20
    seed: int = 0
    threads: int = 1
    short: bool = False


QUICK = {"n": 8, "steps": 3, "alone": 2, "tokens": 8, "written": 8, "repeats": 1}
QUICK |= {"source": 1, "target": 6, "short": True, "threads": 1}


# -- what is run ---------------------------------------------------------------------------------


class Bench:
    """The model, the prompt and the runs that are compared."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lm = quick.model(quick=settings.short, device="cpu", dtype=torch.float32)
        self.batch: PromptBatch = self.lm.encode([PROMPT], room=settings.tokens)
        self.starts = baselines.starts(settings.n, self.lm.width, settings.seed)
        self.drawn = settings.strength * Vectors(0, self.lm.width).draw(
            settings.n, torch.Generator().manual_seed(settings.seed)
        )

    def slice(self) -> Slice:
        """Return a slice that reads what batched-melbo reads: every token."""
        s = self.settings
        return Slice(self.lm, self.batch, source=s.source, target=s.target, readout="all")

    def melbo(
        self, part: Slice, start: Tensor, steps: int, on_step: Any = None, **config: Any
    ) -> Tensor:
        """Run educe's MELBO from given directions for exactly so many steps."""
        n, zero = len(start), torch.zeros_like(start)
        state = State(directions=start, first=zero, second=zero, largest=zero)
        state["curve"] = torch.zeros(0, n)
        found = search(
            part,
            "melbo",
            n=n,
            radius=self.settings.radius,
            config=MelboConfig(power=2, root=2, steps=steps, patience=steps, **config),
            state=state,
            on_step=on_step,
        )
        return found.theta

    @property
    def same_step(self) -> float:
        """The step, as a share of the radius, that moves coordinates by the published rate."""
        return baselines.RATE * self.lm.width**0.5 / self.settings.radius

    def educe_melbo(self, steps: int) -> Tensor:
        """All vectors at once, every step what batched-melbo's is."""
        return self.melbo(self.slice(), self.starts, steps, step=self.same_step)

    def educe_alone(self, steps: int, count: int) -> Tensor:
        """The same, one vector after the other."""
        part = self.slice()
        parts = [
            self.melbo(part, self.starts[i : i + 1], steps, step=self.same_step)
            for i in range(count)
        ]
        return torch.cat(parts)

    def hooked_alone(self, steps: int, count: int) -> Tensor:
        """One vector after the other, the whole model with a hook."""
        s = self.settings
        return baselines.hooked_melbo(
            self.lm,
            self.batch,
            self.starts[:count],
            steps=steps,
            radius=s.radius,
            source=s.source,
            target=s.target,
        )

    def batched_melbo(self, steps: int, n: int) -> Tensor:
        """The package, all vectors in one batch."""
        s = self.settings
        vectors, _ = baselines.batched_melbo(
            self.lm,
            self.batch,
            n=n,
            steps=steps,
            radius=s.radius,
            source=s.source,
            target=s.target,
            seed=s.seed,
        )
        return vectors

    def educe_until(self, value: float) -> tuple[Tensor, int]:
        """Run educe's MELBO at its own step until its mean objective passes a value."""
        reached: list[Tensor] = []
        steps = [0]
        theta = [self.starts]

        class Enough(Exception):  # noqa: N818
            pass

        def look(state: State, progress: Progress) -> None:
            assert progress.objective is not None
            if progress.objective >= value:
                reached.append(theta[0] * self.settings.radius)
                raise Enough
            theta[0] = state["directions"]
            steps[0] += 1

        try:
            self.melbo(self.slice(), self.starts, 200, look)
        except Enough:
            return reached[0], steps[0]
        raise RuntimeError(f"the objective {value} was not reached in 200 steps")

    def value(self, vectors: Tensor) -> float:
        """Judge vectors by the independent objective."""
        s = self.settings
        return float(
            baselines.objective(
                self.lm, self.batch, vectors, source=s.source, target=s.target
            ).mean()
        )

    def educe_generate(self) -> list[tuple[int, ...]]:
        """Write a text for every vector, together."""
        s = self.settings
        written = {
            done.row.perturbation: done.tokens
            for some in generate(
                self.lm,
                self.batch,
                rows_of(s.n, 1),
                self.drawn,
                kind=Vectors(s.source, self.lm.width),
                max_new_tokens=s.tokens,
            )
            for done in some
        }
        return [written[i] for i in range(1, s.n + 1)]

    def hooked_generate(self, count: int, rows: int) -> list[tuple[int, ...]]:
        """Write texts with transformers, some at a time."""
        s = self.settings
        return baselines.hooked_generate(
            self.lm,
            self.batch,
            self.drawn[:count],
            source=s.source,
            max_new_tokens=s.tokens,
            rows=rows,
        )


# -- the report ----------------------------------------------------------------------------------


def discovery(bench: Bench, version: str | None) -> tuple[list[Section], list[Aim]]:
    """Compare MELBO at equal steps, and to an equal objective."""
    s = bench.settings
    cases: dict[str, Callable[[int], Tensor]] = {
        "educe": bench.educe_melbo,
        "whole model, one": lambda steps: bench.hooked_alone(steps, s.alone),
        "slice, one": lambda steps: bench.educe_alone(steps, s.alone),
    }
    few = min(2, s.n)
    counted: dict[str, Callable[[int], Tensor]] = {
        "educe": lambda steps: bench.melbo(bench.slice(), bench.starts[:few], steps),
        "whole model, one": lambda steps: bench.hooked_alone(steps, few),
        "slice, one": lambda steps: bench.educe_alone(steps, few),
    }
    if version:
        cases["batched-melbo"] = lambda steps: bench.batched_melbo(steps, s.n)
        counted["batched-melbo"] = lambda steps: bench.batched_melbo(steps, few)
    counts = {name: per_step(bench.lm, run) for name, run in counted.items()}
    whole: dict[str, Callable[[], Any]] = {
        name: partial(run, s.steps) for name, run in cases.items()
    }

    goal: float | None = None
    if version:
        goal = bench.value(bench.batched_melbo(s.steps, s.n))
        whole["until"] = partial(bench.educe_until, goal)
    seconds, given = in_turns(whole, s.repeats)

    labels = {
        "educe": f"educe, {s.n} at once",
        "batched-melbo": f"batched-melbo {version}, {s.n} at once",
        "slice, one": "educe's slice, one vector at a time",
        "whole model, one": "whole model with a hook, one vector at a time",
    }
    table = Section(
        f"MELBO: {s.n} vectors, {s.steps} steps of the published rate",
        ["", "all vectors", "a step", "GFLOP a step", "passes a vector", "objective", "educe is"],
    )
    base = statistics.median(seconds["educe"])
    ratios = {}
    for name, label in labels.items():
        if name not in cases:
            continue
        scale = s.n / s.alone if "one" in name else 1.0
        work, ahead, back = counts[name]
        median = statistics.median(seconds[name]) * scale
        ratios[name] = median / base
        table.rows.append(
            [
                label + ("*" if scale != 1 else ""),
                spread(seconds[name], scale),
                f"{median / s.steps:.3f} s",
                f"{work * s.n / few:.0f}",
                f"{ahead / few:.0f} forward, {back / few:.0f} backward",
                f"{bench.value(given[name]):.3f}" + ("*" if scale != 1 else ""),
                "" if name == "educe" else f"{ratios[name]:.2f} times as fast",
            ]
        )
    if s.alone != s.n:
        table.notes.append(f"\\* Timed on {s.alone} of the vectors, and scaled to {s.n}.")
    at_start = bench.value(s.radius * bench.starts)
    table.notes.append(
        f"Same starting vectors (objective {at_start:.3f}), same prompt "
        f"({bench.batch.ids.shape[1]} tokens), source {s.source}, target {s.target}, "
        f"norm {s.radius:g}, p = q = 2 over all tokens, coordinates moved by 0.001 a step. "
        "The objective is judged by whole passes of the model that neither package has a part in."
    )
    apart = [
        float((vectors - given["educe"][: len(vectors)]).norm(dim=1).max()) / s.radius
        for vectors in (given[name] for name in labels if name in cases)
    ]
    table.notes.append(
        f"No vector ends further than {max(apart):.1e} of its norm from the one educe ends with."
    )
    sections, aims = [table], []
    if version and goal is not None:
        vectors, steps = given["until"]
        theirs = statistics.median(seconds["batched-melbo"])
        until = statistics.median(seconds["until"])
        quicker = Section(
            f"MELBO: time to the objective that batched-melbo ends with ({goal:.3f})",
            ["", "time", "steps", "objective"],
            [
                [f"batched-melbo {version}", spread(seconds["batched-melbo"]), str(s.steps),
                 f"{goal:.3f}"],
                ["educe, the same step", spread(seconds["educe"]), str(s.steps),
                 f"{bench.value(given['educe']):.3f}"],
                [f"educe, its own step ({MelboConfig.step:g} of the norm)",
                 spread(seconds["until"]), str(steps), f"{bench.value(vectors):.3f}"],
            ],
        )  # fmt: skip
        quicker.notes.append(
            f"At the same step educe is {ratios['batched-melbo']:.2f} times as fast, at its own "
            f"{theirs / until:.1f} times; the latter is owed to the step more than to the code: "
            "batched-melbo's rate is fixed at 0.001 a coordinate, whatever the norm."
        )
        sections.append(quicker)
        worst = min(ratios["batched-melbo"], theirs / until)
        aims.append(
            Aim(
                "faster than batched-melbo at the same objective",
                f"{ratios['batched-melbo']:.2f} times at the same step, "
                f"{theirs / until:.1f} times at its own",
                worst > 1,
            )
        )
    else:
        aims.append(Aim("faster than batched-melbo at the same objective", "not installed", None))
    return sections, aims


def generation(bench: Bench) -> tuple[Section, Aim]:
    """Compare generation with one vector a row with transformers and a hook."""
    s = bench.settings
    cases = {
        "educe": bench.educe_generate,
        "alone": lambda: bench.hooked_generate(s.written, 1),
        "batch": lambda: bench.hooked_generate(s.n, s.n),
    }
    bench.hooked_generate(1, 1)
    seconds, given = in_turns(cases, s.repeats)
    scales = {"educe": 1.0, "alone": s.n / s.written, "batch": 1.0}
    labels = {
        "educe": f"educe, {s.n} rows together",
        "alone": "transformers `generate` with a hook, one vector at a time",
        "batch": f"transformers `generate` with a hook, {s.n} rows in one batch",
    }
    table = Section(
        f"Generation: {s.n} vectors, one prompt, up to {s.tokens} new tokens, greedy",
        ["", "all vectors", "tokens/s", "the same text as educe", "educe is"],
    )
    medians = {name: statistics.median(seconds[name]) * scales[name] for name in cases}
    for name, label in labels.items():
        tokens = sum(map(len, given[name])) * scales[name]
        pairs = list(zip(given["educe"], given[name], strict=False))
        same = sum(a == b for a, b in pairs)
        table.rows.append(
            [
                label + ("*" if scales[name] != 1 else ""),
                spread(seconds[name], scales[name]),
                f"{tokens / medians[name]:.0f}",
                "" if name == "educe" else f"{same} of {len(pairs)}",
                "" if name == "educe" else f"{medians[name] / medians['educe']:.1f} times as fast",
            ]
        )
    if s.written != s.n:
        table.notes.append(f"\\* Timed on {s.written} of the vectors, and scaled to {s.n}.")
    apart = [
        baselines.margin(bench.lm, bench.batch, bench.drawn[i], a, b, source=s.source)
        for i, (a, b) in enumerate(zip(given["educe"], given["alone"], strict=False))
        if a != b
    ]
    if apart:
        table.notes.append(
            f"Where a text differs, its first two different tokens were at most {max(apart):.1e} "
            "apart in logits."
        )
    distinct = len(set(given["educe"]))
    table.notes.append(
        f"Random vectors of norm {s.strength:g} after block {s.source}, at every token of prompt "
        f"and answer; {distinct} different texts."
    )
    ratio = medians["alone"] / medians["educe"]
    aim = Aim(
        f"at least {AIM_GENERATION:g} times one-at-a-time generation",
        f"{ratio:.1f} times",
        ratio >= AIM_GENERATION,
    )
    return table, aim


def rates(bench: Bench) -> tuple[Section, Aim]:
    """Compare the rate of the slice with the rate of its matrix products alone."""
    s = bench.settings
    part, repeats = bench.slice(), max(5, s.repeats) if s.repeats > 1 else 3
    theta, cotangent = s.radius * bench.starts, bench.starts
    tokens = bench.batch.ids.shape[1]
    rows = min(s.n, max(1, part.tokens_per_chunk // tokens)) * tokens

    def ahead() -> Tensor:
        return part.effect(theta)

    def both() -> tuple[Tensor, Tensor]:
        return part.vjp(theta, cotangent)

    work = {"forward": flops(ahead) / 1e9, "both": flops(both) / 1e9}
    products: list[tuple[float, float]] = []
    square = torch.randn(2048, 2048)
    cases = {
        "products": lambda: products.append(matmul_rates(part, rows, 1)),
        "forward": ahead,
        "both": both,
        "square": lambda: square @ square,
    }
    seconds, _ = in_turns(cases, repeats)
    forward = statistics.median(one for one, _ in products)
    backward = statistics.median(two for _, two in products)
    mixed = 2 / (1 / forward + 1 / backward)
    reached = {name: work[name] / statistics.median(seconds[name]) for name in work}
    shares = {"forward": reached["forward"] / forward, "both": reached["both"] / mixed}
    table = Section(
        f"Rate of the slice {s.source} to {s.target}: {s.n} vectors x {tokens} tokens, float32",
        ["", "time", "GFLOP", "GFLOP/s", "matrix products alone", "share"],
        [
            ["forward (`effect`)", spread(seconds["forward"]), f"{work['forward']:.0f}",
             f"{reached['forward']:.0f}", f"{forward:.0f} GFLOP/s", f"{shares['forward']:.0%}"],
            ["forward and backward (`vjp`)", spread(seconds["both"]), f"{work['both']:.0f}",
             f"{reached['both']:.0f}", f"{mixed:.0f} GFLOP/s", f"{shares['both']:.0%}"],
        ],
        [
            f"Matrix products alone: the slice's own weights in their order, {rows} rows (its "
            "largest chunk), into buffers that are there; the backward ones with respect to "
            "activations. A 2048 x 2048 x 2048 product runs at "
            f"{2 * 2048**3 / 1e9 / statistics.median(seconds['square']):.0f} GFLOP/s. Counted: "
            "linear layers, and attention as causal."
        ],
    )  # fmt: skip
    aim = Aim(
        f"at least {AIM_RATE:.0%} of the matmul rate in the slice",
        f"{shares['forward']:.0%} forward, {shares['both']:.0%} forward and backward",
        min(shares.values()) >= AIM_RATE,
    )
    return table, aim


MEMORY: dict[str, tuple[str, Callable[[Bench], Any]]] = {
    "loaded": ("the model loaded, nothing run", lambda bench: None),
    "educe-melbo": ("MELBO, educe, {n} at once", lambda bench: bench.educe_melbo(2)),
    "batched-melbo": (
        "MELBO, batched-melbo, {n} at once",
        lambda bench: bench.batched_melbo(2, bench.settings.n),
    ),
    "slice-alone": ("MELBO, educe's slice, one at a time", lambda bench: bench.educe_alone(2, 2)),
    "hook-alone": (
        "MELBO, whole model with a hook, one at a time",
        lambda bench: bench.hooked_alone(2, 2),
    ),
    "educe-generate": ("generation, educe, {n} rows", lambda bench: bench.educe_generate()),
    "hook-generate": (
        "generation, transformers with a hook, one at a time",
        lambda bench: bench.hooked_generate(2, 1),
    ),
    "hook-generate-batch": (
        "generation, transformers with a hook, {n} rows in one batch",
        lambda bench: bench.hooked_generate(bench.settings.n, bench.settings.n),
    ),
} | {f"family-{method}": ("", partial(families.in_memory, method)) for method in METHODS}


@cache
def peak_of(case: str, settings: Settings) -> int | None:
    """Measure the peak memory of a case in a process of its own; None where that was killed.

    The quick form lets all but the model alone run in this process, which saves their imports.

    Raises:
        RuntimeError: The case failed.
    """
    if settings.short and case != "loaded":
        MEMORY[case][1](Bench(settings))
        return peak_memory()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--memory", case,
         "--settings", json.dumps(asdict(settings))],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    if done.returncode > 0:
        raise RuntimeError(f"{case}, in a process of its own: {done.stderr}")
    return None if done.returncode else int(done.stdout.split()[-1])


def memory(settings: Settings, version: str | None) -> Section:
    """Measure the peak memory of each case in a process of its own."""
    table = Section("Peak memory of a fresh process", ["", "GB", "above the loaded model"])
    base = 0
    for case, (label, _) in MEMORY.items():
        if not label or (case == "batched-melbo" and not version):
            continue
        peak = peak_of(case, settings)
        if peak is None:
            table.rows.append([label.format(n=settings.n), "failed", ""])
            continue
        base = base or peak
        above = "" if case == "loaded" else f"{(peak - base) / 1e9:.2f}"
        table.rows.append([label.format(n=settings.n), f"{peak / 1e9:.2f}", above])
    table.notes.append("Two steps of MELBO, or all new tokens; loading the model is in each peak.")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="a model of 7B shape, on a GPU")
    parser.add_argument("--threads", type=int, help="threads of torch; by default every core")
    parser.add_argument("--steps", type=int, help=f"steps of MELBO ({Settings.steps})")
    parser.add_argument("--repeats", type=int, help=f"turns ({Settings.repeats})")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page to put the tables into")
    parser.add_argument("--memory", choices=MEMORY, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    asked = quick.parsed(parser, argv)
    if asked.gpu:
        gpu.main(["--quick"] if asked.quick else [])
        return

    chosen: dict[str, Any] = {"threads": cores()} | (QUICK if asked.quick else {})
    given = {key: getattr(asked, key) for key in ("threads", "steps", "repeats")}
    chosen |= {key: value for key, value in given.items() if value is not None}
    settings = Settings(**(asked.settings or chosen))
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if asked.memory:
        MEMORY[asked.memory][1](Bench(settings))
        print(peak_memory())
        return

    console = Console(width=None if sys.stdout.isatty() else 140)
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load_before is not None and load_before > 0.5:
        console.print(
            f"Something else is running (load average {load_before:.1f}): these times say little.",
            style="bold yellow",
        )
    version = baselines.package_version()
    if version is None:
        console.print(
            "batched-melbo is not installed, so it is left out: "
            "pip install --no-deps batched-melbo==0.1.1",
            style="yellow",
        )
    bench = Bench(settings)
    with console.status("rate of the slice") as status:
        rate, rate_aim = rates(bench)
        status.update("generation")
        written, generation_aim = generation(bench)
        status.update("discovery")
        found, discovery_aims = discovery(bench, version)
        status.update("memory")
        held = memory(settings, version)
        status.update("every family")
        budget = families.QUICK if asked.quick else families.Settings()
        loaded = peak_of("loaded", settings) or 0
        costs = families.costs(
            bench.lm,
            bench.batch,
            budget,
            lambda method: (peak_of(f"family-{method}", settings) or math.nan) - loaded,
        )
        status.update("how cost grows")
        grows = families.growth(bench.lm, budget)
    sections = [costs, grows, *found, written, rate, held]
    aims = [rate_aim, generation_aim, *discovery_aims]
    where = machine(settings.threads, settings.repeats, load_before)
    show(sections, aims, where, console)
    if asked.write:
        write(asked.write, markdown(sections, aims, where))
        console.print(f"\nwritten to {asked.write}")


if __name__ == "__main__":
    main()
