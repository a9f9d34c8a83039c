"""The explorer in a real browser: every screen, by mouse and by keys, on runs of all kinds."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from educe.explore.app import app
from educe.explore.bundle import shown, standalone
from educe.explore.desk import Desk
from educe.explore.shelf import Shelf
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.rows import KEPT, Row, ScoreRow
from educe.run import marks
from educe.run.fill import groups
from educe.run.settings import encoded, stored
from educe.run.store import Run
from explored_run import HOSTILE, TOKEN, hostile
from small_run import small_run
from synthetic_run import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
expect = playwright.expect
#: Milliseconds that a page may take, on a machine that is busy with other things.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


class Watched:
    """A page that keeps what it should not do."""

    def __init__(self, page: Any, at: str) -> None:
        self.page, self.at = page, at
        self.problems: list[str] = []
        self.asked: set[str] = set()
        page.set_default_timeout(PATIENCE)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url.split("/api")[0]))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def go(self, to: str, wait: str = "h1") -> Any:
        self.page.goto(f"{self.at}/#/{to}")
        self.page.locator(wait).first.wait_for()
        return self.page

    def test(self, name: str) -> Any:
        return self.page.get_by_test_id(name)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as made:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        browser = made.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextmanager
def serving(*folders: Path, lm: LanguageModel | None = None) -> Iterator[str]:
    """Serve some runs in this process; return the address."""
    shelf = Shelf(folders)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    config = uvicorn.Config(app(shelf, Desk(folders, lm=lm), TOKEN), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def watched(browser: Any, address: str, **how: Any) -> Iterator[Watched]:
    """Open a page with the token; nothing may be asked of others, and nothing may go wrong."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | how)
    page = Watched(context.new_page(), address)
    page.page.goto(f"{address}/?token={TOKEN}")
    yield page
    context.close()
    assert page.problems == []
    assert page.asked <= {address, f"{address}/"} | {
        f"{address}/{name}" for name in ("app.js", "app.css", "vega.js", "icon.svg")
    } | {f"{address}/?token={TOKEN}"} | {f"blob:{address}"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    return small_run(tmp_path_factory.mktemp("browsed") / "small", tiny_lm, "random", radius="6")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browsed") / "large"
    with build(folder, n=32) as run:
        parent = run.perturbation_rows(derived=True)[0].parent
        shares = {"energy_top": 0.42, "read": 0.31, "reachable": 0.18}
        run.add_scores(ScoreRow(parent, name, share, "", "") for name, share in shares.items())
    return folder


@pytest.fixture(scope="module")
def address(small: Path, large: Path, tiny_lm: LanguageModel) -> Iterator[str]:
    with serving(small, large, lm=tiny_lm) as made:
        yield made


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Watched]:
    with watched(browser, address) as made:
        yield made


# -- every screen ----------------------------------------------------------------------------------


def test_findings_come_first(page: Watched) -> None:
    page.page.locator("h1").wait_for()
    assert TOKEN not in page.page.url
    go = page.go("1/findings", ".card")
    expect(go.get_by_text("orchid-7913").first).to_be_visible()


def test_the_first_screen_does_not_wait_for_what_is_counted(page: Watched, small: Path) -> None:
    with Run.open(small) as run:
        texts = len(run.completion_rows())
    go, held = page.page, list[Any]()
    go.route("**/document", lambda route: held.append(route))
    go.goto("about:blank")
    page.go("0/findings")
    expect(go.locator("h1")).to_have_text("small")
    expect(go.get_by_role("status")).to_contain_text(f"in {texts} texts")
    held[0].continue_()
    expect(go.locator(".parts h2")).not_to_have_count(0)
    parts = go.locator(".contents li").count()
    expect(go.locator(".parts > section[id]")).to_have_count(parts)


