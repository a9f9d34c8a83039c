"""Prompts as a model reads them: rendered by its chat template, and turned into token numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from educe import positions
from educe.asked import (
    NOWHERE,
    Message,
    Span,
    by_decoding,
    by_offsets,
    in_rendered,
    stripped,
)
from educe.errors import PromptError

Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as the model reads them, padded on the left to one length.

    Attributes:
        texts: Each prompt with every special token, as the tokenizer got it.
        ids: Token numbers, ``[prompts, tokens]``.
        mask: 1 where a token is one, 0 where it is padding, ``[prompts, tokens]``.
        asked: Which tokens are the person's last message (see `educe.asked`); none of a prompt
            in which it cannot be found, ``[prompts, tokens]``.
    """

    texts: tuple[str, ...]
    ids: Int[Tensor, "p t"]
    mask: Int[Tensor, "p t"]
    asked: Bool[Tensor, "p t"]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt, padding not counted."""
        return [int(n) for n in self.mask.sum(1)]

    @property
    def spans(self) -> list[Span]:
        """Where the person's last message is in each prompt, padding not counted."""
        there = [own[mask.bool()] for own, mask in zip(self.asked, self.mask, strict=True)]
        return [Span(int(own.int().argmax()), int(own.int().argmax() + own.sum())) for own in there]

    def at(self, where: str) -> Bool[Tensor, "p t"]:
        """Return which tokens are meant by some positions (see `educe.positions`).

        Raises:
            PositionsError: They cannot be read, or need a message that cannot be found.
        """
        return positions.in_prompt(where, self.mask, self.asked)

    def select(self, prompts: Sequence[int], tokens: int | None = None) -> PromptBatch:
        """Return some of the prompts, in the order given.

        Args:
            prompts: Which.
            tokens: How many tokens at the end are kept, padding among them; by default all.
        """
        first = 0 if tokens is None else self.ids.shape[1] - tokens
        lines = list(prompts)
        return PromptBatch(
            tuple(self.texts[line] for line in lines),
            self.ids[lines, first:],
            self.mask[lines, first:],
            self.asked[lines, first:],
        )


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
        messages = self._messages(prompt, chat)
        if messages is None:
            return f"{prompt}{prefill}"
        return self._templated(messages, enable_thinking) + prefill

    def _messages(self, prompt: Prompt, chat: bool | None) -> Sequence[Message] | None:
        """Return what goes through the chat template; None for text that does not."""
        template = getattr(self.tokenizer, "chat_template", None)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("a prompt is empty: give it some text")
            if chat is False or (chat is None and not template):
                return None
            prompt = [{"role": "user", "content": prompt}]
        if not prompt:
            raise PromptError("a prompt has no messages: give it at least one")
        if not template:
            raise PromptError(f"{self.name} has no chat template: give prompts as plain text")
        return prompt

    def _templated(self, messages: Sequence[Message], enable_thinking: bool | None) -> str:
        goes_on = messages[-1].get("role") == "assistant"
        extra = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                **extra,
            )
        )

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
            PromptError: There is no prompt, one is empty, or one is longer than the context.
        """
        if not prompts:
            raise PromptError("no prompt: give at least one")
        read = [self._tokens(prompt, chat, enable_thinking, prefill) for prompt in prompts]
        texts, rows, own = zip(*read, strict=True)
        return self.pad(rows, texts, own, room=room)

    def _tokens(
        self, prompt: Prompt, chat: bool | None, enable_thinking: bool | None, prefill: str
    ) -> tuple[str, list[int], Span]:
        """Return a prompt as the model reads it, its tokens, and where the person's message is."""
        messages = self._messages(prompt, chat)
        if messages is None:
            rendered = str(prompt)
            part = stripped(rendered)
        else:
            rendered = self._templated(messages, enable_thinking)
            part = in_rendered(
                lambda marked: self._templated(marked, enable_thinking), messages, rendered
            )
        text, offsets = rendered + prefill, getattr(self.tokenizer, "is_fast", False)
        # A template writes its own special tokens; plain text gets the tokenizer's.
        found = self.tokenizer(
            text, add_special_tokens=messages is None, return_offsets_mapping=offsets
        )
        ids = found["input_ids"]
        if offsets:
            return text, ids, by_offsets(found["offset_mapping"], part)
        return text, ids, by_decoding(self.tokenizer, text, ids, part)

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        texts: Sequence[str] | None = None,
        own: Sequence[Span] | None = None,
        *,
        room: int = 0,
    ) -> PromptBatch:
        """Pad lists of token numbers on the left to one length.

        Args:
            rows: The token numbers of each prompt.
            texts: What they read; by default as they decode.
            own: Which of them are the person's last message; by default that is unknown.
            room: Tokens that must still fit into the context.

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
        ids = torch.full((len(rows), longest), pad if pad is not None else 0)
        mask, theirs = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for line, row in enumerate(rows):
            first = longest - len(row)
            ids[line, first:] = torch.tensor(row)
            mask[line, first:] = 1
            start, stop = own[line] if own else NOWHERE
            theirs[line, first + start : first + stop] = True
        texts = texts or [self.tokenizer.decode(row) for row in rows]
        there = (tensor.to(self.device) for tensor in (ids, mask, theirs))
        return PromptBatch(tuple(texts), *there)
