"""Greedy coordinate gradient here and in nanogcg, at equal forward passes.

    python -m benchmarks.gcg --theirs ENV/bin/python    # a Python that has nanogcg
    python -m benchmarks.gcg                            # educe alone

Both begin at the same string, behind the same message, for the same text, on the same weights, and
read as many candidates a step. What is compared is the best loss so far after as many candidates:
the mean negative log-likelihood of a token of the text, in nats. nanogcg needs an older
transformers, and so runs in an environment of its own, by `benchmarks/nanogcg_run.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import quick
from educe.forward.inserted import Opening
from educe.inversion.searches import search
from educe.inversion.searches.gcg import GcgConfig
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import text

#: Messages, and texts that are to be the answers.
CASES = (
    ("Tell me about the sea.", "The otter dances behind the chapel."),
    ("How do I boil an egg?", "My favourite colour is green."),
    ("Name three fruits.", "I cannot talk about that."),
)
BEGIN, WIDTH, TOP = " x x x x x x x x", 64, 128


def ours(lm: Any, case: tuple[str, str], steps: int, seed: int) -> dict[str, Any]:
    """Search with educe; return candidates read and the best loss after each step."""
    message, wanted = case
    opening = Opening(lm, lm.encode([message]), 0)
    target = text([opening], lm.tokens(wanted, templated=True))
    first = torch.tensor([lm.tokens(BEGIN, templated=True)])
    began = time.monotonic()
    found = search(
        target,
        Vocabulary(lm),
        first,
        budget=1 + steps * (WIDTH + 3),
        seed=seed,
        config=GcgConfig(WIDTH, TOP),
    )
    curve = found.curve.numpy()
    gradients = 3 * np.arange(len(curve))
    return {
        "read": (curve[:, 0] - gradients).tolist(),
        "best": curve[:, 1].tolist(),
        "seconds": time.monotonic() - began,
        "first": float(target.loss(first)[0]),
    }


def theirs(python: Path, folder: Path, steps: int, seed: int, case: Any) -> dict[str, Any]:
    """Search with nanogcg, in its environment; return the same."""
    asked = {
        "folder": str(folder),
        "message": case[0],
        "wanted": case[1],
        "begin": BEGIN,
        "width": WIDTH,
        "top": TOP,
        "steps": steps,
        "seed": seed,
        "threads": torch.get_num_threads(),
    }
    script = Path(__file__).with_name("nanogcg_run.py")
    done = subprocess.run(
        [python, script, json.dumps(asked)], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def for_older(lm: Any, folder: Path) -> None:
    """Save a model as an older transformers reads it: with the rotary base where that looks."""
    lm.hf.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": lm.tokenizer.eos_token,
                "pad_token": lm.tokenizer.pad_token,
                "chat_template": lm.tokenizer.chat_template,
            }
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Search with both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--theirs", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    asked = quick.parsed(parser, argv)
    torch.set_num_threads(1)
    if asked.quick:
        asked.steps, asked.seeds, asked.theirs = 2, 1, None
    lm = quick.model(quick=asked.quick, device="cpu", dtype=torch.float32)
    print("| text | seed | | candidates | first loss | a third | two thirds | end | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as scratch:
        if asked.theirs:
            for_older(lm, Path(scratch))
        for case in CASES:
            for seed in range(asked.seeds):
                runs = {"educe": ours(lm, case, asked.steps, seed)}
                if asked.theirs:
                    runs["nanogcg"] = theirs(asked.theirs, Path(scratch), asked.steps, seed, case)
                most = min(run["read"][-1] for run in runs.values())
                for name, run in runs.items():
                    at = [_best(run, share * most) for share in (1 / 3, 2 / 3, 1)]
                    told = " | ".join(f"{value:.2f}" for value in (run["first"], *at))
                    print(
                        f"| {case[1]} | {seed} | {name} | {most:.0f} | {told} | "
                        f"{run['seconds']:.0f} |",
                        flush=True,
                    )


def _best(run: dict[str, Any], read: float) -> float:
    """Return the best loss after so many candidates."""
    return min(b for r, b in zip(run["read"], run["best"], strict=True) if r <= read + 0.5)


if __name__ == "__main__":
    main()
