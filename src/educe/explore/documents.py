"""Documents of runs, as far as they have come: what the first screen shows."""

from __future__ import annotations

import time
from typing import Any

from educe.comparison.account import account, shown
from educe.comparison.behaviours import Behaviour
from educe.comparison.stats import Rate
from educe.comparison.summary import summarise
from educe.report.command import command
from educe.run.store import Run


def document(run: Run) -> dict[str, Any]:
    """Return the document of a run."""
    began = run.note("began")
    made = {
        "title": f"{run.folder.name}",
        "subtitle": str(run.config.get("model", "")),
        "kind": "run",
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "command": command(run.config),
        "run": None,
    }
    if not run.has("facts"):
        said = "The run has just begun and has found nothing yet."
        block = {"type": "text", "spans": [said], "style": "lead"}
        return made | {"parts": [{"id": "findings", "title": "Findings", "blocks": [block]}]}
    s = summarise(run)
    blocks: list[dict[str, Any]] = [
        {"type": "text", "spans": [said], "style": "plain"} for said in account(s)
    ]
    blocks += [_card(b, s.baseline[b.example.prompt][0].text) for b in shown(s)[:12]]
    return made | {"parts": [{"id": "findings", "title": "Findings", "blocks": blocks}]}


def _card(b: Behaviour, base: str) -> dict[str, Any]:
    row = {"found": _rate(b.found), "control": _rate(b.control), "samples": _rate(b.samples)}
    columns = [
        {"key": key, "title": key, "type": "rate", "format": None, "help": None} for key in row
    ]
    both = {
        "type": "pair",
        "left": {"title": "unperturbed", "spans": [{"text": base, "mark": "model"}]},
        "right": {
            "title": f"perturbation {b.example.perturbation}",
            "spans": [{"text": b.example.text, "mark": "model"}],
        },
    }
    table = {"type": "table", "columns": columns, "rows": [row], "caption": None, "sort": None}
    link = {
        "text": f"perturbation {b.example.perturbation}",
        "mark": "link",
        "to": f"perturbation/{b.example.perturbation}",
    }
    return {
        "type": "card",
        "title": [" ".join(b.words) or "no words"],
        "badges": [b.verdict.value, b.change.value],
        "blocks": [both, table, {"type": "text", "spans": ["Written by ", link], "style": "note"}],
        "open": True,
    }


def _rate(r: Rate) -> dict[str, Any] | None:
    return r._asdict() if r.trials else None
