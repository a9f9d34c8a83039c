"""A run goes on only with the model that it began with, whatever opens it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from educe import cli
from educe.activations.in_run import examine_run
from educe.derive.listing import deriving
from educe.errors import EduceError, RunError
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.run import same_model
from educe.run.settings import Settings, begin, stored
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from educe.selection.selecting import SelectionPlan, select_best
from educe.selection.tuning import Tuning, begin_tuning, tune


def save(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    tiny.hf_model("llama").to(dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def one_ulp(folder: Path) -> None:
    """Change one bit of one weight."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"].view(torch.int32)[7, 7] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(f"{tiny.TEMPLATE} ")


def rope(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    assert '"rope_theta": 10000.0' in text
    (folder / "config.json").write_text(text.replace("10000.0", "20000.0"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a finished run of it."""
    place = tmp_path_factory.mktemp("made")
    settings = Settings(
        prompts=("Where is it?",),
        model=str(save(place / "model")),
        device="cpu",
        method="random",
        n=2,
        source=1,
        target=3,
        radius="2",
        baseline=4,
        max_new_tokens=3,
        look_for="[a-m]",
    )
    with begin(place / "run", settings) as run:
        discover_behaviours(run)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Any:
    """The run, and its model in the folder that the run knows; put back at the end."""
    shutil.copytree(made / "model", tmp_path / "before")
    shutil.copytree(made / "run", tmp_path / "run")
    yield tmp_path / "run"
    shutil.rmtree(made / "model")
    shutil.move(tmp_path / "before", made / "model")


def educe(*words: object) -> tuple[int, str]:
    """Run a command here; return its status and what it told."""
    err = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return int(end.value.code or 0), err.getvalue()


PROMPTS = ("--prompts", "prompts.txt", "--fresh", "fresh.txt")
COMMANDS = [
    ("discover", "--resume", "--out", "RUN"),
    ("examine", "RUN", "1"),
    ("examine", "RUN", "--norm"),
    ("derive", "path", "RUN", "1"),
    ("derive", "shrink", "RUN", "1"),
    ("derive", "front", "RUN"),
    ("derive", "sparse", "RUN", "1"),
    ("derive", "ungate", "RUN", "1"),
    ("select", "RUN", *PROMPTS, "--look-for", "a", "--rungs", "1:1"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_commands_refuse_a_run_whose_model_is_another(
    made: Path, place: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Who?\n")
    (tmp_path / "fresh.txt").write_text("Why?\n")
    monkeypatch.chdir(tmp_path)
    one_ulp(made / "model")
    before = content(place)
    status, told = educe(*(place if word == "RUN" else word for word in words))
    assert status == 2
    assert "made with another model" in told.splitlines()[-1]
    assert "the weights changed" in told
    assert content(place) == before


def content(place: Path) -> dict[str, list[Any]]:
    """All that a run has computed."""
    with Run.open(place) as run:
        tables = ("completions", "scores", "perturbations", "prompts", "meta")
        return {name: list(run.database.execute(f"SELECT * FROM {name}")) for name in tables}


@pytest.mark.parametrize(
    ("change", "named"),
    [(one_ulp, "the weights changed"), (template, "the tokenizer"), (rope, "the configuration")],
)
def test_what_changed_is_named_beside_both_digests(
    made: Path, place: Path, change: Callable[[Path], None], named: str
) -> None:
    then = load(made / "model", device="cpu").digest
    change(made / "model")
    now = load(made / "model", device="cpu").digest
    with Run.open(place) as run, pytest.raises(RunError, match=named) as error:
        discover_behaviours(run)
    assert then[:12] in str(error.value)
    assert now[:12] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_model_goes_on(place: Path) -> None:
    before = content(place)
    with Run.open(place) as run:
        discover_behaviours(run)
    after = content(place)
    assert {name: after[name] for name in after if name != "meta"} == {
        name: before[name] for name in before if name != "meta"
    }


def test_a_model_that_is_handed_over_is_checked(place: Path, tokenizer: Any) -> None:
    other = LanguageModel(tiny.hf_model("llama", seed=1), tokenizer, name="other")
    with Run.open(place) as run:
        plan = SelectionPlan(("Who?",), ("Why?",), rungs=((1, 1.0),))
        for use in (
            lambda: discover_behaviours(run, lm=other),
            lambda: examine_run(run, [1], lm=other),
            lambda: deriving(run, lm=other).__enter__(),
            lambda: select_best(run, plan, lm=other),
        ):
            with pytest.raises(RunError, match="another model than other is now: the weights"):
                use()


def test_a_tuning_is_checked(tmp_path: Path, tokenizer: Any, tiny_lm: LanguageModel) -> None:
    asked = Tuning(
        Settings(prompts=("Who?",), look_for="a", target=3, baseline=4, max_new_tokens=2),
        methods=("noise",),
        sources=(1,),
        radii=("1",),
        signs="one",
        n=1,
        pulls=8,
        retest=1,
    )
    with begin_tuning(tmp_path / "run", asked) as run:
        tune(run, lm=tiny_lm)
        tune(run, lm=tiny_lm)
        other = LanguageModel(tiny.hf_model("llama", seed=1), tokenizer, name="other")
        with pytest.raises(RunError, match="another model"):
            tune(run, lm=other)


def test_a_run_killed_before_it_found_anything_knows_its_model(
    tmp_path: Path, tiny_lm: LanguageModel, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    settings = Settings(
        prompts=("Who?",), method="random", n=1, radius="2", baseline=4, max_new_tokens=2
    )
    with begin(tmp_path / "run", settings) as run:
        with monkeypatch.context() as patch:
            patch.setattr("educe.run.preparing.Search._cut", killed)
            with pytest.raises(KeyboardInterrupt):
                discover_behaviours(run, lm=tiny_lm)
        assert not run.has("facts")
        other = LanguageModel(tiny.hf_model("llama", seed=1), tokenizer, name="other")
        with pytest.raises(RunError, match="another model"):
            discover_behaviours(run, lm=other)


def test_an_older_run_is_said_to_be_unknown_once_and_known_from_then_on(place: Path) -> None:
    with Run.open(place) as run:
        with run.writing():
            run.database.execute("DELETE FROM meta WHERE key = ?", (same_model.NOTE,))
        lm = load(stored(run).model, device="cpu")
        said: list[str] = []
        same_model.check(run, lm, said.append)
        same_model.check(run, lm, said.append)
        assert len(said) == 1
        assert "cannot be checked" in said[0]
        one_ulp(Path(stored(run).model))
        with pytest.raises(EduceError, match="the weights changed"):
            same_model.check(run, load(stored(run).model, device="cpu"), said.append)


def test_another_dtype_of_the_same_weights_is_said_and_a_coarser_one_an_error(
    tmp_path: Path,
) -> None:
    save(tmp_path / "model", dtype=torch.bfloat16)
    half, single, short = (
        load(tmp_path / "model", device="cpu", dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32, torch.float16)
    )
    said: list[str] = []
    with Run.create(tmp_path / "run", {}) as run:
        same_model.check(run, half, said.append)
        assert said == []
        same_model.check(run, single, said.append)
        (sentence,) = said
        assert "bfloat16 then, float32 now" in sentence
        single.hf.model.norm.weight.data += 2**-20
        fresh = load((single.hf, single.tokenizer))
        with pytest.raises(RunError, match=r"the weights, the dtype .bfloat16 then, float32 now"):
            same_model.check(run, fresh, said.append)
    assert short.dtype == torch.float16
