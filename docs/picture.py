"""Draw docs/report.png, the picture in the README, from the report of a run.

    educe demo --out RUN
    python docs/picture.py RUN/report.html

Headless Chromium draws the top of the page, without the parts on what was asked (it holds a path of
the machine that made the run) and on the unperturbed model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).with_name("report.png")
SHOWN = "<style>#asked, #baseline, nav { display: none }</style>"


def draw(report: Path, picture: Path, width: int = 1100, height: int = 1650) -> None:
    """Write a picture of a report.

    Args:
        report: the HTML file.
        picture: the PNG file to write.
        width: of the window, in pixels.
        height: of the window, in pixels.

    Raises:
        subprocess.CalledProcessError: Chromium failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(report.read_text(encoding="utf-8") + SHOWN, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--no-first-run", "--disable-background-networking"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"]
        command += ["--virtual-time-budget=4000", f"--screenshot={picture.absolute()}"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), PICTURE)
