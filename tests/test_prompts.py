"""Prompts as people write them: the forms of a prompt, and files of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from educe.errors import PromptError
from educe.model.prompts import checked, mended, messages_of, read_prompts

HI = [{"role": "user", "content": "Hi"}]

# -- one prompt ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        (" Hi ", " Hi "),
        (tuple(HI), HI),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], HI),
        ([{"role": "user", "content": ({"type": "text", "text": "H"}, "i")}], HI),
        ([{"role": "user", "content": "Hi", "tool_calls": None, "name": ""}], HI),
    ],
)
def test_a_prompt_is_a_text_or_messages_of_text(given: Any, prompt: Any) -> None:
    assert checked(given) == prompt


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "it is empty: give it"),
        (" \n", "it is empty: give it"),
        ("a\udce9", r"it has '\\udce9' at character 2"),
        (None, "it is null"),
        (5, "it is a number"),
        (b"Hi", "it is a bytes"),
        (HI[0], "it is an object"),
        ([], "it has no messages"),
        (["Hi"], "message 1 is a text: give it a role"),
        ([{"content": "Hi"}], "message 1 has no role"),
        ([{"role": None, "content": "Hi"}], "message 1 has no role"),
        ([{"role": "", "content": "Hi"}], "message 1 has no role"),
        ([{"role": "us\ud800er", "content": "Hi"}], r"message 1 has '\\ud800'"),
        ([{"role": "user"}], r"message 1 \(user\) has null as its content"),
        ([*HI, {"role": "assistant", "content": None}], r"message 2 \(assistant\) has null"),
        ([{"role": "user", "content": 5}], "has a number as its content"),
        ([{"role": "user", "content": {"text": "Hi"}}], "has an object as its content"),
        ([{"role": "user", "content": " "}], r"\(user\) is empty"),
        ([{"role": "user", "content": []}], r"\(user\) is empty"),
        ([{"role": "user", "content": "a\ud83d"}], r"has '\\ud83d' at character 2"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "part 1 .*but image"),
        ([{"role": "user", "content": ["a", {"type": "text"}]}], "part 2 of its content"),
        ([{"role": "user", "content": [None]}], "part 1 .*but null"),
        ([HI[0] | {"tool_calls": [{"id": 1}]}], "has 'tool_calls': only a role and a content"),
    ],
)
def test_what_is_no_prompt_is_said(given: Any, told: str) -> None:
    with pytest.raises(PromptError, match=f"^it.*{told.removeprefix('it')}"):
        checked(given, "it")


def test_where_messages_are_needed_a_text_is_none() -> None:
    assert messages_of(HI) == HI
    with pytest.raises(PromptError, match="is a text"):
        messages_of("Hi")


# -- files -----------------------------------------------------------------------------------------

SHARED = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
READ = [*HI, {"role": "assistant", "content": "Yo"}]
LINES = '"Hi"\n\n{"messages": [{"role": "user", "content": "Hi"}]}\r\n{"text": "x", "id": NUM}\n'


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("bare", "a\n", ["a"]),
        ("a.TXT", "a\r\n\r\nb\r\r\n c\u2028d\n", ["a", "b", " c\u2028d"]),
        ("a.txt", "[1] is cited.\n{x} stands for x.\n", ["[1] is cited.", "{x} stands for x."]),
        ("a.jsonl", LINES.replace("NUM", "4"), ["Hi", HI, "x"]),
        ("a.JSONL", LINES.replace("NUM", "4"), ["Hi", HI, "x"]),
        ("a.NDJson", LINES.replace("NUM", "4"), ["Hi", HI, "x"]),
        ("a.jsonl", json.dumps(SHARED), [READ]),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": "Hi"}]}', [HI]),
        ("a.jsonl", '{"instruction": "Do", "input": "this", "output": "-"}', ["Do\n\nthis"]),
        ("a.jsonl", '{"instruction": "Do", "input": ""}\n{"question": "?"}', ["Do", "?"]),
        ("a.JSON", '[\n"Hi",\n[{"role": "user", "content": "Hi"}]\n]', ["Hi", HI]),
        ("a.json", '{"version": 2, "data": ["a", {"prompt": "b"}]}', ["a", "b"]),
        ("a.json", json.dumps(SHARED), [READ]),
        ("a.csv", "prompt\na\n", ["a"]),
        ("a.CSV", 'id,Prompt \r\n1,"two\nlines, ""so"""\r\n\r\n2,b\r\n', ['two\nlines, "so"', "b"]),
        ("a.csv", "question,answer\n?,!\n", ["?"]),
        ("a.csv", 'prompt\r\n"two\r\nlines"\r\n', ["two\r\nlines"]),
        ("a.csv", "instruction,input,output\nDo,this,x\nDo,,x\n", ["Do\n\nthis", "Do"]),
        ("a.tsv", 'text\tid\n"a\tb"\t1\n', ["a\tb"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_by_its_suffix(
    tmp_path: Path, name: str, text: str, prompts: list[Any], encoding: str
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        *((f"a.{suffix}", "Hi\n", "format is not known") for suffix in ("yaml", "md", "docx")),
        *((f"a.{suffix}", "Hi\n", "format is not known") for suffix in ("parquet", "xlsx", "pdf")),
        *((f"a.{suffix}", "Hi\n", "format is not known") for suffix in ("txt.gz", "jsonl.zst")),
        # JSON by another name.
        ("a.txt", '{"messages": []}\n', "begins as JSON does"),
        ("bare", '\n {"messages": [', "begins as JSON does"),
        ("bare", '[\n  {\n    "prompt": "x"\n  }\n]\n', "begins as JSON does"),
        ("a.txt", '["a", "b"]\n', "begins as JSON does"),
        ("a.txt", 'Hi\n{"messages": [{"role": "user"}]}\n', "line 2 .*looks like messages"),
        ("a.csv", "prompt\n\"[{'role': 'user', 'content': 'Hi'}]\"\n", "line 2 .*like messages"),
        ("a.json", '"a"\n"b"\n', r"Extra data.*read from \.jsonl"),
        # What is not well formed.
        ("a.txt", "Hi\nH\0i\n", "line 2 has a NUL"),
        ("a.jsonl", '"a"\n{"prompt": NaN}\n', "line 2 is no JSON: NaN"),
        ("a.jsonl", '"a"\n{"prompt": "b", "prompt": "c"}\n', "line 2 .*'prompt' twice"),
        ("a.jsonl", '"a"\n\n"\\ud800"\n', r"line 3 has '\\ud800'"),
        ("a.json", "[" * 20000, "is no JSON"),
        ("a.csv", 'prompt\na\n"b\n', "line 3 is no ',' table"),
        ("a.csv", "prompt,id\na,1\nb\n", "line 3 has 1 cells under 2 columns"),
        # What has no prompt, or more than one.
        ("a.csv", "Tell me.\nTell me more.\n", "line 1 is no header"),
        ("a.csv", "prompt;answer\na;b\n", "line 1 is no header"),
        ("a.csv", "prompt,prompt\na,b\n", "the same name"),
        ("a.csv", "prompt,id\na,1\n,2\n", "line 3 has no prompt"),
        ("a.csv", "prompt,text\na,b\n", "line 2 has both 'prompt' and 'text'"),
        ("a.csv", "prompt\n", "holds no prompt"),
        ("a.jsonl", '"a"\n{"id": 3}\n', "line 2 has no prompt"),
        ("a.jsonl", '"a"\n""\n', "line 2 is empty"),
        ("a.jsonl", '{"prompt": "a", "messages": [1]}', "line 1 has both 'messages' and 'prompt'"),
        ("a.jsonl", '{"question": "a", "context": "b"}', "line 1 has 'context'"),
        ("a.jsonl", '{"messages": [1], "tools": [2]}', "line 1 has 'tools'"),
        ("a.jsonl", '{"instruction": "a", "input": 5}', "line 1 has a number as its input"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": null}]}', "line 1, message 1"),
        ("a.jsonl", '{"conversations": [{"from": "human"}]}', r"message 1 \(user\) has null"),
        ("a.jsonl", '{"conversations": [{"value": "Hi"}]}', "message 1 has no role"),
        ("a.json", '{"a": ["x"], "b": ["y"]}', "give a list"),
        ("a.json", '["a", 5]', "item 2 is a number"),
        ("a.json", '[{"role": "user", "content": "Hi"}]', "item 1 has no prompt"),
        ("a.json", "{}", "give a list"),
        ("a.json", "[]", "holds no prompt"),
    ],
)
def test_a_file_of_something_else_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=f"{re.escape(str(tmp_path / name))}.*{told}"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("\ufeffa", "\ufeffa"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud800\ud83d\ude00", "\ufffd\U0001f600"),
    ],
    ids=ascii,
)
def test_halves_of_pairs_are_joined_or_replaced(text: str, whole: str) -> None:
    assert mended(text) == whole


@pytest.mark.parametrize("key", ["input", "history", "passage", "suffix", "System", " Context "])
def test_what_stands_beside_a_prompt_and_would_not_be_read_is_refused(
    tmp_path: Path, key: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "So?", key: "It is so."}))
    with pytest.raises(PromptError, match=rf"line 1 has '{key.strip().lower()}', which would not"):
        read_prompts(tmp_path / "a.jsonl")
