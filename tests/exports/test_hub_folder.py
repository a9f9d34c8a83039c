"""The Hub's folder: its own client validates and sends it, and what stands on the card replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, metadata_load
from huggingface_hub.repocard import ModelCard

from educe.errors import ExportError, ServerError
from educe.exports import export
from educe.exports.chosen import Chosen
from handed import chosen
from stub import Stub

REAL = huggingface_hub.HfApi


def preupload(path: str, body: bytes, url: str) -> Any:
    files = json.loads(body)["files"]
    return {
        "files": [
            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for f in files
        ]
    }


HUB = {
    "/api/repos/create": lambda path, body, url: {"url": f"{url}/me/vectors"},
    "/api/validate-yaml": lambda path, body, url: {"warnings": [], "errors": []},
    "/preupload/main": preupload,
    "/commit/main": lambda path, body, url: {
        "commitUrl": f"{url}/me/vectors/commit/0",
        "commitOid": "0" * 40,
        "pullRequestUrl": None,
    },
}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    return chosen(tmp_path_factory.mktemp("hub"))


def test_the_card_is_one(tmp_path: Path, of: Chosen) -> None:
    (said,) = export(of, "hub", tmp_path / "out")
    assert "is no name of the Hub: say on the card" in said
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "educe"
    assert "steering-vector" in metadata_load(tmp_path / "out" / "README.md")["tags"]
    kept = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert kept["parts"] == dict(of.lm.parts)
    assert set(kept["sha256"]) == {"1", "2"}


def test_the_lines_on_the_card_replay_it(
    tmp_path: Path, of: Chosen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    export(of, "hub", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "the same model: True",
        "1 the same texts: True",
        "2 the same texts: True",
    ]
    kept = json.loads(Path("replay.json").read_text())
    kept["max_new_tokens"] = 3
    Path("replay.json").write_text(json.dumps(kept))
    exec(compile(code, "card", "exec"), {})
    assert "1 the same texts: False" in capsys.readouterr().out


def test_nothing_is_sent_unless_it_is_said(
    tmp_path: Path, of: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stub(HUB) as stub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: REAL(stub.url, token="none"))
        export(of, "hub", tmp_path / "quiet")
        assert stub.asked == []
        said = export(of, "hub", tmp_path / "out", push="me/vectors")
    assert said[-1] == f"sent: {stub.url}/me/vectors"
    bodies = {path: body for path, _, body in stub.asked}
    made = json.loads(bodies["/api/repos/create"])
    assert (made["name"], made["visibility"]) == ("vectors", "private")
    commit = next(body for path, body in bodies.items() if "/commit/" in path)
    sent = {json.loads(line)["value"].get("path") for line in commit.splitlines()}
    assert {"README.md", "replay.json", "1.safetensors", "2.safetensors"} <= sent


def test_a_name_that_is_none_and_a_hub_that_is_not_there(
    tmp_path: Path, of: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="names no repository"):
        export(of, "hub", tmp_path / "one", push="a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: REAL("http://127.0.0.1:9", token="none"))
    with pytest.raises(ServerError, match=r"the Hub did not take it .*it is whole in"):
        export(of, "hub", tmp_path / "two", push="me/vectors")
    assert (tmp_path / "two" / "README.md").is_file()
