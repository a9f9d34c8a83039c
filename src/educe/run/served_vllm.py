"""vLLM writes under adapters, many in one batch: behind an address, or in this process.

Both get each adapter as PEFT has it, in a folder named by the digest of what it is, and salt the
prefix cache with that digest: what one adapter made of a prompt is no other's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import openai
from jaxtyping import Float
from torch import Tensor

from educe.errors import ServerError
from educe.forward.generation import rows_at_once
from educe.model.language import LanguageModel
from educe.perturbation import peft
from educe.perturbation.kinds import Adapters, Kind
from educe.run.engine import LOADED, Said

#: Requests to a server in flight.
IN_FLIGHT = 32
#: Tokens of a block of its cache, at most: those on the CPU.
BLOCK = 128
_NUMBER = len("token_id:")


class Address:
    """Something behind an address that speaks OpenAI's protocol, or one of its kind.

    The key is ``OPENAI_API_KEY``.

    Args:
        url: The address, with the path before ``/completions``.
    """

    def __init__(self, url: str) -> None:
        self.url, self.name = url, f"the server at {url}"
        self.client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    def close(self) -> None:
        """Leave it running."""

    @contextmanager
    def saying(self, what: str) -> Iterator[None]:
        """Say what did not work of what runs in a statement.

        Raises:
            ServerError: It did not.
        """
        try:
            yield
        except (openai.OpenAIError, TypeError, AttributeError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ServerError(f"{self.name} {what} ({reason})") from error


class Server(Address):
    """A vLLM server that takes adapters while it runs.

    It is started with ``--enable-lora --max-loras 9`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``,
    and sees the folder of the run under the same path.

    Args:
        url: Its address.
        folder: Where adapters are written for it.
    """

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self.folder = folder

    def takes(self, kind: Kind) -> bool:
        """Tell whether these are adapters."""
        return isinstance(kind, Adapters)

    @contextmanager
    def having(
        self, lm: LanguageModel, kind: Kind, theta: dict[str, Float[Tensor, "s"]], longest: int
    ) -> Iterator[None]:
        """Let the server load adapters, and unload them."""
        loaded = []
        try:
            for name, place in _written(lm, kind, theta, self.folder).items():
                self._post("load_lora_adapter", lora_name=name, lora_path=place)
                loaded.append(name)
            yield
        finally:
            for name in loaded:
                self._post("unload_lora_adapter", lora_name=name)
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask(
        self, asked: Sequence[tuple[str, Sequence[int]]], tokens: int, ends: set[int], top: int = 0
    ) -> list[Said]:
        """Ask for texts, as many at a time as there are threads."""

        def one(question: tuple[str, Sequence[int]]) -> Said:
            name, ids = question
            with self.saying("does not write"):
                (choice,) = self.client.completions.create(
                    model=name,
                    prompt=list(ids),
                    max_tokens=tokens,
                    temperature=0,
                    logprobs=top,
                    extra_body={
                        "return_tokens_as_token_ids": True,
                        "stop_token_ids": sorted(ends),
                        "cache_salt": name,
                    },
                ).choices
                told: Any = choice.logprobs
                likeliest = (told.top_logprobs or [{}])[0].items()
                return Said(
                    [int(token[_NUMBER:]) for token in told.tokens],
                    list(told.token_logprobs),
                    {int(token[_NUMBER:]): nats for token, nats in likeliest},
                )

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            return list(pool.map(one, asked))

    def _post(self, what: str, **body: str) -> None:
        with self.saying(f"does not take {what}: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 lets it"):
            self.client.post(f"/{what}", cast_to=str, body=body)


class Inside:
    """vLLM in this process, beside our own model: no server, no port.

    It begins with the first texts, and anew where adapters of a higher rank or longer texts come.

    Args:
        folder: Where adapters are written for it.
        ready: Adapters under which it writes together; of others it keeps `LOADED` in memory.
    """

    name = "vLLM"

    def __init__(self, folder: Path, ready: int = LOADED) -> None:
        self.folder, self.ready = folder, ready
        self._llm: Any = None
        self._rank = self._longest = 0
        self._numbers = count(1)
        self._requests: dict[str, Any] = {}

    def takes(self, kind: Kind) -> bool:
        """Tell whether these are adapters."""
        return isinstance(kind, Adapters)

    @contextmanager
    def having(
        self, lm: LanguageModel, kind: Kind, theta: dict[str, Float[Tensor, "s"]], longest: int
    ) -> Iterator[None]:
        """Let vLLM know where the adapters are, and forget them."""
        assert isinstance(kind, Adapters)
        if kind.rank > self._rank or longest > self._longest:
            self._begin(lm, max(kind.rank, self._rank), max(longest, self._longest))
        from vllm.lora.request import LoRARequest

        try:
            self._requests = {
                name: LoRARequest(name, next(self._numbers), place)
                for name, place in _written(lm, kind, theta, self.folder).items()
            }
            yield
        finally:
            for request in self._requests.values():
                self._llm.llm_engine.remove_lora(request.lora_int_id)
            self._requests = {}
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask(
        self, asked: Sequence[tuple[str, Sequence[int]]], tokens: int, ends: set[int], top: int = 0
    ) -> list[Said]:
        """Ask for texts, all at once."""
        from vllm import SamplingParams

        how = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            logprobs=top,
            stop_token_ids=sorted(ends),
            detokenize=False,
        )
        came = self._llm.generate(
            [{"prompt_token_ids": list(ids), "cache_salt": name} for name, ids in asked],
            how,
            lora_request=[self._requests[name] for name, _ in asked],
            use_tqdm=False,
        )
        return [_said(request.outputs[0]) for request in came]

    def _begin(self, lm: LanguageModel, rank: int, longest: int) -> None:
        """Load the model into vLLM, with room for as many texts as we write together.

        Raises:
            ServerError: It does not take it.
        """
        # A child of vLLM's own would import the main module of whoever calls.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self.close()
        rows = rows_at_once(lm)
        try:
            self._llm = LLM(
                lm.unwrapped.name_or_path,
                revision=lm.revision,
                dtype=str(lm.dtype).removeprefix("torch."),
                skip_tokenizer_init=True,
                enable_lora=True,
                max_loras=self.ready,
                max_cpu_loras=LOADED,
                max_lora_rank=next(r for r in peft.RANKS if r >= rank),
                max_model_len=longest,
                max_num_seqs=rows,
                kv_cache_memory_bytes=rows * _cached(lm, longest),
            )
        except Exception as error:  # whatever does not suit it, of any kind
            reason = " ".join(str(error).split())[:200]
            raise ServerError(f"vLLM does not take {lm.name} ({reason})") from error
        self._rank, self._longest = rank, longest

    def close(self) -> None:
        """End it, and give its memory back."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._rank, self._longest = None, 0, 0
        cleanup_dist_env_and_memory()


def _written(
    lm: LanguageModel, kind: Kind, theta: dict[str, Tensor], folder: Path
) -> dict[str, str]:
    """Write adapters as PEFT has them; return where each is.

    Raises:
        ServerError: The model has an adapter of its own.
    """
    assert isinstance(kind, Adapters)
    if lm.adapter is not None:
        raise ServerError("stock vLLM adds one adapter, and the model has its own")
    places = {}
    for name, one in theta.items():
        peft.write(folder / name, kind, one, model=lm.name, revision=lm.revision or "")
        places[name] = str((folder / name).absolute())
    return places


def _said(output: Any) -> Said:
    """Return what vLLM made of a request; with each token come the likeliest at its place."""
    tokens, told = list(output.token_ids), output.logprobs
    first = {token: one.logprob for token, one in told[0].items()}
    return Said(tokens, [at[t].logprob for t, at in zip(tokens, told, strict=True)], first)


def _cached(lm: LanguageModel, longest: int) -> int:
    """Return how many bytes the keys and values of a text take, in blocks of `BLOCK` tokens."""
    config = lm.unwrapped.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    numbers = (
        2
        * config.num_hidden_layers
        * width
        * (getattr(config, "num_key_value_heads", None) or heads)
    )
    return -(-longest // BLOCK) * BLOCK * numbers * lm.dtype.itemsize
