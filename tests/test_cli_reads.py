"""The command that says what later layers read: a screen, JSON, and a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from educe.visible import visible
from read_document import charts, marked, of_page, part
from test_cli import educe, model, refused  # noqa: F401 - a fixture


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A survey on little."""
    for name, value in {"TEXTS": 2, "ALONE": 2, "LOOKED": 300}.items():
        monkeypatch.setattr(f"educe.reads.survey.{name}", value)
    monkeypatch.setattr("educe.reads.thinning.GRID", (1 / 4, 1))


@pytest.mark.usefixtures("brief")
def test_a_model_is_thinned_and_its_reads_are_shown(model: Path, tmp_path: Path) -> None:  # noqa: F811
    given = ["reads", "--model", model, "--device", "cpu", "--tokens", 500, "--out", tmp_path / "a"]
    ended = educe(*given, "--json")
    assert ended.status == 0, ended.err
    data = ended.data
    assert {c["form"] for c in data["thinning"]} >= {"weights", "gradients", "balanced"}
    assert {c["layer"] for c in data["thinning"]} == {0, 3, None}
    assert {g["reader"] for g in data["reads"]} >= {"attention", "mlp", "head 0"}
    page = of_page(Path(data["report"]))
    assert {"thinned", "alone", "ways"} == set(charts(page))
    told = data["reads"][0]["shown"][0][0]
    assert f"{told['coefficient']:+.1f} " in marked(part(page, "ways"), "muted")
    screen = educe(*given)
    assert "all layers: weights" in screen.out


def test_an_answer_says_what_it_used(model: Path, tmp_path: Path) -> None:  # noqa: F811
    given = ["reads", "Tell me.", "--model", model, "--device", "cpu", "--tokens", 500]
    given += ["--max-new-tokens", 3, "--out", tmp_path / "a"]
    ended = educe(*given, "--json")
    assert ended.status == 0, ended.err
    (one,) = ended.data["answers"]
    assert len(one["effect"]) == 4
    assert set(one["components"]) == {"used", "components", "random, as many", "random, as much"}
    page = of_page(Path(ended.data["report"]))
    assert part(page, "used-0")["title"] == visible(one["answer"])
    assert set(charts(page)) == {"effect-0", "trials-0"}
    assert "stay with" in educe(*given).out


def test_an_empty_answer_is_refused(model: Path, tmp_path: Path) -> None:  # noqa: F811
    given = ["--model", model, "--device", "cpu", "--tokens", 500, "--out", tmp_path / "a"]
    assert "the answer is empty" in refused("reads", "Hi.", "--answer", "", *given)
    assert not (tmp_path / "a").exists()
