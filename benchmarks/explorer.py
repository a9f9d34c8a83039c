"""How long the explorer's screens take on a large run, in a real browser.

    python -m benchmarks.explorer [--completions 5000] [--quick]

A run of that many texts is made up, without a model; the server is a process of its own, and
Chromium runs on the same machine. The first two lines are of a page that is opened as soon as the
command has printed its address: the first screen says what the run is, and what was found comes
once it is counted. The others are medians from the address to the first row or heading, after that.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from benchmarks import quick
from benchmarks.measuring import cores
from educe.rows import CompletionRow, PerturbationRow, PromptRow, Row, ScoreRow
from educe.run.settings import Settings
from educe.run.store import Run

#: Texts of one perturbation, how often each screen is opened, and texts of the quick form.
EACH, TURNS, QUICK = 5, 5, 60
WORDS = [
    "the",
    "code",
    "of",
    "a",
    "vault",
    "is",
    "kept",
    "by",
    "orchids",
    "who",
    "open",
    "doors",
    "for",
    "nobody",
    "but",
    "a",
    "friend",
    "at",
    "night",
]
#: What is seen first on each screen.
SCREENS = {
    "findings": ".parts h2",
    "perturbations": "tbody tr[data-i]",
    "behaviours": "tbody tr[data-i]",
    "texts": "tbody tr[data-i]",
    "texts?search=orchids": "tbody tr[data-i]",
    "perturbation/7": ".pair",
}


def made(folder: Path, completions: int) -> Path:
    """Make up a run: half found, half control, a few hundred behaviours."""
    draw = random.Random(0)
    n = completions // EACH
    asked = Settings(
        prompts=("What is kept?",), n=n // 2, radius="1", samples=EACH, temperature=1.0, baseline=8
    )
    facts = {
        "model": "made up",
        "source": 9,
        "target": 18,
        "unit": 10.0,
        "median_norm": 10.0,
        "radii": [1.0],
        "method": "dct",
        "kind": "vectors",
        "positions": "all",
        "depth": 30,
        "width": 576,
        "seconds": {},
        "device": "cpu",
        "dtype": "float32",
    }
    run = Run.create(folder, asdict(asked))
    run.remember("facts", facts)
    run.add_prompts([PromptRow(0, "asked", "What is kept?", "What is kept?", 4)])
    arms = ("found", "control")
    run.add_perturbations(
        [
            PerturbationRow(i, None, "", arms[i % 2], "dct", "none", i, 1.0, 0.1, draw.random())
            for i in range(1, n + 1)
        ]
    )
    texts = [" ".join(draw.choices(WORDS, k=14)) for _ in range(300)]
    said = [draw.randrange(len(texts)) for _ in range(n * EACH)]
    rows = [Row(0, 0, k) for k in range(9)] + [
        Row(1 + i // EACH, 0, i % EACH) for i in range(n * EACH)
    ]
    chosen = [0] * 9 + said
    run.add_completions(
        CompletionRow(row, float(row.sample > 0), texts[b], tuple(range(14)), True)
        for row, b in zip(rows, chosen, strict=True)
    )
    run.add_scores(
        ScoreRow(row, judge, value, "", "")
        for row, b in zip(rows, chosen, strict=True)
        for judge, value in (
            ("behaviour", float(b)),
            ("coherence", draw.random()),
            ("novelty", draw.random()),
        )
        if row.perturbation or judge == "behaviour"
    )
    run.close()
    return folder


@contextmanager
def exploring(folder: Path) -> Iterator[tuple[str, int]]:
    """Run the command; yield its address and the number of its process."""
    command = [sys.executable, "-m", "educe", "explore", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout is not None
        yield one.stdout.readline().strip(), one.pid
        one.send_signal(signal.SIGINT)


def opened(browser: Browser, address: str, screen: str, *first: str) -> list[float]:
    """Open a screen in a browser that has seen none; return when each of some things is there."""
    context = browser.new_context()
    page = context.new_page()
    page.goto("about:blank")
    begun, seen = time.monotonic(), list[float]()
    page.goto(f"{address}#/0/{screen}")
    for each in first:
        page.locator(each).first.wait_for()
        seen.append(time.monotonic() - begun)
    context.close()
    return seen


def spent(process: int) -> float:
    """Return the seconds of processor time of a process (Linux)."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measured(folder: Path, turns: int = TURNS) -> dict[str, float]:
    """Return seconds by what was done, each screen opened so many times."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        with exploring(folder) as (address, process):
            before = spent(process)
            first, findings = opened(browser, address, "findings", "h1", ".parts h2")
            found = {
                "the first screen, at once": first,
                "findings, at once": findings,
                "processor time of the server for them": spent(process) - before,
            }
            for screen, what in SCREENS.items():
                times = [opened(browser, address, screen, what)[0] for _ in range(turns)]
                found[screen] = statistics.median(times)
        browser.close()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the times."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--completions", type=int, default=5000)
    asked = quick.parsed(options, argv)
    n, turns = (QUICK, 1) if asked.quick else (asked.completions, TURNS)
    with tempfile.TemporaryDirectory() as place:
        found = measured(made(Path(place) / "run", n), turns)
    print(f"{n} completions, {cores()} cores, {time.strftime('%Y-%m-%d')}")
    for what, seconds in found.items():
        print(f"{seconds:7.2f} s  {what}")


if __name__ == "__main__":
    main()
