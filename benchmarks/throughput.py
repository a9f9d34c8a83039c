"""Completions an hour, through the whole of search, writing, scoring and keeping.

    python -m benchmarks.throughput [--quick] [--write docs/benchmarks/throughput.md]

The same work by educe, and by loops as the reference code of MELBO and DCT has them: one vector at
a time through the whole model with a hook (MELBO), or the slice under vmap (DCT); then `generate`
for each text, a pass of the model over each, and a line in a file. Of these loops a part runs, and
its time is scaled. Then where the time goes, and how it grows, on a tiny random model: with the
perturbations, and with the workers. All times are of the processor, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from benchmarks import baselines, quick
from benchmarks.measuring import Aim, Section, machine, markdown, peak_memory, show, write
from educe.model.language import LanguageModel
from educe.options import ALONE, SpreadOptions
from educe.run import asking, preparing, searching
from educe.run.fill import fill
from educe.run.settings import Settings, begin
from educe.run.store import Run
from educe.run.work import at_work
from educe.scores.coherence import coherence
from educe.scores.novelty import novelty

PROMPT = "Tell me a story about a dragon."
STAGES = ("search", "write and score", "keep")
#: What the operations of torch are called together; those of no name here are `other`.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product",),
    "cache of keys and values": ("aten::cat", "aten::index_select", "aten::copy_"),
    "elementwise": ("aten::mul", "aten::add", "aten::silu", "aten::neg", "aten::sub", "aten::pow"),
}


@dataclass(frozen=True)
class Amounts:
    """What is run.

    Attributes:
        n: Perturbations, with as many random ones.
        rounds: Steps of MELBO, iterations of DCT.
        tokens: New tokens of a text.
        baseline: Samples of the unperturbed model.
        alone: Vectors that are searched one at a time.
        written: Texts that are written, read and kept one at a time.
        growing: Perturbations, on the tiny model.
        workers: Processes, on the tiny model.
        spread: Perturbations for these.
        layers: Source and target.
        short: Whether it is the quick form.
    """

    n: int = 64
    rounds: int = 4
    tokens: int = 24
    baseline: int = 8
    alone: int = 2
    written: int = 3
    growing: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    workers: tuple[int, ...] = (1, 2)
    spread: int = 1024
    layers: tuple[int, int] = (5, 20)
    short: bool = False


QUICK = Amounts(4, 2, 4, 2, 1, 2, (4, 8), (1, 2), 4, (1, 6), True)


# -- the same work, in two ways -------------------------------------------------------------------


@dataclass
class Done:
    """What a run took.

    Attributes:
        completions: Texts.
        seconds: Of the processor, by stage.
    """

    completions: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def whole(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def hourly(self) -> float:
        """Completions in an hour of the processor."""
        return 3600 * self.completions / self.whole

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count a statement to a stage."""
        began = processor_time()
        try:
            yield
        finally:
            self.seconds[stage] += processor_time() - began


