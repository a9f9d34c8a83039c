"""The page and tables of what perturbations cost, from commands run to the end on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from educe.cli import main
from educe.comparison.stats import Estimate, pareto, rate
from educe.forward.benign import Ordinary, ordinary_prompts
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Adapters
from educe.perturbation.set import PerturbationSet
from educe.plain import as_data
from educe.report import derived, fronts, page
from educe.rows import ScoreRow
from educe.run.store import Run
from read_document import charts, has, part, table, text
from small_run import small_run


@pytest.fixture(scope="module")
def vectors(tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(
        tmp_path_factory.mktemp("v") / "run", tiny_lm, "dct", radius="1,3", iterations=2
    )


@pytest.fixture
def here(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("educe.run.work.loaded", lambda run, settings, say, lm: tiny_lm)


def command(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    assert left.value.code == 0, printed.err
    return printed.out


def test_a_front_is_measured_once_and_drawn(
    vectors: Path, tiny_lm: LanguageModel, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = json.loads(command(capsys, "derive", "front", vectors, "--json"))
    assert out["score"] == "kl_p95"
    with Run.open(vectors) as run:
        rows = [row for row in run.perturbation_rows() if row.arm in ("found", "control")]
        assert [p["perturbation"] for p in out["front"]] == [row.id for row in rows]
        for arm in ("found", "control"):
            own = [p for p in out["front"] if p["arm"] == arm]
            best = pareto([p["effect"] for p in own], [p["kl"] for p in own]).tolist()
            assert [p["front"] for p in own] == best
        texts = {c.perturbation: c.text for c in run.completion_rows("first") if not c.sample}
        for p in out["front"]:
            assert p["hit"] == bool(re.search("[a-m]", texts[p["perturbation"]]))
        first = PerturbationSet.load(run.tensors / rows[0].file)
        ordinary = Ordinary(tiny_lm, tiny_lm.encode(ordinary_prompts()), before=first.kind.before)
        expected = ordinary.damage(first.theta, first.kind).high.tolist()
        assert [p["kl"] for p in out["front"][:3]] == pytest.approx(expected, rel=1e-4)
        assert {s.unit for s in run.score_rows("kl_p95")} == {"nats a token"}
        # Measured again, nothing is: what is kept is what is told, whatever it says.
        run.add_scores([ScoreRow(1, "kl_p95", float("inf"), "nats", "")])
    again = command(capsys, "derive", "front", vectors)
    assert "on the front" in again
    with Run.open(vectors) as run:
        (points,) = derived.fronts(run).values()
        assert 1 not in {p.perturbation for p in points}
        shown = part(page.document(run), "fronts")
    assert list(charts(shown)) == ["front-0"]
    best = [p for p in points if p.front and p.arm == "found"]
    told = {
        r["on the front"]: (r["side effect"], r["effect"]) for r in table(shown, "on the front")
    }
    assert told == {p.perturbation: (p.kl, p.effect) for p in best}


def test_other_ordinary_prompts_are_another_score(
    tiny_lm: LanguageModel, tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_run(tmp_path / "run", tiny_lm, "random")
    (tmp_path / "two.txt").write_text("Hi.\nSo?\n")
    command(capsys, "derive", "front", folder)
    command(capsys, "derive", "front", folder, "--ordinary", tmp_path / "two.txt")
    with Run.open(folder) as run:
        told = derived.fronts(run)
        shown = page.document(run)
    assert [name.split(" of ")[0] for name in told] == ["kl_p95"] * 2
    assert len(set(told)) == 2
    first, second = ([p.kl for p in points] for points in told.values())
    assert len(first) == len(second) == 6
    assert first != second
    assert {"front-0", "front-1"} <= set(charts(shown))


def test_budgets_count_what_is_within_them() -> None:
    made = [
        derived.Point(i, arm, 1.0, effect, kl, hit)
        for i, (arm, kl, effect, hit) in enumerate(
            (
                ("found", 0.05, 1.0, False),
                ("found", 0.2, 3.0, True),
                ("found", 5.0, 9.0, True),
                ("control", 0.9, 2.0, False),
            )
        )
    ]
    rows = dict(derived.within(made))
    assert rows[0.1]["found"] == derived.Reached(1, 1.0, rate(0, 1))
    assert rows[0.3]["found"].effect == 3.0
    assert rows[0.3]["found"].hits == rate(1, 2)
    assert rows[0.3]["control"] == derived.Reached(0, None, None)
    assert rows[1.0]["control"].n == 1


def test_sparse_vectors_are_told_and_drawn(
    vectors: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = command(capsys, "derive", "sparse", vectors, 1, 2, "--basis", "random", "--keep", 0.6)
    assert "Sparse in random  groups of 32 that keep 60% of the effect" in out
    with Run.open(vectors) as run:
        (trial,) = derived.sparse(run)
        shown = part(page.document(run), "fronts")
    assert [vector.number for vector in trial.vectors] == [1, 2]
    for vector, row in zip(trial.vectors, table(shown, "id"), strict=True):
        for name in ("whole", *derived.ORDERS):
            again, cell = vector.again[name], row[name if name == "whole" else f"{name} 2"]
            assert (cell["hits"], cell["trials"]) == (again.hits, again.trials)
            assert name in ("largest", "random") or f" {again.hits}/{again.trials} " in out
        assert [row[order] for order in derived.ORDERS] == list(vector.needed.values())
    assert "sparse-0" in charts(shown)
    assert "Sparse in random" in text(shown)


def test_a_scan_is_told_and_drawn(
    tiny_lm: LanguageModel, tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_run(tmp_path / "run", tiny_lm, "cpe", radius="1,3", iterations=2, blocks=2)
    out = json.loads(command(capsys, "derive", "ungate", folder, 1, "--json"))
    told = command(capsys, "derive", "ungate", folder, 1)
    assert "gated" in told
    with Run.open(folder) as run:
        assert isinstance(PerturbationSet.load(run.tensors / "found-0.safetensors").kind, Adapters)
        (scan,) = derived.scans(run)
        assert {arm: as_data(cell) for arm, cell in scan.best.items()} == out["best"]
        for cell in scan.best.values():
            assert f"{cell.share:+g}" in told
        assert "ungated-0" in charts(page.document(run))


def test_the_band_of_a_scan_holds_eight_tenths_of_the_random_ones() -> None:
    """Of three values, quantiles lie between the middle one and the others, by two tenths."""
    effects = {1: ("found", 90.0), 7: ("control", 10.0), 8: ("control", 40.0), 9: ("control", 20.0)}
    score = Estimate(0.0, 0.0, 0.0, 1, None)
    cells = [
        derived.Cell(
            number, arm, sign * size, effect * size * (1 if sign > 0 else 2), score, None, ""
        )
        for number, (arm, effect) in effects.items()
        for sign in (1, -1)
        for size in (0.5, 1.0)
    ]
    drawn = fronts.signs(derived.Scan("", "", [], cells)).to_dict()
    shaded, *lines = drawn["layer"]
    assert shaded["mark"]["type"] == "area"
    band = {row["constant"]: (row["low"], row["high"]) for row in shaded["data"]["values"]}
    assert band == {
        constant: pytest.approx((12 * factor, 36 * factor))
        for constant, factor in ((0.5, 0.5), (1.0, 1.0), (-0.5, 1.0), (-1.0, 2.0))
    }
    assert shaded["encoding"]["detail"] == {"field": "side", "type": "nominal"}
    assert all(layer["encoding"]["detail"][1]["field"] == "side" for layer in lines)


def test_a_run_without_any_has_no_such_part(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with Run.open(small_run(tmp_path / "run", tiny_lm, "random", radius="1,3")) as run:
        assert [derived.fronts(run), derived.sparse(run), derived.scans(run)] == [{}, [], []]
        assert not has(page.document(run), "fronts")


def test_unknown_numbers_are_errors(
    vectors: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (((), "no perturbation: name"), ((9999,), "has no perturbation 9999")):
        with pytest.raises(SystemExit) as left:
            main(["derive", "sparse", str(vectors), *map(str, words)])
        assert left.value.code == 2
        assert told in capsys.readouterr().err
