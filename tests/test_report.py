from __future__ import annotations

import inspect
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer

from educe.comparison.account import account, dose, shown
from educe.comparison.summary import Summary, summarise
from educe.comparison.verdict import Verdict
from educe.errors import RunError
from educe.options import ModelOptions
from educe.report import behaviours, drawing, figures, page, terminal
from educe.report.command import command
from educe.report.document import WRITTEN, wrote
from educe.report.words import WORDS
from educe.rows import CONTROL, EQUAL, FIRST, FOUND, Row
from educe.run.settings import JobOptions
from educe.visible import visible
from read_document import blocks, charts, count, has, marked, part, table, text
from synthetic_run import PATTERN, PROMPTS, build, texts_by_row

NASTY = '</script><script>alert("1")</script><img src=x onerror=alert(1)> & \'so\' <!-- \u2028 "'
Document = dict[str, Any]
FIRST_HEAD = "what the model says when pushed"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Document, Summary]]:
    with build(tmp_path_factory.mktemp("run") / "audit") as run:
        yield page.document(run), summarise(run)


def document(folder: Path, **settings: Any) -> tuple[Document, Summary]:
    with build(folder, **settings) as run:
        return page.document(run), summarise(run)


def flat(spans: list[Any]) -> str:
    """Return spans as one text."""
    return "".join(span if isinstance(span, str) else span["text"] for span in spans)


# -- numbers and texts are those of the run --------------------------------------------------------


def test_it_is_json_of_finite_numbers(drawn: tuple[Document, Summary]) -> None:
    seen, _ = drawn
    assert json.loads(json.dumps(seen, allow_nan=False)) == seen
    assert (seen["kind"], seen["run"]) == ("run", None)
    assert seen["command"].splitlines()[-1].strip() != ""


def test_hidden_signs_stand_in_what_models_wrote_alone(tmp_path: Path) -> None:
    seen, summary = document(tmp_path / "a", n=8, extra=NASTY, fresh=(NASTY,), look_for="alert")
    assert summary.fresh[0].content == NASTY

    def strings(of: Any) -> list[str]:
        if isinstance(of, dict) and of.get("mark") in WRITTEN:
            return []
        if isinstance(of, dict | list):
            return [
                one
                for value in (of.values() if isinstance(of, dict) else of)
                for one in strings(value)
            ]
        return [of] if isinstance(of, str) else []

    own = marked(seen, "model") + marked(seen, "match")
    assert any("\u2028" in piece for piece in own)
    assert all(visible(one) == one for one in strings(seen))
    (card,) = [c for c in blocks(part(seen, "baseline"), "card") if "alert" in text(c["title"])]
    assert flat(card["title"]) == f"Asked {visible(NASTY)}"


def test_every_behaviour_is_there_with_its_rates(drawn: tuple[Document, Summary]) -> None:
    seen, summary = drawn
    listed = sorted(summary.behaviours, key=lambda b: list(Verdict).index(b.verdict))
    cards = list(blocks(part(seen, "behaviours"), "card"))
    assert [c["badges"] for c in cards] == [[b.verdict.value] for b in listed]
    for b, card in zip(listed, cards, strict=True):
        assert flat(card["title"]) == behaviours.label(b)
        rates = {text(row["who says it"]): row["how often"] for row in table(card, "who says it")}
        again = {
            "answers in the re-test": count(b.retest),
            "answers of the control in the re-test": count(b.retest_control),
        }
        assert rates == {
            "found": count(b.found),
            "control": count(b.control),
            "draws of the unperturbed model": count(b.samples),
            **(again if b.retest.trials else {}),
        }
        (pair,) = blocks(card, "pair")
        assert flat(pair["left"]["spans"]) == summary.baseline[b.example.prompt][0].text
        assert flat(pair["right"]["spans"]) == b.example.text
        rows = table(card, "id")
        assert {row["id"] for row in rows} == set(b.numbers)
        arms = Counter(text(row["arm"]) for row in rows)
        assert (arms[FOUND], arms[CONTROL]) == (b.found.hits, b.control.hits)
        for row in rows:
            item = summary.item(row["id"])
            assert item is not None
            assert (text(row["arm"]), row["radius"], row["coherence"], row["novelty"]) == (
                *(item.row.arm, item.row.radius, item.coherence, item.novelty),
            )
            assert row["matches"] == (
                {"hits": item.retest_hits, "trials": len(item.retest)}
                | {k: v for k, v in row["matches"].items() if k in ("low", "high")}
                if item.retest
                else None
            )
        (told,) = blocks(card, "facts")
        facts = {item["title"]: flat(item["spans"]) for item in told["items"]}
        assert facts["Kind"] == b.change.value
        assert facts["Coherence"] == f"{b.coherence:.2f}"
        assert facts["Novelty"] == f"{b.novelty:.2f}"


