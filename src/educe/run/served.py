"""Served: a vLLM server writes what adapters say; it is checked before it is believed.

    for some adapters at a time      load them by name, each as PEFT has it
        canary                       the next token's log-probabilities, against ours
        write                        all their rows, so that each adapter is loaded once
        unload

vLLM writes rows of different adapters in one batch, but a server that does not apply one answers
as the unperturbed model, in silence. So the first tokens of a few prompts have to be as likely as
in our own forward pass, and not as they are without the perturbation; where the two hardly differ,
nobody can tell, and the texts are written here. So are samples, since a server draws by its own
random numbers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import torch
from torch import Tensor

from educe.errors import ServerError
from educe.forward.decoding import Written, end_tokens
from educe.forward.generation import Completion, completed, next_logits
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation import peft
from educe.perturbation.kinds import Adapters
from educe.rows import Row

#: Adapters that a server has at a time, and requests in flight.
LOADED, IN_FLIGHT = 8, 32
#: Prompts of the canary, and the likeliest tokens whose log-probabilities are compared.
PROMPTS, LIKELIEST = 2, 20
#: Nats by which these may be off on average: bfloat16 on other kernels.
OFF = 0.1
_NUMBER = len("token_id:")


class Server:
    """A vLLM server that takes adapters while it runs.

    It is started with ``--enable-lora --max-loras 9`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``,
    and sees the folder of the run under the same path. The key is ``OPENAI_API_KEY``.

    Args:
        url: Its address, with the path before ``/completions``.
        folder: Where adapters are written for it.
        say: Is told which perturbations it cannot write.
    """

    def __init__(self, url: str, folder: Path, say: Callable[[str], None]) -> None:
        self.url, self.folder, self.say = url, folder, say
        self._client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    def write(
        self,
        lm: LanguageModel,
        batch: PromptBatch,
        rows: Sequence[Row],
        kind: Adapters,
        numbers: Sequence[int],
        theta: Tensor,
        max_new_tokens: int,
    ) -> Iterator[list[Completion]]:
        """Write the likeliest texts of rows; yield those of some adapters at a time.

        Those of adapters whose effect nobody can tell are left out.

        Args:
            lm: The model, which the server has as well.
            batch: All prompts.
            rows: What to write.
            kind: What the adapters change.
            numbers: Their numbers.
            theta: The adapters at their radius, ``[n, s]``.
            max_new_tokens: The most tokens of an answer.

        Raises:
            ServerError: It cannot be asked, or does not apply an adapter as we do.
        """
        if lm.adapter is not None:
            raise ServerError("a stock vLLM server adds one adapter, and the model has its own")
        ends = end_tokens(lm)

        def written(row: Row, name: str) -> Completion:
            tokens, logprobs, _ = self._asked(batch.read[row.prompt], name, max_new_tokens, ends)
            done = bool(tokens) and tokens[-1] in ends
            return completed(
                lm, row, Written(tokens[: -done or None], logprobs[: -done or None], done, [])
            )

        for first in range(0, len(numbers), LOADED):
            some = numbers[first : first + LOADED]
            mine = [row for row in rows if row.perturbation in set(some)]
            if not mine:
                continue
            own = theta[first : first + LOADED]
            with self._loaded(lm, kind, some, own) as names, ThreadPoolExecutor(IN_FLIGHT) as pool:
                sure = self._sure(lm, batch, mine, kind, names, own)
                mine = sorted(
                    (row for row in mine if row.perturbation in sure), key=lambda r: r.perturbation
                )
                yield list(pool.map(lambda row: written(row, names[row.perturbation]), mine))

    def _asked(
        self, ids: Sequence[int], name: str, tokens: int, ends: set[int], top: int = 0
    ) -> tuple[list[int], list[float], dict[int, float]]:
        """Return the tokens of an answer, their log-probabilities, and the likeliest first ones."""
        with self._saying("does not write"):
            (choice,) = self._client.completions.create(
                model=name,
                prompt=list(ids),
                max_tokens=tokens,
                temperature=0,
                logprobs=top,
                extra_body={
                    "return_tokens_as_token_ids": True,
                    "stop_token_ids": sorted(ends),
                    "cache_salt": name,  # what one adapter made of a prompt is no other's
                },
            ).choices
            told: Any = choice.logprobs
            said = [int(token[_NUMBER:]) for token in told.tokens]
            likeliest = {int(t[_NUMBER:]): p for t, p in (told.top_logprobs or [{}])[0].items()}
            return said, list(told.token_logprobs), likeliest

    @contextmanager
    def _loaded(
        self, lm: LanguageModel, kind: Adapters, numbers: Sequence[int], theta: Tensor
    ) -> Iterator[dict[int, str]]:
        """Let the server have some adapters for the time of a statement; yield their names."""
        names: dict[int, str] = {}
        try:
            for number, one in zip(numbers, theta.float().cpu(), strict=True):
                digest = hashlib.sha256(one.numpy().tobytes()).hexdigest()[:16]
                place = self.folder / digest
                peft.write(place, kind, one, model=lm.name, revision=lm.revision or "")
                self._post("load_lora_adapter", lora_name=digest, lora_path=str(place.absolute()))
                names[number] = digest
            yield names
        finally:
            for name in set(names.values()):
                self._post("unload_lora_adapter", lora_name=name)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _post(self, what: str, **body: str) -> None:
        with self._saying(f"does not take {what}: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 lets it"):
            self._client.post(f"/{what}", cast_to=str, body=body)

    def _sure(
        self,
        lm: LanguageModel,
        batch: PromptBatch,
        rows: Sequence[Row],
        kind: Adapters,
        names: dict[int, str],
        theta: Tensor,
    ) -> set[int]:
        """Compare the first token under each adapter with ours; return those that can be told.

        Raises:
            ServerError: It is as without the adapter, or something else.
        """
        sure: set[int] = set()
        prompts = sorted({row.prompt for row in rows})[:PROMPTS]
        wanted = [Row(n, j) for n in (0, *names) for j in prompts]
        ours = {
            row: logits.log_softmax(-1)
            for some, each in next_logits(lm, batch, wanted, theta, kind=kind, numbers=[*names])
            for row, logits in zip(some, each.float().cpu(), strict=True)
        }
        for number, name in names.items():
            off, moved = [], []
            for j in prompts:
                _, _, likeliest = self._asked(batch.read[j], name, 1, set(), LIKELIEST)
                tokens = torch.tensor(list(likeliest))
                theirs, mine = torch.tensor(list(likeliest.values())), ours[Row(number, j)][tokens]
                off.append(float((theirs - mine).abs().mean()))
                moved.append(float((ours[Row(0, j)][tokens] - mine).abs().mean()))
            if not max(off) <= OFF:
                raise ServerError(
                    f"the server at {self.url} does not write as perturbation {number} does: its "
                    f"first token is off by {max(off):.2g} nats, and without the perturbation by "
                    f"{max(moved):.2g}; is it another model, or are adapters left out?"
                )
            if max(moved) > 2 * max(off):
                sure.add(number)
            else:
                self.say(
                    f"perturbation {number} moves the first token by {max(moved):.2g} nats, and "
                    f"the server is off by {max(off):.2g}: its texts are written here"
                )
        return sure

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        try:
            yield
        except (openai.OpenAIError, TypeError, AttributeError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ServerError(f"the server at {self.url} {what} ({reason})") from error
