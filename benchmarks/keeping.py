"""What a run of many completions costs to keep: size, and time and memory to open, resume and draw.

    python -m benchmarks.keeping [--completions 1000000] [--quick]

A run of that many texts is made up, without a model, and kept as a search keeps it, batch by batch.
Then each step runs in a process of its own: seconds of its processor, and the most memory that it
had more than one that only imports educe. A step that needs more than `MOST` bytes is ended.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import quick
from benchmarks.measuring import cores
from educe.comparison.cluster import clusters
from educe.comparison.summary import summarise
from educe.forward.chunks import split
from educe.report import page
from educe.rows import CompletionRow, PerturbationRow, PromptRow, Row, ScoreRow
from educe.run.judging import number
from educe.run.scored import score_run
from educe.run.settings import Settings
from educe.run.store import Run
from educe.scores.cache import FILE, Cached
from educe.scores.naming import judge_named

#: Texts of one perturbation, on so many prompts; rows of a batch; different texts.
EACH, PROMPTS, BATCH, DIFFERENT = 50, 50, 128, 300
#: Texts of the quick form; texts that are grouped; bytes of memory that a step may have.
QUICK, GROUPED, MOST = 3000, 4000, 8 * 2**30
SCORES = ("logprob", "coherence", "novelty", "behaviour")


def begun(folder: Path, completions: int) -> Path:
    """Begin a run: half found, half control, all asked for and nothing written."""
    n = completions // EACH
    prompts = tuple(f"What is kept in room {i}?" for i in range(PROMPTS))
    asked = Settings(prompts=prompts, n=n // 2, radius="1", baseline=8)
    facts: dict[str, Any] = {"model": "made up", "device": "cpu", "dtype": "float32"}
    facts |= {"kind": "vectors", "method": "dct", "positions": "all", "radii": [1.0], "seconds": {}}
    facts |= {"source": 9, "target": 18, "depth": 30, "width": 576}
    facts |= {"unit": 10.0, "median_norm": 10.0}
    with Run.create(folder, asdict(asked)) as run:
        run.remember("facts", facts)
        run.add_prompts([PromptRow(i, "asked", p, p, 9) for i, p in enumerate(prompts)])
        arms = ("found", "control")
        run.add_perturbations(
            [
                PerturbationRow(i, None, "", arms[i % 2], "dct", "none", i, 1.0, 0.1, 1.0)
                for i in range(1, n + 1)
            ]
        )
        run.ask([Row(0, j) for j in range(PROMPTS)], 0.0)
        run.ask((Row(i, j) for i in range(1, n + 1) for j in range(PROMPTS)), 0.0)
    return folder


def keep(folder: Path) -> None:
    """Write and score what is missing, a batch at a time."""
    draw = random.Random(0)
    words = ["the", "code", "a", "vault", "is", "kept", "orchids", "open", "doors", "nobody"]
    texts = [" ".join(draw.choices(words, k=24)) for _ in range(DIFFERENT)]
    with Run.open(folder) as run:
        for some in split(run.missing()[0.0], BATCH):
            said = [draw.randrange(DIFFERENT) for _ in some]
            run.add_completions(
                CompletionRow(row, 0.0, texts[b], tuple(range(9000, 9032)), True)
                for row, b in zip(some, said, strict=True)
            )
            run.add_scores(
                ScoreRow(row, judge, float(b) if judge == "behaviour" else draw.random(), "", "")
                for row, b in zip(some, said, strict=True)
                for judge in (SCORES if row.perturbation else ("behaviour",))
            )


def open_(folder: Path) -> None:
    """Open it."""
    Run.open(folder).close()


def resume(folder: Path) -> None:
    """Ask what is missing of it."""
    with Run.open(folder) as run:
        assert not run.missing()
        assert {c.perturbation for c in run.completion_rows(unscored="novelty")} <= {0}


def group_all(folder: Path) -> None:
    """Put its texts into groups, as the end of its job does."""
    with Run.open(folder) as run:
        with run.writing():
            run.database.execute("DELETE FROM scores WHERE judge = 'behaviour'")
        number(run)
        assert "behaviour" in run.judges()


def judge(folder: Path) -> None:
    """Score all texts by a rule."""
    with Run.open(folder) as run:
        by = Cached(judge_named("contains:vault"), folder / FILE)
        assert score_run(run, by, threshold=0.5).arms["found"].shows.hits


def count(folder: Path) -> None:
    """Make all numbers of its report."""
    with Run.open(folder) as run:
        assert len(summarise(run).found)


def draw(folder: Path) -> None:
    """Write its page."""
    with Run.open(folder) as run:
        page.write(run, folder / "report.html")


def group(folder: Path) -> None:
    """Put texts into groups of which no two are the same: the dearest case, up to 10,000."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]
    clusters([" ".join(draw.choices(words, k=24)) for _ in range(GROUPED)])


STEPS: dict[str, Callable[[Path], None]] = {
    "keep all": keep,
    "open": open_,
    "ask what is missing": resume,
    "put its texts into groups": group_all,
    "score them by a rule": judge,
    "make the numbers of the report": count,
    "write the report": draw,
    f"group {GROUPED} texts": group,
}


def nothing(folder: Path) -> None:
    """Be there."""


def alone(step: Callable[[Path], None], folder: Path) -> tuple[float, int] | None:
    """Return the processor time of a step and its most memory in bytes; None if it is too much."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_measured, args=(step, folder, theirs)
    )
    process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _measured(step: Callable[[Path], None], folder: Path, told: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    with suppress(MemoryError):
        told.send(here(step, folder))


def here(step: Callable[[Path], None], folder: Path) -> tuple[float, int]:
    """Return the processor time of a step, and the most memory that this process had in bytes."""
    began = time.process_time()
    step(folder)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return time.process_time() - began, most


def main(argv: Sequence[str] | None = None) -> None:
    """Print the size, and what each step takes."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--completions", type=int, default=10**6)
    asked = quick.parsed(options, argv)
    n = QUICK if asked.quick else asked.completions
    with tempfile.TemporaryDirectory() as place:
        folder = begun(Path(place) / "run", n)
        how = here if asked.quick else alone
        least = (how(nothing, folder) or (0.0, 0))[1]
        print(f"{n} completions, {cores()} cores, {time.strftime('%Y-%m-%d')}", flush=True)
        for what, step in STEPS.items():
            came = how(step, folder)
            told = f"more than {MOST / 2**30:.0f} GB"
            if came is not None:
                told = f"{came[0]:.2f} s, {max(0, came[1] - least) / 2**20:.0f} MB"
            print(f"{what}: {told}", flush=True)
        size = sum(file.stat().st_size for file in folder.glob("run.sqlite*"))
        print(f"the file: {size / 2**20:.0f} MB, {size / n:.0f} bytes a completion")


if __name__ == "__main__":
    main()
