"""Measuring and reporting, for every benchmark here."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from educe.forward.slice import Slice
from educe.model.blocks import stream_out
from educe.model.language import LanguageModel

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


@dataclass
class Section:
    """One table of the report."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Aim(NamedTuple):
    """Something the project wants to reach, and whether it does."""

    what: str
    reached: str
    met: bool | None  #: None where it was not measured


# -- measuring -----------------------------------------------------------------------------------


def in_turns(
    cases: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run the cases in turns; return the seconds of each turn and what each gave last."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    given = {}
    for _ in range(repeats):
        for name, case in cases.items():
            synchronise()
            begin = time.perf_counter()
            given[name] = case()
            synchronise()
            seconds[name].append(time.perf_counter() - begin)
    return seconds, given


def synchronise() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def counting(lm: LanguageModel) -> Iterator[dict[str, int]]:
    """Count rows that blocks run forward and backward, where it is they that compute."""
    passes = {"forward": 0, "backward": 0}
    forwards = {block: block.forward for block in lm.blocks}

    def seen(module: nn.Module, arguments: Any, output: Any) -> None:
        # A replaced forward records or hands on, and computes nothing.
        if module.forward != forwards[module]:
            return
        stream = stream_out(output)
        passes["forward"] += len(stream)
        if stream.requires_grad:
            stream.register_hook(back)

    def back(gradient: torch.Tensor) -> None:
        passes["backward"] += len(gradient)

    handles = [block.register_forward_hook(seen) for block in lm.blocks]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def spread(times: list[float], scale: float = 1.0) -> str:
    """Write the median of some times, with the range when there are several."""
    text = f"{statistics.median(times) * scale:.2f} s"
    if len(times) == 1:
        return text
    return f"{text} ({min(times) * scale:.2f} to {max(times) * scale:.2f})"


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """Count a causal attention: half of the two products of queries with keys and with values."""
    b, h, q, d = query
    return 2 * b * h * q * key[2] * d


def _attention_backward(gradient: Any, query: Any, key: Any, *rest: Any, **options: Any) -> int:
    return 2 * _attention(query, key, None)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flops(run: Callable[[], Any]) -> int:
    """Count the floating-point operations of a call: linear layers and attention."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def per_step(lm: LanguageModel, run: Callable[[int], Any]) -> tuple[float, float, float]:
    """Count GFLOP and block passes, forward and backward, of one step: two steps less one."""
    counts = []
    for steps in (1, 2):
        with counting(lm) as passes:
            work = flops(partial(run, steps))
        counts.append((work / 1e9, passes["forward"], passes["backward"]))
    one, two = counts
    return two[0] - one[0], two[1] - one[1], two[2] - one[2]


def matmul_rates(part: Slice, rows: int, repeats: int) -> tuple[float, float]:
    """Measure the rate of the slice's own matrix products, in GFLOP/s.

    Every weight of its linear layers, in their order, times ``rows`` rows: the products of the
    forward pass, and those of the backward pass with respect to activations.
    """
    blocks = part.lm.blocks[part.source + 1 : part.target + 1]
    weights = [m.weight for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    widths = {width for weight in weights for width in weight.shape}
    into = {width: torch.randn(rows, width).to(weights[0]) for width in widths}
    out = {width: torch.empty_like(into[width]) for width in widths}

    def forward() -> None:
        for weight in weights:
            torch.mm(into[weight.shape[1]], weight.T, out=out[weight.shape[0]])

    def backward() -> None:
        for weight in weights:
            torch.mm(into[weight.shape[0]], weight, out=out[weight.shape[1]])

    with torch.no_grad():
        forward()
        backward()
        seconds, _ = in_turns({"forward": forward, "backward": backward}, repeats)
    work = 2 * rows * sum(weight.numel() for weight in weights) / 1e9
    ahead, back = (work / statistics.median(seconds[name]) for name in ("forward", "backward"))
    return ahead, back


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes.

    ``ru_maxrss`` of a child starts from its parent's on Linux, so the kernel's own count for this
    program comes first.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


# -- reporting -----------------------------------------------------------------------------------


def machine(threads: int, repeats: int, load_before: float | None) -> str:
    """Say what the numbers were measured on."""
    gigabytes = ""
    with suppress(OSError, ValueError):
        gigabytes = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    busy = "" if load_before is None else f"; load average before the run {load_before:.2f}"
    return (
        f"{datetime.date.today().isoformat()}; {processor()}, "
        f"{threads} thread{'s' if threads > 1 else ''} on {cores()} "
        f"core{'s' if cores() > 1 else ''}{gigabytes}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {repeats} "
        f"turn{'s, medians' if repeats > 1 else ''}{busy}."
    )


def processor() -> str:
    """Name the processor."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def show(sections: list[Section], aims: list[Aim], where: str, console: Console) -> None:
    """Print the report."""
    console.print(where)
    for section in sections:
        table = Table(title=section.title, title_justify="left")
        for column in section.columns:
            table.add_column(column)
        for row in section.rows:
            table.add_row(*row)
        console.print()
        console.print(table)
        for note in section.notes:
            console.print(note.replace("\\*", "*"), style="dim", markup=False)
    console.print()
    for aim in aims:
        word = {True: "met", False: "NOT met", None: "not measured"}[aim.met]
        console.print(f"{word}: {aim.what} ({aim.reached})", markup=False)


def markdown(sections: list[Section], aims: list[Aim], where: str) -> str:
    """Write the report as markdown."""
    lines = [f"Measured {where}", ""]
    lines += ["| aim | reached | |", "|---|---|---|"]
    words = {True: "met", False: "**not met**", None: "not measured"}
    lines += [f"| {aim.what} | {aim.reached} | {words[aim.met]} |" for aim in aims]
    for section in sections:
        lines += ["", f"**{section.title}**", ""]
        lines.append("| " + " | ".join(section.columns) + " |")
        lines.append("|" + "---|" * len(section.columns))
        lines += ["| " + " | ".join(row) + " |" for row in section.rows]
        for note in section.notes:
            lines += ["", note]
    return "\n".join(lines)


def write(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the report between the two markers of a file.

    Raises:
        SystemExit: The file has no markers.
    """
    before = path.read_text(encoding="utf-8")
    head, found, rest = before.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{path} has no lines {begin} and {end} between which to write")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
