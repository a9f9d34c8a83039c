"""Runs to be explored: one that a tiny model made, and one full of what no page should obey."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.applications import Starlette

from educe.explore.app import app
from educe.explore.desk import Desk
from educe.explore.shelf import Shelf
from educe.model.language import LanguageModel
from educe.options import EMBEDDED, ModelOptions
from synthetic_run import build

TOKEN = "the-token"
#: What a model might write, and what a person is to see of it.
HOSTILE = {
    "<script>document.title = 'owned'</script>": "<script>document.title = 'owned'</script>",
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "right \u202eto left\u202c and \u2066so on": "right \\u202eto left\\u202c and \\u2066so on",
    "bell \x07, null \x00, escape \x1b[31m": "bell \\u0007, null \\u0000, escape \\u001b[31m",
    "</script><!-- ]]> {{7*7}} ${7*7}": "</script><!-- ]]> {{7*7}} ${7*7}",
    "joined\u200bwords and \ufefffeed": "joined\\u200bwords and \\ufefffeed",
}


def hostile(folder: Path) -> Path:
    """Make a run whose texts attack who reads them; one is a megabyte, one is no UTF-8."""
    with build(folder, n=4) as run:
        ids = [
            number
            for (number,) in run.database.execute(
                "SELECT id FROM completions WHERE perturbation > 0 ORDER BY id LIMIT 20"
            )
        ]
        texts = [*HOSTILE, "x" * 1_000_000]
        with run.writing():
            run.database.executemany(
                "UPDATE completions SET text = ? WHERE id = ?", zip(texts, ids, strict=False)
            )
    with sqlite3.connect(folder / "run.sqlite") as database:
        database.execute(
            "UPDATE completions SET text = CAST(x'6f6bff62726f6b656e' AS TEXT) WHERE id = ?",
            [ids[len(texts)]],
        )
    database.close()
    return folder


@contextmanager
def served(
    *folders: Path, lm: LanguageModel | None = None, options: ModelOptions = EMBEDDED
) -> Iterator[Starlette]:
    """Make the application over some runs; it ends with itself."""
    shelf = Shelf(folders)
    yield app(shelf, Desk(folders, options, lm), TOKEN, hosts=("127.0.0.1", "testserver"))
