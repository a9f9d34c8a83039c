"""The document of a run: what came out first, then what was asked, behaviours, charts, studies.

It is read from the run alone. `document` is what every page is drawn from, of runs and of audits.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from educe import files
from educe.audit.settings import AUDIT
from educe.comparison import account
from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.comparison.summary import Item, Summary, counted, summarise
from educe.comparison.verdict import Verdict
from educe.explore.bundle import standalone
from educe.explore.frames import frames, texts_of_each
from educe.layer_map import LAYER_MAP, LayerMap
from educe.layer_map.choice import Choice
from educe.report import (
    audit,
    figures,
    fronts,
    manifold,
    norms,
    paths,
    reachable,
    sampling,
    scouting,
    size,
)
from educe.report.behaviours import CARDS, VERDICTS, first, grouped, p_value
from educe.report.command import command
from educe.report.document import (
    Block,
    Code,
    Document,
    Fold,
    Heading,
    Mark,
    Mean,
    Table,
    Text,
    facts,
    heads,
    to_json,
)
from educe.report.questions import baseline, questions
from educe.report.words import WORDS, part, said, told
from educe.rows import FIRST
from educe.run.store import Run

#: What studies of a run add, in this order; each takes a run and what is looked for in it.
PARTS = (scouting, manifold, reachable, norms, paths, fronts, sampling)


def document(run: Run, s: Summary | None = None) -> dict[str, Any]:
    """Return the document of a run or an audit, as JSON has it (see `educe.report.document`).

    Args:
        run: The run.
        s: What it found, where that is known already.
    """
    return to_json(audit.document(run) if run.has(AUDIT) else of_run(run, s or summarise(run)))


def write(run: Run, path: Path, s: Summary | None = None) -> Path:
    """Write the page of a run or an audit: its document and its texts, in one file.

    Args:
        run: The run.
        path: The file.
        s: What it found, where that is known already.

    Raises:
        RunError: The file cannot be written.
    """
    s = s or summarise(run)
    made = audit.document(run) if run.has(AUDIT) else of_run(run, s)
    return put(replace(made, run=frames(run, s, size.chosen(s, texts_of_each(run)))), path)


def put(made: Document, path: Path) -> Path:
    """Write a document as one HTML file that opens offline and loads nothing from anywhere.

    Raises:
        RunError: The file cannot be written.
    """
    files.write_bytes(path, standalone(to_json(made)).encode("utf-8", "replace"))
    return path


def of_run(run: Run, s: Summary) -> Document:
    """Return the document of a run."""
    pattern = re.compile(s.config["look_for"]) if s.config.get("look_for") else None
    kept, began = run.folder / LAYER_MAP, run.note("began")
    charts = list(figures.charts(s, LayerMap.load(kept) if kept.exists() else None))
    limits: list[Block] = [Heading("Limits"), facts(*WORDS["reading"]["limits"])]
    parts = [
        part("result", result(s, pattern)),
        part("asked", questions(s)),
        part("baseline", baseline(s, pattern)),
        part("behaviours", grouped(s, pattern) or [Text("None are recorded.")]),
        *([part("charts", charts)] if charts else []),
        *(own for room in PARTS if (own := room.part(run, pattern)) is not None),
        part("reading", [facts(*WORDS["reading"]["run"]), *limits]),
        part("again", again(s)),
    ]
    return Document(
        title=headline(s),
        subtitle=subtitle(s, run.folder.name),
        kind="run",
        date=time.strftime("%Y-%m-%d", time.gmtime(began)) if began else None,
        command=command(s.config),
        parts=parts,
    )


def headline(s: Summary) -> str:
    """Say in a sentence what came out."""
    if not s.found:
        return "No perturbation has been tried yet"
    if not s.behaviours:
        return "Nothing has been judged yet"
    each = Counter(b.verdict for b in s.behaviours)
    stand, come = each[Verdict.BEHAVIOUR], each[Verdict.INVARIANT]
    many = f"{stand} behaviours stand" if stand > 1 else "One behaviour stands"
    said = [f"{many} out from the control"] if stand else []
    if come:
        one = ("one" if stand else "One behaviour") if come == 1 else str(come)
        several = " behaviours" if come > 1 and not stand else ""
        said.append(f"{one}{several} come{'s' if come == 1 else ''} again whatever is asked")
    return ", ".join(said) or "Nothing stands out from the control"


def subtitle(s: Summary, folder: str) -> str:
    """Say what was done to which model."""
    model = s.facts.get("model", s.config.get("model"))
    if not s.found:
        return f"The run of {model} in {folder} holds its settings and no results."
    adapter = s.facts.get("adapter") or s.config.get("adapter")
    beside = f" with the adapter {Path(adapter).name}" if adapter else ""
    many = "a prompt" if len(s.prompts) == 1 else f"{len(s.prompts)} prompts"
    search = f"A search with {s.facts.get('method', s.config['method'])} found the perturbations"
    how = "The perturbations were given" if s.config.get("given") else search
    return (
        f"{model}{beside} answered {many} under {counted(s.found, s.control)}. {how}, and those of "
        "the control are random and match them in size."
    )


def result(s: Summary, pattern: re.Pattern[str] | None) -> list[Block]:
    """Return what came out: in sentences, in a table of four rates, and in the tests."""
    if not s.behaviours:
        done = "Completions were written, and none has been judged and grouped."
        none = "No perturbations, and so no completions."
        return [Text(f"{done if s.found else none} Resume the run to go on with it.")]
    listed = account.shown(s)
    each, total = Counter(b.verdict for b in s.behaviours), len(s.behaviours)
    groups = [f"{n} {told('verdicts', v.name)[2 + (n > 1)]}" for v in VERDICTS if (n := each[v])]
    many = f"is {total} group" if total == 1 else f"are {total} groups"
    rows = s.texts.rows
    loose = ((rows.behaviour < 0) & (rows.phase == FIRST) & (rows.role == "asked")).sum()
    return [
        Text(" ".join(account.account(s)), "lead"),
        Text(said("result", "about"), "note"),
        *([first(listed[:CARDS], pattern)] if listed else []),
        Text(f"Together there {many} of completions that say the same: {', '.join(groups)}."),
        *([Text(said("result", "loose", completions=loose), "note")] if loose else []),
        *size.note(s),
        *tests(s, pattern),
    ]


def tests(s: Summary, pattern: re.Pattern[str] | None) -> list[Block]:
    """Return the counts of both arms with their tests, and what to make of them."""
    one, two = again_of(s.found), again_of(s.control)
    rows: list[list[Any]] = []
    if s.hits:
        what = "perturbations with a match of the pattern looked for, in at least one completion"
        rows.append(["exploratory", what, *s.hits, more_often(*s.hits)])
    p_again = None
    if s.retest_hits and one and two:
        p_again = more_often(one[1], two[1])
        what = "perturbations with a match, among the most interesting of each arm"
        rows.append(["re-test", what, one[1], two[1], p_again])
    if s.retest_hits and s.retest_hits[0].trials:
        fresh = f"on {len(s.fresh)} fresh prompt{'s' if len(s.fresh) > 1 else ''}"
        where = fresh if s.fresh else "fresh samples"
        what = f"completions with a match, {where}, of the same perturbations"
        rows.append(["re-test", what, *s.retest_hits, None])
    blocks: list[Block] = []
    if rows:
        columns = heads("kind", "what is counted", "found:rate", "control:rate", "p:.2g")
        blocks.append(Table(columns, rows))
    if one and two:
        what = (
            f"mean over the {one[2]} and {two[2]} perturbations re-tested, of coherence × novelty"
        )
        columns = heads("interestingness in the re-test", "found:rate", "control:rate")
        blocks.append(Table(columns, [[what, one[0], two[0]]]))
    drawn = "prompts the search never saw" if s.fresh else "samples drawn afresh"
    words = [
        said("result", "trusted", drawn=drawn) if one else said("result", "untested"),
        said("result", "exploratory"),
    ]
    if p_again is not None:
        p = f"{'= ' * (p_again >= 1e-4)}{p_value(p_again)}"
        words.append(said("result", "more" if p_again < 0.05 else "alike", p=p))
    if pattern:
        plain = [c for p in s.prompts for c in s.baseline.get(p.id, ())]
        hits = sum(bool(pattern.search(c.text)) for c in plain)
        words.append(f"Without perturbation, {hits} of {len(plain)} completions match the pattern.")
    return [*blocks, Text(" ".join(words), "note")]


def again_of(arm: Iterable[Item]) -> tuple[Mean, Rate, int] | None:
    """Return an arm's re-test: interestingness, perturbations with a match, and their number."""
    own = [item for item in arm if item.retest]
    means = [item.retested[0] for item in own if item.retested]
    if not means:
        return None
    hits = rate(sum(item.retest_hits > 0 for item in own), len(own))
    return bootstrap_mean(means), hits, len(own)


