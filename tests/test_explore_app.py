"""The explorer's server: who may ask, what is answered, and one thing at a time."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load as read_safetensors
from starlette.testclient import TestClient

from educe.comparison.summary import summarise
from educe.errors import BusyError, JudgeError
from educe.explore import writing
from educe.explore.app import LARGEST
from educe.explore.desk import WAITING, Cancelled, Desk, Job
from educe.explore.writing import Asked, Piece, together
from educe.forward.continuations import continued
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.options import ModelOptions
from educe.perturbation.kinds import Joint, Vectors
from educe.perturbation.set import PerturbationSet
from educe.rows import Row
from educe.run import marks
from educe.run.fill import groups
from educe.run.settings import encoded, stored
from educe.run.store import Run
from explored_run import HOSTILE, TOKEN, hostile, served
from small_run import small_run
from synthetic_run import build
from test_cli import educe, refused


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    return small_run(tmp_path_factory.mktemp("explored") / "run", tiny_lm, "random", radius="6")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def client(run: Path, tiny_lm: LanguageModel) -> Iterator[TestClient]:
    with served(run, lm=tiny_lm) as app, TestClient(app, headers=bearer()) as made:
        yield made


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def told(client: TestClient, what: str, **asked: Any) -> list[dict[str, Any]]:
    """Ask for something that takes long; return every line of the answer."""
    answer = client.post(f"/api/runs/0/{what}", json={"prompt": 0, **asked})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


# -- who may ask -----------------------------------------------------------------------------------


def test_nothing_is_answered_without_the_token(client: TestClient) -> None:
    for path in ("/", "/app.js", "/api/start", "/api/runs/0/frames", "/nothing"):
        for headers in ({"authorization": ""}, bearer("another")):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 403
            assert "token" in answer.json()["error"]
    assert client.post("/api/runs/0/write", headers={"authorization": ""}).status_code == 403
    assert client.get("/?token=another", headers={"authorization": ""}).status_code == 403


def test_the_address_with_the_token_becomes_a_cookie(run: Path, tiny_lm: LanguageModel) -> None:
    with served(run, lm=tiny_lm) as app, TestClient(app) as client:
        first = client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert (first.status_code, first.headers["location"]) == (303, "/")
        cookie = first.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/").status_code == 200
        assert TOKEN not in client.get("/").text


def test_other_hosts_and_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/api/start", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/api/start", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/api/start", headers={"origin": "http://testserver"}).status_code == 200


def test_answers_allow_no_script_but_the_page_s_own(client: TestClient) -> None:
    for path in ("/", "/app.js", "/api/start"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in client.get("/").text
    assert "style=" not in client.get("/").text


def test_bodies_are_bounded(client: TestClient) -> None:
    answer = client.post("/api/runs/0/write", content=b" " * (LARGEST + 1))
    assert answer.status_code == 400
    assert str(LARGEST) in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"prompt": 99}, "no prompt 99"),
        ({"prompt": "Hi", "pieces": [{"id": 99, "radius": 1}]}, "no perturbation 99"),
        ({"prompt": "x" * 20_001}, "too long"),
        ({"prompt": "Hi", "temperature": -1}, "0 or more"),
        ({"prompt": "Hi", "temperature": float("inf")}, "numbers"),
        ({"prompt": "Hi", "tokens": 5000}, "1 to 1024"),
        ({"prompt": "Hi", "tokens": 127}, "do not fit"),
        ({"prompt": "Hi", "positions": "nowhere", "pieces": [{"id": 1, "radius": 1}]}, "nowhere"),
        ({"prompt": "Hi", "pieces": [{"id": 1}]}, "radius"),
        ({"prompt": "Hi", "colour": "red"}, "colour"),
        ({"prompt": None}, "a number or a text"),
        ("no object", "what can be asked for"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(client: TestClient, body: Any, why: str) -> None:
    answer = client.post("/api/runs/0/write", content=json.dumps(body))
    said = [json.loads(line) for line in answer.text.splitlines()][-1]["error"]
    assert why in said
    assert "\n" not in said
    assert "Traceback" not in said


def test_unknown_places_are_one_sentence(client: TestClient) -> None:
    for path in (
        "runs/7/frames",
        "runs/0/texts?sort=x",
        "runs/0/texts?a=b",
        "runs/0/texts?limit=0",
    ):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 400
        assert answer.json()["error"]
    assert client.get("/api/runs/0/texts/99999").status_code == 404


# -- what is read ----------------------------------------------------------------------------------


def test_a_page_of_texts_is_what_the_frame_holds(tmp_path: Path) -> None:
    with build(tmp_path / "run", n=8) as run:
        frame = run.completions.reset_index(drop=True)
        novelty = {s.of: s.value for s in run.score_rows("novelty")}
    frame["novelty"] = [
        novelty.get(Row(r.perturbation, r.prompt, r.sample, r.phase)) for r in frame.itertuples()
    ]
    with served(tmp_path / "run") as app, TestClient(app, headers=bearer()) as client:
        ask: Callable[[str], Any] = lambda q: client.get(f"/api/runs/0/texts?{q}").json()  # noqa: E731
        assert ask("")["total"] == len(frame)
        orchid = frame[frame.text.str.contains("ORCHID", case=False)]
        assert ask("search=ORCHID")["total"] == len(orchid) > 0
        assert ask("search=%25")["total"] == 0
        found = ask("arm=found&phase=first&sort=novelty&descending=true&limit=7&offset=3")
        own = frame[(frame.arm == "found") & (frame.phase == "first")].novelty.astype(float)
        assert found["total"] == len(own)
        assert found["rows"]["novelty"] == sorted(own, reverse=True)[3:10]


def test_perturbations_have_the_means_of_the_summary(tmp_path: Path) -> None:
    with build(tmp_path / "run", n=4) as run:
        seen = summarise(run)
    with served(tmp_path / "run") as app, TestClient(app, headers=bearer()) as client:
        frame = client.get("/api/runs/0/frames").json()["perturbations"]
        shown = client.get("/api/runs/0/behaviours").json()
    for item in (*seen.found, *seen.control):
        at = frame["id"].index(item.row.id)
        for name in ("coherence", "novelty", "interestingness"):
            assert frame[name][at] == pytest.approx(getattr(item, name))
    assert shown["id"] == [b.id for b in seen.behaviours]
    assert shown["found"][0]["hits"] == seen.behaviours[0].found.hits


def test_hostile_texts_arrive_as_text(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "run")
    with served(folder) as app, TestClient(app, headers=bearer()) as client:
        answer = client.get("/api/runs/0/texts?arm=found&limit=500")
        texts = ["".join(text) for text in answer.json()["rows"]["text"]]
        assert set(HOSTILE.values()) <= set(texts)
        assert "ok\\xffbroken" in texts
        assert not {c for c in answer.text if c < " " or c in "<>&\u202e\u200b\ufeff"}
        assert max(map(len, texts)) == 2000
        lengths = answer.json()["rows"]["length"]
        long = answer.json()["rows"]["id"][lengths.index(1_000_000)]
        assert len(client.get(f"/api/runs/0/texts/{long}").json()["text"]) == 1_000_000
        for path in ("document", "frames", "behaviours", "map"):
            assert client.get(f"/api/runs/0/{path}").status_code == 200
        placed = {"".join(text) for text in client.get("/api/runs/0/map").json()["text"]}
        assert {*HOSTILE.values(), "ok\\xffbroken"} <= placed
        behind_a_null = client.get("/api/runs/0/texts?search=ESCAPE")
        assert behind_a_null.json()["total"] == 1


def test_a_run_at_work_is_seen_to_change(client: TestClient, run: Path) -> None:
    state: Callable[[], Any] = lambda: client.get("/api/changes").json()["states"]  # noqa: E731
    before = state()
    assert state() == before
    total = client.get("/api/runs/0/texts").json()["total"]
    with Run.open(run) as other:
        other.ask([Row(1, 0, 5)], 0.0)
        rows = other.completion_rows()
        other.add_completions([rows[-1]._replace(row=Row(1, 0, 5), text="new here")])
    assert state() != before
    assert client.get("/api/runs/0/texts").json()["total"] == total + 1
    assert client.get("/api/runs/0/texts?search=new+here").json()["total"] == 1


def test_a_run_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    config = {"model": "embedded", "prompts": ["Hi"], "max_new_tokens": 4, "seed": 0}
    Run.create(tmp_path / "run", config).close()
    with served(tmp_path / "run") as app, TestClient(app, headers=bearer()) as client:
        for path in ("document", "frames", "behaviours", "map", "texts"):
            assert client.get(f"/api/runs/0/{path}").status_code == 200, path


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [6.0, -11.5])
def test_what_is_written_is_what_generate_writes(
    client: TestClient, run: Path, tiny_lm: LanguageModel, radius: float
) -> None:
    with Run.open(run) as opened:
        (group,) = groups(opened, [2])
        settings = stored(opened)
    for temperature in (0.0, 0.9):
        asked = {"pieces": [{"id": 2, "radius": radius}], "temperature": temperature, "tokens": 6}
        *events, last = told(client, "write", prompt="Why?", **asked)
        ((text,),) = generate(
            tiny_lm,
            encoded(tiny_lm, settings, ["Why?"]),
            [Row(2, 0)],
            group.kind.scaled(group.directions, radius),
            kind=group.kind,
            numbers=[2],
            max_new_tokens=6,
            temperature=temperature,
            seed=settings.seed,
        )
        assert tuple(last["done"]["tokens"]) == text.tokens
        assert any("text" in event for event in events)


def test_at_its_own_radius_a_perturbation_writes_what_the_run_has(
    client: TestClient, run: Path
) -> None:
    with Run.open(run) as opened:
        rows = {c.row: c.tokens for c in opened.completion_rows()}
        radius = {p.id: p.radius for p in opened.perturbation_rows()}
    for number in (0, 1, 5):
        pieces = [{"id": number, "radius": radius[number]}] if number else []
        assert (
            tuple(told(client, "write", pieces=pieces)[-1]["done"]["tokens"])
            == rows[Row(number, 0)]
        )


def test_what_is_read_is_what_each_model_expects(
    client: TestClient, run: Path, tiny_lm: LanguageModel
) -> None:
    """Surprise by an independent reader; under the perturbation, by who wrote it."""
    pieces = [{"id": 1, "radius": 6.0}]
    tokens = told(client, "write", pieces=pieces)[-1]["done"]["tokens"]
    read = told(client, "read", pieces=pieces, text=tokens)[-1]["done"]
    with Run.open(run) as opened:
        (group,) = groups(opened, [1])
        settings = stored(opened)
    batch = encoded(tiny_lm, settings, settings.prompts)
    (plain,) = continued(tiny_lm, batch, [0], [tokens])
    assert read["base"] == pytest.approx((-plain.logprobs[0]).tolist(), abs=1e-3)
    theta = group.kind.scaled(group.directions, 6.0)
    how = {"kind": group.kind, "numbers": [1], "max_new_tokens": len(tokens)}
    ((written,),) = generate(tiny_lm, batch, [Row(1, 0)], theta, **how)
    assert read["own"] == pytest.approx([-x for x in written.logprobs], abs=1e-3)
    assert "".join(map("".join, read["token"]))
    # What is added at the source is the vector itself, at every token.
    with tiny_lm.watching([1]) as streams:
        ids = torch.tensor([[*batch.read[0], *tokens[:-1]]])
        tiny_lm.forward(ids, torch.ones_like(ids))
    share = theta.norm() / streams[1][0, -len(tokens) :].norm(dim=-1)
    assert read["layer"] == [1, 2, 3]
    assert read["shift"][0] == pytest.approx(share.tolist(), abs=1e-3)


def test_the_curve_is_the_effect_that_the_run_measured(client: TestClient, run: Path) -> None:
    with Run.open(run) as opened:
        row = opened.perturbation_rows()[0]
    pieces = [{"id": row.id, "radius": row.radius}]
    curve = told(client, "curve", pieces=pieces)[-1]["done"]
    at = dict(zip(curve["radius"], curve["effect"], strict=True))
    assert at[row.radius] == pytest.approx(row.effect, rel=1e-4)
    assert min(at) == -max(at) == -2 * row.radius
    assert at[0.0] == pytest.approx(0, abs=1e-4)


def test_vectors_add_up(made: Path) -> None:
    with Run.open(made) as run:
        (one,), (two,) = groups(run, [1]), groups(run, [2])
        kind, theta = together(run, [Piece(1, 2.0), Piece(2, -3.0)], None)
    assert isinstance(kind, Vectors)
    assert torch.allclose(theta, 2 * one.directions - 3 * two.directions)


def test_vectors_after_two_blocks_are_joint(
    tmp_path: Path, made: Path, tiny_lm: LanguageModel
) -> None:
    """Against both added by hooks of our own."""
    import tiny

    folder = Path(shutil.copytree(made, tmp_path / "run"))
    file = next((folder / "tensors").glob("found*"))
    found = PerturbationSet.load(file)
    from dataclasses import replace

    with Run.open(folder) as run:
        later = replace(found, kind=replace(found.kind, layer=2))
        later.save(folder / "tensors" / "later.safetensors")
        rows = run.perturbation_rows()
        run.add_perturbations([rows[0]._replace(id=99, file="later.safetensors", item=1)])
        kind, theta = together(run, [Piece(1, 4.0), Piece(99, 5.0)], None)
        settings = stored(run)
    assert isinstance(kind, Joint)
    batch = encoded(tiny_lm, settings, settings.prompts)
    ((text,),) = generate(
        tiny_lm, batch, [Row(1, 0)], theta, kind=kind, numbers=[1], max_new_tokens=4
    )
    block = tiny_lm.blocks[2]
    add = 5.0 * found.directions[1]
    handle = block.register_forward_hook(
        lambda module, args, out: (out[0] + add, *out[1:]) if isinstance(out, tuple) else out + add
    )
    try:
        oracle = tiny.greedy(
            tiny_lm.hf, batch.read[0], 4, source=1, vector=4.0 * found.directions[0], ends={257}
        )
    finally:
        handle.remove()
    assert list(text.tokens) == oracle


def test_a_perturbation_is_handed_on_as_a_file(client: TestClient, made: Path) -> None:
    answer = client.get("/api/runs/0/perturbations/2/file?radius=-1.5")
    with Run.open(made) as run:
        (group,) = groups(run, [2])
    read = read_safetensors(answer.content)
    assert torch.equal(read["vectors"], group.directions)
    assert read["radius"].tolist() == [-1.5]
    assert client.get("/api/runs/0/perturbations/77/file").status_code == 400


# -- one after the other ---------------------------------------------------------------------------


def held(desk: Desk) -> tuple[Job, threading.Event, list[dict[str, Any]]]:
    """Give a desk a job that lasts until it may end."""
    go, events = threading.Event(), list[dict[str, Any]]()
    begun = threading.Event()

    def work(job: Job) -> dict[str, Any]:
        begun.set()
        while not go.wait(0.01):
            job.check()
        return {"text": "held"}

    job = Job(work, events.append)
    desk.take(job)
    assert begun.wait(10)
    return job, go, events


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    last = time.monotonic() + 30
    while not true():
        assert time.monotonic() < last
        time.sleep(0.01)


def test_two_tabs_wait_for_each_other_and_both_are_answered(
    run: Path, tiny_lm: LanguageModel
) -> None:
    desk = Desk([run], lm=tiny_lm)
    _, go, first = held(desk)
    second, done = list[dict[str, Any]](), threading.Event()

    def tell(event: dict[str, Any]) -> None:
        second.append(event)
        if "done" in event:
            done.set()

    desk.take(Job(lambda job: writing.write(desk, job, Asked(0, 0)), tell))
    assert second == [{"waiting": 1}]
    go.set()
    assert done.wait(30)
    assert first[-1] == {"done": {"text": "held"}}
    desk.close()


def test_what_nobody_listens_to_ends(run: Path, tiny_lm: LanguageModel) -> None:
    desk = Desk([run], lm=tiny_lm)
    job, _, events = held(desk)
    job.cancel()
    until(lambda: events[-1] == {"stopped": True})
    desk.close()


def test_generation_stops_between_two_tokens(run: Path, tiny_lm: LanguageModel) -> None:
    """The model is as it was afterwards: what is written next is what was written before."""
    desk = Desk([run], lm=tiny_lm)
    asked = Asked(0, 0, (Piece(1, 6.0),), tokens=40)
    whole = writing.write(desk, Job(lambda job: {}, lambda event: None), asked)
    heard: list[int] = []

    def tell(event: dict[str, Any]) -> None:
        heard.append(event.get("tokens", 0))
        job.cancel()

    job = Job(lambda job: {}, tell)
    with pytest.raises(Cancelled):
        writing.write(desk, job, asked)
    assert 0 < max(heard) < len(whole["tokens"])
    assert writing.write(desk, Job(lambda job: {}, lambda event: None), asked) == whole
    desk.close()


def test_too_many_that_wait_are_refused(run: Path, tiny_lm: LanguageModel) -> None:
    desk = Desk([run], lm=tiny_lm)
    _, go, _ = held(desk)
    for _ in range(WAITING):
        desk.take(Job(lambda job: {}, lambda event: None))
    with pytest.raises(BusyError, match=f"{WAITING} texts wait"):
        desk.take(Job(lambda job: {}, lambda event: None))
    go.set()
    desk.close()


def test_a_failure_is_said_and_the_desk_goes_on(run: Path, tiny_lm: LanguageModel) -> None:
    desk, events = Desk([run], lm=tiny_lm), list[dict[str, Any]]()
    for work in (lambda job: 1 / 0, lambda job: {"text": "on"}):
        desk.take(Job(work, events.append))
    until(lambda: {"done": {"text": "on"}} in events)
    assert {"error": "educe failed: ZeroDivisionError: division by zero"} in events
    desk.close()


def test_another_model_is_refused_and_reading_goes_on(
    run: Path, lm_of: Callable[[str], LanguageModel]
) -> None:
    with served(run, lm=lm_of("qwen2")) as app, TestClient(app, headers=bearer()) as client:
        said = told(client, "write")[-1]["error"]
        assert "another model" in said
        assert client.get("/api/runs/0/texts").json()["total"] > 0


def test_a_model_that_is_not_there_is_one_sentence(run: Path) -> None:
    options = ModelOptions(model="no/such-model")
    with served(run, options=options) as app, TestClient(app, headers=bearer()) as client:
        events = told(client, "write")
        assert {"say": "loading no/such-model"} in events
        assert "cannot load no/such-model" in events[-1]["error"]
        assert client.get("/api/runs/0/texts").status_code == 200


# -- what a person says ----------------------------------------------------------------------------


def test_stars_labels_and_notes_are_kept_in_the_run(client: TestClient, run: Path) -> None:
    page = client.get("/api/runs/0/texts?arm=found&limit=2").json()["rows"]
    first, second = page["id"]

    def mark(text: int, what: str, value: object) -> int:
        body = {"text": text, "what": what, "value": value}
        return client.post("/api/runs/0/marks", json=body).status_code

    assert mark(first, "star", True) == mark(first, "label", True) == 200
    assert mark(second, "label", False) == mark(second, "note", "<b>odd \u202e") == 200
    assert mark(first, "smile", True) == mark(10**6, "star", True) == mark(first, "note", 3) == 400
    shown = client.get("/api/runs/0/texts?labelled=true").json()["rows"]
    assert shown["id"] == [first, second]
    assert (shown["star"], shown["label"]) == ([1.0, None], [1.0, 0.0])
    with Run.open(run) as opened:
        assert [each.label for each in marks.labelled(opened)] == [True, False]
        assert opened.scores[opened.scores.judge == marks.NOTE].why.tolist() == ["<b>odd \u202e"]
    assert mark(second, "label", None) == mark(first, "star", False) == 200
    assert client.get("/api/runs/0/texts?labelled=true").json()["total"] == 1
    assert client.get("/api/runs/0/texts?starred=true").json()["total"] == 0


def test_a_text_written_anew_is_kept_and_counts_for_nothing(client: TestClient, run: Path) -> None:
    def told_of(opened: Run) -> list[Any]:
        seen = summarise(opened)
        rows = [opened.completion_rows(), opened.prompt_rows(), opened.missing()]
        unscored = opened.completion_rows(unscored="novelty")
        return [*rows, unscored, seen.found, seen.control, seen.behaviours, seen.baseline]

    with Run.open(run) as opened:
        before, texts = told_of(opened), summarise(opened).texts.rows
    asked = {"prompt": "Who?", "pieces": [{"id": 1, "radius": -4.5}, {"id": 2, "radius": 2.25}]}
    plain = told(client, "write", prompt="Who?", tokens=5)[-1]["done"]
    told(client, "keep", prompt="Who?", tokens=5, text=plain["tokens"])
    for how in ({}, {"temperature": 0.5, "sample": 3}, {"prompt": 1}):
        done = told(client, "write", **asked | how, tokens=5)[-1]["done"]
        keep = {**asked, **how, "tokens": 5, "text": done["tokens"]}
        number = told(client, "keep", **keep)[-1]["done"]["id"]
        assert told(client, "keep", **keep)[-1]["done"]["id"] == number, "once"
        for what in ("star", "label"):
            body = {"text": number, "what": what, "value": True}
            assert client.post("/api/runs/0/marks", json=body).status_code == 200
        assert client.get(f"/api/runs/0/texts/{number}").json()["text"] == done["text"]
    shown = client.get("/api/runs/0/texts?starred=true").json()["rows"]
    assert shown["phase"] == ["kept"] * 3
    assert shown["prompt"] == [-1, -1, 1]
    pieces = "1:-4.5 2:2.25"
    assert shown["asked"] == [pieces, f"{pieces} --temperature 0.5 --sample 3", pieces]
    with Run.open(run) as opened:
        assert told_of(opened) == before
        assert_frame_equal(summarise(opened).texts.rows, texts)
        said = [(each.answer.prompt, each.label) for each in marks.labelled(opened)]
        assert said == [("Who?", True)] * 2 + [(opened.prompt_rows()[1].content, True)]
        assert [each.answer.plain for each in marks.labelled(opened)[:2]] == [(plain["text"],)] * 2
        assert opened.score_rows("coherence", of=[1]), "the others have theirs"
    nothing = told(client, "keep", **asked)[-1]
    assert "no text to keep" in nothing["error"]


def test_judges_are_measured_on_labels(run: Path) -> None:
    with Run.open(run) as opened:
        with pytest.raises(JudgeError, match="no text of the run"):
            marks.labelled(opened)
        texts = [c for c in opened.completion_rows() if c.perturbation]
        letter = texts[0].text[0]
        for c in texts:
            marks.mark(opened, c.row, "label", letter in c.text)
        kinds = {letter in c.text for c in texts}
    assert kinds == {True, False}, "the run has texts of both kinds"
    ended = educe("judge", "check", run, "--judge", f"contains:{letter}", "--json")
    (checked,) = ended.data
    assert checked["agreement"]["hits"] == checked["agreement"]["trials"] > 3
    assert checked["auc"]["value"] == 1


# -- the command -----------------------------------------------------------------------------------


def test_writing_by_command_is_what_the_page_writes(
    run: Path,
    client: TestClient,
    monkeypatch: Any,
    tiny_lm: LanguageModel,
) -> None:
    monkeypatch.setattr("educe.model.loading.load", lambda **how: tiny_lm)
    ended = educe("write", run, "1:-4.5", "2", "--prompt", "Who?", "--tokens", 5, "--json")
    with Run.open(run) as opened:
        radius = {p.id: p.radius for p in opened.perturbation_rows()}
    pieces = [{"id": 1, "radius": -4.5}, {"id": 2, "radius": radius[2]}]
    assert ended.data == told(client, "write", prompt="Who?", pieces=pieces, tokens=5)[-1]["done"]
    assert "'x' is no perturbation" in refused("write", run, "x")


def test_a_port_in_use_is_one_sentence(run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port}" in (said := refused("explore", run, "--port", port))
        assert "--port" in said
    assert "no run" in refused("explore")
    assert "there is no run in" in refused("explore", run / "nothing", "--port", 0)


def test_datasette_reads_a_run(tmp_path: Path) -> None:
    """The second view of the documentation, in this process."""
    import asyncio

    datasette = pytest.importorskip("datasette.app")
    folder = hostile(tmp_path / "run")

    async def rows() -> Any:
        made = datasette.Datasette([str(folder / "run.sqlite")])
        query = "select text from completions where perturbation > 0 order by id limit 1"
        answer = await made.client.get("/run.json", params={"sql": query, "_shape": "array"})
        page = await made.client.get("/run/completions")
        return answer.json(), page

    found, page = asyncio.run(rows())
    assert found == [{"text": next(iter(HOSTILE))}]
    assert page.status_code == 200
    assert next(iter(HOSTILE)) not in page.text
