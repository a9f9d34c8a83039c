"""``educe sample`` and ``educe derive combine``: the whole way on a tiny model."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from educe import cli
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.report import page
from educe.run.store import Run
from read_document import part, table, text
from small_run import small_run

LEAST = ["--ensembles", "1", "--samples", "2", "--hot", "1", "--keep", "2"]
FEW = [*LEAST, "--basis", "random:2", "--walkers", "6", "--budget", "80"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    return small_run(tmp_path_factory.mktemp("sample") / "run", tiny_lm, "random", radius="6")


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch, tiny_lm: LanguageModel) -> None:
    monkeypatch.setattr("educe.run.work.loaded", lambda *_: tiny_lm)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    told = capsys.readouterr()
    assert end.value.code == 0, told.err
    return told.out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()
    return told[-1]


def test_finds_are_selected_exported_and_on_the_page(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["--judge", "regex:[a-m]", "--judge", "0.5*regex:[n-z]"]
    told = json.loads(said(capsys, "sample", str(place), *FEW, *judge, "--json"))
    assert told["terms"][0][1][0] == 0.5
    found = [f for f in told["finds"] if f["arm"] == "found"]
    assert 1 <= len(found) <= 2
    assert len(PerturbationSet.load(place / "tensors" / told["file"])) == len(found)
    screen = said(capsys, "sample", str(place), *FEW, *judge)  # from what is kept
    assert "highest estimate: found" in screen
    assert told["file"] in screen.replace("\n", "")
    with Run.open(place) as run:
        shown = part(page.document(run), "sampling")
    along = [tuple(row.values()) for row in table(shown, "direction")]
    directions = told["answers"]["directions"]
    assert [(text(n), mean, sd, text(says)) for n, mean, sd, says in along] == [
        (d["name"], d["mean"], d["sd"], d["says"]) for d in directions
    ]
    for d in directions:
        row = f"{d['name']} {d['mean']:+.2f} {d['sd']:.2f} {d['says']}"
        assert row in " ".join(screen.split())
    rows = table(shown, "id")
    for find in told["finds"]:
        (row,) = [row for row in rows if row["id"] == find["number"]]
        assert (row["from"], row["chosen"]) == (find["parent"], find["seen"])
        assert text(row["it writes"]) == " ".join(find["text"].split())
    some = tmp_path / "some.txt"
    some.write_text("Say it.\nWho is it?\nWhen?\n")
    other = tmp_path / "other.txt"
    other.write_text("Why so?\n")
    chosen = json.loads(
        said(
            capsys,
            *("select", str(place), "--prompts", str(some), "--fresh", str(other)),
            *("--look-for", "[a-m]", "--rungs", "3:1", "--derived", "sampled", "--json"),
        )
    )
    numbers = {f["number"] for f in told["finds"]}
    assert {c[0] if isinstance(c, list) else c["number"] for c in _chosen(chosen)} <= numbers


def _chosen(told: Any) -> list[Any]:
    found = told["found"]
    return found["chosen"] if isinstance(found, dict) else found[3]


def test_combinations_are_written_and_scored(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((place / "tensors").glob("found*"))
    words = ["derive", "combine", str(place), "1", "2", "3", "--against", str(file)]
    told = json.loads(said(capsys, *words, "--json"))
    assert len(told["combined"]) == 3 * 3 + 1
    assert len(told["cosines"]) == 3
    assert told["cosines"][0] == pytest.approx(1, abs=1e-5)
    assert "average" in said(capsys, *words)
    assert "two vectors" in refused(capsys, "derive", "combine", str(place), "1")


def test_the_average_of_those_that_share_an_effect(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.open(place) as run:
        found = {p.id for p in run.perturbation_rows("found")}
        texts = run.completion_rows("first", of=found)
        signs = {n: {a for c in texts if c.perturbation == n for a in c.text} for n in found}
        each = Counter(a for own in signs.values() for a in own)
        letter = each.most_common(1)[0][0]
    words = ["derive", "combine", str(place), "--showing", re.escape(letter)]
    told = json.loads(said(capsys, *words, "--json"))
    (average,) = told["combined"]
    of = average["of"] if isinstance(average, dict) else average[1]
    assert set(of) == {c.perturbation for c in texts if letter in c.text}
    assert "two vectors" in refused(capsys, *words[:-1], "nowhere-at-all")
    assert "regular expression" in refused(capsys, *words[:-1], "(")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--walkers", "6", "--basis", "random:4"), "at least 8"),
        (("--budget", "100"), "steps"),
        (("--sampler", "slice"), "without noise"),
        (("--judge", "0.x*refusal"), "there is no judge"),
        (("--shares", "1,-1"), "numbers above 0"),
        (("--basis", "best"), "use found:8"),
        (("--sampler", "diversity", "--measure", "length"), "two of length and names of judges"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    words: tuple[str, ...], told: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "sample", str(place), *LEAST, *words)
