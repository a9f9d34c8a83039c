"""The examples in docstrings run: on a tiny random model, each from the same beginning."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import educe
from educe.model import LanguageModel

#: Public names that have no example yet. Nothing is added here.
WITHOUT = {
    "Ablation",
    "Atlas",
    "AtlasConfig",
    "Budget",
    "Cached",
    "Chance",
    "Choice",
    "EduceError",
    "Halving",
    "Judge",
    "LanguageModel",
    "Lying",
    "Moments",
    "Ordinary",
    "Pair",
    "Passport",
    "Place",
    "PromptBatch",
    "Proxy",
    "Rating",
    "Score",
    "SelectionPlan",
    "Server",
    "Setting",
    "Settings",
    "Subspace",
    "Summary",
    "Theme",
    "Thompson",
    "Yes",
    "ablating",
    "ablating_weights",
    "begin",
    "best_mean_by_chance",
    "check_judge",
    "choose",
    "difference_of_means",
    "discover_behaviours",
    "examine",
    "examine_norm",
    "examine_run",
    "gather",
    "grid",
    "halve",
    "injection",
    "judge_named",
    "load",
    "optimised",
    "p_of_best",
    "promising",
    "score_run",
    "secrets",
    "select_best",
    "summarise",
    "survey",
    "within",
}


def examples() -> dict[str, list[doctest.DocTest]]:
    """Return the examples of each public name: its own and those of its methods."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for name in educe.__all__:
        home = importlib.import_module(educe._HOME[name])
        value = getattr(home, name)
        found[name] = [test for test in finder.find(value, name, home) if test.examples]
    for name in educe.derive.__all__:
        value = getattr(educe.derive, name)
        home = importlib.import_module(value.__module__)
        found[name] = [test for test in finder.find(value, name, home) if test.examples]
    return found


EXAMPLES = examples()


def beginning(lm: LanguageModel, folder: Path) -> dict[str, Any]:
    """Return what every example can use."""
    prompts = ["Why is the sky blue?", "Name three countries in Asia."]
    part = educe.Slice(lm, prompts, source=1, target=3)
    known = {"educe": educe, "torch": torch, "lm": lm, "prompts": prompts, "part": part}
    return known | {"folder": folder}


@pytest.mark.parametrize(
    "example", [test for tests in EXAMPLES.values() for test in tests], ids=lambda test: test.name
)
def test_the_example_shows_what_comes(
    tiny_lm: LanguageModel, tmp_path: Path, example: doctest.DocTest
) -> None:
    name = example.name.partition(".")[0]
    example.globs = beginning(tiny_lm, tmp_path) | {name: getattr(educe, name, None)}
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    came = runner.run(example, out=said.append)
    assert came.attempted == len(example.examples)
    assert not came.failed, "".join(said)


def test_the_names_without_an_example_become_fewer() -> None:
    assert {name for name, tests in EXAMPLES.items() if not tests} == WITHOUT


def test_an_example_that_shows_something_else_fails(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> lm.depth\n5\n", {}, "Row", None, 0)
    with pytest.raises(AssertionError, match=r"Expected:\s+5\s+Got:\s+4"):
        test_the_example_shows_what_comes(tiny_lm, tmp_path, wrong)
