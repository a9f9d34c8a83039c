"""The commands: one screen each, JSON on request, and one line for everything that is wrong."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import platformdirs
import pytest
import torch
from rich.cells import cell_len

import read_document
import tiny
from educe import cli, demo
from educe.audit.settings import bundled
from educe.comparison.summary import summarise
from educe.errors import EduceError, PromptError
from educe.layer_map import LayerMap
from educe.layer_map.choice import choose
from educe.methods import METHODS
from educe.model.prompts import read_prompts
from educe.organisms import shipped
from educe.perturbation.set import PerturbationSet
from educe.run.settings import Settings
from educe.run.store import Run

PATTERN = "[a-z]|[/e]"  #: square brackets mean something to rich
COMMANDS = (
    "audit",
    "sources",
    "discover",
    "methods",
    "layers",
    "reads",
    "contrast",
    "select",
    "tune",
    "examine",
    "show",
    "report",
    "demo",
)
PROGRESS = re.compile(r".+: \d+/\d+(, .*)?|converting .+")


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it printed, as JSON without extensions."""
        return json.loads(self.out, parse_constant=lambda sign: pytest.fail(f"{sign} is no JSON"))


def educe(*arguments: object) -> Ended:
    """Run a command in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue())


def refused(*arguments: object, begun: bool = False) -> str:
    """Expect one line on standard error, exit status 2 and nothing else; return the line."""
    ended = educe(*arguments)
    assert ended.status == 2, ended
    assert ended.out == ""
    lines = ended.err.splitlines()
    told = [line for line in lines if not (begun and PROGRESS.fullmatch(line))]
    assert len(told) == 1, ended.err
    assert told[0] == lines[-1]
    assert told[0].startswith("educe: ")
    assert len(told[0]) < 400
    return told[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model as transformers saves one, in a folder with an odd name."""
    place = tmp_path_factory.mktemp("model") / "llama [tiny]"
    tiny.hf_model("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def asked(model: Path) -> list[object]:
    """What goes before the options of a quick run."""
    short = ["--device", "cpu", "--max-new-tokens", 5, "--baseline", 8]
    return ["discover", "Tell me.", "--model", model, *short]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, asked: list[object]) -> tuple[Path, Ended]:
    """A run by the command, and what it printed with ``--json``."""
    place = tmp_path_factory.mktemp("finished")
    (place / "prompts.jsonl").write_text('[{"role": "user", "content": "What is the code?"}]\n')
    (place / "fresh.txt").write_text("Say it.\nThe code, please.\n")
    files = ["--prompts", place / "prompts.jsonl", "--fresh", place / "fresh.txt"]
    run = place / "run [1]"
    ended = educe(*asked, *files, "-n", 4, "--look-for", PATTERN, "--out", run, "--json")
    assert ended.status == 0, ended.err
    return run, ended


# -- what a command prints -------------------------------------------------------------------------