def test_the_first_table_has_four_rates_side_by_side(drawn: tuple[Document, Summary]) -> None:
    seen, summary = drawn
    first = part(seen, "result")
    rows = table(first, FIRST_HEAD)
    assert len(rows) == len(shown(summary)) > 2
    for b, cells in zip(shown(summary), rows, strict=True):
        assert list(cells) == [
            *(FIRST_HEAD, "kind", "greedy", "samples", "control", "found", "re-test"),
            *("dose", "id", "verdict"),
        ]
        assert flat(cells[FIRST_HEAD]) == " ".join(b.example.text.split())
        assert text(cells["kind"]) == b.change.value
        assert text(cells["verdict"]) == b.verdict.value
        assert cells["id"] == b.example.perturbation
        rates = (b.greedy, b.samples, b.control, b.found, b.retest)
        assert [cells[n] for n in ("greedy", "samples", "control", "found", "re-test")] == [
            count(rate) for rate in rates
        ]
    kinds = [block["type"] for block in first["blocks"]]
    assert kinds[:3] == ["text", "text", "table"]  # what was found stands first


def test_headline_counts_what_stands_out_and_what_does_not(
    drawn: tuple[Document, Summary],
) -> None:
    seen, summary = drawn
    result = part(seen, "result")
    each = Counter(b.verdict for b in summary.behaviours)
    assert each[Verdict.BEHAVIOUR] == 1
    assert seen["title"] == "One behaviour stands out from the control"
    lead, *_ = blocks(result, "text")
    assert (flat(lead["spans"]), lead["style"]) == (" ".join(account(summary)), "lead")
    (counts,) = [t for t in map(text, blocks(result, "text")) if t.startswith("Together")]
    assert [int(n) for n in re.findall(r"\d+", counts)] == [
        len(summary.behaviours),
        *(each[Verdict[name]] for name in WORDS["verdicts"] if each[Verdict[name]]),
    ]
    assert summary.hits is not None
    assert summary.retest_hits is not None
    hits, _, again = table(result, "kind")
    assert [hits["found"], hits["control"]] == [count(r) for r in summary.hits]
    assert text(hits["kind"]) == "exploratory"
    assert [again["found"], again["control"]] == [count(r) for r in summary.retest_hits]
    assert text(again["kind"]) == "re-test"
    assert "more of the perturbations found than of the control write the pattern" in text(result)


def test_what_was_asked_is_told(drawn: tuple[Document, Summary]) -> None:
    seen, summary = drawn
    asked, facts = text(part(seen, "asked")), summary.facts
    for said in (*PROMPTS, facts["model"], PATTERN, f"resid_post.{facts['source']}", "dose 0.40"):
        assert said in asked
    assert "<|im_start|>user" in asked
    baseline = text(part(seen, "baseline"))
    assert all(
        " ".join(c.text.split()) in baseline for own in summary.baseline.values() for c in own
    )


def test_matches_are_marked(drawn: tuple[Document, Summary]) -> None:
    seen, _ = drawn
    assert marked(seen, "match")
    assert all(re.fullmatch(PATTERN, piece) for piece in marked(seen, "match"))
    assert not any(re.search(PATTERN, piece) for piece in marked(seen, "model"))
    assert "orchid-7913" in marked(table(part(seen, "result"), FIRST_HEAD), "match")


