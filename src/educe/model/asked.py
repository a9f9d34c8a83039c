"""Asked: which tokens of a rendered prompt are the person's last message.

Messages are not searched for, since the same words may stand elsewhere, in another message or in
the template's own text. They are marked: the prompt is rendered once more with marks at either end,

    <|user|>▸Name three countries in Asia.◂<|end|><|assistant|>

which shows whether a message stands there, as it is, and where; without the marks that must be the
prompt itself. White space around a message counts as the template's, whether or not the template
strips it.

From characters to tokens lead the tokenizer's offsets. A tokenizer that has none is asked to decode
beginnings of the prompt instead.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

#: A role and a content; a content may also be a list of text parts.
Message = Mapping[str, Any]

#: Characters for private use, of which some that do not occur serve as marks, two a message.
MARKS = range(0xE000, 0xF900)


class Span(NamedTuple):
    """A part of a text or of a row: ``start .. stop - 1``."""

    start: int
    stop: int


NOWHERE = Span(0, 0)


def last_message(messages: Sequence[Message]) -> int | None:
    """Return which of some messages is the person's last, if there is one."""
    own = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    return own[-1] if own else None


def stripped(text: str) -> Span:
    """Return where a text is without the white space around it."""
    return Span(len(text) - len(text.lstrip()), len(text.rstrip())) if text.strip() else NOWHERE


def in_rendered(
    render: Callable[[Sequence[Message]], str], messages: Sequence[Message], rendered: str
) -> list[Span | None]:
    """Return which characters of a rendered prompt are each of its messages.

    Args:
        render: Renders messages by the chat template.
        messages: The prompt, contents as text that is not blank.
        rendered: What it is rendered to.

    Returns:
        None for a message that the template leaves out or changes; `NOWHERE` for one whose place
        cannot be told, since the template writes something else as soon as there are marks.
    """
    contents = [message["content"] for message in messages]
    taken = {*rendered}.union(*contents)
    unused = (mark for mark in map(chr, MARKS) if mark not in taken)
    marks = list(islice(zip(unused, unused, strict=False), len(messages)))
    marked = []
    for message, content, (first, last) in zip(messages, contents, marks, strict=True):
        start, stop = stripped(content)
        content = content[:start] + first + content[start:stop] + last + content[stop:]
        marked.append({**message, "content": content})
    shown = render(marked)
    table = dict.fromkeys(map(ord, chain(*marks)))
    alike = shown.translate(table) == rendered
    places: list[Span | None] = []
    for content, (first, last) in zip(contents, marks, strict=True):
        end = shown.rfind(last)
        begin = shown.rfind(first, 0, max(0, end))
        between = shown[begin:end].translate(table)
        if begin < 0 or between != content.strip() or between not in rendered:
            places.append(None)
        elif alike:
            places.append(Span(*(len(shown[:at].translate(table)) for at in (begin, end))))
        else:
            places.append(NOWHERE)
    return places


def by_offsets(offsets: Sequence[tuple[int, int]], part: Span) -> Span:
    """Return the tokens that cover some characters of a text.

    Args:
        offsets: The characters of each token; none, as ``(0, 0)``, of one the tokenizer adds.
        part: The characters.
    """
    own = [i for i, (a, b) in enumerate(offsets) if a < part.stop and b > part.start]
    return Span(own[0], own[-1] + 1) if own else NOWHERE


def by_decoding(tokenizer: Any, text: str, ids: Sequence[int], part: Span) -> Span:
    """Return the tokens that cover some characters of a text, for a tokenizer without offsets.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        ids: Its tokens, with those that the tokenizer adds, if any.
        part: The characters.

    Returns:
        `NOWHERE` when the tokens do not decode to the text.
    """
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = [i for i in range(len(ids) - len(own) + 1) if list(ids[i : i + len(own)]) == own]

    def decoded(n: int) -> str:
        return str(tokenizer.decode(own[:n], clean_up_tokenization_spaces=False))

    def covering(end: int) -> int:
        """Return how many tokens it takes to cover the first characters of the text."""
        numbers = range(len(own) + 1)
        return bisect_left(numbers, True, key=lambda n: decoded(n).startswith(text[:end]))

    if not added or not part.stop or decoded(len(own)) != text:
        return NOWHERE
    before = covering(part.start)
    before -= len(decoded(before)) > part.start  # a token across the beginning
    return Span(added[0] + before, added[0] + covering(part.stop))
