"""Pages that are made from the code: the command reference, and the table of lines."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from cyclopts import App

from docs import lines
from educe import cli
from educe.cli.reference import reference
from educe.options import ModelOptions
from test_api import HOUSE
from test_cli import options

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "commands.md"


def commands(app: App, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command that does something itself."""
    if app.default_command is not None:
        return [path]
    names = [name for name in app if not name.startswith("-")]
    return [found for name in names for found in commands(app[name], (*path, name))]


def test_the_command_reference_is_up_to_date() -> None:
    """If not: python -m educe.cli.reference > docs/commands.md."""
    assert REFERENCE.read_text(encoding="utf-8") == reference()
    made = subprocess.run(
        [sys.executable, "-m", "educe.cli.reference"], capture_output=True, check=True
    )
    assert made.stdout.decode("utf-8") == reference()


def test_the_command_reference_names_every_option_with_its_help_and_default() -> None:
    parts = re.split(r"^#+ (?=educe )", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {tuple(part.splitlines()[0].split()[1:]): part for part in parts[1:]}
    assert len(commands(cli.app)) > 15
    for command in commands(cli.app):
        for option in options(*command):
            assert re.search(rf"^\* `[^`]*{option}\b[^`]*`.*: \S", told[command], re.MULTILINE), (
                command,
                option,
            )
    assert "are the control *[default: 64]*" in " ".join(told[("discover",)].split())


def test_the_readme_leads_to_it() -> None:
    assert "(docs/commands.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_lines_names_every_room() -> None:
    """If not: python docs/lines.py; how many lines they are may have changed since."""
    (shown,) = lines.BETWEEN.findall(lines.PAGE.read_text(encoding="utf-8"))
    rooms = {f"{p.name}/" for p in HOUSE.iterdir() if (p / "__init__.py").exists()}
    named = re.findall(r"^\| `(\S+)` \|", shown, re.MULTILINE)
    assert sorted(named) == sorted(rooms)


def test_lines_are_counted() -> None:
    rooms = lines.files()
    (total,) = re.findall(r"^\| together \| (\d+) \| ([\d,]+)", lines.table(), re.MULTILINE)
    paths = list(HOUSE.rglob("*.py"))
    assert int(total[0]) == len(paths) == sum(map(len, rooms.values()))
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    assert int(total[1].replace(",", "")) == text.count("\n")
    cli_lines = [path.read_text(encoding="utf-8").count("\n") for path in HOUSE.glob("cli/*.py")]
    assert sorted(rooms["cli/"]) == sorted(cli_lines)


def test_the_readme_names_every_command_and_option_of_a_model() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Commands\n\n```\n(.*?)```", text, re.DOTALL)
    assert block
    named = set(re.findall(r"^educe (\w+)", block[1], re.MULTILINE))
    assert named == {command[0] for command in commands(cli.app)}
    for field in fields(ModelOptions):
        assert f"`--{field.name.replace('_', '-')}`" in text
