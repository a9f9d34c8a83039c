"""Following and shrinking vectors of a run: on the screen, in the run, in the report, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import read_document
from educe.derive import paths as following
from educe.derive import scaled, shrunk
from educe.derive.continuation import PathConfig
from educe.derive.listing import deriving, taken
from educe.derive.paths import OTHERS, follow_run
from educe.derive.response import with_neurons
from educe.derive.shrinking import Shrunk, walk
from educe.derive.shrinking import shrink as shrink_run
from educe.forward.benign import ordinary_prompts
from educe.forward.slice import Slice
from educe.perturbation.set import PerturbationSet
from educe.report import page, paths
from educe.report.document import to_json
from educe.rows import FOLLOWED, SCALED, SHRUNK
from educe.run.store import Run
from educe.scores import Answer, Score
from loopback import Reply, completion, likely, serving
from read_document import blocks, charts, table, text
from test_cli import educe, model, refused  # noqa: F401 - a fixture

SHORT = ["--low", 0.5, "--high", 1.5, "--steps", 1, "--nulls", 2]
PATH = ["derive", "path"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "run"
    short = ["--model", model, "--device", "cpu", "--max-new-tokens", 4, "--radius", "3.0,4.0"]
    short += ["--baseline", 4]
    looked = ["--look-for", ".", "-n", 2, "--method", "melbo", "--set", "steps=3"]
    ended = educe("discover", "Tell me.", *short, *looked, "--out", folder)
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def data(run: Path) -> dict[str, Any]:
    ended = educe(*PATH, run, 2, 5, *SHORT, "--basis", "heads", "--exact", "--json")
    assert ended.status == 0, ended.err
    return ended.data


@pytest.fixture
def path(run: Path, data: dict[str, Any]) -> paths.Path:
    with Run.open(run) as kept:
        return next(one for one in paths.paths(kept) if one.name == data["name"])


def curve(path: paths.Path, of: str, judge: str) -> np.ndarray:
    """Return the scores of vectors or a null, ``[radius][vector]``."""
    own = path.scores[(path.scores.of == of) & (path.scores.judge == judge)]
    return own.pivot_table(index="share", columns="number", values="value").to_numpy()


def test_every_radius_of_a_path_is_a_row_with_a_parent(run: Path, data: dict) -> None:
    assert (data["shares"][0], data["shares"][-1]) == (0.5, 1.5)
    with Run.open(run) as kept:
        rows = kept.perturbation_rows(derived=True)
        parents = {p.id: p for p in kept.perturbation_rows()}
        made = PerturbationSet.load(run / data["file"])
        effect = {s.of: s.value for s in kept.score_rows("effect")}
    # Others may have been derived from these since, by another test on this run.
    own = [p for p in rows if f"tensors/{p.file}" == data["file"] and p.parent in parents]
    many = len(data["shares"])
    assert [p.parent for p in own] == [2] * many + [5] * many
    assert {p.how for p in own} == {FOLLOWED}
    assert {p.arm for p in own} == {"found"}
    for p, share, vector in zip(own, data["shares"] * 2, made.theta, strict=True):
        parent = parents[p.parent or 0]
        assert p.radius == pytest.approx(share * parent.radius, rel=1e-5)
        assert p.dose == pytest.approx(share * parent.dose, rel=1e-5)
        assert float(vector.norm()) == pytest.approx(p.radius, rel=1e-5)
        assert effect[p.id] == pytest.approx(p.effect, rel=1e-4)
    nulls = {p.how: p.arm for p in rows if p.file.startswith(f"{data['name']}-")}
    assert set(nulls.values()) == {"control"}
    assert len(nulls) == 2


def test_each_arm_has_what_can_be_said_of_it(path: paths.Path) -> None:
    assert set(path.scores.of) == {"found", "shuffled target", "random", "other prompts"}
    for of in paths.COLOURS:
        assert curve(path, of, "exponent").shape == (len(path.shares), 2)
    assert curve(path, "found", "turning").shape == (len(path.shares), 2)
    assert not curve(path, "random", "turning").size
    assert path.bases == ["heads"]


def test_the_objective_is_that_of_the_runs_method_and_does_not_fall(
    run: Path, path: paths.Path
) -> None:
    with Run.open(run) as kept:
        arm = {p.id: p for p in kept.perturbation_rows()}
        at = PerturbationSet.load(kept.tensors / arm[2].file)
    before = float(at.scores["objective"][arm[2].item])
    assert path.home.loc[("found", 2), "objective"] >= before * (1 - 1e-4)


def test_its_vectors_are_a_set_that_discover_takes(
    run: Path,
    data: dict,
    tmp_path: Path,
    model: Path,  # noqa: F811
) -> None:
    made = PerturbationSet.load(run / data["file"])
    assert made.scores["parent"].tolist() == [0.0] * len(data["shares"]) + [1.0] * len(
        data["shares"]
    )
    few = tmp_path / "few.safetensors"
    made.select([0]).save(few)
    words = ["--model", model, "--device", "cpu", "--max-new-tokens", 2, "--baseline", 4]
    ended = educe("discover", "Tell me.", "--given", few, *words, "--out", tmp_path / "run")
    assert ended.status == 0, ended.err


def shown(run: Path, name: str) -> dict[str, Any]:
    """Return what the page shows of a path."""
    with Run.open(run) as kept:
        cards = blocks(read_document.part(page.document(kept), "paths"), "card")
    (card,) = [card for card in cards if f"tensors/{name}.safetensors" in card["badges"]]
    return card


def test_the_report_shows_a_path(run: Path, data: dict) -> None:
    key = data["name"]
    specs = charts(shown(run, key))
    curves = ("turning", "exponent", "neurons_variance", "map-5-heads")
    assert {f"path-{name}-{key}" for name in curves} <= set(specs)
    cells = specs[f"path-map-5-heads-{key}"]["data"]["values"]
    own = [m for m in data["maps"] if (m["number"], m["basis"]) == (5, "heads")]
    assert [c["coordinate"] for c in cells] == [m["coordinate"] for m in own]
    assert [c["exact"] for c in cells] == pytest.approx([m["rate"] for m in own], rel=1e-3)


def test_the_page_tells_of_the_targets_neurons_beside_their_nulls(
    run: Path, path: paths.Path
) -> None:
    rows = {text(row["of"]): row for row in table(shown(run, path.name), "of")}
    for of in paths.COLOURS:
        values = curve(path, of, "neurons_variance")[path.shares.index(1.0)]
        told = f"{np.median(values):.2g} ({min(values):.2g} to {max(values):.2g})"
        assert text(rows[of][paths.NEURONS["neurons_variance"]]) == told


def test_a_mixture_of_experts_has_no_neurons_to_tell_of(lm_of: Any, path: paths.Path) -> None:
    lm = lm_of("mixtral")
    part = Slice(lm, lm.encode(["Tell me."]), source=1, target=3)
    v = part.kind.draw(2, torch.Generator().manual_seed(0))
    told = following.responses(part, v)
    assert set(told) == {"effect", "exponent", "effect_turning", "effect_spread"}
    without = path._replace(scores=path.scores[~path.scores.judge.str.startswith("neurons")])
    assert "neurons_variance" not in without.curves
    assert f"path-neurons_variance-{path.name}" not in charts(to_json(paths.card(without)))
    slopes = 3 + list(paths.VECTORS).index("neurons_variance")
    assert [row[slopes] for row in paths.vectors(without)] == [None, None]
    assert all(row[slopes] for row in paths.vectors(path))


def test_the_screen_has_a_line_for_each_and_each_null(run: Path, path: paths.Path) -> None:
    ended = educe(*PATH, run, 2, 5, *SHORT, "--basis", "heads", "--exact")
    assert ended.status == 0, ended.err
    for word in ("#2", "#5", *paths.COLOURS, path.file):
        assert word in ended.out.replace("\n", "")
    for value in curve(path, "found", "neurons_variance")[path.shares.index(1.0)]:
        assert f" {value:.2g} " in ended.out
    assert "radii" not in ended.err  # what is kept is not done again


def test_coordinates_are_read_in_a_basis_from_a_file(run: Path, tmp_path: Path) -> None:
    with Run.open(run) as kept:
        theta = taken(kept, [2]).theta[0]
    v = theta / theta.norm()
    draw = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(len(v), len(v), generator=draw)).Q
    save_file({"Q": turn.contiguous()}, tmp_path / "turned.safetensors")
    short = [*SHORT, "--converge", 0, "--basis", tmp_path / "turned.safetensors"]
    ended = educe(*PATH, run, 2, *short, "--basis", "residual", "--json")
    assert ended.status == 0, ended.err
    assert ended.data["bases"] == ["turned", "residual"]
    weight = (turn @ v).square().sort(descending=True).values[: following.SHOWN]
    maps = [m for m in ended.data["maps"] if m["basis"] == "turned" and m["share"] == 1]
    assert [m["weight"] for m in maps] == pytest.approx(weight.tolist(), rel=1e-4)
    name = ended.data["name"]
    assert f"path-map-2-turned-{name}" in charts(shown(run, name))


def test_a_path_that_was_cut_off_goes_on(run: Path, data: dict, monkeypatch: Any) -> None:
    config = PathConfig(low=0.5, high=1.4, steps=1)
    done: list[int] = []
    advance = following.followed

    def stopping(*arguments: Any, **options: Any) -> Any:
        def on_step(state: Any) -> None:
            options["on_step"](state)
            done.append(int(state["done"].sum()))
            if len(done) == 2:
                pytest.fail("stopped")

        return advance(*arguments, **options | {"on_step": on_step})

    monkeypatch.setattr(following, "followed", stopping)
    with Run.open(run) as kept, deriving(kept, [2]) as work:
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            follow_run(work, [2], config, read_in=["residual"], nulls=1)
        assert list(kept.tensors.glob("*.state"))
        name = follow_run(work, [2], config, read_in=["residual"], nulls=1)
        assert done == [1, 2, 3, *range(1, 4)]  # the null has its own radii
        assert not list(kept.tensors.glob("*.state"))
        one = next(path for path in paths.paths(kept) if path.name == name)
        rows = kept.perturbation_rows(derived=True)
        # Killed after the path was kept and before its responses were: these are done again.
        own = [p.id for p in rows if p.file.startswith(name)]
        with kept.writing():
            kept.database.executemany(
                "DELETE FROM scores WHERE judge GLOB 'effect_*' AND perturbation = ?",
                [(number,) for number in own],
            )
        assert follow_run(work, [2], config, read_in=["residual"], nulls=1) == name
        again = next(path for path in paths.paths(kept) if path.name == name)
        assert (
            again.scores.sort_values(["of", "share", "judge"])
            .round(4)
            .equals(one.scores.sort_values(["of", "share", "judge"]).round(4))
        )
        assert kept.perturbation_rows(derived=True) == rows


def test_random_ones_that_are_rescaled_are_those_of_jvp(run: Path, path: paths.Path) -> None:
    with Run.open(run) as kept, deriving(kept) as work:
        part, radius = work.part, taken(kept, (2, 5)).radius
    drawn = part.kind.draw(2, torch.Generator().manual_seed(0))
    effect, moved = part.jvp(drawn * radius[:, None] * 0.5, drawn * radius[:, None] * 0.5)
    exponent = (effect * moved).sum(1) / effect.square().sum(1)
    assert curve(path, "random", "exponent")[0] == pytest.approx(exponent.tolist(), rel=1e-4)


def test_neurons_are_told_of_each_arm_at_its_own_vectors_and_prompts(
    run: Path, path: paths.Path
) -> None:
    with Run.open(run) as kept, deriving(kept) as work:
        ordinary = work.lm.encode(ordinary_prompts()[:OTHERS])
        parts = {"found": work.part, "other prompts": work.slice_on(ordinary)}
    followed = PerturbationSet.load(run / path.file)
    many = len(path.shares)
    for k in range(many):
        at = followed.select([k, many + k])
        for of, part in parts.items():
            _, inside = with_neurons(part, at.theta)
            slopes = inside.moved / at.radius[:, None]
            for name, expected in (
                ("variance", slopes.var(1, correction=0)),
                ("exponent", inside.exponent),
                ("turning", inside.rates.numbers()["variance"].sqrt()),
            ):
                told = curve(path, of, f"neurons_{name}")[k]
                assert told == pytest.approx(expected.tolist(), rel=1e-3)


# -- shrinking -------------------------------------------------------------------------------------


def test_perturbations_go_down_until_too_little_is_left() -> None:
    """Of the first the square of the share is left, of the second nothing, of the third all."""
    shares, asked = [0.25, 0.65, 0.9, 1.0], []

    def measure(items: list[int], k: int) -> list[float]:
        asked.append((items.copy(), k))
        return [(2 * shares[k] ** 2, 0.0, 3.0)[i] for i in items]

    first, nothing, all_of = walk(shares, 3, measure, 0.8)
    assert first == Shrunk(
        ((1.0, 2.0), (0.9, pytest.approx(1.62)), (0.65, pytest.approx(0.845))), 0.9
    )
    assert nothing == Shrunk(((1.0, 0.0),), None)
    assert all_of == Shrunk(tuple((share, 3.0) for share in reversed(shares)), 0.25)
    assert asked == [([0, 1, 2], 3), ([0, 2], 2), ([0, 2], 1), ([2], 0)]


@pytest.mark.parametrize("improved", [False, True])
def test_shrinking_a_set_keeps_the_share_of_what_is_measured(run: Path, improved: bool) -> None:
    with Run.open(run) as kept, deriving(kept) as work:
        part, found = work.part, taken(kept, [2, 5])

    def effect(some: PerturbationSet) -> list[float]:
        return part.effect(some.theta).norm(dim=1).tolist()

    small = shrunk(found, effect, keep=0.6, low=0.2, part=part if improved else None)
    assert small.scores["parent"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(small.radius, small.scores["share"] * found.radius)
    for now, before in zip(effect(small), effect(found), strict=True):
        assert now >= 0.6 * before
    if improved:  # what is improved on the way keeps as much at a radius that is no larger
        still = shrunk(found, effect, keep=0.6, low=0.2)
        assert (small.radius <= still.radius).all()
        assert (small.directions != found.directions).any()
    else:  # one step further too little is left
        assert (small.directions == found.directions).all()
        step = PathConfig(low=0.2, high=1.0, steps=4).shares
        for now, before in zip(
            effect(scaled(small, [step[0] / step[1]])), effect(found), strict=True
        ):
            assert now < 0.6 * before
    assert not len(shrunk(found, lambda some: [0.0] * len(some)))


def test_shrinking_by_the_exponent_stops_where_it_has_fallen(run: Path) -> None:
    ended = educe("derive", "shrink", run, 2, 5, "--by", "exponent", "--keep", 0.99, "--json")
    assert ended.status == 0, ended.err
    told = ended.data
    for number, curve in told["curves"].items():
        start, kept = curve[0][1], told["kept"][number]
        assert all(value >= 0.99 * start for _, value in curve[:-1])
        assert [share for share, value in curve if value >= 0.99 * start][-1] == kept
        assert curve[-1][1] < 0.99 * start or curve[-1][0] == pytest.approx(0.1)
    made = PerturbationSet.load(run / told["file"])
    radii = [3.0 * told["kept"]["2"], 4.0 * told["kept"]["5"]]
    assert made.radius.tolist() == pytest.approx(radii)
    with Run.open(run) as opened:
        rows = [p for p in opened.perturbation_rows(derived=True) if p.how == SHRUNK]
    assert [(p.parent, p.radius) for p in rows[-2:]] == [
        (2, pytest.approx(radii[0])),
        (5, pytest.approx(radii[1])),
    ]


def test_what_was_derived_can_be_derived_from(run: Path, data: dict) -> None:
    """Of a vector on a path, listed as derived, as of one that was found."""
    with Run.open(run) as kept:
        rows = kept.perturbation_rows(derived=True)
    last = next(p for p in reversed(rows) if f"tensors/{p.file}" == data["file"])
    short = ["--by", "exponent", "--low", 0.9, "--steps", 1, "--json"]
    ended = educe("derive", "shrink", run, last.id, *short)
    assert ended.status == 0, ended.err
    assert ended.data["curves"][str(last.id)][0][0] == 1.0


class Counting:
    """A judge of how often it was asked so far, so that the outcome is known."""

    cost = "nothing"
    higher_is = "earlier"

    def __init__(self, name: str) -> None:
        self.name = self.identity = name
        self.seen: list[list[str]] = []

    def score(self, answers: list[Answer]) -> list[Score]:
        self.seen.append([answer.text for answer in answers])
        value = 1.0 - 0.06 * len(self.seen)
        return [Score(self.name, value, self.higher_is, "") for _ in answers]


@pytest.mark.parametrize("optimise", [False, True])
def test_shrinking_by_what_is_written_stops_at_the_share(run: Path, optimise: bool) -> None:
    judge = Counting(f"counting {optimise}")
    with Run.open(run) as kept, deriving(kept, [2]) as work:
        (told,), file = shrink_run(work, [2], judge, steps=2, optimise=optimise)
        assert len(judge.seen) == 5
        assert shrink_run(work, [2], judge, steps=2, optimise=optimise) == ([told], file)
        assert len(judge.seen) == 5
        rows = kept.perturbation_rows(derived=True)
    values = [value for _, value in told.curve]
    assert values == pytest.approx([0.94, 0.88, 0.82, 0.76, 0.70])
    assert told.kept == told.curve[3][0]  # 0.76 is above 0.8 of 0.94, 0.70 is not
    assert told.curve[2][0] == pytest.approx(10 ** (-2 / 7))
    assert all(len(texts) == 1 for texts in judge.seen)
    (small,) = [p for p in rows if p.file == file]
    assert (small.parent, small.radius) == (2, pytest.approx(3.0 * told.kept))
    looked_at = [p for p in rows if p.parent == 2 and p.radius == pytest.approx(small.radius)]
    assert {p.how for p in looked_at} >= {FOLLOWED if optimise else SCALED, SHRUNK}


def test_shrinking_by_a_judge_asks_the_model_that_is_named_and_pays_once(run: Path) -> None:
    """By a server that says yes with the same share, whatever the audited model would say."""

    def share(body: dict[str, Any]) -> Reply:
        return completion("Yes", logprobs=likely({"Yes": 0.6, "No": 0.2}))

    with serving(share) as loopback:
        command = ["derive", "shrink", run, 2, "--by", "yes:Is it odd?", "--steps", 1, "--json"]
        command += ["--judge-model", loopback.url, "--judge-name", "m"]
        told = educe(*command).data
        assert all(value == pytest.approx(0.75) for _, value in told["curves"]["2"])
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
    class Never(Counting):
        def score(self, answers: list[Answer]) -> list[Score]:
            return [Score(self.name, 0.0, self.higher_is, "") for _ in answers]

    with Run.open(run) as kept, deriving(kept, [2]) as work:
        (told,), file = shrink_run(work, [2], Never("never"))
    assert told.kept is None
    assert len(told.curve) == 1
    assert not (run / "tensors" / file).exists()


def test_what_is_wrong_is_one_line(run: Path) -> None:
    assert "no perturbation 9999" in refused("derive", "path", run, 9999)
    assert "--low" in refused("derive", "path", run, 1, "--low", 2)
    assert "name at least one" in refused("derive", "shrink", run)
    assert "no judge" in refused("derive", "shrink", run, 1, "--by", "vibes")
