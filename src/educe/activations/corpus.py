"""Ordinary text: the bundled corpus, a file, or a data set of the Hub, one document after another.

The bundled corpus is passages and questions written for this project, with what the embedded model
wrote in continuation and in answer (``studies/corpus``), and code, lists, tables and other
languages as they were written: text and chat of many kinds, so that everything works offline. A
document that is a string is text; messages are a chat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from educe.errors import PromptError
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt, messages_of, well_formed

DATA = Path(__file__).parent / "data"
BUNDLED, HUB = "bundled", "hub:"


def documents(source: str | Path = BUNDLED) -> Iterator[Prompt]:
    """Return the documents of a corpus, read as they are asked for.

    Args:
        source: ``bundled``; a ``.txt`` or ``.md`` file with a blank line between documents; a
            ``.jsonl`` or ``.ndjson`` file of strings, of messages, or of records that have ``text``
            or ``messages``; or ``hub:NAME``, the training part of a data set on the Hub with such
            records. Suffixes are of any case, and a file without one is text.

    Raises:
        PromptError: It cannot be read, or holds something else.
    """
    if source == BUNDLED:
        return _bundled()
    if str(source).startswith(HUB):
        return _on_hub(str(source).removeprefix(HUB))
    path = Path(source)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _records(path)
        case "" | ".txt" | ".md":
            return _paragraphs(path)
    raise PromptError(
        f"cannot read the corpus {path}: give .txt or .md with a blank line between documents, or "
        ".jsonl or .ndjson"
    )


def passages() -> list[str]:
    """Return the passages of the bundled corpus."""
    return _bundled_file("passages.txt", "\n\n")


def questions() -> list[str]:
    """Return the questions of the bundled corpus."""
    return _bundled_file("questions.txt", "\n")


def varied() -> list[str]:
    """Return the code, lists, tables and texts in other languages of the bundled corpus."""
    return _bundled_file("varied.txt", "\n%\n")


def _bundled_file(name: str, between: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").removesuffix("\n").split(between)


def tokens(lm: LanguageModel, document: Prompt) -> list[int]:
    """Return a document as the model reads it; a chat is plain text where there is no template."""
    template = bool(getattr(lm.tokenizer, "chat_template", None))
    if not isinstance(document, str) and not template:
        document = "\n\n".join(message["content"] for message in messages_of(document))
    text = lm.render(document, chat=False)
    return lm.tokens(text, templated=not isinstance(document, str))


def _bundled() -> Iterator[Prompt]:
    """Return passages, chats and the varied by turns, so that any part of the corpus has all."""
    answers = list(map(json.loads, _bundled_file("answers.jsonl", "\n")))
    texts = passages()
    told = [text + more for text, more in zip(texts, answers, strict=False)]
    chats = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in zip(questions(), answers[len(texts) :], strict=True)
    ]
    by_turns = chain.from_iterable(zip_longest(told, chats, varied()))
    return (document for document in by_turns if document is not None)


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    for line in chain(_lines(path), [""]):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def _records(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise PromptError(f"{path}, line {number} is no JSON: {error}") from error
            yield _document(record, f"{path}, line {number}")


def _on_hub(name: str) -> Iterator[Prompt]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise PromptError(
            f"{HUB}{name} needs the package datasets: pip install datasets, or give a file"
        ) from error
    try:
        records = load_dataset(name, split="train", streaming=True)
    except Exception as error:
        reason = (str(error).splitlines() or ["no reason"])[0]
        raise PromptError(f"cannot read the data set {name}: {reason}") from error
    for number, record in enumerate(records, 1):
        yield _document(record, f"{name}, record {number}")


def _document(record: Any, where: str) -> Prompt:
    found = record
    if isinstance(record, dict):
        found = record.get("messages") or record.get("text")
    chat = isinstance(found, list) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in found
    )
    if not found or not (isinstance(found, str) or chat):
        raise PromptError(f"{where}: give text, or messages with a role and a content each")
    return well_formed(found, where) if isinstance(found, str) else messages_of(found, where)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.rstrip("\n") for line in file)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the corpus {path}: {error}") from error
