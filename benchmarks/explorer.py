"""How long the explorer's screens take on a large run, in a real browser.

    python -m benchmarks.explorer [--completions 5000] [--quick]

A run of that many texts is made up, without a model; the server and Chromium run on this machine.
Times are medians from the address to the first row or heading that is seen, once the server has
made of the run what findings and behaviours show; what that takes of the processor is told apart.
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

from benchmarks import quick
from benchmarks.measuring import cores
from educe.explore.app import app
from educe.explore.desk import Desk
from educe.explore.documents import counted
from educe.explore.shelf import Shelf
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
    "findings": ".document h1",
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


def measured(folder: Path, turns: int = TURNS) -> dict[str, float]:
    """Return seconds by what was done, each screen opened so many times."""
    began = time.process_time()
    shelf = Shelf([folder])
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    served = app(shelf, Desk([folder]), "token")
    server = uvicorn.Server(uvicorn.Config(served, log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    shelf.ask_once(0, "counted", counted).result()
    found = {"processor time of what is made before anybody looks": time.process_time() - began}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for screen, first in SCREENS.items():

            def once(screen: str = screen, first: str = first) -> float:
                context = browser.new_context()
                page = context.new_page()
                page.goto(f"{address}app.css")
                begun = time.monotonic()
                page.goto(f"{address}?token=token#/0/{screen}")
                page.locator(first).first.wait_for()
                taken = time.monotonic() - begun
                context.close()
                return taken

            found[screen] = statistics.median(once() for _ in range(turns))
        browser.close()
    server.should_exit = True
    thread.join()
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
