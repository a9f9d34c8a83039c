"""Run by the Python of vLLM's own environment, which has nothing of educe: adapters on the CPU.

python vllm_reader.py FOLDER   reads asked.json there: {model, prompts, adapters, steps}
                               writes texts.json: {name: [tokens of each prompt]}
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(folder: Path) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    asked = json.loads((folder / "asked.json").read_text())
    llm = LLM(
        model=asked["model"],
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_loras=len(asked["adapters"]),
        max_lora_rank=asked["rank"],
        max_model_len=128,
        skip_tokenizer_init=True,
        seed=0,
    )
    named = [("base", None)] + [
        (name, LoRARequest(name, number, path))
        for number, (name, path) in enumerate(asked["adapters"].items(), 1)
    ]
    rows = [(name, own, ids) for name, own in named for ids in asked["prompts"]]
    how = SamplingParams(
        temperature=0, max_tokens=asked["steps"], ignore_eos=True, detokenize=False
    )
    done = llm.generate(
        [{"prompt_token_ids": ids} for _, _, ids in rows],
        how,
        lora_request=[own for _, own, _ in rows],
    )
    texts: dict[str, list[list[int]]] = {}
    for (name, _, _), came in zip(rows, done, strict=True):
        texts.setdefault(name, []).append(list(came.outputs[0].token_ids))
    (folder / "texts.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