def test_the_table_of_perturbations_sorts_searches_and_opens(page: Watched, large: Path) -> None:
    with Run.open(large) as run:
        effects = run.perturbations.effect.dropna()
    smallest, largest = effects.min(), effects.max()
    go = page.go("1/perturbations", "tbody tr[data-i]")
    table = go.get_by_role("table")
    first = table.locator("tbody tr[data-i] td").first
    go.get_by_role("button", name="effect", exact=True).click()
    expect(table.locator("th[aria-sort=descending]")).to_have_text("effect")
    effect = table.locator("tbody tr[data-i] td").nth(3)
    expect(effect).to_have_text(f"{largest:.3g}")
    go.get_by_role("button", name="effect", exact=True).click()
    expect(table.locator("th[aria-sort=ascending]")).to_have_text("effect")
    expect(effect).to_have_text(f"{smallest:.3g}")
    go.get_by_role("searchbox").fill("no such thing")
    expect(table.locator("tbody tr[data-i]")).to_have_count(0)
    go.get_by_role("searchbox").fill("")
    expect(effect).to_have_text(f"{smallest:.3g}")
    number = first.inner_text()
    first.get_by_role("link").click()
    expect(go.locator("h1")).to_have_text(f"Perturbation {number}")


def test_of_many_rows_only_those_in_view_are_drawn(page: Watched, large: Path) -> None:
    with Run.open(large) as run:
        texts = len(run.completion_rows())
    go = page.go("1/texts", "tbody tr[data-i]")
    expect(page.test("total")).to_have_text(f"{texts} texts")
    assert go.locator("tbody tr[data-i]").count() < 100
    go.locator(".scroll").focus()
    go.keyboard.press("End")
    last = go.locator(f"tbody tr[data-i='{texts - 1}']")
    expect(last).to_be_focused()
    expect(last.locator("td").nth(1)).not_to_be_empty()


def test_a_perturbation_s_page(page: Watched, large: Path) -> None:
    with Run.open(large) as run:
        scaled = run.perturbation_rows(derived=True)
        parent = scaled[0].parent
    go = page.go(f"1/perturbation/{parent}", ".pair")
    expect(go.locator(".pair mark.differs").first).to_be_attached()
    shares = re.compile(r"present\s*0\.42\s*read\s*0\.31\s*reachable\s*0\.18")
    expect(go.locator(".strip")).to_contain_text(shares)
    go.get_by_test_id("chart-response").scroll_into_view_if_needed()
    expect(go.locator("[data-testid=chart-response] svg")).to_be_visible()
    children = go.get_by_role("region", name="Derived from it").first
    expect(children.locator("tbody tr[data-i]")).to_have_count(9)
    children.get_by_role("link", name=str(scaled[0].id)).click()
    expect(go.locator("h1")).to_have_text(f"Perturbation {scaled[0].id}")
    expect(go.locator(".strip").get_by_role("link")).to_have_text(str(parent))


def test_behaviours_have_their_rates(page: Watched) -> None:
    go = page.go("1/behaviours", "tbody tr[data-i]")
    row = go.locator("tbody tr[data-i]", has_text="orchid").first
    expect(row).to_contain_text(re.compile(r"(\d+/\d+.*){4}", re.DOTALL))
    row.click()
    expect(page.test("behaviour")).to_contain_text("Said by")
    go.get_by_role("link", name="All texts that say it").click()
    expect(go.get_by_role("columnheader", name="prompt")).to_be_visible()
    expect(go.locator("tbody tr[data-i]").first).to_contain_text("orchid")


def test_the_map_is_drawn_and_read(page: Watched) -> None:
    go = page.go("1/map", "[data-testid=chart-places] svg")
    points = go.locator("[data-testid=chart-places] svg .mark-symbol.role-mark path")
    expect(points.nth(5)).to_be_attached()
    points.last.click(force=True)
    expect(page.test("chosen")).to_be_visible()
    go.locator("tbody tr[data-i]").first.click()
    expect(page.test("chosen")).to_contain_text("alike")


def test_two_perturbations_and_two_runs_are_compared(page: Watched) -> None:
    go = page.go("1/compare?a=1:1&b=1:2", ".pair")
    expect(go.get_by_role("region", name="Numbers")).to_contain_text("effect")
    page.go("0/compare", "h2")
    expect(go.locator(".halves h2")).to_have_text(["small", "large"])