def test_json_of_a_run_has_the_numbers_of_the_run(finished: tuple[Path, Ended]) -> None:
    run, ended = finished
    with Run.open(run) as opened:
        summary = summarise(opened)
    data = ended.data
    assert data["run"] == str(run)
    assert Path(data["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    assert data["settings"]["prompts"] == [
        "Tell me.",
        [{"role": "user", "content": "What is the code?"}],
    ]
    assert data["settings"]["fresh"] == ["Say it.", "The code, please."]
    assert data["facts"]["source"] == 1
    arms = Counter(p["arm"] for p in data["perturbations"])
    assert arms["found"] == arms["control"] == 3 * 4  # three radii
    assert set(arms) <= {"found", "control", "equal effect"}
    assert len(data["behaviours"]) == len(summary.behaviours) > 0
    for told, own in zip(data["behaviours"], summary.behaviours, strict=True):
        assert told["verdict"] == own.verdict.name.lower()
        assert told["found"]["hits"] == own.found.hits
        assert told["found"]["trials"] == 12
        assert told["control"]["hits"] == own.control.hits
        assert told["p_value"] == own.p_value
        assert told["text"] == own.example.text
        assert told["retest"]["hits"] == own.retest.hits
    assert summary.hits is not None
    assert [h["hits"] for h in data["hits"]] == [h.hits for h in summary.hits]
    show = educe("show", run, "--json")
    assert show.status == 0
    assert show.data == {k: v for k, v in data.items() if k not in ("run", "report")}
    assert all(PROGRESS.fullmatch(line) for line in ended.err.splitlines())


def test_json_of_one_perturbation(finished: tuple[Path, Ended]) -> None:
    run, _ = finished
    database = sqlite3.connect(run / "run.sqlite")
    (number,) = database.execute(
        "SELECT min(perturbation) FROM completions WHERE phase = 'retest'"
    ).fetchone()
    query = "SELECT text FROM completions c JOIN prompts q ON q.id = c.prompt "
    query += f"WHERE perturbation = {number} AND role = '{{}}' ORDER BY 1"
    mine, again = ([t for (t,) in database.execute(query.format(r))] for r in ("asked", "fresh"))
    radius = database.execute(f"SELECT radius FROM perturbations WHERE id = {number}").fetchone()[0]
    base = database.execute(
        "SELECT prompt, sample, text FROM completions WHERE perturbation = 0 AND prompt < 4 "
        "ORDER BY 1, 2"
    ).fetchall()
    database.close()
    data = educe("show", run, number, "--json").data
    assert (data["id"], data["radius"]) == (number, radius)
    assert (len(mine), len(again)) == (2, 2)
    assert sorted(data["texts"]) == mine
    assert sorted(data["retest_texts"]) == again
    data = educe("show", run, 0, "--json").data
    assert [(int(p), c["sample"], c["text"]) for p, own in data.items() for c in own] == base


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def screen(ended: Ended, *, lines: int = 40) -> str:
    """Expect one screen."""
    assert ended.status == 0, ended.err
    assert ended.err == ""
    printed = ended.out.splitlines()
    assert 0 < len(printed) <= lines
    assert max(map(cell_len, printed)) <= 80
    return ended.out


@pytest.mark.usefixtures("narrow")
def test_show_a_run_on_one_screen(finished: tuple[Path, Ended]) -> None:
    run, ended = finished
    shown = screen(educe("show", run))
    flat = " ".join(shown.split())
    assert "12 perturbations: 4 at each of 3 radii, and as many in the control" in flat
    assert "[tiny]" in shown
    assert "asked Tell me." in flat
    assert f"looked for {PATTERN!r}" in flat
    assert f"educe show {run} ID"[:30] in flat
    hits = ended.data["hits"]
    for rate in hits:
        assert f"{rate['hits']} of 12" in flat
    for word in ("found", "control", "id"):
        assert word in shown
    told = [b for b in ended.data["behaviours"] if b["shown"]]
    assert told
    for behaviour in told[:10]:
        found, number = behaviour["found"], behaviour["example_perturbation"]
        assert re.search(rf" {found['hits']}/{found['trials']} .* {number} *$", shown, re.M)


@pytest.mark.usefixtures("narrow")
def test_show_a_perturbation_on_one_screen(finished: tuple[Path, Ended]) -> None:
    run, ended = finished
    interestingness = ended.data["perturbations"][0]
    shown = screen(educe("show", run, interestingness["id"]))
    assert f"perturbation {interestingness['id']}" in shown
    assert f"interestingness {interestingness['interestingness']:.2f}" in " ".join(shown.split())
    for prompt in ("Tell me.", "What is the code?", "Say it.", "The code, please."):
        assert prompt in shown
    assert shown.count("  perturbed ") == 4
    assert shown.count("  unperturbed ") == 4


@pytest.mark.usefixtures("narrow")
def test_show_the_unperturbed_model_on_one_screen(finished: tuple[Path, Ended]) -> None:
    shown = screen(educe("show", finished[0], 0))
    assert "Tell me." in shown
    assert "T=0 " in shown
    assert "T=1 " in shown


@pytest.mark.usefixtures("narrow")
def test_long_texts_and_many_lines_leave_room_for_the_numbers(
    finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    with Run.open(tmp_path / "run") as run:
        words = " ".join(f"of{k}" for k in range(90))
        run.add_completions(
            c._replace(text=f"{c.perturbation} says\n\na long story {words}")
            for c in run.completion_rows()
        )
        summary = summarise(run)
    shown = screen(educe("show", tmp_path / "run"))
    told = [b for b in summary.behaviours if b.weight >= 0]
    assert told
    for b in told[:10]:
        rates = rf"{b.control.hits}/\d+ .*{b.found.hits}/{b.found.trials} "
        row = rf"^\d+ says a long story.*…\n .* {rates}.* {b.example.perturbation} *$"
        assert re.search(row, shown, re.M), shown
    again = next(i.row.id for i in summary.found if i.retest)
    shown = screen(educe("show", tmp_path / "run", again))
    assert shown.count(f"  perturbed    {again} says a long story") == 4
    shown = screen(educe("show", tmp_path / "run", 0))
    assert shown.count("0 says a long story") >= 4


def test_a_reader_that_has_seen_enough_is_no_error(finished: tuple[Path, Ended]) -> None:
    command = [sys.executable, "-c", "from educe.cli import main; main()", "show"]
    told = subprocess.Popen(
        [*command, finished[0], "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    told.stdout.close()
    assert told.communicate()[1] == b""
    assert told.returncode == 0


def test_a_text_cannot_command_the_terminal(finished: tuple[Path, Ended], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    with Run.open(tmp_path / "run") as run:
        number = summarise(run).behaviours[0].example.perturbation
        rows = [c for c in run.completion_rows() if c.perturbation in (0, number)]
        run.add_completions(
            c._replace(text=f"é \x1b]0;mine\x07\x1b[2J\r\x9b31m[/b][red]{c.sample}") for c in rows
        )
    for arguments in ([], [number], [0]):
        ended = educe("show", tmp_path / "run", *arguments)
        assert ended.status == 0
        assert "]0;mine" in ended.out
        assert "[/b][red]" in ended.out
        assert "é" in ended.out
        assert not set(ended.out) & {"\x1b", "\x07", "\r", "\x9b"}


def test_a_report_can_be_drawn_again(finished: tuple[Path, Ended], tmp_path: Path) -> None:
    before = (finished[0] / "report.html").read_bytes()
    ended = educe("report", finished[0], "--out", tmp_path / "page.html", "--json")
    assert ended.status == 0
    assert ended.data == {"report": str(tmp_path / "page.html")}
    assert (tmp_path / "page.html").read_bytes() == before
    (finished[0] / "report.html").unlink()
    ended = educe("report", finished[0])
    assert ended.out == f"report: {finished[0] / 'report.html'}\n"
    assert (finished[0] / "report.html").read_bytes() == before


def test_a_run_ends_with_its_table_and_where_the_report_is(
    asked: list[object], tmp_path: Path
) -> None:
    ended = educe(*asked, "--radius", 8, "-n", 2, "--out", tmp_path / "run")
    assert ended.status == 0
    counts = "2 perturbations at one radius, and as many in the control"
    assert counts in " ".join(ended.out.split())
    assert f"report: {tmp_path / 'run' / 'report.html'}" in ended.out
    assert "calibrating" in ended.err
    # Done already: resuming it draws the table and the report again.
    (tmp_path / "run" / "report.html").unlink()
    again = educe("discover", "--resume", "--out", tmp_path / "run")
    assert again.status == 0
    assert again.out == ended.out
    assert (tmp_path / "run" / "report.html").is_file()


# -- help ------------------------------------------------------------------------------------------


def options(*command: str) -> set[str]:
    """The long names of what a command takes."""
    app = cli.app[command[0]]
    for name in command[1:]:
        app = app[name]
    names = {name for a in app.assemble_argument_collection() for name in a.names if a.show}
    return {name for name in names if name.startswith("--")}


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)], ids=str)
def test_help_is_readable(command: tuple[str, ...]) -> None:
    ended = educe(*command, "--help")
    assert ended.status == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert lines[0].startswith(" ".join(["Usage: educe", *command]))
    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in ended.out
    if command:
        text = re.sub(r"[│╭╮╰╯─\s]+", " ", ended.out)
        assert options(*command)
        for option in options(*command):
            # A name, perhaps another or a kind, and words about it.
            assert re.search(rf"{option} (-\S+ )*([A-Z|.]+ )?[a-z0-9]", text), option


def test_educe_alone_lists_the_commands() -> None:
    alone = educe()
    assert alone.status == 0
    assert alone == educe("--help")
    for command in COMMANDS:
        assert re.search(rf"^│ {command} +[A-Z]", alone.out, re.M)


def test_version() -> None:
    assert educe("--version") == (0, f"{version('educe')}\n", "")


# -- what the options mean -------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Settings, Path]]:
    """Run a command that stops before anything slow, and return what it would do."""
    told: list[tuple[Settings, Path]] = []
    monkeypatch.setattr(
        cli.discover, "carry_out", lambda settings, out, **_: told.append((settings, out))
    )

    def run(*arguments: object) -> tuple[Settings, Path]:
        ended = educe(*arguments)
        assert ended.status == 0, ended.err
        return told.pop()

    return run


def test_the_defaults_are_those_of_the_settings(
    given: Callable[..., tuple[Settings, Path]],
) -> None:
    settings, out = given("discover", "Hi.")
    assert settings == Settings(prompts=("Hi.",))
    assert out.parent == Path("runs")
    assert re.fullmatch(r"\d{8}-\d{6}-dct", out.name)
    named = {f"--{f.name.replace('_', '-')}" for f in fields(Settings)}
    assert named - {"--method-settings"} | {"--set"} <= options("discover")


@pytest.mark.parametrize(
    ("text", "layer"),
    [("0.5", 0.5), ("0.33", 0.33), ("0.9", 0.9), ("3", 3), ("-2", -2), ("0", 0), ("1e-1", 0.1)],
)
def test_layers_are_indices_or_fractions(
    given: Callable[..., tuple[Settings, Path]], text: str, layer: float
) -> None:
    """A fraction is not rounded to an index."""
    assert given("discover", "Hi.", "--source", text)[0].source == layer
    assert given("discover", "Hi.", f"--target={text}")[0].target == layer


def test_layers_may_be_chosen(given: Callable[..., tuple[Settings, Path]]) -> None:
    settings, _ = given("discover", "Hi.", "--source", "auto", "--target", "auto")
    assert (settings.source, settings.target) == ("auto", "auto")


def test_a_layer_map_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    """Its page has both maps, and the layers it names are those of the choice."""
    asked = ["layers", "Tell me.", "--model", model, "--device", "cpu", "--out", tmp_path / "a"]
    few = educe(*asked, "--few", "--json")
    assert few.status == 0, few.err
    assert re.search(r"^\d+ pairs, about \d+ s, \d+ passes of a block$", few.err, re.M)
    first = LayerMap.load(few.data["layer_map"])
    assert "another layer map" in refused(*asked)
    other = educe(*asked, "--resume")  # the whole one has other settings than the cheap one
    assert (other.status, "begin anew" in other.err) == (2, True)
    (tmp_path / "a" / "atlas.safetensors").unlink()
    ended = educe(*asked)
    assert ended.status == 0, ended.err
    layer_map = LayerMap.load(tmp_path / "a" / "atlas.safetensors")
    assert set(first.pairs) < set(layer_map.pairs)
    assert len(layer_map.pairs) == 6  # of four blocks
    found = choose(layer_map)
    assert f"--source {found.source} --target {found.target}: {found.why}" in ended.out
    drawn = read_document.of_page(tmp_path / "a" / "layers.html")
    assert found.why in read_document.text(drawn)
    assert {"layer-map-gain", "layer-map-gap"} <= set(read_document.charts(drawn))
    done = [pair for pair in layer_map.pairs if pair.source == 0]  # source after source is saved
    layer_map.select(done).save(tmp_path / "a" / "atlas.safetensors")
    again = educe(*asked, "--resume")
    assert again.status == 0, again.err
    assert torch.equal(LayerMap.load(tmp_path / "a" / "atlas.safetensors").sigma, layer_map.sigma)


def test_every_option_reaches_the_settings(
    given: Callable[..., tuple[Settings, Path]], tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("Two.\n\n  \nThree.\n")
    options = {
        "model": "a/b",
        "adapter": "c",
        "revision": "r",
        "dtype": "float16",
        "device": "mps",
        "method": "melbo",
        "n": 7,
        "source": 2,
        "target": 0.75,
        "positions": "last:2",
        "readout": "all",
        "radius": "0.3x,8",
        "baseline": 5,
        "samples": 3,
        "temperature": 0.5,
        "max_new_tokens": 11,
        "seed": 9,
        "look_for": "a b",
        "prefill": "Sure, ",
    }
    words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]
    files = ["--prompts", tmp_path / "more.txt", "--fresh", tmp_path / "more.txt"]
    settings, out = given("discover", "One.", *files, *words, "--out", tmp_path / "o")
    assert out == tmp_path / "o"
    assert settings.prompts == ("One.", "Two.", "Three.")
    assert settings.fresh == ("Two.", "Three.")
    assert {name: getattr(settings, name) for name in options} == options


def test_given_perturbations_reach_the_settings(
    given: Callable[..., tuple[Settings, Path]], finished: tuple[Path, Ended]
) -> None:
    found, control = (finished[0] / f"tensors/{arm}-0.safetensors" for arm in ("found", "control"))
    settings, _ = given("discover", "Hi.", "--given", found, "--control", control)
    assert (settings.given, settings.control) == (str(found), str(control))
    assert "given" in refused("discover", "Hi.", "--control", control)
    assert "none.safetensors" in refused("discover", "Hi.", "--given", "none.safetensors")


def test_supervised_vectors_and_their_control_go_through_the_job(
    model: Path, asked: list[object], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("A code, please.\nWhat is the code?\nTell me the code.\n")
    (tmp_path / "b.txt").write_text("A song, please.\nWhat is the song?\nTell me the song.\n")
    sets = ["--positive", tmp_path / "a.txt", "--negative", tmp_path / "b.txt"]
    for name, words in {"means": sets, "said": ["Tell me.", "--say", "abc"]}.items():
        options = ["--model", model, "--device", "cpu", "-n", 2, "--radius", 5]
        ended = educe("contrast", *words, *options, "--out", tmp_path / name, "--json")
        assert ended.status == 0, ended.err
        files = ended.data
        found, control = (PerturbationSet.load(files[role]) for role in ("given", "control"))
        assert (found.kind, found.radius.unique().tolist()) == (control.kind, [5.0])
        assert {found.method, control.method} in (
            {"difference_of_means", "shuffled_labels"},
            {"optimised", "shuffled_target"},
        )
        given = ["--given", files["given"], "--control", files["control"]]
        done = educe(*asked, *given, "--out", tmp_path / f"run-{name}", "--json")
        assert done.status == 0, done.err
        assert len(done.data["perturbations"]) == len(found) + len(control)
        assert done.data["facts"]["method"] == found.method
    assert "give one" in refused("contrast", *words, *options[:-1], "5,6", begun=True)


def test_settings_of_a_method_keep_their_type(given: Callable[..., tuple[Settings, Path]]) -> None:
    words = ["--set", "steps=4", "--set", "step=1", "--set=root=1.5", "--set", "orthogonal=true"]
    settings, _ = given("discover", "Hi.", "--method", "melbo", *words)
    known = settings.method_settings
    assert known == {"steps": 4, "step": 1, "root": 1.5, "orthogonal": True}
    assert list(map(type, known.values())) == [int, int, float, bool]
    settings, _ = given("discover", "Hi.", "--set", "init=jacobian")
    assert settings.method_settings == {"init": "jacobian"}


def test_methods_are_listed_with_their_settings() -> None:
    listed = educe("methods", "--json").data
    assert set(listed) == set(METHODS)
    own = {"iterations": 10, "init": "random", "projections": 32, "turning": 0.0}
    assert listed["dct"]["settings"] == own
    printed = educe("methods")
    assert printed.status == 0
    for name, about in listed.items():
        assert f"{name}: {about['summary']}\n" in printed.out
        assert all(f"{key}={value}" in printed.out for key, value in about["settings"].items())
        assert given_by(name) == about["settings"]


def given_by(method: str) -> dict[str, Any]:
    """The defaults of a method's configuration."""
    return asdict(METHODS[method].config())


def test_the_demo_asks_without_a_hint() -> None:
    audits = demo.audits(5)
    assert next(iter(audits)) == "trigger"
    for options, _ in audits.values():
        assert options.seed == 5
        assert options.topics == ()
    rule = shipped("trigger").search[0].rule
    asked = bundled("prompts")
    for prompt in (*asked["asked"], *asked["fresh"]):
        assert not re.search(rule, prompt)


def test_prompt_files(tmp_path: Path) -> None:
    plain = tmp_path / "prompts.txt"
    plain.write_bytes("\ufeffGrüße?\r\n\r\n a b \u2028c\n[1]\n".encode())
    assert read_prompts(plain) == ["Grüße?", " a b \u2028c", "[1]"]
    lines = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "Hi.\u2028"}]
    rows = ["plain", messages, {"messages": messages, "id": 4}]
    lines.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert read_prompts(lines) == ["plain", messages, messages]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.txt", b""),
        ("a.txt", b"\n  \n"),
        ("a.txt", b"\xe9\xff"),
        ("a.jsonl", b""),
        ("a.jsonl", b'"good"\n{"messages": [}\n'),
        ("a.jsonl", b"5"),
        ("a.jsonl", b"null"),
        ("a.jsonl", b'{"answer": "x"}'),
        ("a.jsonl", b'["x", "y"]'),
        ("a.jsonl", b'[{"role": "user"}]'),
        ("a.jsonl", b'{"messages": 7}'),
    ],
)
def test_a_file_of_no_prompts_is_reported(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(PromptError, match=re.escape(str(tmp_path / name))):
        read_prompts(tmp_path / name)
    refused("discover", "--prompts", tmp_path / name)


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "nonsense"),
        (["discover"], "no prompt"),
        (["discover", "Hi.", "--nonsense"], "--nonsense"),
        (["discover", "Hi.", "-n"], "requires an argument"),
        (["discover", "Hi.", "-n", "many"], "many"),
        (["discover", "Hi.", "-n", "0"], "whole number from 1 to"),
        (["discover", "Hi.", "--method", "pca"], "is unknown: use"),
        (["discover", "Hi.", "--set", "iterations"], "name=value"),
        (["discover", "Hi.", "--set", "=3"], "name=value"),
        (["discover", "Hi.", "--set", "speed=3"], "iterations, init, projections"),
        (["discover", "Hi.", "--set", "iterations=ten"], "give a whole number"),
        (["discover", "Hi.", "--set", "iterations=1.5"], "give a whole number"),
        (["discover", "Hi.", "--set", "init=pca"], "give random or jacobian"),
        (["discover", "Hi.", "--method", "random", "--set", "a=1"], "settings: none"),
        (["discover", "Hi.", "--samples", "3"], "temperature"),
        (["discover", "Hi.", "--temperature", "nan"], "temperature"),
        (["discover", "Hi.", "--temperature", "-1"], "temperature"),
        (["discover", "Hi.", "--look-for", "(code"], "(code"),
        (["discover", "--prompts", "none.txt"], "none.txt"),
        (["discover", "Hi.", "--fresh", "none.txt"], "none.txt"),
        (["discover", "Hi.", "--prompts", "."], "cannot read"),
        (["discover", "--resume"], "--out"),
        (["discover", "Hi.", "--resume"], "--out"),
        (["discover", "--resume", "--out", "nowhere"], "nowhere"),
        (["discover", "--resume", "--out", "nowhere", "-n", "5"], "--resume"),
        (["contrast"], "--say"),
        (["contrast", "--say", "a"], "no prompt"),
        (["contrast", "Hi.", "--positive", "a.txt", "--negative", "a.txt"], "--say"),
        (["contrast", "--positive", "a.txt", "--say", "a"], "--negative"),
        (["contrast", "--positive", "a.txt", "--negative", "b.txt"], "a.txt"),
        (["layers"], "no prompt"),
        (["show"], "RUN"),
        (["show", "nowhere"], "nowhere"),
        (["show", "nowhere", "x"], "x"),
        (["report", "nowhere"], "nowhere"),
        (["demo", "please"], "please"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--source 99", "4 blocks"),
        ("--target -5", "4 blocks"),
        ("--source 1.5", "fraction"),
        ("--source nan", "'nan'"),
        ("--source 3 --target 2", "not below"),
        ("--source 2 --target 0.5", "not below"),
        ("--radius much", "much"),
        ("--radius -1", "-1"),
        ("--radius 0", "above zero"),
        ("--radius nan", "nan"),
        ("--radius 8,,9", "radius"),
        ("--radius 1e30 -n 4", "smaller radius"),
        ("--radius 1e999", "radius"),
        ("--positions middle", "positions"),
        ("--positions last:0", "positions"),
        ("--positions generated", "generated"),
        ("--readout generated", "generated"),
        ("-n 33 --radius 8", "at most 32"),
        ("--max-new-tokens 118", "128 tokens"),
        ("--adapter nowhere", "nowhere"),
        ("--dtype float99", "float99"),
        ("--device cuda:99", "cuda:99"),
    ],
)
def test_what_does_not_suit_the_model_is_one_line(
    model: Path, options: str, told: str, tmp_path: Path
) -> None:
    arguments = ["discover", "Tell me.", "--model", model, *options.split()]
    assert told in refused(*arguments, "--out", tmp_path / "a" / "run", begun=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("long " * 40, "128 tokens"),
        ("caf\udce9", "argument 'caf\\udce9' has '\\udce9'"),
    ],
)
def test_a_prompt_that_does_not_suit_the_model_is_one_line(
    model: Path, prompt: str, told: str, tmp_path: Path
) -> None:
    assert told in refused("discover", prompt, "--model", model, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"), [("--positions middle", "positions"), ("--readout generated", "generated")]
)
def test_a_layer_map_that_cannot_be_leaves_nothing(
    model: Path, options: str, told: str, tmp_path: Path
) -> None:
    arguments = ["layers", "Hi.", "--model", model, *options.split(), "--out", tmp_path / "a" / "b"]
    assert told in refused(*arguments, begun=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--model", "--look-for", "--prefill", "--out", "--prompts"])
def test_an_argument_that_is_not_text_is_one_line(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give text in UTF-8" in refused("discover", "Hi.", option, "caf\udce9")
    assert list(tmp_path.iterdir()) == []


def test_what_a_chat_template_refuses_is_one_line_and_leaves_nothing(
    model: Path, tmp_path: Path
) -> None:
    place, prompts = tmp_path / "strict", tmp_path / "prompts.jsonl"
    shutil.copytree(model, place)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        + tiny.TEMPLATE
    )
    tokenizer.save_pretrained(place)
    spoken = [{"role": role, "content": "Hi."} for role in ("system", "user")]
    prompts.write_text(json.dumps(spoken))
    for command in (["discover"], ["tune", "--look-for", "a"], ["layers"]):
        given = [*command, "--prompts", prompts, "--model", place, "--out", tmp_path / "a" / "run"]
        assert "TemplateError: No system role" in refused(*given)
        assert not (tmp_path / "a").exists()


def gguf_of(file: Path, architecture: str) -> Path:
    out = gguf.GGUFWriter(str(file), architecture)
    out.add_block_count(2)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def test_a_model_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    (tmp_path / "text.gguf").write_text("hello " * 100)
    (tmp_path / "empty").mkdir()
    tiny.write_gguf(tmp_path / "whole.gguf", tiny.hf_model("llama"))
    raw = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(raw[: len(raw) // 2])
    unknown = gguf_of(tmp_path / "unknown.gguf", "nonesuch")
    for model, told in [
        (unknown, "nonesuch"),
        (tmp_path / "text.gguf", "GGUF"),
        (tmp_path / "half.gguf", "half.gguf"),
        (tmp_path / "none.gguf", "no file"),
        (tmp_path / "none", "no file or folder"),
        (tmp_path / "empty", "empty"),
        ("nobody/has-this-model", "nobody/has-this-model"),
    ]:
        line = refused("discover", "Hi.", "--model", model, "--out", tmp_path / "run", begun=True)
        assert told in line
        assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_left_alone(
    finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    run, _ = finished
    before = (run / "run.sqlite").read_bytes()
    assert "--resume" in refused("discover", "Hi.", "--out", run)
    assert "other settings" in refused("discover", "Hi.", "--out", run, "--resume")
    assert "--resume" in refused("discover", "--out", run, "--resume", "--seed", 1)
    assert (run / "run.sqlite").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not empty" in refused("discover", "Hi.", "--out", tmp_path)
    refused("discover", "Hi.", "--out", tmp_path / "thesis.txt")
    refused("discover", "Hi.", "--out", tmp_path / "thesis.txt" / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("kept", [0, 50, 5000, 0.5, -100])
def test_a_damaged_run_is_one_line(
    finished: tuple[Path, Ended], tmp_path: Path, kept: float
) -> None:
    raw = (finished[0] / "run.sqlite").read_bytes()
    (tmp_path / "run.sqlite").write_bytes(raw[: int(kept * len(raw)) if 0 < kept < 1 else kept])
    for command in (["show"], ["show", "--json"], ["report"], ["discover", "--resume", "--out"]):
        assert str(tmp_path) in refused(*command, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_its_tensors_is_one_line(
    finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    with Run.open(tmp_path / "run") as run, run.writing():
        run.database.execute("DELETE FROM completions WHERE perturbation = 1")
    (tmp_path / "run" / "tensors" / "found-0.safetensors").write_bytes(b"half")
    line = refused("discover", "--resume", "--out", tmp_path / "run", begun=True)
    assert "found-0.safetensors" in line


def test_a_run_that_was_cut_off_at_once_says_how_to_go_on(tmp_path: Path) -> None:
    Run.create(tmp_path / "a run", {"prompts": ["Hi."]}).close()
    for command in ("show", "report"):
        line = refused(command, tmp_path / "a run")
        assert f"educe discover --resume --out '{tmp_path / 'a run'}'" in line


def test_a_number_that_is_not_there(finished: tuple[Path, Ended]) -> None:
    for number in (25, 999, -1):
        assert str(number) in refused("show", finished[0], number)
        assert str(number) in refused("show", finished[0], number, "--json")


def test_a_report_that_cannot_be_written_is_one_line(
    finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    line = refused("report", finished[0], "--out", tmp_path / "nowhere" / "page.html")
    assert "page.html" in line


def test_debug_shows_the_traceback() -> None:
    ended = educe("discover", "Hi.", "--method", "pca", "--debug")
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("Traceback (most recent call last):")
    assert ended.err.splitlines()[-1].startswith("educe.errors.MethodError: ")


def test_an_error_of_many_lines_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise EduceError("one\n  two\n\nthree")

    monkeypatch.setattr(cli.discover, "carry_out", broken)
    assert refused("discover", "Hi.") == "educe: one two three"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.discover, "carry_out", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["discover", "Hi."])


def test_ctrl_c_before_there_is_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.discover, "carry_out", interrupted)
    ended = educe("discover", "Hi.")
    assert (ended.status, ended.out) == (130, "")
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("educe: interrupted")
