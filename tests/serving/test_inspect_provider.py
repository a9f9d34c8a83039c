"""Inspect under a perturbation, and a run as its log: read by Inspect alone.

Inspect needs other versions than the rest, so these run in an environment of their own:
``make test-formats``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="needs educe[inspect], as make test-formats has it")

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate as writes

import educe.serving.provider  # noqa: F401  registers educe/MODEL
import synthetic_run
from educe.errors import RunError
from educe.exports import export
from educe.exports.chosen import Chosen
from educe.forward.generation import generate
from educe.rows import Row
from handed import chosen

ASKED = ("Where is it?", "What is the code?", "Say a word.", "And now?")
STEPS = 8


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    return chosen(tmp_path_factory.mktemp("inspected"))


def task() -> Task:
    samples = [Sample(input=text, target="a") for text in ASKED]
    return Task(dataset=MemoryDataset(samples), solver=writes(), scorer=includes())


def expected(of: Chosen, number: int) -> list[str]:
    one, batch = of.one(number or 1), of.lm.encode(ASKED)
    rows = [Row(int(number > 0), place) for place in range(len(ASKED))]
    done = generate(of.lm, batch, rows, one.theta, kind=one.kind, max_new_tokens=STEPS)
    texts = {c.row.prompt: c.text for some in done for c in some}
    return [texts[place] for place in range(len(ASKED))]


@pytest.mark.parametrize("number", [0, 2])
def test_a_task_runs_under_a_perturbation_in_one_batch(
    tmp_path: Path, of: Chosen, number: int
) -> None:
    model = get_model(f"educe/{of.settings.model}", run=str(of.run.folder), id=number)
    (log,) = eval(task(), model=model, max_tokens=STEPS, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    read = read_eval_log(list_eval_logs(str(tmp_path))[0].name)
    assert read.samples is not None
    texts = {sample.input: sample.output.completion for sample in read.samples}
    assert [texts[text] for text in ASKED] == expected(of, number)
    assert expected(of, 0) != expected(of, 2)
    assert max(model.api.batcher.batches) > 1


def test_the_command_line_of_inspect_knows_the_model(tmp_path: Path, of: Chosen) -> None:
    (tmp_path / "task.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import includes\n"
        "from inspect_ai.solver import generate\n\n\n"
        "@task\ndef asked():\n"
        f"    samples = [Sample(input=text, target='a') for text in {ASKED!r}]\n"
        "    return Task(dataset=samples, solver=generate(), scorer=includes())\n"
    )
    words = ["eval", "task.py", "--model", f"educe/{of.settings.model}"]
    words += ["-M", f"run={of.run.folder}", "-M", "id=1", "--max-tokens", str(STEPS)]
    code = "import sys; from inspect_ai._cli.main import main; sys.argv[0] = 'inspect'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--display", "none", "--log-dir", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    read = read_eval_log(list_eval_logs(str(tmp_path))[0].name)
    assert read.samples is not None
    texts = {sample.input: sample.output.completion for sample in read.samples}
    assert [texts[text] for text in ASKED] == expected(of, 1)


def test_what_it_needs_is_said(of: Chosen) -> None:
    with pytest.raises(RunError, match="takes -M run=FOLDER and -M id=NUMBER"):
        get_model(f"educe/{of.settings.model}", memoize=False)
    with pytest.raises(RunError, match="no perturbation 9"):
        get_model(f"educe/{of.settings.model}", run=str(of.run.folder), id=9, memoize=False)


def test_a_run_is_a_log(tmp_path: Path) -> None:
    run = synthetic_run.build(tmp_path / "run", n=4)
    export(Chosen(run), "inspect", tmp_path / "out")
    read = read_eval_log(tmp_path / "out" / "run.eval")
    texts = run.completion_rows()
    assert read.samples is not None
    assert len(read.samples) == len(texts)
    found: dict[Any, Any] = {}
    for sample in read.samples:
        about = sample.metadata
        key = Row(about["perturbation"], about["prompt"], sample.epoch - 1, about["phase"])
        found[key] = sample
    scores = {(s.of, s.judge): s.value for s in run.score_rows() if isinstance(s.of, Row)}
    for c in texts:
        sample = found[c.row]
        assert sample.output.completion == c.text
        for (of_row, judge), value in scores.items():
            if of_row == c.row:
                assert sample.scores[judge].value == pytest.approx(value)
    arms = {sample.metadata["arm"] for sample in read.samples}
    assert arms == {"found", "control", "unperturbed"}
