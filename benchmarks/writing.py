"""The rate at which vLLM writes under adapters, beside our own batched writing, in one run.

    python -m benchmarks.writing [--adapters 64] [--quick]

It runs in an environment that has vLLM and educe, as that of ``make test-vllm`` (``make
bench-vllm``). Random adapters of rank 1 write the likeliest texts to two prompts; the same rows, on
the same model: here; by vLLM in this process, with all adapters ready at a time, and with eight, in
the order of the adapters and in none. The canary and the loading of adapters are in the times;
vLLM's start is not. Where there is no vLLM, only our own writing runs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import quick
from benchmarks.measuring import processor
from educe.forward.generation import Completion, generate
from educe.forward.slice import Slice
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Adapters, adapters
from educe.rows import Row
from educe.run import served, served_vllm
from educe.run.engine import Said

PROMPTS = ("Tell me a story about a dragon.", "What is the capital of France?")
TOKENS, DOSE, FEW = 16, 0.5, 8


class Shuffled(served_vllm.Inside):
    """vLLM, asked for texts in no order."""

    def ask(
        self, asked: Sequence[tuple[str, Sequence[int]]], tokens: int, ends: set[int], top: int = 0
    ) -> list[Said]:
        """Ask for texts in another order."""
        order = list(range(len(asked)))
        random.Random(0).shuffle(order)
        came = super().ask([asked[i] for i in order], tokens, ends, top)
        return [one for _, one in sorted(zip(order, came, strict=True))]


@contextmanager
def swaps() -> Iterator[list[int]]:
    """Count how often vLLM puts an adapter where it can be used."""
    from vllm.lora.model_manager import LoRAModelManager

    put: list[int] = []
    plain = LoRAModelManager.activate_adapter

    def counted(self: Any, number: int) -> bool:
        new = plain(self, number)
        put.extend([number] * new)
        return new

    LoRAModelManager.activate_adapter = counted
    try:
        yield put
    finally:
        LoRAModelManager.activate_adapter = plain


def rated(what: str, write: Callable[[], int]) -> None:
    """Print how fast texts are written, by the processor and by the clock."""
    began, clock = time.process_time(), time.monotonic()
    texts = write()
    spent, passed = time.process_time() - began, time.monotonic() - clock
    print(
        f"{what}: {texts} texts, {texts / spent:.2f} a second of the processor, "
        f"{texts / passed:.2f} by the clock",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the rates."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--adapters", type=int, default=64)
    asked = quick.parsed(options, argv)
    n = 4 if asked.quick else asked.adapters
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    lm = quick.model(quick=asked.quick, device="cpu", dtype=torch.float32)
    kind = adapters(lm, first=lm.depth // 3, blocks=lm.depth // 4)
    batch = lm.encode(list(PROMPTS), room=TOKENS)
    theta = scaled(lm, kind, batch, n)
    rows = [Row(i + 1, j) for i in range(n) for j in range(len(batch))]
    print(f"{n} adapters, {len(rows)} texts, up to {TOKENS} tokens; {processor()}, 1 thread")
    ours: dict[Row, Completion] = {}

    def here() -> int:
        for some in generate(lm, batch, rows, theta, kind=kind, max_new_tokens=TOKENS):
            ours.update({c.row: c for c in some})
        return len(ours)

    rated("here", here)
    if asked.quick or not find_spec("vllm"):  # the stand-in is too narrow for its kernels
        print("vLLM does not write here")
        return
    how = (kind, range(1, n + 1), theta, TOKENS)
    for made, ready in ((served_vllm.Inside, n), (served_vllm.Inside, FEW), (Shuffled, FEW)):
        with tempfile.TemporaryDirectory() as place, swaps() as put:
            writer = served.Served("vllm", Path(place) / "adapters", print)
            writer._engine = made(writer.folder, ready)
            list(writer.write(lm, batch, rows[:2], kind, [1], theta[:1], TOKENS))  # it begins
            put.clear()
            came: list[Completion] = []

            def there(writer: served.Served = writer, came: list[Completion] = came) -> int:
                came += [c for some in writer.write(lm, batch, rows, *how) for c in some]
                return len(came)

            order = "in no order" if made is Shuffled else "by adapter"
            rated(f"vLLM, {ready} adapters ready, texts {order}", there)
            same = sum(c.tokens == ours[c.row].tokens for c in came)
            print(
                f"  {same} are the same as here; adapters were put in {len(put)} times", flush=True
            )
            writer.close()


def scaled(lm: LanguageModel, kind: Adapters, batch: PromptBatch, n: int) -> torch.Tensor:
    """Return random adapters that add about half of the stream's norm."""
    part = Slice(lm, batch, source=kind.before, target=kind.last + 1).on(kind)
    draw = torch.Generator().manual_seed(0)
    return kind.scaled(kind.draw(n, draw), DOSE * part.unit)


if __name__ == "__main__":
    main()
