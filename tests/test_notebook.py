"""The notebook: each call beside the pipeline it stands for, and what a newcomer gets wrong."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import educe
from educe.errors import (
    EduceError,
    JudgeError,
    MethodError,
    ModelError,
    PromptError,
    RadiusError,
    RunError,
)
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.methods import radius
from educe.methods.noise import NoiseConfig
from educe.model.language import LanguageModel
from educe.notebook.runs import Run, discover
from educe.notebook.texts import Texts, compare, score, write
from educe.perturbation.kinds import Vectors
from educe.perturbation.set import PerturbationGroup, PerturbationSet
from educe.rows import Row
from educe.run.store import Run as Store
from educe.scores.novelty import novelty
from educe.scores.rules import Contains

PROMPTS = ["Why is the sky blue?", "Name three countries in Asia."]
SHORT: dict[str, Any] = {"n": 3, "radius": 6.0, "source": 1, "target": 3}
SHORT |= {"baseline": 8, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def part(tiny_lm: LanguageModel) -> Slice:
    return Slice(tiny_lm, PROMPTS, source=1, target=3)


@pytest.fixture(scope="module")
def found(part: Slice) -> PerturbationSet:
    return educe.search(part, "dct", n=3, radius=6.0)


@pytest.fixture(scope="module")
def texts(tiny_lm: LanguageModel, part: Slice, found: PerturbationSet) -> Texts:
    both = found + educe.control(part, found)
    return write(tiny_lm, both, PROMPTS, max_new_tokens=5)


@pytest.fixture(scope="module")
def run(tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with discover(tmp_path_factory.mktemp("runs") / "one", tiny_lm, PROMPTS, **SHORT) as made:
        yield made


def copied(run: Run, folder: Path) -> Run:
    """Return a run of its own with the same content."""
    run.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder.mkdir()
    (folder / "run.sqlite").write_bytes((run.folder / "run.sqlite").read_bytes())
    (folder / "tensors").mkdir()
    for file in run.tensors.iterdir():
        (folder / "tensors" / file.name).write_bytes(file.read_bytes())
    other = Run.open(folder)
    other.lm = run.lm
    return other


# -- slice, search, control ------------------------------------------------------------------------


def test_a_slice_of_texts_is_that_of_their_batch(tiny_lm: LanguageModel, part: Slice) -> None:
    other = Slice(tiny_lm, tiny_lm.encode(PROMPTS), source=1, target=3)
    assert part.batch.texts == other.batch.texts
    assert part.start.equal(other.start)


def test_messages_are_prompts_of_a_slice(tiny_lm: LanguageModel) -> None:
    asked = [[{"role": "user", "content": PROMPTS[0]}]]
    assert Slice(tiny_lm, asked, source=1, target=3).batch.texts == (tiny_lm.render(PROMPTS[0]),)


@pytest.mark.parametrize(
    ("words", "share"), [("0.5x", 0.5), ("0.25d", None), ("3.5", None), (3.5, None)]
)
def test_a_radius_is_a_number_or_words(part: Slice, words: Any, share: float | None) -> None:
    came = float(educe.search(part, "random", n=2, radius=words).radius[0])
    if share:
        assert came == pytest.approx(share * educe.calibrate(part).radius, rel=1e-6)
    else:
        assert came == pytest.approx(0.25 * part.unit if words == "0.25d" else 3.5, rel=1e-6)


def test_a_slice_is_calibrated_once(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, calls, calibrate = Slice(tiny_lm, PROMPTS, source=1, target=3), [], radius.calibrate

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(named)
        return calibrate(*args, **named)

    monkeypatch.setattr(radius, "calibrate", counted)
    radii = {
        float(educe.search(part, "random", n=2, radius="0.5x", seed=seed).radius[0])
        for seed in range(3)
    }
    assert len(radii) == len(calls) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("half", "radius 'half': use auto, a number"),
        ("0.3x,0.5x", "is 2 radii"),
        ("auto", "is 3 radii"),
        ("0x", "above zero"),
        (-1.0, "above zero"),
    ],
)
def test_a_wrong_radius_is_an_error(part: Slice, words: Any, said: str) -> None:
    with pytest.raises(RadiusError, match=said):
        educe.search(part, "random", n=2, radius=words)


def test_a_control_has_each_radius(part: Slice, found: PerturbationSet) -> None:
    several = educe.derive.scaled(found, [0.5, 1.0])
    made = educe.control(part, several)
    assert made.radius.equal(several.radius)
    sizes = part.effect(made.theta).norm(dim=1)
    assert torch.allclose(made.scores["effect"], sizes)
    assert made.seed == found.seed + 1
    assert not educe.control(part, found, seed=5).directions.equal(made.directions[:3])


def test_a_control_for_another_model_is_an_error(
    lm_of: Callable[..., LanguageModel], found: PerturbationSet
) -> None:
    other = replace(found, origin=replace(found.origin, n_layers=7))
    part = Slice(lm_of("qwen2"), PROMPTS, source=1, target=3)
    with pytest.raises(ModelError, match="7 blocks"):
        educe.control(part, other)


# -- write -----------------------------------------------------------------------------------------


def test_texts_are_those_of_generate(
    tiny_lm: LanguageModel, texts: Texts, found: PerturbationSet
) -> None:
    rows = rows_of(len(found), len(PROMPTS))
    batch = tiny_lm.encode(PROMPTS)
    written = {
        (c.row.perturbation, c.row.prompt): c.text
        for some in generate(tiny_lm, batch, rows, found.theta, kind=found.kind, max_new_tokens=5)
        for c in some
    }
    own = texts[texts.arm == "found"]
    assert dict(zip(zip(own.perturbation, own.prompt, strict=True), own.text, strict=True)) == (
        written
    )
    plain = texts.query("perturbation == 0 and sample == 0").text.tolist()
    likeliest = [Row(0, 0), Row(0, 1)]
    assert plain == [
        c.text for some in generate(tiny_lm, batch, likeliest, max_new_tokens=5) for c in some
    ]


def test_arms_are_counted_through(texts: Texts) -> None:
    numbers = texts.groupby("arm").perturbation.unique().map(sorted).to_dict()
    assert numbers == {"unperturbed": [0], "found": [1, 2, 3], "control": [4, 5, 6]}
    assert texts.query("arm == 'unperturbed'").groupby("prompt").size().tolist() == [65, 65]


def test_the_unperturbed_model_has_as_many_samples_as_are_asked_for(
    tiny_lm: LanguageModel, found: PerturbationSet
) -> None:
    few = write(tiny_lm, found[:1], PROMPTS, baseline=2, max_new_tokens=3)
    plain = few[few.perturbation == 0]
    assert plain.groupby("prompt")["sample"].apply(list).tolist() == [[0, 1, 2]] * len(PROMPTS)
    assert (plain.temperature == (plain["sample"] > 0)).all()


def test_samples_need_a_temperature(tiny_lm: LanguageModel, found: PerturbationSet) -> None:
    with pytest.raises(MethodError, match="give a temperature"):
        write(tiny_lm, found, PROMPTS, samples=2)
    few = write(tiny_lm, found[:1], PROMPTS, samples=2, temperature=0.7, max_new_tokens=3)
    own = few[few.perturbation == 1]
    assert own["sample"].tolist() == [0, 1, 0, 1]
    assert set(own.temperature) == {0.7}


def test_random_ones_that_were_found_are_found(tiny_lm: LanguageModel, part: Slice) -> None:
    few = write(tiny_lm, educe.search(part, "random", n=1, radius=6.0), PROMPTS, max_new_tokens=3)
    assert set(few.arm) == {"unperturbed", "found"}


def test_perturbations_of_several_kinds_are_written(tiny_lm: LanguageModel, part: Slice) -> None:
    noise = educe.search(part, "noise", n=2, radius=6.0, config=NoiseConfig())
    both = noise + educe.control(part, noise)
    assert isinstance(both, PerturbationGroup)
    assert isinstance(both[2].kind, Vectors)
    few = write(tiny_lm, both, PROMPTS, max_new_tokens=3)
    assert few.groupby("arm").perturbation.nunique().to_dict() == {
        "control": 2,
        "found": 2,
        "unperturbed": 1,
    }


def test_effects_that_are_not_known_are_measured(
    tiny_lm: LanguageModel, part: Slice, found: PerturbationSet
) -> None:
    made = educe.derive.scaled(found, [0.5])
    few = write(tiny_lm, made, PROMPTS, max_new_tokens=3)
    assert few.source is not None
    effects = few.source.run.perturbations.effect.tolist()
    assert effects == pytest.approx(part.effect(made.theta).norm(dim=1).tolist(), rel=1e-5)


# -- score and compare -----------------------------------------------------------------------------


def test_scores_are_those_of_their_judges(texts: Texts) -> None:
    def length(text: str) -> int:
        return len(text)

    scored = score(texts, ["novelty", "coherence", "regex:[aeiou]", Contains("a"), length])
    assert scored["length"].tolist() == [len(text) for text in texts.text]
    assert scored["regex:[aeiou]"].tolist() == [
        float(bool(re.search("[aeiou]", text))) for text in texts.text
    ]
    assert scored["contains:a"].tolist() == ["a" in text.lower() for text in texts.text]
    few = texts[(texts.perturbation == 0) & (texts["sample"] <= 8)]  # of 64
    plain = few.groupby("prompt").text.apply(list)
    for text, prompt, value in zip(scored.text, scored.prompt, scored.novelty, strict=True):
        if not pd.isna(value):
            assert value == pytest.approx(novelty(text, plain[prompt]).value)
    assert scored.novelty.isna().equals(scored.perturbation == 0)
    assert scored.coherence.isna().equals(scored.perturbation == 0)


def test_a_function_that_changed_is_called_again(texts: Texts) -> None:
    def own(value: float) -> Callable[[str], float]:
        def mine(text: str) -> float:
            return value

        return mine

    assert set(score(texts, [own(1.0)])["mine"]) == {1.0}
    assert set(score(texts, [own(2.0)])["mine"]) == {2.0}


def test_what_is_selected_of_texts_is_scored(texts: Texts) -> None:
    some = texts[texts.arm == "control"].sort_values("text")
    assert score(some, [len])["len"].tolist() == [len(text) for text in some.text]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (["novel"], "there is no judge 'novel': use one of"),
        (["regex"], "write it as regex:PATTERN"),
        ("novelty", "scores are a list"),
        ([3], "3 is no score"),
        ([len, len], "two columns would be called 'len'"),
        ([lambda text: text], "a score is a number"),
        ([lambda text: None], "returns None"),
    ],
)
def test_a_wrong_score_is_an_error(texts: Texts, scores: Any, said: str) -> None:
    with pytest.raises(JudgeError, match=said):
        score(texts, scores)


def test_a_frame_without_its_run_is_an_error(texts: Texts) -> None:
    lost: Any = pd.DataFrame(texts)
    for verb in (lambda: score(lost, ["novelty"]), lambda: compare(lost)):
        with pytest.raises(JudgeError, match="lost the run"):
            verb()
    with pytest.raises(JudgeError, match="takes all texts"):
        compare(texts[texts.arm == "found"])
    with pytest.raises(JudgeError, match="did not write"):
        score(texts.assign(prompt=texts.prompt + 7), [len])


def test_behaviours_are_shares_of_perturbations(
    tiny_lm: LanguageModel, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = compare(texts)
    assert told.found.between(0, 1).all()
    # By hand: which perturbations of an arm have a text with the example's number.
    assert texts.source is not None
    scores = texts.source.run.scores.query("judge == 'behaviour'")
    shown = scores.merge(pd.DataFrame(texts), on=["perturbation", "prompt", "sample", "phase"])
    # Prompts whose likeliest answer says the same are left out.
    greedy = shown[(shown.perturbation == 0) & (shown["sample"] == 0)].set_index("prompt").value
    shown = shown[shown.value != shown.prompt.map(greedy)]
    for row in told.itertuples():
        own = shown[shown.value == row.behaviour]
        assert row.example in set(own.text)
        for arm in ("found", "control"):
            many = own[own.arm == arm].perturbation.nunique()
            assert getattr(row, arm) == pytest.approx(many / 3)
    assert told["re-test"].isna().all()


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_comes_back_finished_and_goes_on(tiny_lm: LanguageModel, run: Run) -> None:
    before = run.completions
    with discover(run.folder, tiny_lm, PROMPTS, **SHORT) as again:
        assert again.completions.equals(before)
    with pytest.raises(RunError, match="other settings"):
        discover(run.folder, tiny_lm, PROMPTS[:1], **SHORT)
    assert isinstance(run, Store)
    assert run.has("seconds")


def test_sets_of_a_run_carry_its_numbers(run: Run) -> None:
    assert isinstance(run.found, PerturbationSet)
    for arm in ("found", "control"):
        rows, made = run.perturbation_rows(arm), run.set(arm)
        assert isinstance(made, PerturbationSet)
        assert made.scores["number"].tolist() == [p.id for p in rows]
        assert made.scores["effect"].tolist() == pytest.approx([p.effect for p in rows])
        assert {one.config["arm"] for one in made} == {arm}


def test_sets_at_several_radii_are_one(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    asked = SHORT | {"radius": "3,6", "n": 2}
    with discover(tmp_path / "two", tiny_lm, PROMPTS, **asked) as run:
        assert isinstance(run.found, PerturbationSet)
        assert run.found.radius.tolist() == [3.0, 3.0, 6.0, 6.0]
        first = PerturbationSet.load(run.tensors / "found-1.safetensors")
        assert run.found.theta[2:].equal(first.theta)


def test_what_is_added_has_its_parents_and_is_written(run: Run, tmp_path: Path) -> None:
    with copied(run, tmp_path / "copy") as own:
        assert isinstance(own.found, PerturbationSet)
        before = own.summary()
        best = own.found.top(2)
        numbers = own.add(educe.derive.scaled(best, [0.5, 1.0]))
        rows = own.perturbations.loc[numbers]
        parents = best.scores["number"].repeat_interleave(2).tolist()
        assert rows.parent.tolist() == parents
        assert set(rows.arm) == {"found"}
        assert own.add(educe.derive.scaled(best, [0.5, 1.0])) == numbers
        nameless = replace(educe.derive.scaled(own.control[:1], [2.0]), config={})
        (number,) = own.add(nameless)
        assert own.perturbations.arm[number] == "control"
        texts = own.fill().texts
        for copy, parent in zip(numbers[1::2], parents[1::2], strict=True):
            theirs, mine = (
                texts[(texts.perturbation == n) & (texts.phase == "first")].text.tolist()
                for n in (parent, copy)
            )
            assert mine == theirs  # at a share of 1 it is its parent
        after = own.summary()
        assert (len(after.found), after.behaviours) == (len(before.found), before.behaviours)
        assert not own.missing()


def test_strangers_are_added_without_parents(
    run: Run, found: PerturbationSet, tmp_path: Path
) -> None:
    with copied(run, tmp_path / "copy") as own:
        numbers = own.add(educe.derive.scaled(found.top(2), [0.5, 2.0]))
        assert own.perturbations.loc[numbers].parent.isna().all()
        assert len(own.found) == len(run.found)
        assert not own.fill().missing()
        with pytest.raises(RunError, match="in the run already"):
            own.add(own.found)
        assert isinstance(own.found, PerturbationSet)
        wrong = educe.derive.scaled(own.found, [2.0])
        wrong = replace(wrong, scores=wrong.scores | {"number": wrong.scores["number"] + 999})
        with pytest.raises(RunError, match="no perturbation 1000"):
            own.add(wrong)


def test_a_run_shows_what_it_found(run: Run, tmp_path: Path) -> None:
    said = repr(run)
    assert said.startswith(f"Run({run.folder}: 3 perturbations at one radius, and as many in")
    assert "behaviours" in said
    page = run._repr_html_()
    assert page.count("<tr") == len(run.behaviours) + 1
    report = run.report(tmp_path / "report.html").read_text()
    assert "<!doctype html>" in report
    assert PROMPTS[0] in html.unescape(report)
    assert len(run.summary().found) == 3


def test_texts_of_a_run_are_scored_and_compared(run: Run) -> None:
    texts = run.texts
    assert len(texts) == len(run.completion_rows())
    assert score(texts, [len])["len"].tolist() == [len(text) for text in texts.text]
    assert compare(texts).equals(run.behaviours)


def test_an_empty_run_shows_itself() -> None:
    empty = Run.in_memory({"prompts": [], "look_for": None})
    assert "no perturbations yet" in repr(empty)
    folder = empty.folder
    assert folder.exists()
    del empty
    assert not folder.exists()


@pytest.mark.parametrize(
    ("mistake", "error", "said"),
    [
        (lambda lm, found, new: Slice("Qwen/x", ["Hi."], source=1, target=3), ModelError, "Qwen/x"),
        (lambda lm, found, new: Slice(lm, "Hi.", source=1, target=3), PromptError, "give a list"),
        (lambda lm, found, new: write(lm, found, "Hi."), PromptError, "give a list"),
        (lambda lm, found, new: write("Qwen/x", found, ["Hi."]), ModelError, "educe.load"),
        (lambda lm, found, new: write(lm, found.theta, ["Hi."]), MethodError, "Tensor is no set"),
        (lambda lm, found, new: write(lm, [found], ["Hi."]), MethodError, "found \\+ control"),
        (lambda lm, found, new: discover(new, lm, "Hi."), PromptError, "give a list"),
        (lambda lm, found, new: discover(new, "Qwen/x", ["Hi."]), ModelError, "educe.load"),
        (lambda lm, found, new: discover(new, lm, ["Hi."], mehtod="dct"), MethodError, "'mehtod'"),
        (
            lambda lm, found, new: discover(new, lm, ["Hi."], method="d"),
            MethodError,
            "unknown: use",
        ),
        (lambda lm, found, new: discover(new, lm, ["Hi."], radius="big"), RadiusError, "'big'"),
    ],
)
def test_a_newcomers_mistake_is_one_line(
    tiny_lm: LanguageModel,
    found: PerturbationSet,
    tmp_path: Path,
    mistake: Callable[..., Any],
    error: type[EduceError],
    said: str,
) -> None:
    with pytest.raises(error, match=said) as caught:
        mistake(tiny_lm, found, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_the_page_of_the_notebook_runs(
    tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "notebook.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    blocks = [block for block in blocks if "audit_model" not in block]  # see tests/audit
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(educe, "load", lambda name: tiny_lm)
    known: dict[str, Any] = {}
    for block in blocks:
        exec(block, known)
    assert {"length", "novelty", "regex:orchid"} <= {*known["texts"]}
    assert (tmp_path / "report.html").stat().st_size > 10_000
    with Run.open("runs/one") as run:
        assert run.perturbations.parent.notna().sum() >= 8
        assert not run.missing()
