from __future__ import annotations

import base64
import hashlib
import html
import inspect
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer

from educe.comparison.account import account, dose, shown
from educe.comparison.stats import Rate
from educe.comparison.summary import Summary, summarise
from educe.comparison.verdict import Verdict
from educe.errors import RunError
from educe.options import ModelOptions
from educe.report import figures, markup, page, terminal
from educe.rows import CONTROL, EQUAL, FIRST, FOUND, Row
from educe.run.settings import JobOptions
from educe.visible import visible
from synthetic_run import PATTERN, PROMPTS, build

NASTY = '</script><script>alert("1")</script><img src=x onerror=alert(1)> & \'so\' <!-- \u2028 "'
VOID = {"meta", "link", "img", "input", "br", "hr", "line", "circle"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and text by test id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.style = ""
        self.feed(text)
        assert not self.open, "elements are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, attrs, parts = self.open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"
        text = "".join(parts)
        if tag == "script":
            self.scripts.append((attrs, text))
            return
        if tag == "style":
            self.style += text
            return
        if name := attrs.get("data-testid"):
            self.texts.setdefault(name, []).append(" ".join(text.split()))
        if self.open:
            self.open[-1][2].append(text)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1][2].append(data)

    def island(self, name: str) -> Any:
        return next(json.loads(text) for attrs, text in self.scripts if attrs.get("id") == name)

    def rows(self, name: str) -> list[list[str]]:
        """Return the cells of a table by its test id; the first row has the heads."""
        table = re.search(rf'<table data-testid="{name}">(.*?)</table>', self.source, re.DOTALL)
        assert table
        return [
            [
                " ".join(html.unescape(re.sub(r"<[^>]*>", "", cell)).split())
                for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
            ]
            for row in re.findall(r"<tr.*?>(.*?)</tr>", table[1], re.DOTALL)
        ]

    def with_attribute(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Summary]:
    with build(tmp_path_factory.mktemp("run") / "audit") as run:
        return Page(page.render(run)), summarise(run)


def render(folder: Path, **settings: Any) -> tuple[Page, Summary]:
    with build(folder, **settings) as run:
        return Page(page.render(run)), summarise(run)


def flat(parts: list[list[str]]) -> str:
    """Return a text that is cut at its matches and hidden signs, as it is shown."""
    return "".join(run for piece in parts for run in piece)


def told(rate: Rate) -> str:
    share = f"{rate.share:.0%} ({rate.low:.0%} to {rate.high:.0%})"
    return f"{rate.hits} of {rate.trials} {share}"


# -- a page that stands alone ----------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(drawn: tuple[Page, Summary]) -> None:
    seen, _ = drawn
    loading = {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "source",
        "base",
        "form",
    }
    assert not loading & {tag for tag, _ in seen.elements}
    for name in ("src", "srcset", "data", "action", "poster", "background", "xlink:href", "style"):
        assert seen.with_attribute(name) == []
    assert all(href.startswith("#") for href in seen.with_attribute("href"))
    assert not re.search(r"url\(|@import|https?:", seen.style)


def test_the_policy_allows_only_the_scripts_that_are_there(drawn: tuple[Page, Summary]) -> None:
    seen, _ = drawn
    (policy,) = [
        a["content"] or "" for t, a in seen.elements if "Content-Security-Policy" in a.values()
    ]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    script = next(part for part in policy.split("; ") if part.startswith("script-src"))
    code = [text for attrs, text in seen.scripts if attrs.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() for c in code]
    assert script == "script-src " + " ".join(f"'sha256-{d}'" for d in digests)


def test_links_lead_somewhere(drawn: tuple[Page, Summary]) -> None:
    seen, _ = drawn
    names = seen.with_attribute("id")
    assert max(Counter(names).values()) == 1
    assert {href[1:] for href in seen.with_attribute("href")} <= set(names)


