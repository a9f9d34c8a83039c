"""Vectors sent by Neuronpedia's own client, to a server that says what it was sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from educe.errors import ExportError, ServerError
from educe.exports import export
from educe.exports.chosen import Chosen
from handed import chosen
from stub import Stub

base_request = pytest.importorskip("neuronpedia.requests.base_request", reason="its client")


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    return chosen(tmp_path_factory.mktemp("neuronpedia"))


def took(path: str, body: bytes, url: str) -> Any:
    sent = json.loads(body)
    vector = {"modelId": sent["modelId"], "source": "1-x", "index": "7", "hookName": "h"}
    vector |= {"label": sent["vectorLabel"]}
    vector |= {"values": sent["vector"], "defaultSteerStrength": 1.0}
    return {"vector": vector, "url": f"{url}/tiny/1-x/7"}


def test_its_client_sends_the_vector(
    tmp_path: Path, of: Chosen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "none")
    with Stub({"/api/vector/new": took}) as stub:
        monkeypatch.setattr(base_request.NPRequest, "BASE_URL", f"{stub.url}/api")
        export(of, "neuronpedia", tmp_path / "quiet")
        assert stub.asked == []  # nothing is sent unless it is said
        (said,) = export(of, "neuronpedia", tmp_path / "out", push="tiny-llama")
    assert said == f"sent: {stub.url}/tiny/1-x/7, {stub.url}/tiny/1-x/7"
    assert capsys.readouterr().out == ""
    for number, (path, headers, body) in zip(of.numbers, stub.asked, strict=True):
        sent = json.loads(body)
        assert (path, headers["X-Api-Key"]) == ("/api/vector/new", "none")
        assert (sent["modelId"], sent["layerNumber"]) == ("tiny-llama", 1)
        assert sent["hookType"] == "hook_resid_post"
        assert sent["vector"] == pytest.approx(of.one(number).theta[0].tolist(), rel=1e-6)
        assert sent["vectorDefaultSteerStrength"] == 1.0


def test_a_server_that_does_not_take_it_loses_nothing(
    tmp_path: Path, of: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "none")
    with Stub({}) as stub:
        monkeypatch.setattr(base_request.NPRequest, "BASE_URL", f"{stub.url}/api")
        with pytest.raises(ServerError, match=r"did not take 1.json: .*; 0 were sent before"):
            export(of, "neuronpedia", tmp_path / "out", push="tiny")
    assert (tmp_path / "out" / "2.json").is_file()


def test_what_it_has_no_place_for(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="added at last:2 alone"):
        export(chosen(tmp_path, positions="last:2"), "neuronpedia", tmp_path / "out")