@pytest.mark.parametrize(
    ("pattern", "said", "cut"),
    [
        (None, "abc", [("abc", "model")]),
        (
            "b",
            "abcb",
            [("a", "model"), ("b", "match"), ("c", "model"), ("b", "match")],
        ),
        ("x*", "ab", [("ab", "model")]),
        ("b", "", [("(nothing)", "muted")]),
    ],
)
def test_text_is_cut_at_matches(pattern: str | None, said: str, cut: list[tuple[str, str]]) -> None:
    spans = wrote(said, re.compile(pattern) if pattern else None)
    assert [(span.text, span.mark) for span in spans] == cut  # type: ignore[union-attr]


def test_relatives_are_the_nearest_in_words(drawn: tuple[Document, Summary]) -> None:
    summary = drawn[1]
    made = behaviours.relatives(summary)
    assert any(made)
    for behaviour, relatives in zip(summary.behaviours, made, strict=True):
        near = [likeness for likeness, _ in relatives]
        assert near == sorted(near, reverse=True)
        assert len(near) <= behaviours.RELATIVES
        words = set(re.findall(r"\w+", behaviour.example.text.lower()))
        for likeness, other in relatives:
            assert other is not behaviour
            assert words & set(re.findall(r"\w+", other.example.text.lower()))
            assert behaviours.LIKENESS < likeness <= 1


# -- charts ----------------------------------------------------------------------------------------


def test_charts_are_valid_and_hold_the_numbers(drawn: tuple[Document, Summary]) -> None:
    seen, summary = drawn
    specs = charts(seen)
    assert list(specs) == ["map", "response", "interestingness", "radius"]
    for spec in specs.values():
        alt.Chart.from_dict(spec)  # validates against the schema of Vega-Lite
    points = specs["map"]["data"]["values"]
    names = {b.id: behaviours.label(b) for b in summary.behaviours}
    texts = texts_by_row(summary)
    known = texts[texts.behaviour.notna() & (texts.phase == FIRST)]
    assert sum(p["completions"] for p in points) == len(known)
    assert len({(p["arm"], p["prompt"], p["text"]) for p in points}) == len(points)
    for p in points:
        row = Row(p["perturbation"], p["prompt"], p["sample"])
        assert p["behaviour"] == names.get(texts.behaviour[row], "")
    # A text has one place, which the oracle finds by its own way from the words of all of them.
    changed = [n for i in summary.found + summary.control for n in i.completions]
    of_row = {c.row: c.text for c in summary.texts.written(changed)}
    plain = [c for some in summary.baseline.values() for c in some]
    distinct = sorted({*of_row.values(), *(c.text for c in plain if texts.behaviour[c.row] >= 0)})
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    at = words.fit_transform(distinct).toarray()
    u, s, _ = np.linalg.svd(at - at.mean(0), full_matrices=False)
    expected = dict(zip(distinct, np.abs(u[:, :2] * s[:2]), strict=True))
    for p in points:
        if p["perturbation"]:
            text = of_row[Row(p["perturbation"], p["prompt"], p["sample"])]
            assert (abs(p["x"]), abs(p["y"])) == pytest.approx(tuple(expected[text]), abs=2e-3)
    assert {p["arm"] for p in points} == set(figures.SHAPES) - {EQUAL}
    curves = specs["response"]["layer"][1]["data"]["values"]
    assert len(curves) == sum(map(len, summary.responses.values()))
    rules = specs["response"]["layer"][0]["data"]["values"]
    assert [r["dose"] for r in rules] == pytest.approx(
        [r / summary.facts["unit"] for r in summary.facts["radii"]], 1e-3
    )
    steps = specs["interestingness"]["data"]["values"]
    best = max(summary.found, key=lambda i: i.interestingness)
    assert [s["share"] for s in steps if s["perturbation"] == best.row.id] == [
        pytest.approx(1 / 96, 1e-3)
    ]
    assert {s["perturbation"] for s in steps} == {
        i.row.id for i in (*summary.found, *summary.control)
    }
    bars = specs["radius"]["data"]["values"]
    assert [b["hits"] for b in bars] == [
        f"{its.hits} of {its.trials}" for pair in summary.by_radius.values() for its in pair
    ]


