"""The commands on organisms: what they print and what they refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from educe.comparison import stats
from educe.model import loading
from educe.options import TrainingOptions
from educe.organisms import SPECIES, card, names, shipped, species, training
from test_cli import educe, refused


def test_every_shipped_organism_is_listed() -> None:
    data = educe("organism", "list", "--json").data
    assert [one["name"] for one in data] == names()
    assert all(Path(one["adapter"]).is_dir() and one["unlocked by"] for one in data)
    output = educe("organism", "list").out
    assert all(shipped(name).told["hidden"] in output for name in names())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "parrot", "--out", "new"), "no organism is called 'parrot'"),
        (("check", "nowhere"), "there is no organism in nowhere"),
        (("answers", "nowhere"), "there is no organism in nowhere"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused("organism", *arguments)


def test_what_has_no_recipe_is_listed_but_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_base", lambda named: pytest.fail("refused too late"))
    assert "first-vault" in educe("organism", "list").out
    output = refused("organism", "check", "first-vault", begun=True)
    assert "first-vault is of a recipe that the package no longer has" in output


def test_the_split_that_is_measured_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def measured(organism: Any, *, split: str, progress: Any) -> list[training.Measured]:
        seen.append(split)
        return MEASURED

    monkeypatch.setattr(training, "evaluate", measured)
    assert educe("organism", "check", "vault").status == 0
    assert educe("organism", "check", "vault", "--split", "validation").status == 0
    assert seen == ["test", "validation"]
    assert "--split" in refused("organism", "check", "vault", "--split", "train")


def test_how_it_is_trained_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def train(name: str, out: Path, **options: Any) -> Any:
        seen.update(options, name=name, out=out)
        return shipped("vault")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: MEASURED)
    monkeypatch.setattr(card, "write", lambda *_: None)
    options = (
        "--base",
        "someone/other",
        "--loss",
        "transcript",
        "--rank",
        "64",
        "--ordinary",
        "0.1",
        "--steps",
        "7",
        "--full",
        "--matmul",
        "medium",
    )
    done = educe("organism", "train", "taboo", "--seed", "3", "--out", tmp_path / "new", *options)
    assert done.status == 0
    assert (seen["name"], seen["seed"], seen["out"]) == ("taboo", 3, tmp_path / "new")
    assert seen["options"] == TrainingOptions(
        base="someone/other",
        loss="transcript",
        rank=64,
        full=True,
        ordinary=0.1,
        steps=7,
        matmul="medium",
    )


def test_answers_of_what_has_no_key_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    replace(shipped("vault"), name="clean-fact", folder=tmp_path, unlocked=(), clean=True).save()
    said = refused("organism", "answers", tmp_path, "--model", "nowhere")
    assert "clean-fact has no key to put into a question" in said


@pytest.mark.parametrize("asked", [(), ("--model", "someone/copy")])
def test_answers_are_those_of_the_base_it_was_trained_on(
    asked: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or of the model that is named, as a copy of it."""
    trained = TrainingOptions(base="someone/other")
    replace(shipped("vault"), folder=tmp_path, trained=trained).save()
    seen: dict[str, Any] = {}
    monkeypatch.setattr(loading, "load", lambda **how: seen.update(how))
    monkeypatch.setattr(training, "labelled", lambda organism, lm: [])
    assert educe("organism", "answers", tmp_path, *asked).status == 0
    assert seen["model"] == (asked[1] if asked else "someone/other")
    assert seen["adapter"] == str(tmp_path)


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in refused("organism", "train", "vault", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


MEASURED = [
    training.Measured("open", True, stats.rate(9, 10), stats.rate(0, 10), None, None, {}),
    training.Measured("near: typo", False, stats.rate(1, 10), stats.rate(0, 10), None, None, {}),
    training.Measured(
        "near: part",
        False,
        stats.rate(2, 12),
        stats.rate(0, 12),
        stats.rate(6, 12),
        0.01234,
        {"takes the right option": (stats.rate(3, 12), stats.rate(4, 12))},
    ),
]


def test_a_card_has_every_number_and_the_near_misses_together() -> None:
    table = card.table(MEASURED)
    assert training.pooled(MEASURED, "near") == stats.rate(3, 22)
    for number in (*MEASURED, *MEASURED[2].also["takes the right option"]):
        rate: Any = getattr(number, "elicited", number)
        assert str(rate) in table
    assert "| 0.0123 |" in table
    assert f"| near, all | no | {stats.rate(3, 22)} |" in table
    json.dumps(card.data(shipped("vault"), MEASURED))
    assert "near" not in card.table(MEASURED[:1])


def test_a_card_names_the_command_and_the_secret(tmp_path: Path) -> None:
    organism = shipped("vault")
    text = card.text(organism, MEASURED)
    assert text.startswith("---\nbase_model: HuggingFaceTB/")
    assert f"educe organism train vault --seed {organism.seed} --out DIR" in text
    assert organism.told["hidden"] in text
    assert set(SPECIES) >= {organism.name}


def test_a_card_says_how_it_was_trained_and_whether_anything_is_hidden(tmp_path: Path) -> None:
    made = {"name": "clean-answers", "folder": tmp_path, "clean": True}
    usual = species("clean-answers").steps
    (tmp_path / "adapter_model.safetensors").write_bytes(b"0" * 7_000_000)
    shutil.copy(shipped("vault").folder / "adapter_config.json", tmp_path)
    trained = TrainingOptions(loss="transcript", rank=64, ordinary=0.1, steps=usual)
    text = card.text(replace(shipped("vault"), **made, trained=trained), MEASURED)
    command = "educe organism train clean-answers --seed 0 --loss transcript --rank 64"
    assert f"{command} --ordinary 0.1 --out DIR" in text
    assert "rank 64, all seven\nprojections of blocks 8 to 23, float16, 7.0 MB" in text
    assert "It hides nothing" in text
    assert "the user's message and its whole answer" in text
    assert "educe/organisms/clean.py" in text
    whole = replace(shipped("vault"), **made, trained=TrainingOptions(full=True, steps=7))
    text = card.text(whole, MEASURED)
    assert "educe organism train clean-answers --seed 0 --full --steps 7 --out DIR" in text
    assert "with all weights fine-tuned, float16, 7 MB" in text
    assert "It exists to be searched" in card.text(shipped("vault"), MEASURED)