def processor_time() -> float:
    """Return seconds of the processor, of this process and of those that it began and that run."""
    mine = psutil.Process()
    times = [one.cpu_times() for one in (mine, *mine.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def settings(a: Amounts, method: str, n: int, **more: Any) -> Settings:
    """Return what is asked of a run."""
    rounds = {"steps": a.rounds, "patience": a.rounds}
    how = rounds if method == "melbo" else {"iterations": a.rounds}
    given: dict[str, Any] = {"source": a.layers[0], "target": a.layers[1], "baseline": a.baseline}
    given |= {"device": "cpu", "max_new_tokens": a.tokens, "radius": "0.5d"} | more
    return Settings(prompts=(PROMPT,), method=method, method_settings=how, n=n, **given)


def by_educe(
    folder: Path, asked: Settings, lm: LanguageModel | None, spread: SpreadOptions = ALONE
) -> tuple[Done, Run]:
    """Search, write, score and keep, as the main job does."""
    done = Done()
    run = begin(folder, asked)
    for name in ("add_completions", "add_scores"):
        setattr(run, name, _kept(done, getattr(run, name)))
    with at_work(run, lm, spread=spread) as work:
        with done.timed("search"):
            search = preparing.Search(work)
            search.remember_facts()
            searching.search(search)
        asking.baseline(work, work.prompts("asked"))
        asking.answers(work, [p.id for p in run.perturbation_rows()])
        before = done.seconds["keep"]
        with done.timed("write and score"):
            fill(work)
        done.seconds["write and score"] -= done.seconds["keep"] - before
    done.completions = len(list(run.completion_rows()))
    return done, run


def _kept(done: Done, keep: Callable[[Any], None]) -> Callable[[Any], None]:
    """Count the time of a call of the run's files; what it is given is made before."""

    def counted(rows: Any) -> None:
        rows = list(rows)
        with done.timed("keep"):
            keep(rows)

    return counted


def one_at_a_time(folder: Path, lm: LanguageModel, run: Run, asked: Settings, a: Amounts) -> Done:
    """Do a part of a run's work as the reference code does; scale its time to the whole."""
    facts, rows = run.note("facts"), list(run.completion_rows())
    (radius,), source, target = facts["radii"], facts["source"], facts["target"]
    batch = lm.encode([PROMPT], room=a.tokens)
    done, starts = Done(len(rows)), baselines.starts(asked.n, lm.width, 0)
    how = {"radius": radius, "source": source, "target": target}
    with done.timed("search"):
        if asked.method == "melbo":
            baselines.hooked_melbo(lm, batch, starts[: a.alone], steps=a.rounds, **how)
        else:
            baselines.vmapped_dct(lm, batch, starts, iterations=a.rounds, **how)
    if asked.method == "melbo":
        done.seconds["search"] *= asked.n / a.alone
    plain = [c.text for c in rows if not c.row.perturbation]
    mine = [c for c in rows if c.row.perturbation][: a.written]
    vectors = radius * baselines.starts(a.written, lm.width, 1)
    lines = []
    with done.timed("write and score"):
        for c, vector in zip(mine, vectors, strict=True):
            (said,) = baselines.hooked_generate(
                lm, batch, vector[None], source=source, max_new_tokens=a.tokens
            )
            text = lm.text(said, skip_special_tokens=True)
            logprob = baselines.read_alone(lm, batch.read[0], said) if said else 0.0
            scores = (coherence(text, logprob, -1.0).value, novelty(text, plain).value)
            lines.append({"perturbation": c.row.perturbation, "text": text, "scores": scores})
    with done.timed("keep"), folder.with_suffix(".jsonl").open("w") as kept:
        for line in lines:
            kept.write(json.dumps(line) + "\n")
            kept.flush()
    for stage in STAGES[1:]:
        done.seconds[stage] *= len(rows) / len(mine)
    return done


# -- the tables -----------------------------------------------------------------------------------


def compared(lm: LanguageModel, a: Amounts, place: Path) -> tuple[Section, list[Aim]]:
    """Compare the whole with the loops of the reference code."""
    table = Section(
        f"{a.n} perturbations and as many random ones, one prompt, {a.tokens} new tokens",
        ["", "", "completions an hour", *STAGES, "educe is"],
    )
    aims = []
    for method in ("melbo", "dct"):
        asked = settings(a, method, a.n)
        ours, run = by_educe(place / method, asked, lm)
        with run:
            theirs = one_at_a_time(place / method, lm, run, asked, a)
        ratio = ours.hourly / theirs.hourly
        for name, done in (("educe", ours), ("reference loop*", theirs)):
            shown = [f"{done.seconds[stage]:.1f} s" for stage in STAGES]
            last = "" if name == "educe" else f"{ratio:.1f} times as fast"
            table.rows.append([method, name, f"{done.hourly:.0f}", *shown, last])
        aims.append(
            Aim(
                f"{method}: at least 10 times the reference loop through the whole",
                f"{ratio:.1f} times",
                ratio >= 10,
            )
        )
    table.notes.append(
        f"\\* Timed on {a.written} texts, and for melbo on {a.alone} vectors, and scaled. Steps of "
        f"MELBO and iterations of DCT: {a.rounds}. Both have {a.baseline} samples of the "
        "unperturbed model and its likeliest answer among the completions."
    )
    return table, aims


def shares(lm: LanguageModel, a: Amounts, place: Path) -> Section:
    """Tell where the time of a run goes, by operations of torch and what is around them."""
    asked = settings(a, "melbo", a.n)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        done, run = by_educe(place / "profiled", asked, lm)
    run.close()
    spent = dict.fromkeys([*KINDS, "other operations of torch"], 0.0)
    for event in seen.key_averages():
        kind = next(
            (kind for kind, names in KINDS.items() if event.key.startswith(names)),
            "other operations of torch",
        )
        spent[kind] += event.self_cpu_time_total / 1e6
    whole = max(done.whole, sum(spent.values()))
    spent["Python, SQLite and the rest"] = whole - sum(spent.values())
    return Section(
        "Where the time goes, of MELBO's run above, under torch's profiler",
        ["", "share"],
        [[kind, f"{seconds / whole:.1%}"] for kind, seconds in spent.items()],
    )


def growth(a: Amounts, place: Path) -> Section:
    """Measure the whole with more and more perturbations, and with more workers."""
    model = place / "tiny"
    tiny = quick.stand_in()
    tiny.hf.save_pretrained(model)
    tiny.tokenizer.save_pretrained(model)
    table = Section(
        "How it grows, on a random model of 8 blocks and width 32",
        ["perturbations", "workers", "completions an hour", *STAGES, "memory of this process"],
    )
    small = replace(a, layers=QUICK.layers, tokens=8, rounds=2)

    def measured(n: int, label: str, spread: SpreadOptions = ALONE) -> None:
        asked = settings(small, "melbo", n, model=str(model), dtype="float32")
        done, run = by_educe(place / f"{n}-{label}", asked, None, spread)
        run.close()
        shown = [f"{done.seconds[stage]:.1f} s" for stage in STAGES]
        memory = f"{peak_memory() / 1e9:.2f} GB"
        table.rows.append([str(n), label, f"{done.hourly:.0f}", *shown, memory])

    for n in a.growing:
        measured(n, "none")
    for workers in a.workers:
        measured(a.spread, str(workers), SpreadOptions(on="devices", workers=workers))
    table.notes.append(
        "As many random perturbations beside them; 2 steps of MELBO, 8 new tokens. Processor time "
        "of all processes, with what workers take to begin: on idle cores, so much work is done in "
        "an hour times the workers. Memory is the most this process had so far."
    )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page to put the tables into")
    asked = quick.parsed(parser, argv)
    a = QUICK if asked.quick else Amounts()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lm = quick.model(quick=a.short, device="cpu", dtype=torch.float32)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        whole, aims = compared(lm, a, place)
        sections = [whole, shares(lm, a, place), growth(a, place)]
    where = machine(1, 1, load)
    show(sections, aims, where, Console(width=None if sys.stdout.isatty() else 140))
    if asked.write:
        write(asked.write, markdown(sections, aims, where))


if __name__ == "__main__":
    main()