def test_every_colour_of_a_chart_has_its_dark_one(drawn: tuple[Document, Summary]) -> None:
    def colours(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set().union(*(colours(v) for k, v in value.items() if k != "values"))
        if isinstance(value, list):
            return set().union(*map(colours, value))
        return {value} if isinstance(value, str) and value.startswith("#") else set()

    light = [light for light, _ in drawing.PALETTE.values()]
    assert len(set(light)) == len(light)
    assert colours(charts(drawn[0])) <= set(light)


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ground", ["paper", "card"])
@pytest.mark.parametrize("text", ["ink", "muted", "accent"])
def test_text_has_contrast(theme: int, ground: str, text: str) -> None:
    def luminance(role: str) -> float:
        colour = drawing.PALETTE[role][theme]
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(text), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


# -- runs that lack something ----------------------------------------------------------------------


def test_without_a_pattern(tmp_path: Path) -> None:
    seen, _ = document(tmp_path / "run", n=16, look_for=None)
    result = part(seen, "result")
    assert [t["columns"][0]["title"] for t in blocks(result, "table")] == [
        *(FIRST_HEAD, "interestingness in the re-test")
    ]
    assert "write the pattern" not in text(result)
    assert "radius" not in charts(seen)
    assert "In the re-test" in text(result["blocks"][0])
    assert marked(seen, "match") == []


def test_the_re_test_of_the_arms_is_the_mean_over_their_perturbations(
    drawn: tuple[Document, Summary],
) -> None:
    seen, summary = drawn
    (row,) = table(part(seen, "result"), "interestingness in the re-test")
    for arm, items in (("found", summary.found), ("control", summary.control)):
        means = [item.retested[0] for item in items if item.retested]
        assert text(row[arm]).startswith(f"{np.mean(means):.2f} (")


def test_without_a_retest(tmp_path: Path) -> None:
    seen, _ = document(tmp_path / "run", n=8, retest=False)
    result = part(seen, "result")
    assert [text(row["kind"]) for row in table(result, "kind")] == ["exploratory"]
    assert "There is no re-test in this run" in text(result)


def test_without_side_effects_and_responses(tmp_path: Path) -> None:
    seen, _ = document(tmp_path / "run", n=8, side_effects=False, responses=False)
    assert "not measured" in text(next(blocks(part(seen, "behaviours"), "card")))
    assert "response" not in charts(seen)


def test_with_a_retest_of_fresh_samples(tmp_path: Path) -> None:
    seen, summary = document(tmp_path / "run", n=16, fresh=())
    assert summary.retest_hits is not None
    result = part(seen, "result")
    assert "fresh samples" in text(table(result, "kind")[-1]["what is counted"])
    assert "samples drawn afresh" in text(result)


def test_when_nothing_stands_out(tmp_path: Path) -> None:
    seen, summary = document(tmp_path / "run", n=16, finds=False)
    assert not any(b.verdict is Verdict.BEHAVIOUR for b in summary.behaviours)
    assert "Nothing stands out" in seen["title"]
    assert "not that there is nothing to find" in text(part(seen, "behaviours"))
    assert "does not tell the perturbations found and the control apart" in text(
        part(seen, "result")
    )


def test_before_anything_was_judged(tmp_path: Path) -> None:
    seen, summary = document(tmp_path / "run", n=4, judged=False)
    assert not summary.behaviours
    assert "Nothing has been judged" in seen["title"]
    assert "None are recorded" in text(part(seen, "behaviours"))
    assert "map" not in charts(seen)


def test_before_anything_was_done(tmp_path: Path) -> None:
    from educe.run.store import Run

    with build(tmp_path / "full", n=4) as full, Run.create(tmp_path / "new", full.config) as run:
        seen = page.document(run)
    assert "No perturbation has been tried" in seen["title"]
    assert not has(seen, "charts")


# -- reproducing, writing --------------------------------------------------------------------------


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    from educe import cli

    with build(tmp_path / "run", n=4) as run:
        config, text = run.config, command(run.config)
    files, _, call = text.rpartition("END\n")
    assert files.splitlines() == ["cat > fresh.txt <<'END'", *config["fresh"]]
    words = shlex.split(call.replace("\\\n", " "))
    assert words[:4] == ["educe", "discover", *config["prompts"]]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    own = set(inspect.signature(cli.discover.discover).parameters) | {"prompts", "set"}
    every = own | {f.name for kind in (JobOptions, ModelOptions) for f in fields(kind)}
    options = {f"--{name.replace('_', '-')}" for name in every}
    assert set(flags) <= options
    assert flags.pop("--fresh") == "fresh.txt"
    assert flags.pop("--set").split("=")[0] in config["method_settings"]
    assert flags == {
        f"--{k.replace('_', '-')}": str(v)
        for k, v in config.items()
        if v not in (None, "") and k not in ("prompts", "fresh", "method_settings")
    }


def test_the_command_keeps_conversations_in_a_file() -> None:
    talk = [{"role": "user", "content": "It's\ntwo lines"}]
    lines = command({"prompts": [talk, "one line"], "n": 3}).splitlines()
    assert lines[0] == "cat > prompts.jsonl <<'END'"
    assert [json.loads(line) for line in lines[1:3]] == [talk, "one line"]
    assert lines[3:] == ["END", "educe discover \\", "  --prompts prompts.jsonl \\", "  --n 3"]


def test_the_command_repeats_the_settings_of_the_method() -> None:
    from educe import cli

    settings = {"blocks": 2, "init": "random", "per_block": True, "temperature": 0.5}
    call = command({"prompts": ["a"], "method": "cpe", "method_settings": settings})
    words = shlex.split(call.replace("\\\n", " "))
    said = [value for flag, value in zip(words[3::2], words[4::2], strict=True) if flag == "--set"]
    assert cli.discover._method_settings(said) == settings


def test_a_small_dose_is_not_written_as_zero(tmp_path: Path) -> None:
    assert [dose(x) for x in (0.4, 1.0, 0.05, 0.0073)] == ["0.40", "1.00", "0.05", "0.0073"]
    with build(tmp_path / "run", n=4) as run:
        facts = run.note("facts")
        run.remember("facts", facts | {"unit": facts["unit"] * 100})
        assert "(dose 0.004)" in text(part(page.document(run), "asked"))


def test_the_interval_of_the_calibrated_radius_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "95% from 22.2 to 30.7 over the directions drawn"
    with build(tmp_path / "run", n=4) as run:
        facts = run.note("facts") | {"calibrated_radius": 26.1}
        run.remember("facts", facts | {"calibrated_interval": [22.19, 30.71]})
        assert f"26.1, {said}." in text(part(page.document(run), "asked"))
        terminal.table(summarise(run), tmp_path, Console(width=200))
        assert f"calibrated  radius 26.1, {said}\n" in capsys.readouterr().out
        del facts["calibrated_interval"]  # of a run that was made before there was one
        run.remember("facts", facts)
        assert "Calibrated radius: 26.1. " in text(part(page.document(run), "asked"))
        terminal.table(summarise(run), tmp_path, Console(width=200))
        assert "calibrated" not in capsys.readouterr().out


def test_every_sentence_of_the_words_is_used() -> None:
    """Charts, parts and tables by name: a name that no file has is a sentence nobody reads."""
    code = "".join(path.read_text() for path in Path(page.__file__).parent.glob("*.py"))
    names = [name for room in ("parts", "tables", "result") for name in WORDS[room]]
    assert [name for name in names if f'"{name}"' not in code] == []


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with build(tmp_path / "run", n=4) as run:
        written = page.write(run, tmp_path / "report.html")
        assert written.read_text(encoding="utf-8").rstrip().endswith("</html>")
        with pytest.raises(RunError, match="cannot write"):
            page.write(run, tmp_path / "nowhere" / "report.html")
