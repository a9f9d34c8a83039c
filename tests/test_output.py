"""What is printed, on streams of every encoding, open or closed, and with texts of any kind."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from rich.console import Console

import synthetic_run
from educe import cli
from educe.cli import streams
from educe.comparison.stats import Estimate
from educe.progress import Bars, Lines, reporter
from educe.report import derived, fronts, page, screen
from educe.report.command import command as shell_lines
from educe.run.store import Run
from educe.visible import visible
from read_document import charts, marked, of_page

#: Commands, directions, markup, emoji codes, tags, pictures, other scripts.
HOSTILE = (
    "é → [red]x[/red] [/b] :smile: \x1b[31mESC\x1b]0;mine\x07 \x00\x7f\x9b\r\x08 "
    "\u202eturned\u2066 \u2028\ufeff\u200b\U000e0041\ue000 שלום 12 مرحبا 漢字 😀 </script> & <b>"
)
ENCODINGS = ("utf-8", "cp1252", "ascii", "latin-1", "utf-16", "utf-8-sig", "cp437", "shift_jis")
#: What stands for our own signs where they are not to be had.
REPLACED = {"→": "->", "–": "-", "−": "-", "…": "...", "\u2068": "", "\u2069": ""}


class Ended(NamedTuple):
    status: int
    out: bytes
    err: bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    synthetic_run.build(folder, n=3, extra=HOSTILE, fresh=(HOSTILE,)).close()
    return folder


@pytest.fixture
def educe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run a command on streams of an encoding, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: object, encoding: str = "utf-8") -> Ended:
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding))
            with pytest.raises(SystemExit) as end:
                cli.main([str(argument) for argument in arguments])
            return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue())

    return command


def fallen_back(text: str, encoding: str) -> str:
    """Replace what an encoding has not, sign by sign."""

    def fits(sign: str) -> bool:
        try:
            return bool(sign.encode(encoding))
        except UnicodeEncodeError:
            return False

    def number(sign: str) -> str:
        code = ord(sign)
        return (
            f"\\x{code:02x}"
            if code < 256
            else (f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")
        )

    return "".join(s if fits(s) else REPLACED.get(s, number(s)) for s in text)


# -- encodings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("show",), ("show", 3), ("show", 0)], ids=str)
def test_a_screen_is_the_same_but_for_signs_that_are_not_to_be_had(
    run: Path, educe: Callable[..., Ended], words: tuple
) -> None:
    command = (words[0], run, *words[1:])
    whole = educe(*command).out.decode()
    for encoding in ENCODINGS:
        here = educe(*command, encoding=encoding)
        assert (here.status, here.err) == (0, b"")
        shown, wanted = here.out.decode(encoding), fallen_back(whole, encoding)
        lines = slice(6 if words == ("show", 3) else 0, None)  # rich draws a frame of other signs
        assert shown.splitlines()[lines] == wanted.splitlines()[lines], encoding


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
@pytest.mark.parametrize(
    "command", [("--help",), ("discover", "--help"), ("methods",), ("judge", "list")], ids=str
)
def test_help_and_lists_need_no_sign_in_particular(
    educe: Callable[..., Ended], encoding: str, command: tuple[str, ...]
) -> None:
    ended = educe(*command, encoding=encoding)
    assert (ended.status, ended.err) == (0, b"")
    assert not re.search(r"\\[xuU]", ended.out.decode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "utf-16"])
def test_json_is_read_back_to_the_same_text(
    run: Path, educe: Callable[..., Ended], encoding: str
) -> None:
    ended = educe("show", run, 3, "--json", encoding=encoding)
    text = ended.out.decode(encoding)
    assert text.isascii()
    assert set(json.loads(text)["texts"]) == {HOSTILE}


def test_json_has_neither_nan_nor_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    streams.print_json({"a": [1.5, float("nan")], "b": {"c": (-float("inf"), "\ud800")}})
    raw = capsys.readouterr().out
    told = json.loads(raw, parse_constant=lambda sign: pytest.fail(f"{sign} is no JSON"))
    assert told == {"a": [1.5, None], "b": {"c": [None, "\ud800"]}}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_an_error_is_one_line_in_every_encoding(educe: Callable[..., Ended], encoding: str) -> None:
    ended = educe("show", "nowhere\x1b[2J→\u202e", encoding=encoding)
    assert (ended.status, ended.out) == (2, b"")
    line = ended.err.decode(encoding)
    assert line.count("\n") == 1
    assert rf"nowhere\u001b[2J{'→' if encoding == 'utf-8' else '->'}\u202e" in line


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [(), (3,), (0,)], ids=str)
def test_no_text_commands_the_terminal(
    run: Path, educe: Callable[..., Ended], number: tuple[int, ...]
) -> None:
    shown = educe("show", run, *number).out.decode()
    ours = shown.replace("\u2068", "").replace("\u2069", "")
    assert visible(ours) == ours
    for line in shown.splitlines():
        assert max(line.count(sign) for sign in "\u2068\u2069") <= 1
    if number == (3,):
        flat = re.sub(r"\s+", "", shown)
        assert re.sub(r"\s+", "", f"\u2068{visible(HOSTILE)}\u2069") in flat


@pytest.mark.parametrize("columns", ["1", "5", "14", "15", "16", "40"])
def test_a_narrow_terminal_gets_what_fits(
    run: Path, educe: Callable[..., Ended], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in (("show", run), ("show", run, 3), ("show", run, 0), ("--help",)):
        ended = educe(*command)
        assert (ended.status, ended.err) == (0, b"")


def test_names_in_tables_are_no_markup() -> None:
    into = io.StringIO()
    share = Estimate(0.5, 0.4, 0.6, 9, None)
    scores = dict.fromkeys(("whole", *derived.ORDERS), share)
    needed = dict.fromkeys(derived.ORDERS, 1)
    vector = derived.SparseVector(1, needed, ["one"], 0.5, scores, scores, {"lasso": HOSTILE})
    basis = "a[red]\x1b:smile:.safetensors"
    console = Console(file=into, width=200, emoji=False)
    one = derived.Sparse("x", basis, 9, 0.8, "interestingness", [vector], pd.DataFrame())
    screen.tell([fronts.sparse(one)], console)
    assert r"a[red]\u001b:smile:.safetensors" in into.getvalue()
    assert r"[red]x[/red] [/b] :smile: \u001b[31mESC" in into.getvalue()


def test_progress_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    into = io.StringIO()
    bars = Bars(Console(file=into, force_terminal=True, width=200, color_system=None))
    for tells in (Lines(), bars):
        tells.say(f"loading {HOSTILE}")
        with tells.stage("title [red]\x07", 1) as step:
            step(note="[/b]\x9b :smile:")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", into.getvalue())
    for text in (capsys.readouterr().err, shown):
        assert f"loading {visible(HOSTILE)}" in text.replace("\n", " ").replace("  ", " ")
        assert r"title [red]\u0007" in text
    assert r"[/b]\u009b :smile:" in shown


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(reporter(), Lines)


# -- the page --------------------------------------------------------------------------------------


def test_the_page_has_no_hidden_sign_and_tells_what_was_written_apart(run: Path) -> None:
    with Run.open(run) as opened:
        shown, kept = page.document(opened), of_page(page.write(opened, run / "page.html"))
    told = json.dumps(kept, ensure_ascii=False)
    assert visible(told) == told
    cut = [span for span in marked(kept["parts"], "model") if "turned" in str(span)]
    assert cut
    assert all("".join(pieces) == visible(HOSTILE) for pieces in cut if len(pieces) > 60)
    assert any(r"\u202e" in pieces[1::2] for pieces in cut)
    points = charts(shown)["map"]["data"]["values"]
    assert any(r"\u202eturned\u2066" in point["text"] for point in points)


@pytest.mark.parametrize("text", ["\u202eturned", "it's \x1b \\ '", "a\x7f\n\U000e0041"])
def test_the_command_of_a_page_says_hidden_signs_so_that_a_shell_reads_them(text: str) -> None:
    config = {"prompts": (text,), "fresh": (), "prefill": text}
    told = shell_lines(config)
    assert visible(told) == told
    assert json.loads(told.splitlines()[1]) == text
    word = told.split("--prefill ")[1]
    read = ["bash", "-c", f"printf %s {word}"]
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    assert subprocess.run(read, capture_output=True, check=True, env=env).stdout.decode() == text


# -- streams that are closed, or full, or that nobody reads ----------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        ("show RUN >&-", 0, ""),
        ("show RUN >&- 2>&-", 0, ""),
        ("show nowhere 2>&-", 2, ""),
        ("show RUN >/dev/full", 2, "educe: standard output cannot be written to: No space left"),
        ("show RUN --json | head -c 1", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_is_no_traceback(
    run: Path, command: str, status: int, told: str
) -> None:
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    educe = f"{sys.executable} -m educe"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {educe} {command.replace('RUN', str(run))}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.startswith(told)
    assert ended.stderr.count("\n") == bool(told)


def test_progress_that_nobody_reads_does_not_stop_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        with streams.lasting():
            for _ in range(3):
                Lines().say("a sentence")
        assert sys.stderr is nobody
