"""Following and shrinking vectors of a run: on the screen, in the run, in the report, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from educe.job.settings import encoded, stored
from educe.loading import load
from educe.model import LanguageModel
from educe.ordinary import ordinary_prompts
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.refine import survey
from educe.refine.continuation import PathConfig
from educe.refine.response import with_neurons
from educe.refine.shrink import ShrinkPlan, shrink_run
from educe.refine.survey import PathPlan, path_run
from educe.reopened import slice_of, vectors
from educe.report import path_table, paths
from educe.runs import Run
from educe.slice import Slice
from loopback import Reply, completion, likely, serving
from test_cli import educe, model, refused  # noqa: F401 - a fixture
from test_report import Page

SHORT = ["--low", 0.5, "--high", 1.5, "--steps", 1, "--nulls", 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "run"
    short = ["--model", model, "--device", "cpu", "--max-new-tokens", 4, "--radius", "3.0,4.0"]
    looked = ["--look-for", ".", "-n", 2, "--method", "melbo", "--set", "steps=3"]
    ended = educe("discover", "Tell me.", *short, *looked, "--out", folder)
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def data(run: Path) -> dict[str, Any]:
    ended = educe("refine", "path", run, 2, 5, *SHORT, "--basis", "heads", "--exact", "--json")
    assert ended.status == 0, ended.err
    return ended.data


def opened(run: Path) -> tuple[Run, LanguageModel, Any]:
    kept = Run.open(run)
    settings = stored(kept)
    lm = load(settings.model, device="cpu")
    return kept, lm, encoded(lm, settings, settings.prompts)


def test_a_path_begins_at_the_vectors_that_were_asked_for(run: Path, data: dict) -> None:
    assert data["numbers"] == [2, 5]
    assert data["shares"][0] == 0.5
    assert data["shares"][-1] == 1.5
    assert data["radius"] == pytest.approx([3.0, 4.0])
    assert set(data["arms"]) == {"found", "shuffled", "random", "elsewhere"}
    for arm in data["arms"].values():
        assert len(arm["exponent"]) == len(data["shares"])
    found = data["arms"]["found"]
    assert len(found["turning"][0]) == 2
    assert set(found["statistics"]) == {"heads"}
    assert "turning" not in data["arms"]["random"]


def test_the_objective_is_that_of_the_runs_method_and_does_not_fall(run: Path, data: dict) -> None:
    with Run.open(run) as kept:
        arm = {p.id: p for p in kept.perturbations()}
        at = PerturbationSet.load(kept.tensors / arm[2].file)
    home = data["shares"].index(1.0)
    before = float(at.scores["objective"][arm[2].item])
    assert data["arms"]["found"]["objective"][home][0] >= before * (1 - 1e-4)


def test_its_vectors_are_a_set_that_discover_takes(
    run: Path,
    data: dict,
    tmp_path: Path,
    model: Path,  # noqa: F811
) -> None:
    made = PerturbationSet.load(run / data["file"])
    n = len(data["numbers"])
    assert len(made) == n * len(data["shares"])
    assert made.scores["number"].tolist() == [2.0, 5.0] * len(data["shares"])
    expected = torch.tensor([r * s for s in data["shares"] for r in data["radius"]])
    torch.testing.assert_close(made.radius, expected)
    few = tmp_path / "few.safetensors"
    made.select([0]).save(few)
    words = ["--model", model, "--device", "cpu", "--max-new-tokens", 2]
    ended = educe("discover", "Tell me.", "--given", few, *words, "--out", tmp_path / "run")
    assert ended.status == 0, ended.err


def test_the_report_shows_a_path(run: Path, data: dict) -> None:
    page = Page((run / "report.html").read_text())
    shown = [d for _, d in page.elements if d.get("data-testid") == "path"]
    assert data["key"] in [d["data-key"] for d in shown]
    specs = json.loads(next(t for a, t in page.scripts if a.get("id") == "charts-specs"))
    key = data["key"]
    curves = ("turning", "exponent", "neurons_variance", "map-5-heads")
    assert {f"path-{name}-{key}" for name in curves} <= set(specs)
    cells = specs[f"path-map-5-heads-{key}"]["data"]["values"]
    own = data["maps"]["5"]["heads"]
    assert {c["coordinate"] for c in cells} == set(own["names"])
    assert cells[0]["exact"] == own["rate"][0][0]


def test_the_page_tells_of_the_targets_neurons_beside_their_nulls(run: Path, data: dict) -> None:
    middles = path_table.middles(data)
    home = data["shares"].index(1.0)
    page = (run / "report.html").read_text()
    table = page.split('data-testid="path-neurons"')[1].split("</table>")[0]
    for arm, (title, _) in path_table.ARMS.items():
        values = data["arms"][arm]["neurons_variance"][home]
        told = middles[title]["neurons_variance"]
        assert told.startswith(f"{np.median(values):.2g} ({min(values):.2g} to")
        assert f"{title}</td><td>{told}</td><td>{middles[title]['neurons_spread']}</td>" in table


def test_a_mixture_of_experts_has_no_neurons_to_tell_of(lm_of: Any, data: dict) -> None:
    lm = lm_of("mixtral")
    part = Slice(lm, lm.encode(["Tell me."]), source=1, target=3)
    v = part.kind.draw(2, torch.Generator().manual_seed(0))
    plan = PathPlan((1, 2), PathConfig(low=0.5, high=1.0, steps=1))
    still = v.expand(len(plan.config.shares), *v.shape)
    told = survey._responses(part, still, torch.ones(2), plan, Silent(), "random")
    curves = {"effect", "exponent", "effect_turning", "effect_spread"}
    assert set(told) == curves
    arms = {
        arm: {name: values for name, values in own.items() if not name.startswith("neurons")}
        for arm, own in data["arms"].items()
    }
    without = data | {"arms": arms}
    assert "neurons_variance" not in path_table.curves_of(without)
    assert f"path-neurons_variance-{data['key']}" not in paths.charts(without)
    assert [row["neurons_variance"] for row in path_table.rows(without)] == [None, None]


def test_the_screen_has_a_line_for_each_and_each_null(run: Path, data: dict) -> None:
    ended = educe("refine", "path", run, 2, 5, *SHORT, "--basis", "heads", "--exact")
    assert ended.status == 0, ended.err
    for word in ("#2", "#5", "shuffled target", "random", "other prompts", data["file"]):
        assert word in ended.out.replace("\n", "")
    home = data["shares"].index(1.0)
    for value in data["arms"]["found"]["neurons_variance"][home]:
        assert f" {value:.2g} " in ended.out
    assert "radii" not in ended.err  # what is kept is not done again


def test_coordinates_are_read_in_a_basis_from_a_file(run: Path, tmp_path: Path) -> None:
    with Run.open(run) as kept:
        theta = vectors(kept, [2])[0]
        v = theta / theta.norm()
    draw = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(len(v), len(v), generator=draw)).Q
    save_file({"Q": turn.contiguous()}, tmp_path / "turned.safetensors")
    short = [*SHORT, "--settle", 0, "--basis", tmp_path / "turned.safetensors"]
    ended = educe("refine", "path", run, 2, *short, "--basis", "residual", "--json")
    assert ended.status == 0, ended.err
    assert ended.data["bases"] == ["turned", "residual"]
    weight = (turn @ v).square().sort(descending=True).values[: survey.SHOWN]
    assert ended.data["maps"]["2"]["turned"]["weight"] == pytest.approx(weight.tolist(), rel=1e-4)
    assert f"path-map-2-turned-{ended.data['key']}" in (run / "report.html").read_text()


def test_a_path_that_was_cut_off_goes_on(run: Path, data: dict, monkeypatch: Any) -> None:
    kept, lm, prompts = opened(run)
    plan = PathPlan((2,), PathConfig(low=0.5, high=1.5, steps=1), bases=("residual",), nulls=1)
    with kept:
        monkeypatch.setattr(survey, "_responses", lambda *a: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            path_run(kept, plan, lm, prompts)
        state = run / "paths" / f"{plan.key}-found.state"
        assert state.exists()
        monkeypatch.undo()
        steps: list[Any] = []
        follow = survey.follow

        def counted(*arguments: Any, **options: Any) -> Any:
            steps.append(options["state"] is not None)
            return follow(*arguments, **options)

        monkeypatch.setattr(survey, "follow", counted)
        resumed = path_run(kept, plan, lm, prompts)
        assert steps == [True, False]
        assert not state.exists()
        kept.database.execute("DELETE FROM meta WHERE key LIKE 'path-%'")
        assert path_run(kept, plan, lm, prompts) == resumed
        kept.database.rollback()


def test_random_ones_that_are_rescaled_are_those_of_jvp(run: Path, data: dict) -> None:
    kept, lm, prompts = opened(run)
    with kept:
        part = slice_of(kept, lm, prompts)
        radius = vectors(kept, (2, 5)).norm(dim=1)
    draw = torch.Generator().manual_seed(0)
    drawn = part.kind.draw(2, draw)
    effect, moved = part.jvp(drawn * radius[:, None] * 0.5, drawn * radius[:, None] * 0.5)
    exponent = (effect * moved).sum(1) / effect.square().sum(1)
    assert data["arms"]["random"]["exponent"][0] == pytest.approx(exponent.tolist(), rel=1e-4)


def test_neurons_are_told_of_each_arm_at_its_own_vectors_and_prompts(run: Path, data: dict) -> None:
    kept, lm, prompts = opened(run)
    with kept:
        parts = {"found": slice_of(kept, lm, prompts)}
        ordinary = lm.encode(ordinary_prompts()[: survey.OTHERS])
        parts["elsewhere"] = slice_of(kept, lm, ordinary)
    followed = PerturbationSet.load(run / data["file"])
    for k in range(len(data["shares"])):
        for arm, part in parts.items():
            _, inside = with_neurons(part, followed.theta[2 * k : 2 * k + 2])
            slopes = inside.moved / followed.radius[2 * k : 2 * k + 2, None]
            for name, expected in (
                ("variance", slopes.var(1, correction=0)),
                ("exponent", inside.exponent),
                ("turning", inside.rates.variance.sqrt()),
            ):
                told = data["arms"][arm][f"neurons_{name}"][k]
                assert told == pytest.approx(expected.tolist(), rel=1e-3)


# -- shrinking -------------------------------------------------------------------------------------


def test_shrinking_by_the_exponent_stops_where_it_has_fallen(run: Path) -> None:
    ended = educe("refine", "shrink", run, 2, 5, "--by", "exponent", "--keep", 0.99, "--json")
    assert ended.status == 0, ended.err
    told = ended.data
    for curve, kept in zip(told["curves"], told["kept"], strict=True):
        start = curve[0][1]
        assert all(value >= 0.99 * start for _, value in curve[:-1])
        assert [share for share, value in curve if value >= 0.99 * start][-1] == kept
        assert curve[-1][1] < 0.99 * start or curve[-1][0] == pytest.approx(0.1)
    made = PerturbationSet.load(run / told["file"])
    assert made.radius.tolist() == pytest.approx(
        [r * k for r, k in zip(told["radius"], told["kept"], strict=True)]
    )


@pytest.mark.parametrize("optimise", [False, True])
def test_shrinking_by_what_is_written_stops_at_the_share(run: Path, optimise: bool) -> None:
    """Judged by how many answers were asked for so far, so that the outcome is known."""
    kept, lm, prompts = opened(run)
    seen: list[list[str]] = []

    def measure(texts: list[str]) -> float:
        seen.append(texts)
        return 1.0 - 0.06 * len(seen)

    plan = ShrinkPlan((2,), f"a judge {optimise}", keep=0.8, steps=2, optimise=optimise)
    with kept:
        told = shrink_run(kept, plan, lm, prompts, measure=measure)
        again = shrink_run(kept, plan, lm, prompts, measure=None)
    assert again == told
    values = [value for _, value in told["curves"][0]]
    assert values == pytest.approx([0.94, 0.88, 0.82, 0.76, 0.70])
    assert told["kept"] == [told["curves"][0][3][0]]  # 0.76 is above 0.8 of 0.94, 0.70 is not
    assert told["curves"][0][2][0] == pytest.approx(10 ** (-2 / 7))
    assert all(len(texts) == 1 for texts in seen)


def test_shrinking_by_a_judge_asks_the_model_that_is_named_and_pays_once(run: Path) -> None:
    """By a server that says yes with the same share, whatever the audited model would say."""

    def share(body: dict[str, Any]) -> Reply:
        return completion("Yes", logprobs=likely({"Yes": 0.6, "No": 0.2}))

    with serving(share) as loopback:
        command = ["refine", "shrink", run, 2, "--by", "yes:Is it odd?", "--steps", 1, "--json"]
        command += ["--judge-model", loopback.url, "--judge-name", "m"]
        told = educe(*command).data
        assert all(value == pytest.approx(0.75) for _, value in told["curves"][0])
        paid = len(loopback.asked)
        assert paid > 0
        assert educe(*command, "--keep", 0.5).data["curves"] == told["curves"]
        assert len(loopback.asked) == paid
        # Another model is another judge, and has a result of its own.
        command[-1] = "another"
        educe(*command)
        assert len(loopback.asked) == 2 * paid
    assert (run / "judging.sqlite").exists()


def test_what_does_nothing_has_nothing_to_keep(run: Path) -> None:
    kept, lm, prompts = opened(run)
    with kept:
        told = shrink_run(kept, ShrinkPlan((2,), "never"), lm, prompts, measure=lambda texts: 0.0)
    assert told["kept"] == [None]
    assert len(told["curves"][0]) == 1


def test_what_is_wrong_is_one_line(run: Path) -> None:
    assert "no perturbation 99" in refused("refine", "path", run, 99)
    assert "for --low. Must be < 1" in refused("refine", "path", run, 1, "--low", 2)
    assert "name at least one" in refused("refine", "shrink", run)
    assert "no judge" in refused("refine", "shrink", run, 1, "--by", "vibes")
