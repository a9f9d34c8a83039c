"""The documentation: links and anchors lead somewhere, and examples in Python are Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import educe

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "studies").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        name = plain.strip().replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


def broken(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for link in LINK.findall(text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    return lost


def examples(page: Path) -> list[str]:
    """Return the blocks of Python code of a page."""
    text = page.read_text(encoding="utf-8")
    return [code for language, code in FENCE.findall(text) if language == "python"]


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_examples_compile_and_use_public_names(page: Path) -> None:
    for code in examples(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "educe" or hasattr(educe, node.attr), node.attr


def test_links_that_lead_nowhere_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One & two\n\n## `code`: a [link](page.md)\n\n## Twice\n\n## Twice\n\n"
        "[a](#one--two) [b](page.md#code-a-link) [c](#twice-1) [d](https://example.org/#x)\n"
        "[e](#three) [f](other.md) [g](page.md#twice-2) ![h](none.png)\n\n"
        "```\n# no heading [i](nowhere.md)\n```\n",
        encoding="utf-8",
    )
    assert broken(page) == ["#three", "other.md", "page.md#twice-2", "none.png"]
