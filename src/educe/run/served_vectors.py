"""interp-engine's server writes under vectors: each request brings what is added after which block.

    POST /v1/generate {"prompt_token_ids": …, "steering": [{"point": "resid_post", "layers": …}]}

Nothing has to be loaded for it. It salts the prefix caches itself, by what is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
from jaxtyping import Float
from torch import Tensor

from educe.model.language import LanguageModel
from educe.perturbation import steering
from educe.perturbation.kinds import Kind
from educe.run.engine import Said
from educe.run.served_vllm import IN_FLIGHT, Address


class Steering(Address):
    """A server of interp-engine, with any of its backends that steers.

    Args:
        url: Its address, with the path before ``/generate``.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._kind: Kind | None = None
        self._theta: dict[str, Tensor] = {}

    @classmethod
    def at(cls, url: str) -> Steering | None:
        """Return the server at an address, if it is one of interp-engine.

        Raises:
            ServerError: Nothing answers there, or its model is not loaded yet.
        """
        made = cls(url)
        once = made.client.with_options(max_retries=0)
        with made.saying("does not say what it is"):
            try:
                told: Any = once.get("/describe", cast_to=object)
            except openai.APIStatusError as error:
                if error.status_code == 503:
                    raise
                return None
        return made if isinstance(told, dict) and "engine_version" in told else None

    def takes(self, kind: Kind) -> bool:
        """Tell whether these are vectors, added at every token or at those of the prompt."""
        return isinstance(kind, steering.VECTORS) and kind.positions in ("all", "prompt")

    @contextmanager
    def having(
        self, lm: LanguageModel, kind: Kind, theta: dict[str, Float[Tensor, "s"]], longest: int
    ) -> Iterator[None]:
        """Keep the vectors at hand: requests bring them."""
        self._kind, self._theta = kind, theta
        yield

    def ask(
        self, asked: Sequence[tuple[str, Sequence[int]]], tokens: int, ends: set[int], top: int = 0
    ) -> list[Said]:
        """Ask for texts, as many at a time as there are threads."""
        kind = self._kind
        assert isinstance(kind, steering.VECTORS)
        specifications = {
            name: steering.specification(steering.added(kind, one))
            for name, one in self._theta.items()
        }

        def one(question: tuple[str, Sequence[int]]) -> Said:
            name, ids = question
            body = {
                "prompt_token_ids": list(ids),
                "max_tokens": tokens,
                "temperature": 0.0,
                "presence_penalty": 0.0,
                "n_logprobs": max(1, top),
                "steering": [specifications[name]],
                "steer_generated": kind.positions == "all",
                "stream": False,
            }
            with self.saying("does not write"):
                told: Any = self.client.post("/generate", cast_to=object, body=body)
                steps = [
                    {each["token_id"]: each["logprob"] for each in step["logprobs"]}
                    for step in told["steps"]
                ]
                said = [int(token) for token in told["token_ids"]]
                # The likeliest one is what was written: of equals, either.
                return Said(said, [max(step.values()) for step in steps], steps[0])

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            return list(pool.map(one, asked))
