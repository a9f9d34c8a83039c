"""Prompts as people write them: files of prompts, and the forms that a prompt can have.

A prompt is a text, or messages with a role and a content. `checked` makes one of these two of what
was given, or says what it is not; nothing that the model would not read is dropped in silence.

A file is read by its suffix, whatever its case: ``.txt`` or none has a prompt a line, ``.jsonl``
and ``.ndjson`` an item a line, ``.json`` a list of items (by itself, or as the one list of an
object), ``.csv`` and ``.tsv`` an item a row, under a header. An item is a prompt, or an object that
has one under one of `FIELDS`. Alpaca's ``input`` follows its ``instruction`` after a blank line
(Taori et al. 2023); ``conversations`` are ShareGPT's, with ``from`` and ``value``.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from educe.errors import PromptError

#: A text, or messages with a role and a content.
Prompt = str | Sequence[Mapping[str, Any]]

#: Where an object or a table has its prompt; it has one of them.
FIELDS = ("messages", "conversations", "prompt", "instruction", "question", "text")

#: What other tools show the model beside these, and educe does not.
UNREAD = (
    *("system", "system_prompt", "context", "passage", "history", "suffix", "choices", "options"),
    *("tools", "functions", "documents", "images", "image", "videos", "audios"),
)

#: ShareGPT's names of the roles.
ROLES = {"human": "user", "gpt": "assistant"}

#: What a text begins with that is a list or an object of JSON or Python; and one of messages.
BEGINS_AS_DATA = re.compile(r"""\s*[\[{]\s*["'{]""")
BEGINS_AS_MESSAGES = re.compile(
    r"""\s*\[?\s*\{\s*["'](messages|conversations|role|content|from|value)["']\s*:"""
)

KNOWN = "give .txt (one prompt a line), .jsonl or .ndjson, .json, .csv or .tsv"


def checked(prompt: Any, where: str = "a prompt") -> str | list[dict[str, str]]:
    """Return a prompt as a text, or as messages with a text as role and as content.

    Contents that are lists of text parts are joined, as chat templates do it that know them.

    Args:
        prompt: A text, or a sequence of mappings with ``role`` and ``content``.
        where: What it is called in messages.

    Raises:
        PromptError: It is empty, or is something else or more than that.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError(f"{where} is empty: give it some text")
        return well_formed(prompt, where)
    return messages_of(prompt, where)


def messages_of(prompt: Any, where: str = "a prompt") -> list[dict[str, str]]:
    """Return messages as `checked` does, where a prompt must be some.

    Raises:
        PromptError: See `checked`.
    """
    if not isinstance(prompt, Sequence) or isinstance(prompt, (str, bytes)):
        raise PromptError(f"{where} is {_named(prompt)}: give a text, or messages")
    if not prompt:
        raise PromptError(f"{where} has no messages: give it at least one")
    return [_message(m, f"{where}, message {i}") for i, m in enumerate(prompt, 1)]


def well_formed(text: str, where: str) -> str:
    """Return a text that has none but whole characters.

    Raises:
        PromptError: It has half of a surrogate pair, as bytes that are not UTF-8 become.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{where} has {text[error.start]!a} at character {error.start + 1}, which is no "
            "character: give text in UTF-8"
        ) from None
    return text


def mended(text: str) -> str:
    """Return a text that a model wrote in whole characters, which alone can be kept in files.

    Two halves of a surrogate pair that stand side by side become their character, and a half that
    stands alone becomes U+FFFD, as tokenizers and servers may write them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is {_named(message)}: give it a role and a content")
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise PromptError(f"{where} has no role: give it one, such as user")
    where = f"{where} ({well_formed(role, where)})"
    for key, value in message.items():
        if key not in ("role", "content") and value not in (None, "", [], {}):
            raise PromptError(
                f"{where} has {key!r}: only a role and a content are read; leave it out"
            )
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        parts = enumerate(content, 1)
        content = "".join(_part(part, f"{where}, part {i} of its content") for i, part in parts)
    if not isinstance(content, str):
        raise PromptError(f"{where} has {_named(content)} as its content: give it some text")
    if not content.strip():
        raise PromptError(f"{where} is empty: give it some text, or leave it out")
    return {"role": role, "content": well_formed(content, where)}


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else _named(part)
    if kind != "text" or not isinstance(part.get("text"), str):
        raise PromptError(f"{where} is no text but {kind}: the models here read text alone")
    return part["text"]


def _named(value: Any) -> str:
    """Return what a value is called in JSON."""
    names = {type(None): "null", bool: "true or false", dict: "an object", list: "a list"}
    names |= {int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), f"a {type(value).__name__}")


# -- files -----------------------------------------------------------------------------------------


def read_prompts(path: Path) -> list[Any]:
    """Read the prompts of a file by its suffix (see `educe.model.prompts`).

    Raises:
        PromptError: The file cannot be read, is of another format, or holds something else; with
            the line or the item where it does.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise PromptError(f"cannot read prompts from {path}: its format is not known; {KNOWN}")
    prompts = list(read(_text(path), str(path)))
    if not prompts:
        raise PromptError(f"{path} holds no prompt")
    return prompts


def _text(path: Path) -> str:
    """Return the text of a file: UTF-8, or what its byte order mark says."""
    try:
        raw = path.read_bytes()
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read prompts from {path}: {error}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise PromptError(f"{path}, line {line} has a NUL: this is no text in UTF-8")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers; U+2028 ends none."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield number, line.rstrip("\n")


def _plain(text: str, path: str) -> Iterator[Any]:
    if BEGINS_AS_DATA.match(text):
        raise PromptError(
            f"{path} begins as JSON does, and would be read as plain text: call it .jsonl or .json"
        )
    yield from (_bare(line, f"{path}, line {number}") for number, line in _lines(text))


def _json_lines(text: str, path: str) -> Iterator[Any]:
    for number, line in _lines(text):
        where = f"{path}, line {number}"
        yield _prompt(_parsed(line, where), where)


def _json_list(text: str, path: str) -> Iterator[Any]:
    found = _parsed(text, path)
    if isinstance(found, dict) and not set(FIELDS) & found.keys():
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else None
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        raise PromptError(f"{path}: give a list of prompts, by itself or as the one list of it")
    yield from (_prompt(item, f"{path}, item {i}") for i, item in enumerate(found, 1))


def _table(delimiter: str) -> Callable[[str, str], Iterator[Any]]:
    def read(text: str, path: str) -> Iterator[Any]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line = 1
        try:
            header = [name.strip().lower() for name in next(rows, [])]
            if not set(FIELDS) & set(header):
                raise PromptError(
                    f"{path}, line 1 is no header with a prompt: name one column {_either(FIELDS)}"
                )
            if len(set(header)) < len(header):
                raise PromptError(f"{path}, line 1 gives two columns the same name")
            for row in rows:
                line, where = rows.line_num, f"{path}, line {line + 1}"
                if len(row) != len(header) and row:
                    raise PromptError(f"{where} has {len(row)} cells under {len(header)} columns")
                if any(cell.strip() for cell in row):
                    yield _prompt(dict(zip(header, row, strict=True)), where)
        except csv.Error as error:
            raise PromptError(
                f"{path}, line {line + 1} is no {delimiter!r} table: {error}"
            ) from error

    return read


READERS = {
    "": _plain,
    ".txt": _plain,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        more = " (JSON Lines are read from .jsonl)" if "Extra data" in str(error) else ""
        raise PromptError(f"{where} is no JSON: {error}{more}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of it")


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return found


def _prompt(item: Any, where: str) -> Any:
    """Return the prompt of an item: the item, or what an object has under one of `FIELDS`."""
    if isinstance(item, str):
        return _bare(item, where)
    if not isinstance(item, dict):
        return checked(item, where)
    given = {
        key.strip().lower(): value for key, value in item.items() if value not in (None, "", [], {})
    }
    instructed = "instruction" in given
    if unread := [key for key in (*UNREAD, *(() if instructed else ("input",))) if key in given]:
        raise PromptError(
            f"{where} has {unread[0]!r}, which would not be read: write it into the prompt, or "
            "leave it out"
        )
    fields = [field for field in FIELDS if field in given]
    if len(fields) != 1:
        found = f"both {fields[0]!r} and {fields[1]!r}" if fields else "no prompt"
        raise PromptError(f"{where} has {found}: give one of {_either(FIELDS)}")
    (field,) = fields
    prompt = given[field]
    if field == "instruction" and isinstance(prompt, str):
        more = given.get("input", "")
        if not isinstance(more, str):
            raise PromptError(f"{where} has {_named(more)} as its input: give a text")
        return _bare(f"{prompt}\n\n{more}" if more.strip() else prompt, where)
    if field == "conversations" and isinstance(prompt, list):
        prompt = [_shared(message) for message in prompt]
    return _bare(prompt, where) if isinstance(prompt, str) else checked(prompt, where)


def _shared(message: Any) -> Any:
    """Return a message of ShareGPT as one of ours."""
    if not isinstance(message, dict) or "from" not in message:
        return message
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    speaker = message["from"]
    role = ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return rest | {"role": role, "content": message.get("value")}


def _bare(text: str, where: str) -> Any:
    """Return a text that is one, and not messages written as text."""
    if BEGINS_AS_MESSAGES.match(text):
        raise PromptError(f"{where} is a text that looks like messages: give them as .jsonl")
    return checked(text, where)


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