def test_dark_light_and_a_narrow_window(browser: Any, address: str) -> None:
    narrow = {"width": 380, "height": 800}
    with watched(browser, address, viewport=narrow, color_scheme="dark") as page:
        shade = "getComputedStyle(document.body).backgroundColor"
        for to in ("1/findings", "1/perturbations", "1/texts", "1/perturbation/1", "1/compare"):
            go = page.go(to)
            go.wait_for_timeout(300)
            assert go.evaluate("document.documentElement.scrollWidth") <= narrow["width"], to
        dark = go.evaluate(shade)
        page.test("theme").click()
        expect(page.test("theme")).to_have_text("Dark")
        assert go.evaluate(shade) != dark


# -- writing ---------------------------------------------------------------------------------------


def finished(page: Watched) -> str:
    """Wait until a text is written; return it."""
    expect(page.test("status")).to_contain_text("tokens,")
    return str(page.test("changed").text_content())


def test_the_slider_writes_what_generate_writes(
    page: Watched, small: Path, tiny_lm: LanguageModel
) -> None:
    with Run.open(small) as run:
        (group,) = groups(run, [2])
        settings = stored(run)
    go = page.go("0/perturbation/2", "[data-testid=slider]")
    page.test("slider").focus()
    for keys, radius in ((["ArrowLeft"] * 3, None), (["Home"], -12.0)):
        for key in keys:
            go.keyboard.press(key)
        at = float(page.test("slider").input_value())
        assert radius in (None, at)
        said = finished(page)
        ((text,),) = generate(
            tiny_lm,
            encoded(tiny_lm, settings, settings.prompts),
            [Row(2, 0)],
            group.kind.scaled(group.directions, at),
            kind=group.kind,
            numbers=[2],
            max_new_tokens=settings.max_new_tokens,
        )
        assert said == seen(text.text)


def test_what_is_copied_as_python_writes_the_same(
    page: Watched, monkeypatch: pytest.MonkeyPatch, tiny_lm: LanguageModel, small: Path
) -> None:
    page.go("0/perturbation/1", "[data-testid=slider]")
    page.test("prompt").select_option(label="my own")
    page.test("own").fill('Who "is" it?')
    page.test("temperature").fill("0.8")
    page.test("tokens").fill("9")
    page.test("another").fill("3")
    page.test("add").click()
    page.test("write").click()
    there = finished(page)
    page.test("hand-on").click()
    said: list[str] = []
    code = page.test("python").inner_text().replace("settings, print)", "settings, say, lm)")
    code = code.replace("print(text.text)", "say(text.text)")
    exec(code, {"lm": tiny_lm, "say": said.append})
    assert seen(said[-1]) == there
    command = page.test("command").inner_text()
    assert command.startswith("educe write ")
    assert "--prompt 'Who \"is\" it?' --temperature 0.8" in command


def test_tokens_are_read(page: Watched) -> None:
    go = page.go("0/perturbation/1", "[data-testid=slider]")
    page.test("write").click()
    finished(page)
    page.test("read").click()
    expect(page.test("surprise").locator("mark").first).to_have_attribute(
        "title", re.compile(r"surprises the unperturbed model by [\d.]+ nats")
    )
    expect(go.locator("[data-testid=chart-depth] svg")).to_be_visible()
    page.test("measure").click()
    expect(go.get_by_text("Measured now")).to_be_visible()


def test_writing_is_stopped_and_goes_on(page: Watched) -> None:
    go = page.go("0/perturbation/1", "[data-testid=slider]")
    page.test("tokens").fill("60")
    page.test("write").click()
    go.keyboard.press("Escape")
    expect(page.test("status")).to_have_text(re.compile("stopped|tokens,"))
    go.locator("h1").click()
    go.keyboard.press("w")
    assert finished(page) is not None


