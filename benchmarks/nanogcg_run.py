"""Runs nanogcg in its own environment; `benchmarks.gcg` starts it and reads what it prints."""

from __future__ import annotations

import json
import sys
import time
from itertools import accumulate

import nanogcg
import torch
from nanogcg.gcg import GCG
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Search, and print candidates read and the best loss after each step."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
    read: list[int] = []
    first: list[float] = []
    whole = GCG._compute_candidates_loss_original

    def counted(self: GCG, size: int, embedded: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = whole(self, size, embedded)
        read.append(len(embedded))
        first.append(float(loss.min()))
        return loss

    GCG._compute_candidates_loss_original = counted
    config = nanogcg.GCGConfig(
        num_steps=asked["steps"],
        optim_str_init=asked["begin"],
        search_width=asked["width"],
        topk=asked["top"],
        seed=asked["seed"],
        batch_size=asked["width"],
        verbosity="ERROR",
    )
    began = time.monotonic()
    message = f"{asked['message']}{{optim_str}}"
    result = nanogcg.run(model, tokenizer, message, asked["wanted"], config)
    print(
        json.dumps(
            {
                "read": list(accumulate(read)),
                "best": list(accumulate([first[0], *result.losses], min)),
                "seconds": time.monotonic() - began,
                "first": first[0],
                "string": result.best_string,
            }
        )
    )


main()
