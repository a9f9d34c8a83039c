"""A search with other prompts beside it, from the job's settings to what is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from educe import methods
from educe.errors import MethodError, PromptError
from educe.forward.slice import Slice
from educe.methods import retain
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.report.command import command
from educe.run.settings import Settings, begin, stored
from educe.run.stages import discover_behaviours
from educe.run.store import Run

SETTINGS = Settings(
    prompts=("Where is it?",),
    method="melbo",
    method_settings={"steps": 3},
    n=2,
    source=1,
    target=3,
    radius="3",
    baseline=4,
    max_new_tokens=3,
)


def found(folder: Path, settings: Settings, lm: LanguageModel) -> PerturbationSet:
    with begin(folder, settings) as run:
        discover_behaviours(run, lm=lm)
        return PerturbationSet.load(run.tensors / "found-0.safetensors")


@pytest.mark.parametrize("by", ["effect", "kl"])
def test_a_job_finds_what_a_search_with_the_same_prompts_does(
    tiny_lm: LanguageModel, tmp_path: Path, by: retain.By
) -> None:
    file = tmp_path / "others.json"
    file.write_text('[{"instruction": "Say it.", "input": "Good day"}, "Who?"]')
    settings = replace(SETTINGS, retain=2.0, retain_by=by, retain_prompts=str(file))
    done = found(tmp_path / "run", settings, tiny_lm)
    part = Slice(tiny_lm, tiny_lm.encode(["Where is it?"]), source=1, target=3)
    others = tiny_lm.encode(["Say it.\n\nGood day", "Who?"])
    kept = retain.with_retain_prompts(part, others, weight=2.0, by=by)
    config = methods.configured("melbo", {"steps": 3})
    same = methods.search(kept, "melbo", n=2, radius=3.0, config=config)
    assert torch.equal(done.directions, same.directions)
    assert torch.equal(done.scores["retain"], same.scores["retain"])
    with Run.open(tmp_path / "run") as run:
        assert "--retain 2.0" in command(run.config)
        assert f"--retain-by {by}" in command(run.config)


def test_without_a_weight_a_run_is_as_it_was(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    done = found(tmp_path / "run", SETTINGS, tiny_lm)
    part = Slice(tiny_lm, tiny_lm.encode(["Where is it?"]), source=1, target=3)
    config = methods.configured("melbo", {"steps": 3})
    plain = methods.search(part, "melbo", n=2, radius=3.0, config=config)
    assert torch.equal(done.directions, plain.directions)
    assert done.config == plain.config
    with Run.open(tmp_path / "run") as run:
        assert "--retain" not in command(run.config)
        old = {k: v for k, v in run.config.items() if "retain" not in k}
        run.remember("config", old)  # as it was before there were such settings
        assert stored(run) == SETTINGS
        assert command(run.config)


def test_generalised_has_other_prompts_without_a_weight(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, method="generalised", method_settings={"subspace": 4})
    done = found(tmp_path / "run", settings, tiny_lm)
    assert set(done.scores) == {"ratio", "gain", "gain_retain", "effect"}


def test_what_makes_no_sense_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="power has no weight for other prompts"):
        replace(SETTINGS, method="power", method_settings={}, retain=1.0).check()
    with pytest.raises(MethodError, match="say how much with retain"):
        replace(SETTINGS, retain_prompts="some.txt").check()
    with pytest.raises(PromptError, match="cannot read prompts"):
        replace(SETTINGS, retain=1.0, retain_prompts=str(tmp_path / "none.txt")).check()


def test_settings_of_an_older_run_have_the_names_of_now(tmp_path: Path) -> None:
    own = {"steps": 3, "turning": 0.1}
    now = replace(SETTINGS, retain=2.0, retain_by="kl", retain_prompts="a.txt")
    now = replace(now, method="tokens", method_settings=own)
    names = {"retain": "quiet", "retain_by": "quiet_by", "retain_prompts": "ordinary"}
    old = {names.get(name, name): value for name, value in vars(now).items()}
    old |= {"method": "words", "method_settings": {"steps": 3, "hold": 0.1}}
    with Run.create(tmp_path / "run", old) as run:
        assert stored(run) == now
        assert "--retain 2.0" in command(run.config)