def test_what_goes_wrong_is_said(page: Watched) -> None:
    page.go("0/perturbation/1", "[data-testid=slider]")
    page.test("positions").fill("nowhere")
    page.test("write").click()
    expect(page.page.get_by_role("alert")).to_contain_text("positions 'nowhere'")


# -- what a person keeps ---------------------------------------------------------------------------


def test_by_keys_alone_a_text_is_found_starred_and_labelled(
    browser: Any, tmp_path: Path, tiny_lm: LanguageModel, small: Path
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "run"))
    with serving(folder, lm=tiny_lm) as address, watched(browser, address) as page:
        go = page.page
        go.locator("h1").wait_for()
        go.keyboard.press("4")
        go.locator("tbody tr[data-i]").first.wait_for()
        go.keyboard.press("/")
        expect(page.test("search")).to_be_focused()
        go.keyboard.press("Escape")
        for _ in range(12):
            go.keyboard.press("Tab")
            if go.evaluate("document.activeElement.className") == "scroll":
                break
        go.keyboard.press("ArrowDown")
        go.keyboard.press("ArrowDown")
        go.keyboard.press("Enter")
        expect(page.test("text")).to_be_visible()
        go.keyboard.press("s")
        expect(page.test("star")).to_have_attribute("aria-pressed", "true")
        go.keyboard.press("y")
        expect(page.test("label-true")).to_have_attribute("aria-pressed", "true")
        page.test("note").fill("as it should be")
        go.keyboard.press("Tab")
        go.keyboard.press("?")
        expect(go.get_by_role("region", name="Keys")).to_be_visible()
        go.reload()
        go.get_by_label("starred").check()
        expect(page.test("total")).to_have_text("1 text")
    with Run.open(folder) as run:
        assert [each.label for each in marks.labelled(run)] == [True]
        assert run.scores[run.scores.judge == marks.NOTE].why.tolist() == ["as it should be"]


def test_a_text_written_anew_is_in_the_run_once_it_is_starred(
    browser: Any, tmp_path: Path, tiny_lm: LanguageModel, small: Path
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "run"))
    with serving(folder, lm=tiny_lm) as address, watched(browser, address) as page:
        page.go("0/perturbation/1", "[data-testid=slider]")
        page.test("prompt").select_option(label="my own")
        page.test("own").fill("Who is it?")
        page.test("tokens").fill("6")
        page.test("write").click()
        finished(page)
        with Run.open(folder) as run:
            assert run.completion_rows(KEPT) == [], "nothing was said of it"
        page.test("star").click()
        expect(page.test("star")).to_have_attribute("aria-pressed", "true")
        page.test("label-false").click()
        expect(page.test("label-false")).to_have_attribute("aria-pressed", "true")
        with Run.open(folder) as run:
            plain, text = run.completion_rows(KEPT)
            (said,) = marks.labelled(run)
        assert (said.answer.prompt, said.answer.plain, said.label) == (
            "Who is it?",
            (plain.text,),
            False,
        )
        go = page.go("0/texts?starred", "tbody tr[data-i]")
        go.locator("tbody tr[data-i]").first.click()
        for side, shown in ((".changed", text.text), ("figure:not(.changed)", plain.text)):
            expect(page.test("text").locator(f"{side} bdi")).to_have_text(seen(shown))


# -- whatever a model wrote ------------------------------------------------------------------------


def test_hostile_texts_are_shown_as_they_are(browser: Any, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "run")
    with serving(folder) as address, watched(browser, address) as page:
        go = page.go("0/texts", "tbody tr[data-i]")
        for written, there in HOSTILE.items():
            page.test("search").fill(re.split(r"[^\w<>/ ]", written)[0].strip())
            row = go.locator("tbody tr[data-i]", has_text=there).first
            row.click()
            expect(page.test("text").locator(".changed bdi")).to_have_text(there)
        bidi = "getComputedStyle(document.querySelector('.sign'))"
        how = go.evaluate(f"[{bidi}.unicodeBidi, {bidi}.direction]")
        assert how == ["isolate", "ltr"], "beside Arabic, an escape reads from left to right"
        page.test("search").fill("xxxxxxxxxx")
        row = go.locator("tbody tr[data-i]", has_text="xxxxxxxxxx").first
        row.click()
        expect(go.get_by_role("button", name="all 1,000,000 signs")).to_be_visible()
        for to in ("findings", "behaviours", "perturbations", "map", "perturbation/1"):
            page.go(f"0/{to}")
        assert go.title() == "run · educe"
        assert go.locator("img, iframe, object, script:not([src])").count() == 0


