"""What came out: a table in Markdown, JSON beside the adapter, and its card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from educe import files
from educe.hardening import pools
from educe.hardening.records import DistillConfig, Distilled, HardeningConfig, Level, Measured
from educe.organisms.base import public
from educe.perturbation.set import PerturbationSet
from educe.plain import as_data
from educe.run.scored import Mean
from educe.run.work import Work

HEAD = """---
base_model: {base}
library_name: peft
---

# {title}

{what}

## Measured
{text}
"""
LOADING = """ Load it with `educe.load(..., adapter=DIR)` or PEFT on the same base. What adapter the
model had before is in it, so this one is loaded alone."""

HARDENED = """A LoRA adapter, rank {rank}, that keeps the answers of {named} as they were
under vectors that are added to the residual stream. Pools: {pools}. {steps} steps, {count} vectors
of each pool, seed {seed}; vectors of the run and of its search after block {source}, at the median
radius {radius:.4g}."""

MEASURED = """KL is of the model as it was from the hardened one, in nats a token of the greedy
answers of the former to held-out ordinary prompts and {retest}: a mean over vectors, and without a
vector over the ordinary prompts alone, with a 95% bootstrap interval. An answer to {retest} counts
as the same if it has the first 8 words of what the model as it was says without a vector; 95%
Wilson intervals, somewhat too narrow, since answers under one vector are not independent. `found`
vectors {trained}. `searched anew` is another search of equal budget, before on the model as it
was, after on the hardened one; searches by other methods were not made."""

DISTILLED = """A LoRA adapter, rank {rank}, by plain fine-tuning on what perturbation {number} of a
run made {named} write: {steps} steps of cross-entropy, seed {seed}."""


RETOLD = """Greedy answers to {where} of the run, without the perturbation. They are as under it if
the first 8 words are; 95% Wilson intervals."""


def table(measured: Sequence[Measured]) -> str:
    """Return what was measured of a hardened model as a table in Markdown."""
    looked = any(m.before.shows for m in measured)
    columns = ["under", "KL before", "KL after", "same answer before", "same answer after"]
    columns += ["shows before", "shows after"] * looked
    rows = [[m.what, *_cells(m.before, m.after, looked)] for m in measured]
    return _table(columns, rows)


def _cells(before: Level, after: Level, looked: bool) -> list[str]:
    cells = [_mean(before.kl), _mean(after.kl), str(before.same), str(after.same)]
    return cells + [str(level.shows) for level in (before, after) if looked]


def _mean(m: Mean) -> str:
    return f"{m.value:z.4f} ({m.low:z.4f} to {m.high:z.4f})"


def distilled_table(came: Distilled) -> str:
    """Return what was measured of a distilled model as a table in Markdown."""
    rows = [["before", str(came.same[0])], ["after", str(came.same[1])]]
    columns = ["the model without it", "answers as under it"]
    if came.shows is not None:
        columns.append("shows what is looked for")
        rows = [[*row, str(shown)] for row, shown in zip(rows, came.shows, strict=False)]
        rows.append(["(under it)", "", str(came.shows[2])])
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_hardened(
    folder: Path,
    work: Work,
    config: HardeningConfig,
    numbers: Sequence[int],
    found: PerturbationSet,
    measured: Sequence[Measured],
    curve: Sequence[float],
) -> None:
    """Write `hardening.json` and `README.md` beside a hardened model's adapter."""
    retest = "fresh prompts of the run" if work.settings.fresh else "the run's own prompts"
    trained = "were trained on" if "found" in config.pool else "were not trained on"
    what = HARDENED.format(
        named=_named(work),
        source=found.kind.before,
        radius=pools.radius(found),
        pools=", ".join(config.pool),
        **asdict(config),
    )
    text = f"{_filled(MEASURED.format(retest=retest, trained=trained))}\n\n{table(measured)}"
    data = {"config": asdict(config), "numbers": list(numbers), "radius": found.radius.tolist()}
    data |= {"measured": as_data(measured), "curve": list(curve)}
    _write(folder, work, "hardening.json", data, "Hardened", what, text)


def write_distilled(
    folder: Path, work: Work, number: int, config: DistillConfig, came: Distilled
) -> None:
    """Write `distilled.json` and `README.md` beside a distilled model's adapter."""
    what = DISTILLED.format(number=number, named=_named(work), **asdict(config))
    where = "fresh prompts" if work.settings.fresh else "the prompts, which were trained on,"
    text = f"{_filled(RETOLD.format(where=where))}\n\n{distilled_table(came)}"
    data = {"config": asdict(config), "number": number, "curve": came.curve}
    data |= {"same": as_data(came.same), "shows": as_data(came.shows)}
    _write(folder, work, "distilled.json", data, "Distilled", what, text)


def _filled(text: str) -> str:
    return fill(" ".join(text.split()), 100)


def _named(work: Work) -> str:
    adapter = f" with the adapter {Path(work.lm.adapter).name}" if work.lm.adapter else ""
    return public(work.lm.name) + adapter


def _write(
    folder: Path, work: Work, file: str, data: dict[str, Any], title: str, what: str, text: str
) -> None:
    title, what = f"{title}: {_named(work)}", _filled(what + LOADING)
    card = HEAD.format(base=public(work.lm.name), title=title, what=what, text=text)
    files.write_bytes(folder / file, (json.dumps(data, indent=1) + "\n").encode())
    files.write_bytes(folder / "README.md", card.encode())