def again(s: Summary) -> list[Block]:
    """Return what a run was made with."""
    tools = ("educe", "torch", "transformers")
    made = ", ".join(f"{tool} {s.facts[tool]}" for tool in tools if s.facts.get(tool))
    took = ", ".join(f"{stage} {of:.1f}" for stage, of in s.facts.get("seconds", {}).items())
    seconds = f" Seconds: {took}." if took else ""
    settings = json.dumps(s.config, indent=2, ensure_ascii=False)
    return [
        *([Text(f"{made}.{seconds}", "note")] if made else []),
        Fold("All settings", [Code(settings)]),
    ]


def of_layers(layer_map: LayerMap, choice: Choice) -> Document:
    """Return the document of a layer map."""
    c = layer_map.config
    flags = Mark(f"--source {choice.source} --target {choice.target}", "code")
    why = Text([flags, f": {choice.why}."])
    blocks: list[Block] = [why, *figures.survey(layer_map, choice[:2])]
    return Document(
        title=f"{layer_map.model}: which layer drives which",
        subtitle=f"{len(layer_map.pairs)} pairs of layers; positions {c.positions}, read-out "
        f"{c.readout}, seed {c.seed}",
        kind="layer map",
        date=time.strftime("%Y-%m-%d"),
        command=None,
        parts=[part("layers", blocks)],
    )
