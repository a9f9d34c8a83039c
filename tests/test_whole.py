"""Numbers that are asked for: each option of each command, settings by hand, seeds."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cyclopts import App
from sklearn.utils import check_random_state

from educe import cli
from educe.errors import MethodError
from educe.methods import METHODS, configured, search
from educe.run.settings import Settings
from educe.selection.selecting import SelectionPlan
from educe.selection.tuning import Tuning
from educe.whole import MOST, SEEDS, check_whole, read_real, read_whole

#: What is no number, and what is no whole one.
NONE = ["nan", "inf", "-inf", "0x10", "1_000", "٣", "²", "1e999", "", "many", "1 2", "True"]
REAL = ["2.7", "1.5", "3.0", "1e3", ".5", "9" * 5000, "99999999999999999999"]


class Option(NamedTuple):
    """An option or argument that is a number, and words that lead to it."""

    words: tuple[str, ...]  #: the command, what it cannot do without, the option
    name: str
    whole: bool


def options(app: App, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every number that a command takes."""
    if app.default_command is None:
        for name in app:
            if not name.startswith("-"):
                yield from options(app[name], (*path, name))
        return
    arguments = list(app.assemble_argument_collection())
    needed = [
        word
        for a in arguments
        if a.required
        for word in (["nowhere"] if a.index is not None else [a.name, "nowhere"])
    ]
    for a in arguments:
        kinds = set(re.findall(r"\b(int|float)\b", str(a.hint)))
        if kinds and a.parse:
            named = [a.name] if a.name.startswith("-") else []
            yield Option((*path, *needed, *named), a.name, kinds == {"int"})


ALL = list(options(cli.app))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    assert end.value.code == 2, arguments
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_every_command_with_numbers_is_here() -> None:
    assert len(ALL) > 70
    assert {"discover", "derive", "show", "tune"} <= {option.words[0] for option in ALL}