def test_what_models_wrote_is_never_markup(tmp_path: Path) -> None:
    seen, summary = render(
        tmp_path / "a", n=8, extra=NASTY, fresh=(NASTY,), look_for="alert|script"
    )
    plain, _ = render(tmp_path / "b", n=8, fresh=("No harm.",), look_for="alert|script")
    assert len(seen.scripts) == len(plain.scripts) == 5
    assert {tag for tag, _ in seen.elements} <= {tag for tag, _ in plain.elements} | {"mark"}
    assert not [name for _, attrs in seen.elements for name in attrs if name.startswith("on")]
    written = seen.island("data")
    assert {flat(c[-1]) for c in written["items"]["3"][0]} == {visible(NASTY)}
    assert summary.fresh[0].content == NASTY
    assert written["prompts"][str(summary.fresh[0].id)] == visible(NASTY)
    assert any(NASTY.split()[0] in text for text in seen.texts["baseline"])


# -- numbers and texts are those of the run --------------------------------------------------------


def test_every_behaviour_is_there_with_its_rates(drawn: tuple[Page, Summary]) -> None:
    seen, summary = drawn
    listed = sorted(summary.behaviours, key=lambda b: list(Verdict).index(b.verdict))
    cards = [a for _, a in seen.elements if a.get("data-testid") == "behaviour"]
    assert [(c["data-behaviour"], c["data-verdict"]) for c in cards] == [
        (str(b.id), b.verdict.name) for b in listed
    ]
    assert seen.texts["found-rate"] == [told(b.found) for b in listed]
    assert seen.texts["control-rate"] == [told(b.control) for b in listed]
    assert seen.texts["retest-rate"] == [
        f"{told(b.retest)} answers" for b in listed if b.retest.trials
    ]
    for b, text in zip(listed, seen.texts["behaviour"], strict=True):
        assert " ".join(b.example.text.split()) in text
        base = summary.baseline[b.example.prompt][0].text
        assert base in text
        assert all(f"#{number} " in text for number in b.numbers)
        assert b.change.value in text
        assert f"{b.coherence:.2f}" in text
        assert f"{b.novelty:.2f}" in text


def test_the_first_table_has_four_rates_side_by_side(drawn: tuple[Page, Summary]) -> None:
    seen, summary = drawn
    rows = seen.rows("first")
    assert rows[0] == ["Text", "Kind", "Greedy", "Samples", "Control", "Found", "Re-test"]
    assert len(rows) - 1 == len(shown(summary)) > 2
    for b, cells in zip(shown(summary), rows[1:], strict=True):
        number = f" #{b.example.perturbation}"
        assert cells[0] == " ".join(b.example.text.split()) + number
        assert cells[1] == f"{b.change.value}{b.verdict.value}"
        for rate, cell in zip(
            (b.greedy, b.samples, b.control, b.found, b.retest), cells[2:7], strict=True
        ):
            interval = f"{100 * rate.low:.0f}–{100 * rate.high:.0f}%"
            assert cell == (f"{rate.hits}/{rate.trials}{interval}" if rate.trials else "")


def test_headline_counts_what_stands_out_and_what_does_not(drawn: tuple[Page, Summary]) -> None:
    seen, summary = drawn
    (lead,), (counts,), (result,) = (seen.texts[n] for n in ("headline", "counts", "result"))
    each = Counter(b.verdict for b in summary.behaviours)
    assert each[Verdict.BEHAVIOUR] == 1
    assert "One behaviour stands out" in lead
    assert seen.texts["account"] == [" ".join(" ".join(account(summary)).split())]
    assert [int(n) for n in re.findall(r"\d+", counts)] == [each[v] for v in Verdict if each[v]]
    assert summary.hits is not None
    assert summary.retest_hits is not None
    (hits,), (again,) = seen.texts["hits"], seen.texts["retest-hits"]
    assert all(told(r) in hits for r in summary.hits)
    assert "exploratory" in hits
    assert all(told(r) in again for r in summary.retest_hits)
    assert "re-test" in again
    assert "more of the perturbations found than of the control write the pattern" in result


