"""The examples in docstrings run: on a tiny random model, each from the same beginning."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import educe
from educe.model.language import LanguageModel

#: Public names that have no example. Nothing is added here.
WITHOUT: set[str] = set()


def examples() -> dict[str, list[doctest.DocTest]]:
    """Return the examples of each module that has some, by the name of what they are of."""
    finder, found = doctest.DocTestFinder(exclude_empty=True), {}
    for path in sorted(HOUSE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = ("educe", *path.relative_to(HOUSE).with_suffix("").parts)
            module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
            for test in filter(lambda test: test.examples, finder.find(module, path.stem)):
                found.setdefault(test.name.split(".")[1], []).append(test)
    return found


HOUSE = Path(educe.__file__).parent
EXAMPLES = examples()


def beginning(lm: LanguageModel, folder: Path) -> dict[str, Any]:
    """Return what every example can use."""
    prompts = ["Why is the sky blue?", "Name three countries in Asia."]
    part = educe.Slice(lm, prompts, source=1, target=3)
    known = {"educe": educe, "torch": torch, "lm": lm, "prompts": prompts, "part": part}
    return known | {"folder": folder}


@pytest.mark.parametrize(
    "example",
    [test for tests in EXAMPLES.values() for test in tests],
    ids=lambda test: test.name,
)
def test_the_example_shows_what_comes(
    tiny_lm: LanguageModel, tmp_path: Path, example: doctest.DocTest
) -> None:
    example.globs |= beginning(tiny_lm, tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    came = runner.run(example, out=said.append)
    assert came.attempted == len(example.examples)
    assert not came.failed, "".join(said)


def test_the_names_without_an_example_become_fewer() -> None:
    assert set(educe.__all__) - EXAMPLES.keys() == WITHOUT
    assert set(educe.derive.__all__) <= EXAMPLES.keys()


def test_an_example_that_shows_something_else_fails(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> lm.depth\n5\n", {}, "Row", None, 0)
    with pytest.raises(AssertionError, match=r"Expected:\s+5\s+Got:\s+4"):
        test_the_example_shows_what_comes(tiny_lm, tmp_path, wrong)