@pytest.mark.parametrize("option", ALL, ids=lambda option: f"{option.words[0]} {option.name}")
def test_a_number_is_what_was_written_or_an_error(
    option: Option, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (
        "nan",
        "0x10",
        "1_000",
        "٣",
        *(["2.7", "1e3", "9" * 5000] if option.whole else []),
    ):
        told = refused(capsys, *option.words, text)
        assert f"number{' from' if option.whole else ', not'}" in told
        assert text[:9] in told
        assert len(told) < 200
        assert option.name in told or not option.name.startswith("-")


#: Real numbers that commands take, by their bounds: just outside, and just inside.
BOUNDS = {
    "--temperature": (["-1e-9"], ["0", "1e9"]),
    "--retain": (["-1"], ["0", "50"]),
    "--ordinary": (["-1e-9"], ["0", "0.1"]),
    "--louder": (["0", "-1"], ["1e-9"]),
    "--budget": (["0", "-1"], ["1e-9", "100"]),
    "--time-out": (["0", "-1", "86401", "1e300"], ["0.1", "86400"]),
    "--low": (["0", "-1", "1"], ["0.5"]),
    "--high": (["0", "0.9"], ["1", "8"]),
    "--keep": (["0", "-1", "1.01"], ["0.01", "0.99"]),
    "--source": (["1.5", "-0.5"], ["-1", "0", "0.5", "8"]),
    "--target": (["1.5", "-0.5"], ["-1", "0", "0.5", "8"]),
    "--radius": (["0", "-1"], ["1e-9", "12"]),
    "--cold": (["0", "-1"], ["1e-9", "1"]),
    "--hot": (["0.9", "-1"], ["1", "8"]),
    "--side-effect": (["-1"], ["0", "2"]),
    "--incoherence": (["-1"], ["0", "2"]),
    "--threshold": ([], ["-5", "0", "5"]),  # of scores, whatever they are
}


@pytest.mark.parametrize(
    "option", [o for o in ALL if not o.whole], ids=lambda option: f"{option.words[0]} {option.name}"
)
def test_a_real_number_lies_within_its_bounds(
    option: Option,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outside, inside = BOUNDS[option.name]
    for text in outside:
        told = refused(capsys, *option.words, text)
        assert "Invalid value" in told
        assert option.name in told
    for text in inside:
        _, bound, _ = cli.app.parse_args([*option.words, text], exit_on_error=False)
        given = [*bound.arguments.values()]
        given += [value for some in given if is_dataclass(some) for value in vars(some).values()]
        assert float(text) in [value for value in given if isinstance(value, float)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [o for o in ALL if o.whole], ids=lambda o: f"{o.words[0]} {o.name}"
)
def test_a_whole_number_lies_within_its_bounds(
    option: Option, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, *option.words, "1.5")
    low, high = map(int, re.findall(r"from (\d+) to (\d+)", told)[0])
    assert low in (0, 1)
    for text in (str(low - 1), str(high + 1)):
        assert f"from {low} to {high}" in refused(capsys, *option.words, text)


@pytest.mark.parametrize("text", NONE + REAL)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="give a whole number from 1 to"):
        read_whole(text)
    if text in NONE:
        with pytest.raises(ValueError, match=r"give a (finite )?number, not"):
            read_real(text)
    elif len(text) < 300:
        assert read_real(text) == float(text)


@pytest.mark.parametrize("text", ["1", "16", "+5", "007"])
def test_digits_are_read(text: str) -> None:
    assert read_whole(text) == int(text)


def test_bounds_are_told() -> None:
    with pytest.raises(ValueError, match="from 0 to 4294967295"):
        read_whole("4294967296", 0, SEEDS)
    with pytest.raises(ValueError, match="from 1 to 2147483647, not '0'"):
        read_whole("0")
    assert (read_whole("0", 0), read_whole(str(MOST))) == (0, MOST)


@pytest.mark.parametrize("value", [1.5, 3.0, True, "3", None, float("nan"), -1, SEEDS + 1])
def test_what_is_no_seed(value: Any) -> None:
    with pytest.raises(MethodError, match=r"seed is .*from 0 to 4294967295"):
        Settings(prompts=("Hi.",), seed=value).check()
    plan = SelectionPlan(prompts=("a",), fresh=("b",), seed=value)
    with pytest.raises(MethodError, match="seed is"):
        plan.check()


@pytest.mark.parametrize("seed", [0, SEEDS])
def test_every_library_takes_a_seed_and_what_the_job_makes_of_it(seed: int) -> None:
    Settings(prompts=("Hi.",), seed=seed).check()
    np.random.default_rng(seed)
    check_random_state(seed)
    random.Random(seed)
    for k in range(1000):
        made = 2 * (1000 * seed + k) + 1
        assert torch.Generator().manual_seed(made).initial_seed() == made
    check_whole("n", np.int64(3))


@pytest.mark.parametrize("name", ["n", "samples", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 3.0, True, "3", None, 10**30])
def test_settings_by_hand_are_held_to_the_same(name: str, value: Any) -> None:
    asked: dict[str, Any] = {"temperature": 1.0, name: value}
    with pytest.raises(MethodError, match=f"{name.replace('_', '-')} is"):
        Settings(prompts=("Hi.",), **asked).check()


@pytest.mark.parametrize("name", ["n", "pulls", "retest"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_a_tuning_by_hand_is_held_to_the_same(name: str, value: Any) -> None:
    asked: dict[str, Any] = {name: value}
    with pytest.raises(MethodError, match=f"{name} is"):
        Tuning(Settings(prompts=("Hi.",), look_for="x"), **asked).check()


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_methods_have_the_type_that_their_configuration_says(method: str) -> None:
    defaults = vars(METHODS[method].config())
    assert configured(method, defaults) == METHODS[method].config(**defaults)
    wrong: dict[type, list[Any]] = {
        int: [2.7, 2.0, True, "x", None, -1, 10**30],
        float: [float("nan"), float("inf"), 10**400, True, "x", None],
        bool: [1, 0, "true", None],
        str: [1, True, None],
    }
    for name, value in defaults.items():
        for other in wrong[type(value)]:
            with pytest.raises(MethodError, match=f"{method}: {name} is"):
                configured(method, {name: other})


@pytest.mark.parametrize(("n", "seed"), [(1.5, 0), (True, 0), (1, 2**64), (1, -1), (1, 0.5)])
def test_a_search_by_hand_is_held_to_the_same(n: Any, seed: Any) -> None:
    with pytest.raises(MethodError, match=r"(n|seed) is"):
        search(None, "random", n=n, radius=1.0, seed=seed)  # type: ignore[arg-type]
