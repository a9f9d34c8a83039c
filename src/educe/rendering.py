"""Prompts as a model reads them: rendered by its chat template, and turned into token numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from educe.errors import PromptError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as the model reads them, padded on the left to one length.

    Attributes:
        texts: Each prompt with every special token, as the tokenizer got it.
        ids: Token numbers, ``[prompts, tokens]``.
        mask: 1 where a token is one, 0 where it is padding, ``[prompts, tokens]``.
    """

    texts: tuple[str, ...]
    ids: Int[Tensor, "p t"]
    mask: Int[Tensor, "p t"]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt, padding not counted."""
        return [int(n) for n in self.mask.sum(1)]


class Reads:
    """What a `LanguageModel` does with prompts.

    Attributes:
        tokenizer: Its tokenizer.
        name: What the model is called in messages.
    """

    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        """Where token numbers go."""
        raise NotImplementedError

    @property
    def context(self) -> int | None:
        """The most tokens the model takes, where its configuration says so."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        """How many token numbers the model takes."""
        raise NotImplementedError

    def render(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        enable_thinking: bool | None = None,
        prefill: str = "",
    ) -> str:
        """Write a prompt as the model reads it, special tokens and all.

        Args:
            prompt: Text, or messages with ``role`` and ``content``. When the last message is the
                assistant's, the model goes on with it.
            chat: Whether text goes through the chat template; by default, when there is one.
            enable_thinking: Passed to templates that know it.
            prefill: The first words of the answer, put after the rendered prompt.

        Raises:
            PromptError: The prompt is empty, or needs a chat template and there is none.
        """
        template = getattr(self.tokenizer, "chat_template", None)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("a prompt is empty: give it some text")
            if chat is False or (chat is None and not template):
                return prompt + prefill
            prompt = [{"role": "user", "content": prompt}]
        if not prompt:
            raise PromptError("a prompt has no messages: give it at least one")
        if not template:
            raise PromptError(f"{self.name} has no chat template: give prompts as plain text")
        goes_on = prompt[-1].get("role") == "assistant"
        extra = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in prompt],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **extra,
        )
        return text + prefill

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token numbers of a text, with the special tokens that plain text gets or not.

        Raises:
            PromptError: The tokenizer knows one that the model does not.
        """
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if unknown := next((token for token in ids if token >= self.vocabulary), None):
            raise PromptError(
                f"{self.name} has no token {self.tokenizer.convert_ids_to_tokens(unknown)!r}: its "
                f"tokenizer gives it the number {unknown}, but its embedding has only "
                f"{self.vocabulary}; leave it out, or resize the embedding"
            )
        return ids

    def encode(
        self,
        prompts: Sequence[Prompt],
        *,
        chat: bool | None = None,
        enable_thinking: bool | None = None,
        prefill: str = "",
        room: int = 0,
    ) -> PromptBatch:
        """Render prompts and turn them into token numbers, padded on the left.

        Args:
            prompts: Texts or lists of messages.
            chat: See `render`.
            enable_thinking: See `render`.
            prefill: See `render`.
            room: Tokens that must still fit into the context after the prompt.

        Raises:
            PromptError: There is no prompt, one is empty, one is longer than the context, or one
                has a token that the model does not know.
        """
        if not prompts:
            raise PromptError("no prompt: give at least one")
        options = {"chat": chat, "enable_thinking": enable_thinking, "prefill": prefill}
        texts = tuple(self.render(prompt, **options) for prompt in prompts)  # type: ignore[arg-type]
        template = bool(getattr(self.tokenizer, "chat_template", None))
        templated = [not isinstance(p, str) or (chat is not False and template) for p in prompts]
        # A template writes its own special tokens; plain text gets the tokenizer's.
        rows = [
            self.tokens(text, special=not through)
            for text, through in zip(texts, templated, strict=True)
        ]
        return self.pad(rows, texts, room=room)

    def pad(
        self, rows: Sequence[Sequence[int]], texts: Sequence[str] | None = None, *, room: int = 0
    ) -> PromptBatch:
        """Pad lists of token numbers on the left to one length.

        Raises:
            PromptError: One is empty or longer than the context less ``room``.
        """
        longest = max(len(row) for row in rows)
        if min(len(row) for row in rows) == 0:
            raise PromptError("a prompt has no token: give it some text")
        if self.context is not None and longest + room > self.context:
            raise PromptError(
                f"a prompt of {longest} tokens and {room} new ones do not fit into the "
                f"{self.context} tokens of {self.name}: shorten it, or ask for fewer new tokens"
            )
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        # Padding is masked, so that any token will do where the tokenizer's is not the model's.
        pad = pad if pad is not None and pad < self.vocabulary else 0
        ids = torch.full((len(rows), longest), pad)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(rows):
            ids[line, longest - len(row) :] = torch.tensor(row)
            mask[line, longest - len(row) :] = 1
        texts = texts or [self.tokenizer.decode(row) for row in rows]
        return PromptBatch(tuple(texts), ids.to(self.device), mask.to(self.device))
