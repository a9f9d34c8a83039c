"""Documents of runs as far as they have come: the report's, or that there is none yet."""

from __future__ import annotations

from typing import Any

from educe.audit.findings import FINDINGS
from educe.audit.settings import AUDIT
from educe.report import page
from educe.rows import BEHAVIOUR
from educe.run.store import Run

#: What is shown of a run that cannot be counted yet.
BEGUN = (
    "Nothing can be counted yet: the search is on, or its texts are not read. What is written "
    "stands under Texts."
)


def document(run: Run) -> dict[str, Any]:
    """Return the document of a run, at any time while it is at work."""
    if run.has(FINDINGS) if run.has(AUDIT) else run.has("facts") and run.score_rows(BEHAVIOUR):
        return page.document(run)
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