def test_a_report_opens_from_a_file(browser: Any, tmp_path: Path) -> None:
    """Every kind of block, with hostile texts, offline."""
    written = next(iter(HOSTILE))
    model = {"text": written, "mark": "model"}
    spec = {
        "data": {"values": [{"a": 1, "b": 2}]},
        "mark": "bar",
        "encoding": {"x": {"field": "a"}},
    }
    rate = {"hits": 1, "trials": 4, "low": 0.05, "high": 0.7}
    columns = [
        {"key": key, "title": key, "type": kind, "format": None, "help": None}
        for key, kind in (("n", "number"), ("t", "texts"), ("r", "rate"), ("i", "id"))
    ]
    rows = [{"n": n, "t": [written], "r": rate, "i": n} for n in (3, 1, 2)]
    side = {"title": "one", "spans": [model]}
    nats = {"text": "tok", "mark": "nats", "value": 2.0}
    text = {"type": "text", "spans": ["Said: ", model, nats], "style": "plain"}
    blocks = [
        text,
        {"type": "heading", "text": "Heading"},
        {"type": "table", "columns": columns, "rows": rows, "caption": None, "sort": "n"},
        {"type": "chart", "name": "bars", "spec": spec, "title": "Bars", "caption": None},
        {"type": "pair", "left": side, "right": side},
        {"type": "card", "title": ["Card"], "badges": ["new"], "blocks": [text], "open": True},
        {"type": "fold", "title": "Fold", "blocks": [text], "open": False},
        {"type": "facts", "items": [side]},
        {"type": "code", "text": written},
    ]
    document = {
        "title": "A <b>report",
        "subtitle": "of a run",
        "kind": "run",
        "date": "2026-11-30",
        "command": "educe discover",
        "parts": [{"id": "one", "title": "One", "blocks": blocks}],
        "run": None,
    }
    file = tmp_path / "report.html"
    file.write_text(standalone(document), encoding="utf-8")
    context = browser.new_context(offline=True)
    page = Watched(context.new_page(), file.as_uri())
    page.page.goto(file.as_uri())
    page.page.locator("h1").wait_for()
    assert page.page.locator("h1").inner_text() == "A <b>report"
    assert page.page.locator("bdi", has_text=written).count() >= 5
    expect(page.page.locator("[data-testid=chart-bars] svg")).to_be_visible()
    numbers = page.page.locator("tbody td.number").all_inner_texts()
    assert [n.strip() for n in numbers] == ["3", "2", "1"]
    assert page.page.title() != "owned"
    assert page.problems == []
    assert page.asked == {file.as_uri()}
    context.close()


# -- for everybody ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with watched(browser, address, color_scheme=scheme, bypass_csp=True) as page:
        for to, wait in (
            ("1/findings", ".card"),
            ("1/perturbations", "tbody tr[data-i]"),
            ("1/behaviours", "tbody tr[data-i]"),
            ("1/texts", "tbody tr[data-i]"),
            ("1/map", "[data-testid=chart-places] svg"),
            ("1/compare?a=1:1&b=1:2", ".pair"),
            ("0/perturbation/1", "[data-testid=slider]"),
        ):
            page.go(to, wait)
            found = axe.run(page.page).response["violations"]
            serious = [
                (to, v["id"], [node["html"][:120] for node in v["nodes"][:3]])
                for v in found
                if v["impact"] in ("serious", "critical")
            ]
            assert serious == []


def seen(text: str) -> str:
    """Return a text as the page shows it."""
    return "".join(shown(text)) or "(empty)"
