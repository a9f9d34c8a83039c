"""Bounds of settings: below them one line and nothing else, at them a method finds what it should.

A radius has no bound that could be declared; there it is what comes out that is looked at.

The table is written by hand, so that a bound that is declared wrongly, or not at all, is found.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from educe import cli
from educe.errors import MethodError, RadiusError
from educe.forward.slice import Slice
from educe.methods import METHODS, configured, retain, search, token_directions
from educe.model.language import LanguageModel

#: The smallest value that is taken; where it is a float, 0 is not, and any above it is.
LEAST: dict[str, dict[str, float]] = {
    "cpe": {"iterations": 1, "blocks": 1, "inner": 0, "temperature": 1e-6},
    "dct": {"iterations": 1, "projections": 1},
    "dct-linear": {"projections": 1, "steps": 1},
    "dct-quadratic": {"iterations": 1},
    "generalised": {"subspace": 1, "ridge": 1e-6, "iterations": 1, "tolerance": 0},
    "lora": {"rank": 1, "power": 1, "root": 1, "step": 1e-6, "steps": 1, "patience": 1},
    "melbo": {"power": 1, "root": 1, "step": 1e-6, "steps": 1, "patience": 1},
    "noise": {},
    "power": {"iterations": 1, "padding": 1, "tolerance": 0, "band": 0, "search": 0, "starts": 1},
    "random": {},
    "tokens": {"words": 0, "louder": 1e-6, "steps": 1},
}
#: Any finite number makes sense: a weight of either sign, a share by which a curve may fall.
FREE = {("dct", "turning"), ("melbo", "turning"), ("melbo", "tolerance"), ("lora", "tolerance")}
#: What has to be so for a setting to matter, or for the model to be deep enough.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("dct", "projections"): {"init": "jacobian"},
    ("dct-linear", "projections"): {"mode": "projected"},
    ("power", "starts"): {"search": 1},
}
EACH = [(method, name) for method, settings in LEAST.items() for name in settings]
each_setting = pytest.mark.parametrize(("method", "name"), EACH)


def below(method: str, name: str) -> float:
    """Return the largest value that is not taken, or one a little below the least."""
    least = LEAST[method][name]
    if isinstance(getattr(METHODS[method].config(), name), int):
        return least - 1
    return math.nextafter(least, -1) if least in (0, 1) else 0.0


def test_every_number_is_bounded_or_may_be_any() -> None:
    numbers = {
        (method, name)
        for method, how in METHODS.items()
        for name, value in vars(how.config()).items()
        if type(value) in (int, float)
    }
    assert numbers == set(EACH) | FREE
    for method, name in FREE:
        for value in (-1e30, 0.0, 1e30):
            assert getattr(configured(method, {name: value}), name) == value


@each_setting
def test_below_its_bound_a_setting_is_an_error(method: str, name: str) -> None:
    value = below(method, name)
    with pytest.raises(MethodError, match=f"^{method}: {name} is .*: give "):
        configured(method, {name: value})
    config = METHODS[method].config(**{name: value})
    with pytest.raises(MethodError, match=f"^{method}: {name} is .*: give "):
        search(None, method, n=1, radius=1.0, config=config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("patience=0", "melbo: patience is 0: give a whole number from 1 to 2147483647"),
        ("power=0.5", "melbo: power is 0.5: give 1 or a number above it"),
        ("step=0.0", "melbo: step is 0.0: give a number above 0"),
    ],
)
def test_on_the_command_line_it_is_one_line_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, told: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        cli.main(["discover", "Hi.", "--method", "melbo", "--set", setting, "--out", str(out)])
    assert end.value.code == 2
    assert capsys.readouterr() == ("", f"educe: {told}\n")
    assert not out.exists()


@each_setting
@pytest.mark.parametrize("prompts", [["tell me"], ["tell me", "why is it so?"]], ids=len)
def test_one_perturbation_at_the_least_of_a_setting_is_found(
    tiny64: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    name: str,
    prompts: list[str],
) -> None:
    monkeypatch.setattr(token_directions, "vocabulary", lambda part: torch.arange(10, 70))
    part = Slice(tiny64, tiny64.encode(prompts), source=1, target=3)
    if METHODS[method].retain == "needs":
        part = retain.with_retain_prompts(part, tiny64.encode(["Say it."]))
    least = LEAST[method][name]
    settings = {"blocks": 2} if method == "cpe" else {}
    settings |= {"screen": "at:2"} if method == "tokens" else {}
    config = configured(method, settings | WITH.get((method, name), {}) | {name: least})
    found = search(part, method, n=1, radius=0.5, config=config)
    assert len(found) == 1
    for columns in found.kind.columns(found.directions):
        norms = columns.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert found.outputs is not None
    torch.testing.assert_close(found.outputs.norm(dim=1), torch.ones(1))
    for values in found.scores.values():
        assert values.isfinite().all()
    effect = part.on(found.kind).effect(found.theta.double()).norm(dim=1)
    torch.testing.assert_close(found.scores["effect"].double(), effect, rtol=1e-4, atol=0)
    assert float(effect) > 0


#: Settings that are fast, by method; the last one is melbo again, with a term more.
QUICK: list[tuple[str, dict[str, Any]]] = [
    ("cpe", {"blocks": 2}),
    ("dct", {}),
    ("dct", {"init": "jacobian"}),
    ("dct-linear", {}),
    ("dct-quadratic", {"iterations": 2}),
    ("generalised", {"subspace": 2}),
    ("lora", {"steps": 1}),
    ("melbo", {"steps": 1}),
    ("power", {}),
    ("tokens", {"words": 4}),
    ("melbo", {"steps": 1, "turning": 1.0}),
]


@pytest.mark.parametrize(("method", "settings"), QUICK)
def test_a_radius_that_is_lost_in_rounding_is_an_error(
    tiny64: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(token_directions, "vocabulary", lambda part: torch.arange(10, 70))
    part = Slice(tiny64, tiny64.encode(["tell me"]), source=1, target=3)
    if METHODS[method].retain == "needs":
        part = retain.with_retain_prompts(part, tiny64.encode(["Say it."]))
    config = configured(method, settings)
    assert search(part, method, n=2, radius=0.5, config=config).scores["effect"].all()
    try:
        effect = search(part, method, n=2, radius=1e-30, config=config).scores["effect"]
    except RadiusError as error:
        told = str(error)
    else:  # where two passes over the same numbers round otherwise, something is left
        assert 0 < float(effect.max()) < 1e-12
        return
    assert re.search(r"no perturbation changes anything .* larger radius", told)
