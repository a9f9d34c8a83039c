"""Distilling: the model says without a perturbation what it was made to write under it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import tiny
from educe.derive.listing import deriving
from educe.errors import MethodError
from educe.hardening import distilling, measuring
from educe.hardening.distilling import distill, ending, entropy
from educe.hardening.records import DistillConfig
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.organisms.lora import Example
from educe.run.store import Run
from small_run import small_run
from test_cli import educe, refused


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few ordinary prompts, so that a small model can learn all of the answers."""
    monkeypatch.setattr(measuring, "ORDINARY", 2)
    monkeypatch.setattr(measuring, "HELD", 1)
    monkeypatch.setattr(measuring, "ordinary_prompts", lambda: ["Why?"])


def made(adapter: Path | None = None) -> LanguageModel:
    return load((tiny.hf_model(), tiny.tokenizer()), adapter=adapter)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "run", made(), "random", radius="30")


@contextmanager
def working(folder: Path) -> Iterator[Any]:
    with Run.open(folder) as kept, deriving(kept, (), made()) as work:
        yield work


def test_the_taught_text_comes_without_the_vector(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "LEARNING_RATE", 1e-2)
    with Run.open(run) as kept:
        texts = {(c.perturbation, c.prompt): c.text for c in kept.completion_rows("first")}
    number = next(n for n in (1, 2, 3) if texts[n, 0] != texts[0, 0])
    with working(run) as work:
        batch = work.asked
        plain = work.lm.forward(batch.ids, batch.mask, last=0)
        done = distill(work, number, tmp_path / "out", DistillConfig(steps=60))
        torch.testing.assert_close(work.lm.forward(batch.ids, batch.mask, last=0), plain)
    assert [rate.hits for rate in done.same] == [0, 1]
    assert done.curve[-1] < done.curve[0] / 5
    assert done.shows is not None
    assert done.shows[1].hits == done.shows[2].hits
    again = made(tmp_path / "out")
    asked = again.encode(["Where is it?"])
    ids = again.hf.generate(
        input_ids=asked.ids, attention_mask=asked.mask, max_new_tokens=4, do_sample=False
    )
    assert again.text(ids[0, asked.ids.shape[1] :], skip_special_tokens=True) == texts[number, 0]
    assert json.loads((tmp_path / "out" / "distilled.json").read_text())["number"] == number
    assert f"| after | {done.same[1]} |" in (tmp_path / "out" / "README.md").read_text()


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_answers() -> None:
    lm = made()
    examples = [Example((5, 6, 7), (8, 9, 257)), Example((5, 6, 10, 11), (12,))]
    expected = 0.0
    for example in examples:
        logits = lm.hf(torch.tensor([example.prompt + example.answer])).logits[0]
        told = logits[len(example.prompt) - 1 : -1]
        expected += float(functional.cross_entropy(told, torch.tensor(example.answer)) * len(told))
    assert float(entropy(lm, examples)) == pytest.approx(expected / 2, rel=1e-4)


def test_an_answer_ends_as_the_template_or_the_tokenizer_has_it() -> None:
    assert ending(made()) == 257
    assert ending(load((tiny.hf_model(), tiny.tokenizer(chat=False)))) == 257


def test_numbers_out_of_bounds(run: Path, tmp_path: Path) -> None:
    with working(run) as work, pytest.raises(MethodError, match="rank is 0"):
        distill(work, 1, tmp_path / "out", DistillConfig(rank=0))


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the command, which names its model by a folder."""
    place = tmp_path_factory.mktemp("commands")
    tiny.hf_model().save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    short = ["--model", place / "model", "--device", "cpu", "--max-new-tokens", 3, "--radius", 5]
    ended = educe(
        "discover", "Why?", *short, "--baseline", 1, "-n", 2, "--method", "random",
        "--out", place / "run",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    return place / "run"


@pytest.mark.parametrize(
    ("words", "options", "keys"),
    [
        (("harden",), ["--pool", "found,random", "--count", 1], {"measured", "folder", "curve"}),
        (("distill", 1), [], {"same", "shows", "folder", "curve"}),
    ],
)
def test_a_command_trains_and_says_what_came_of_it(
    searched: Path, tmp_path: Path, words: tuple, options: list, keys: set[str]
) -> None:
    command, *numbers = words
    short = ["--steps", 2, "--rank", 1, "--out"]
    ended = educe(command, searched, *numbers, *options, *short, tmp_path / "one")
    assert ended.status == 0, ended.err
    assert "| after |" in ended.out or "| no vector |" in ended.out
    assert f"--adapter {tmp_path / 'one'}" in ended.out
    ended = educe(command, searched, *numbers, *options, *short, tmp_path / "two", "--json")
    assert set(ended.data) == keys
    assert len(ended.data["curve"]) == 2
    for name in ("one", "two"):
        names = {file.name for file in (tmp_path / name).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} < names


def test_a_command_refuses_in_a_line(searched: Path, tmp_path: Path) -> None:
    told = refused("harden", searched, "--pool", "lucky", "--out", tmp_path / "a")
    assert "pool 'lucky'" in told
    told = refused("harden", searched, 99, "--out", tmp_path / "a")
    assert "the run has no perturbation 99" in told
    told = refused("distill", searched, 99, "--out", tmp_path / "a")
    assert "the run has no perturbation 99" in told
    told = refused("distill", searched, 1, 2, "--out", tmp_path / "a")
    assert "2 perturbations: name one" in told
    (tmp_path / "file").touch()
    told = refused("distill", searched, 1, "--out", tmp_path / "file", begun=True)
    assert "is a file; choose another --out" in told
