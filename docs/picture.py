"""Draw the pictures of the documentation: a report, and a perturbation in the explorer.

    python docs/picture.py RUN/report.html      docs/report.png, in the README
    python docs/picture.py RUN ID PROMPT        docs/explore.png: what ID writes to a prompt

Chromium draws the top of the page, without the parts on what was asked (it holds a path of the
machine that made the run) and on the unperturbed model.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("report.png")
HIDDEN = "#part-asked, #part-baseline { display: none }"


def draw(report: Path, picture: Path, width: int = 1240, height: int = 1000) -> None:
    """Write a picture of a report.

    Args:
        report: the HTML file.
        picture: the PNG file to write.
        width: of the window, in pixels.
        height: of the window, in pixels.

    Raises:
        playwright.sync_api.Error: Chromium failed.
    """
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"))
        size = {"width": width, "height": height}
        # The page allows no styles but its own.
        tab = browser.new_context(viewport=size, bypass_csp=True).new_page()  # type: ignore[arg-type]
        tab.goto(report.absolute().as_uri())
        tab.add_style_tag(content=HIDDEN)
        tab.wait_for_selector("section h2")
        tab.screenshot(path=picture)
        browser.close()


def draw_explorer(run: Path, number: int, prompt: int, picture: Path) -> None:
    """Write a picture of a perturbation's page, after it has written to a prompt of the run."""
    command = [sys.executable, "-m", "educe", "explore", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"))
            tab = browser.new_page(viewport={"width": 1180, "height": 860})
            tab.set_default_timeout(120_000)
            tab.goto(f"{address}#/0/perturbation/{number}")
            tab.get_by_test_id("prompt").select_option(str(prompt))
            tab.get_by_test_id("status").filter(has_text="tokens,").wait_for()
            tab.get_by_test_id("read").click()
            tab.locator("[data-testid=chart-depth] svg").wait_for()
            tab.screenshot(path=picture)
            browser.close()
        server.terminate()


if __name__ == "__main__":
    if Path(sys.argv[1]).is_dir():
        draw_explorer(Path(sys.argv[1]), *map(int, sys.argv[2:4]), PICTURE.with_name("explore.png"))
    else:
        draw(Path(sys.argv[1]), PICTURE)
