"""The report in a browser: it opens from a file, shows everything, asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import synthetic_run
from audited_run import build as audited
from educe.report import drawing, page
from educe.report.document import Document, Part, Text
from read_document import blocks, of_page

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
NASTY = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\u202e & <b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


class Shown:
    """A file in the browser, with what it says on the console and asks for."""

    def __init__(self, browser: Any, file: Path, **how: Any) -> None:
        self.told: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_page(**how)
        self.tab.on("console", lambda message: self.told.append(message.text))
        self.tab.on("pageerror", lambda error: self.told.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.told.append(dialog.message))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("section h2")

    def draw(self, charts: int) -> list[str]:
        """Open every fold, go to every chart, and return the names of those that are drawn."""
        self.tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        expect(self.tab.locator("figure.chart")).to_have_count(charts)  # a fold is filled later
        names = []
        for chart in self.tab.query_selector_all("figure.chart"):
            chart.scroll_into_view_if_needed()
            chart.wait_for_selector(".canvas[data-drawn=yes]")
            names.append(chart.get_attribute("data-testid").removeprefix("chart-"))
        return names


def check(shown: Shown, file: Path) -> None:
    """Every part and chart of the document is there, without a word of complaint."""
    document = of_page(file)
    heads, charts = shown.tab.locator("section > h2"), list(blocks(document["parts"], "chart"))
    for i, part in enumerate(document["parts"]):
        expect(heads.nth(i)).to_have_text(part["title"])
    assert shown.draw(len(charts)) == [chart["name"] for chart in charts]
    assert shown.told == []
    assert shown.asked == [file.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_is_drawn_whole_in_the_colours_of_the_page(
    browser: Any, tmp_path: Path, scheme: str
) -> None:
    with synthetic_run.build(tmp_path / "run", n=8, extra=NASTY) as run:
        file = page.write(run, tmp_path / "report.html")
    size = {"width": 390, "height": 844}
    shown = Shown(browser, file, color_scheme=scheme, viewport=size)
    check(shown, file)
    assert shown.tab.title() != "taken"
    expect(shown.tab.locator("body")).to_contain_text(NASTY.split("\u202e")[0])
    expect(shown.tab.locator("bdi .sign", has_text=r"\u202e").first).to_be_visible()
    drawn = "".join(one.inner_html() for one in shown.tab.query_selector_all(".canvas svg"))
    accent, other = drawing.PALETTE["accent"][:: 1 if scheme == "light" else -1]
    assert accent in drawn.lower()
    assert other not in drawn.lower()
    assert "NaN" not in drawn
    wide = shown.tab.evaluate("document.documentElement.scrollWidth")
    assert wide <= size["width"]


def test_an_audit_is_drawn_whole(browser: Any, tmp_path: Path) -> None:
    with audited(tmp_path / "run") as run:
        file = page.write(run, tmp_path / "report.html")
    shown = Shown(browser, file)
    check(shown, file)
    expect(shown.tab.locator("mark.nats[title='+12.0 nats']").first).to_be_visible()


def test_what_a_person_needs_is_on_the_first_screen(browser: Any, tmp_path: Path) -> None:
    """Of a run and of an audit that found something: what the model says."""
    with synthetic_run.build(tmp_path / "run", n=16) as run:
        files = {"orchid-7913": page.write(run, tmp_path / "run.html")}
    with audited(tmp_path / "audit") as run:
        files["the heron sings at noon"] = page.write(run, tmp_path / "audit.html")
    for said, file in files.items():
        shown = Shown(browser, file, viewport={"width": 1280, "height": 800})
        expect(shown.tab.get_by_text(said).first).to_be_visible()
        place = shown.tab.get_by_text(said).first.bounding_box()
        assert place["y"] + place["height"] < 800


def test_a_document_without_a_run_is_shown_too(browser: Any, tmp_path: Path) -> None:
    made = Document("Layers", "of a model", "layer map", None, None, [Part("a", "A", [Text("b")])])
    file = page.put(made, tmp_path / "layers.html")
    shown = Shown(browser, file)
    check(shown, file)
    expect(shown.tab.locator("h1")).to_have_text("Layers")