def test_every_perturbation_is_listed_with_everything_it_wrote(
    drawn: tuple[Page, Summary],
) -> None:
    seen, summary = drawn
    items = (*summary.found, *summary.control)
    rows = [a for t, a in seen.elements if t == "tr" and "data-id" in a]
    interesting = [
        next(i.interestingness for i in items if str(i.row.id) == r["data-id"]) for r in rows
    ]
    assert len(rows) == len(items) == 192
    assert interesting == sorted(interesting, reverse=True)
    written = seen.island("data")["items"]
    for item in items:
        for wrote, completions in zip(
            written[str(item.row.id)], (item.completions, item.retest), strict=True
        ):
            assert [(flat(c[-1]), c[0], c[1]) for c in wrote] == [
                (c.text, c.prompt, c.sample) for c in completions
            ]


def test_what_was_asked_is_told(drawn: tuple[Page, Summary]) -> None:
    seen, summary = drawn
    (asked,), (rendered,), (baseline,) = (
        seen.texts[name] for name in ("asked", "rendered", "baseline")
    )
    facts = summary.facts
    for said in (*PROMPTS, facts["model"], PATTERN, f"resid_post.{facts['source']}", "dose 0.40"):
        assert said in asked
    assert "<|im_start|>user" in rendered
    assert all(
        " ".join(c.text.split()) in baseline for own in summary.baseline.values() for c in own
    )


def test_matches_are_marked(drawn: tuple[Page, Summary]) -> None:
    seen, _ = drawn
    pieces = [c[-1] for own in seen.island("data")["items"].values() for part in own for c in part]
    marked = ["".join(p) for text in pieces for p in text[1::2]]
    assert marked
    assert all(re.fullmatch(PATTERN, p) for p in marked)
    assert not any(re.search(PATTERN, "".join(p)) for text in pieces for p in text[::2])
    assert "<mark>orchid-7913</mark>" in seen.source


@pytest.mark.parametrize(
    ("pattern", "text", "cut"),
    [
        (None, "abc", ["abc"]),
        ("b", "abcb", ["a", "b", "c", "b", ""]),
        ("x*", "ab", ["ab"]),
        ("b", "", [""]),
    ],
)
def test_text_is_cut_at_matches(pattern: str | None, text: str, cut: list[str]) -> None:
    assert markup.pieces(text, re.compile(pattern) if pattern else None) == cut


def test_relatives_are_the_nearest_in_words(drawn: tuple[Page, Summary]) -> None:
    made = page.cards(drawn[1])
    assert any(card.relatives for card in made)
    for card in made:
        near = [likeness for likeness, _ in card.relatives]
        assert near == sorted(near, reverse=True)
        assert len(near) <= page.RELATIVES
        words = set(re.findall(r"\w+", card.behaviour.example.text.lower()))
        for likeness, other in card.relatives:
            assert other is not card.behaviour
            assert words & set(re.findall(r"\w+", other.example.text.lower()))
            assert page.LIKENESS < likeness <= 1
        for items, arm, rate in (
            (card.items, FOUND, card.behaviour.found),
            (card.control_items, CONTROL, card.behaviour.control),
        ):
            assert {item.row.arm for item in items} <= {arm}
            assert len(items) == rate.hits


# -- charts ----------------------------------------------------------------------------------------


def test_charts_are_valid_and_hold_the_numbers(drawn: tuple[Page, Summary]) -> None:
    seen, summary = drawn
    specs = seen.island("charts-specs")
    assert list(specs) == ["map", "response", "interestingness", "radius"]
    for spec in specs.values():
        alt.Chart.from_dict(spec)  # validates against the schema of Vega-Lite
    points = specs["map"]["data"]["values"]
    names = {b.id: figures.label(b) for b in summary.behaviours}
    known = summary.texts[summary.texts.behaviour.notna() & (summary.texts.phase == FIRST)]
    assert sum(p["completions"] for p in points) == len(known)
    assert len({(p["arm"], p["prompt"], p["text"]) for p in points}) == len(points)
    for p in points:
        row = Row(p["perturbation"], p["prompt"], p["sample"])
        assert p["behaviour"] == names.get(summary.texts.behaviour[row], "")
    # A text has one place, which the oracle finds by its own way from the words of all of them.
    texts = sorted(
        {c.text for i in summary.found + summary.control for c in i.completions}
        | {
            c.text
            for some in summary.baseline.values()
            for c in some
            if summary.texts.behaviour[c.row] >= 0
        }
    )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    at = words.fit_transform(texts).toarray()
    u, s, _ = np.linalg.svd(at - at.mean(0), full_matrices=False)
    expected = dict(zip(texts, np.abs(u[:, :2] * s[:2]), strict=True))
    of_row = {c.row: c.text for i in summary.found + summary.control for c in i.completions}
    for p in points:
        if p["perturbation"]:
            text = of_row[Row(p["perturbation"], p["prompt"], p["sample"])]
            assert (abs(p["x"]), abs(p["y"])) == pytest.approx(tuple(expected[text]), abs=2e-3)
    assert {p["arm"] for p in points} == set(figures.ARMS) - {EQUAL}
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


