"""Documents of runs as far as they have come: the report's, or that there is none yet."""

from __future__ import annotations

from typing import Any

from educe.audit.findings import FINDINGS
from educe.audit.settings import AUDIT
from educe.comparison.summary import summarise
from educe.explore import bundle, frames
from educe.report import page
from educe.rows import BEHAVIOUR
from educe.run.store import Run

#: What is shown of a run that cannot be counted yet.
BEGUN = (
    "Nothing can be counted yet: the search is on, or its texts are not read. What is written "
    "stands under Texts."
)


def counted(run: Run) -> dict[str, str]:
    """Return the ``document`` of a run and its ``behaviours`` as JSON, at any time of its work.

    Both come of one summary, which takes seconds for some ten thousand texts.
    """
    s = summarise(run) if run.has("facts") else None
    done = run.has(FINDINGS) if run.has(AUDIT) else s is not None and run.score_rows(BEHAVIOUR)
    made = {
        "document": page.document(run, s) if done else _begun(run),
        "behaviours": frames.behaviours(s),
    }
    return {name: bundle.as_json(value) for name, value in made.items()}


def _begun(run: Run) -> dict[str, Any]:
    text = {"type": "text", "spans": [BEGUN], "style": "lead"}
    return {
        "title": run.folder.resolve().name,
        "subtitle": f"a run on {run.config.get('model')} that is at work, or was cut off",
        "kind": "audit" if run.has(AUDIT) else "run",
        "date": None,
        "command": None,
        "parts": [{"id": "begun", "title": "Not there yet", "blocks": [text]}],
        "run": None,
    }
