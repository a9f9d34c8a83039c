"""Prompts as a model reads them: rendered by its chat template, and turned into token numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from typing import Any

import torch

from educe.errors import PromptError
from educe.model.asked import (
    NOWHERE,
    Message,
    Span,
    by_decoding,
    by_offsets,
    in_rendered,
    last_message,
    stripped,
)
from educe.model.batch import PromptBatch
from educe.model.prompts import Prompt, checked, mended, well_formed

#: The day that chat templates write which ask for the date: on every day a run reads the same.
TODAY = date(2026, 1, 1)


#: The role of a message that is read as it stands, without template: its text has all special
#: tokens that are wanted, such as the beginning of a template.
RAW = "raw"


def as_it_stands(prompt: Prompt) -> str | None:
    """Return the text of a prompt that is one message of the role `RAW`; None of others."""
    if isinstance(prompt, str) or len(prompt) != 1 or prompt[0].get("role") != RAW:
        return None
    return well_formed(str(prompt[0]["content"]), "a prompt")


def read_of(whole: Sequence[int], bare: Sequence[int]) -> slice:
    """Return what a model reads of a bare text with the special tokens of its tokenizer.

    These are the tokens that the tokenizer puts before the text, once, though the text may begin
    with them; and not those that it puts behind it, such as an end, after which nobody goes on.

    Args:
        whole: Token numbers with special tokens.
        bare: Without.

    Raises:
        PromptError: The tokenizer reads the text otherwise beside its special tokens.
    """
    places = range(len(whole) - len(bare) + 1)
    place = next((i for i in places if list(whole[i : i + len(bare)]) == list(bare)), None)
    if place is None:
        raise PromptError(
            "the tokenizer reads a bare text otherwise beside its special tokens: give the prompt "
            "as messages"
        )
    begun = list(bare[:place]) == list(whole[:place])
    return slice(place if begun else 0, place + len(bare))


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

    @property
    def remarks(self) -> list[str]:
        """What is to be said of how it reads prompts."""
        if "strftime_now" not in str(getattr(self.tokenizer, "chat_template", None)):
            return []
        return [
            f"the chat template of {self.name} asks for the date: it always gets {TODAY}, so that "
            "prompts read the same on every day"
        ]

    def text(self, ids: Any, **options: Any) -> str:
        """Return what tokens say, in whole characters (see `educe.model.prompts.mended`).

        Args:
            ids: Token numbers.
            options: Go to the tokenizer's ``decode``.
        """
        return mended(self.tokenizer.decode(ids, **options))

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
            PromptError: The prompt is empty or no prompt (see `educe.model.prompts.checked`), needs
                a chat template and there is none, or the template refuses it or leaves some out.
        """
        rendered, *_ = self._written(prompt, chat, enable_thinking)
        return rendered + well_formed(prefill, "the prefill")

    def _written(
        self, prompt: Prompt, chat: bool | None, enable_thinking: bool | None
    ) -> tuple[str, Span, bool]:
        """Return a rendered prompt, where the person's message is, and whether by a template."""
        if (text := as_it_stands(prompt)) is not None:
            return text, stripped(text), True
        messages = self._messages(prompt, chat)
        if messages is None:
            return str(prompt), stripped(str(prompt)), False
        try:
            return *self._shown(messages, enable_thinking), True
        except PromptError:
            # Some templates take contents as lists of parts alone.
            with suppress(PromptError):
                return *self._shown(messages, enable_thinking, in_parts=True), True
            raise

    def _shown(
        self,
        messages: list[dict[str, str]],
        enable_thinking: bool | None,
        *,
        in_parts: bool = False,
    ) -> tuple[str, Span]:
        """Return messages as the template writes them, and where the person's last one is."""

        def render(some: Sequence[Message]) -> str:
            if in_parts:
                some = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in some]
            return self._templated(some, enable_thinking)

        text = render(messages)
        places = in_rendered(render, messages, text)
        for i, (message, place) in enumerate(zip(messages, places, strict=True), 1):
            if place is None:
                raise PromptError(
                    f"the chat template of {self.name} leaves out or changes message {i} "
                    f"({message['role']}): the model would not read what it says; leave the "
                    "message out, or write it into another"
                )
        own = last_message(messages)
        return text, NOWHERE if own is None else places[own] or NOWHERE

    def _messages(self, prompt: Prompt, chat: bool | None) -> list[dict[str, str]] | None:
        """Return what goes through the chat template; None for text that does not."""
        template = getattr(self.tokenizer, "chat_template", None)
        asked = checked(prompt)
        if isinstance(asked, str):
            if chat is False or (chat is None and not template):
                return None
            asked = [{"role": "user", "content": asked}]
        if not template:
            raise PromptError(f"{self.name} has no chat template: give prompts as plain text")
        return asked

    def _template(self) -> str | None:
        """Return the chat template with a fixed date in it; None where it asks for none."""
        if not self.remarks:
            return None
        template = self.tokenizer.get_chat_template()
        return re.sub(
            r"strftime_now\(\s*([\"'])(.*?)\1\s*\)", lambda m: repr(TODAY.strftime(m[2])), template
        )

    def _templated(self, messages: Sequence[Message], enable_thinking: bool | None) -> str:
        """Write messages by the chat template; it is a program, and its errors are of any kind."""
        goes_on = messages[-1]["role"] == "assistant"
        extra = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                chat_template=self._template(),
                **extra,
            )
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            reason = next(filter(None, str(error).splitlines()), "no reason")
            raise PromptError(
                f"the chat template of {self.name} does not take a prompt of {roles}: "
                f"{type(error).__name__}: {reason}"
            ) from error
        return text

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
        if isinstance(prompts, str):
            raise PromptError(
                "prompts are one text, of which each letter would be a prompt: give a list"
            )
        well_formed(prefill, "the prefill")
        read = []
        for number, prompt in enumerate(prompts, 1):
            try:
                read.append(self._read(prompt, chat, enable_thinking, prefill))
            except PromptError as error:
                if len(prompts) == 1:
                    raise
                raise PromptError(f"prompt {number} of {len(prompts)}: {error}") from error
        texts, rows, own = zip(*read, strict=True)
        return self.pad(rows, texts, own, room=room)

    def _read(
        self, prompt: Prompt, chat: bool | None, enable_thinking: bool | None, prefill: str
    ) -> tuple[str, list[int], Span]:
        """Return a prompt as the model reads it, its tokens, and where the person's message is."""
        rendered, part, templated = self._written(prompt, chat, enable_thinking)
        text = rendered + prefill
        ids, offsets = self._tokenized(text, templated)
        if offsets is None:
            return text, ids, by_decoding(self.tokenizer, text, ids, part)
        return text, ids, by_offsets(offsets, part)

    def tokens(self, text: str, *, templated: bool) -> list[int]:
        """Return the token numbers of a rendered prompt.

        A template writes its own special tokens; of a bare text see `read_of`.

        Raises:
            PromptError: See `read_of`; or the tokenizer knows a token that the model does not.
        """
        return self._tokenized(text, templated)[0]

    def _tokenized(
        self, text: str, templated: bool
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Return the tokens of a text, and the characters of each where the tokenizer tells."""
        offsets = bool(getattr(self.tokenizer, "is_fast", False))
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=offsets)
        part = slice(None)
        if found["input_ids"] and not templated:
            bare = found["input_ids"]
            found = self.tokenizer(text, add_special_tokens=True, return_offsets_mapping=offsets)
            part = read_of(found["input_ids"], bare)
        ids = list(found["input_ids"])[part]
        known = self.vocabulary
        if unknown := next((token for token in ids if token >= known), None):
            raise PromptError(
                f"{self.name} has no token {self.tokenizer.convert_ids_to_tokens(unknown)!r}: its "
                f"tokenizer gives it the number {unknown}, but its embedding has only "
                f"{known}; leave it out, or resize the embedding"
            )
        return ids, list(found["offset_mapping"])[part] if offsets else None

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
        # Padding is masked, so that any token will do where the tokenizer's is not the model's.
        pad = pad if pad is not None and pad < self.vocabulary else 0
        ids = torch.full((len(rows), longest), pad)
        mask, theirs = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for line, row in enumerate(rows):
            first = longest - len(row)
            ids[line, first:] = torch.tensor(row)
            mask[line, first:] = 1
            start, stop = own[line] if own else NOWHERE
            theirs[line, first + start : first + stop] = True
        texts = texts or [self.text(row) for row in rows]
        there = (tensor.to(self.device) for tensor in (ids, mask, theirs))
        return PromptBatch(tuple(texts), *there)