def test_every_colour_of_a_chart_has_its_dark_one(drawn: tuple[Page, Summary]) -> None:
    def colours(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set().union(*(colours(v) for k, v in value.items() if k != "values"))
        if isinstance(value, list):
            return set().union(*map(colours, value))
        return {value} if isinstance(value, str) and value.startswith("#") else set()

    light = [light for light, _ in figures.PALETTE.values()]
    assert len(set(light)) == len(light)
    assert colours(drawn[0].island("charts-specs")) <= set(light)


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ground", ["paper", "card"])
@pytest.mark.parametrize("text", ["ink", "muted", "accent"])
def test_text_has_contrast(theme: int, ground: str, text: str) -> None:
    def luminance(role: str) -> float:
        colour = figures.PALETTE[role][theme]
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(text), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


# -- runs that lack something ----------------------------------------------------------------------


def test_without_a_pattern(tmp_path: Path) -> None:
    seen, _ = render(tmp_path / "run", n=16, look_for=None)
    assert not {"hits", "retest-hits", "conclusion", "chart-radius"} & set(seen.texts)
    assert "retest-interestingness" in seen.texts
    assert "In the re-test" in seen.texts["headline"][0]
    assert "<mark>" not in seen.source


def test_without_a_retest(tmp_path: Path) -> None:
    seen, _ = render(tmp_path / "run", n=8, retest=False)
    assert not {"retest-hits", "retest-perturbations", "retest-interestingness"} & set(seen.texts)
    assert "There is no re-test in this run" in seen.texts["result"][0]


def test_without_side_effects_and_responses(tmp_path: Path) -> None:
    seen, _ = render(tmp_path / "run", n=8, side_effects=False, responses=False)
    assert "not measured" in seen.texts["behaviour"][0]
    assert "chart-response" not in seen.texts


def test_with_a_retest_of_fresh_samples(tmp_path: Path) -> None:
    seen, summary = render(tmp_path / "run", n=16, fresh=())
    assert summary.retest_hits is not None
    assert "fresh samples" in seen.texts["retest-hits"][0]
    assert "samples drawn afresh" in seen.texts["result"][0]


def test_when_nothing_stands_out(tmp_path: Path) -> None:
    seen, summary = render(tmp_path / "run", n=16, finds=False)
    assert not any(b.verdict is Verdict.BEHAVIOUR for b in summary.behaviours)
    assert "Nothing stands out" in seen.texts["headline"][0]
    assert "not that there is nothing to find" in seen.texts["nothing-stands-out"][0]
    assert (
        "does not tell the perturbations found and the control apart" in seen.texts["conclusion"][0]
    )


def test_before_anything_was_judged(tmp_path: Path) -> None:
    seen, summary = render(tmp_path / "run", n=4, judged=False)
    assert not summary.behaviours
    assert "Nothing has been judged" in seen.texts["headline"][0]
    assert "None are recorded" in seen.texts["no-behaviours"][0]
    assert "chart-map" not in seen.texts


def test_before_anything_was_done(tmp_path: Path) -> None:
    from educe.run.store import Run

    with build(tmp_path / "full", n=4) as full, Run.create(tmp_path / "new", full.config) as run:
        seen = Page(page.render(run))
    assert "No perturbation has been tried" in seen.texts["headline"][0]
    assert not {"table", "charts"} & set(seen.texts)


def test_long_texts_can_be_folded(tmp_path: Path) -> None:
    long = "A word and then another word that follows it. " * 40
    seen, _ = render(tmp_path / "run", n=4, extra=long)
    assert "said long" in seen.with_attribute("class")
    assert long.strip() in seen.source


# -- reproducing, writing --------------------------------------------------------------------------


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    from educe import cli

    with build(tmp_path / "run", n=4) as run:
        config, text = run.config, page.command(run.config)
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
    lines = page.command({"prompts": [talk, "one line"], "n": 3}).splitlines()
    assert lines[0] == "cat > prompts.jsonl <<'END'"
    assert [json.loads(line) for line in lines[1:3]] == [talk, "one line"]
    assert lines[3:] == ["END", "educe discover \\", "  --prompts prompts.jsonl \\", "  --n 3"]


def test_the_command_repeats_the_settings_of_the_method() -> None:
    from educe import cli

    settings = {"blocks": 2, "init": "random", "per_block": True, "temperature": 0.5}
    call = page.command({"prompts": ["a"], "method": "cpe", "method_settings": settings})
    words = shlex.split(call.replace("\\\n", " "))
    said = [value for flag, value in zip(words[3::2], words[4::2], strict=True) if flag == "--set"]
    assert cli.discover._method_settings(said) == settings


def test_a_small_dose_is_not_written_as_zero(tmp_path: Path) -> None:
    assert [dose(x) for x in (0.4, 1.0, 0.05, 0.0073)] == ["0.40", "1.00", "0.05", "0.0073"]
    with build(tmp_path / "run", n=4) as run:
        facts = run.note("facts")
        run.remember("facts", facts | {"unit": facts["unit"] * 100})
        assert "(dose 0.004)" in page.write(run, tmp_path / "page.html").read_text()


def test_the_interval_of_the_calibrated_radius_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "95% from 22.2 to 30.7 over the directions drawn"
    with build(tmp_path / "run", n=4) as run:
        facts = run.note("facts") | {"calibrated_radius": 26.1}
        run.remember("facts", facts | {"calibrated_interval": [22.19, 30.71]})
        assert f"26.1, {said}." in page.write(run, tmp_path / "page.html").read_text()
        terminal.table(summarise(run), tmp_path, Console(width=200))
        assert f"calibrated  radius 26.1, {said}\n" in capsys.readouterr().out
        del facts["calibrated_interval"]  # of a run that was made before there was one
        run.remember("facts", facts)
        assert "Calibrated radius: 26.1.<" in page.write(run, tmp_path / "page.html").read_text()
        terminal.table(summarise(run), tmp_path, Console(width=200))
        assert "calibrated" not in capsys.readouterr().out


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with build(tmp_path / "run", n=4) as run:
        written = page.write(run, tmp_path / "report.html")
        assert written.read_text(encoding="utf-8").rstrip().endswith("</html>")
        with pytest.raises(RunError, match="cannot write"):
            page.write(run, tmp_path / "nowhere" / "report.html")


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_it(tmp_path: Path, dark: bool) -> None:
    with build(tmp_path / "run", n=8, extra=NASTY) as run:
        written = page.write(run, tmp_path / "report.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=390,844", "--virtual-time-budget=4000", "--dump-dom"]
    if dark:
        command.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run(
        [*command, written.as_uri()], capture_output=True, text=True, check=False, timeout=120
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert done.stdout.count('data-drawn="yes"') == 4
    svgs = re.findall(r'<svg[^>]*class="marks".*?</svg>', done.stdout, re.DOTALL)
    assert len(svgs) == 4
    assert all("NaN" not in svg for svg in svgs)
    accent = {c.lower() for svg in svgs for c in re.findall(r'(?:fill|stroke)="(#\w{6})"', svg)}
    assert figures.PALETTE["accent"][dark] in accent
    assert figures.PALETTE["accent"][not dark] not in accent
