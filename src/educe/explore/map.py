"""Map: where completions lie in a plane, by what they say: near ones share rare words.

The two main axes of their TF-IDF vectors, as the chart of the report has them. Equal texts are one
point; of very many the ones that are shown are drawn, at random and the same each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from educe.comparison.cluster import plane
from educe.explore.bundle import shown
from educe.run.store import Run
from educe.scores.novelty import weighed

#: Distinct texts that are placed at most; those of the unperturbed model count too.
MOST = 1_000
#: Bytes of a text that are read, and signs that are shown.
READ, SHOWN = 2_000, 220


def places(run: Run) -> dict[str, Any]:
    """Return a row for each text that several completions may share, as columns.

    The columns are x, y, text, arm, perturbation and id of the first, completions, behaviour.
    """
    # As bytes: SQLite cuts a text at its first null character.
    found = run.database.execute(
        "SELECT substr(CAST(c.text AS BLOB), 1, ?), coalesce(p.arm, 'unperturbed') AS arm, "
        "min(c.perturbation), min(c.id), count(*), min(b.value) FROM completions c "
        "LEFT JOIN perturbations p ON p.id = c.perturbation "
        "LEFT JOIN scores b ON b.completion = c.id AND b.judge = 'behaviour' "
        "WHERE c.text IS NOT NULL AND c.phase = 'first' GROUP BY 1, 2 ORDER BY 4",
        [READ],
    )
    rows = [(text.decode("utf-8", "backslashreplace"), *rest) for text, *rest in found]
    there = len(rows)
    if there > MOST:
        rows = [
            rows[i] for i in sorted(np.random.default_rng(0).choice(there, MOST, replace=False))
        ]
    texts = sorted({row[0] for row in rows})
    at = dict(zip(texts, plane(weighed(texts)).round(4).tolist(), strict=True)) if texts else {}
    names = ("arm", "perturbation", "id", "completions", "behaviour")
    return {
        "x": [at[row[0]][0] for row in rows],
        "y": [at[row[0]][1] for row in rows],
        "text": [shown(row[0][:SHOWN]) for row in rows],
        **{name: [row[i] for row in rows] for i, name in enumerate(names, 1)},
        "of": there,
    }
