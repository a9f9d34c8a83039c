"""Draw docs/report.png, the picture in the README, from the report of a run.

    educe demo --out RUN
    python docs/picture.py RUN/report.html

Chromium draws the top of the page, without the parts on what was asked (it holds a path of the
machine that made the run) and on the unperturbed model.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("report.png")
HIDDEN = "#part-asked, #part-baseline, nav { display: none }"


def draw(report: Path, picture: Path, width: int = 1100, height: int = 1650) -> None:
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


if __name__ == "__main__":
    draw(Path(sys.argv[1]), PICTURE)
