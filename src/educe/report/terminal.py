"""What a run found, on one screen of a terminal or as data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from educe.comparison.account import account, damage, dose, fragility, shown
from educe.comparison.behaviours import Behaviour
from educe.comparison.summary import Item, Summary, counted
from educe.comparison.verdict import Verdict
from educe.errors import RunError
from educe.report.behaviours import first
from educe.report.document import Heading, Text, shorten
from educe.report.document import facts as facts_of
from educe.report.screen import line, put, screen, tell, written
from educe.rows import CompletionRow

SHOWN = 10  #: behaviours in the table
CUT = 68  #: characters of what was asked, and of the likeliest answer
#: What is said of behaviours that are not in the table.
FOLDED = {
    Verdict.BEHAVIOUR: "that stand out",
    Verdict.INVARIANT: "said whatever is asked",
    Verdict.FRAGILE: "that random perturbations say as well",
    Verdict.OWN: "that the model also says unperturbed",
    Verdict.RARE: "too rare to tell",
    Verdict.STOCK: "stock phrases",
    Verdict.DAMAGE: "damaged",
}
SCREEN = 34  #: lines of texts that are printed at once


def table(summary: Summary, folder: Path, console: Console | None = None) -> None:
    """Print the behaviours, the control beside them, and what is noise."""
    facts, listed = summary.facts, shown(summary)
    adapter = f" + {Path(facts['adapter']).name}" if facts.get("adapter") else ""
    doses = ", ".join(dose(r / facts["unit"]) for r in facts["radii"])
    where = f"{facts['method']}, resid_post.{facts['source']} → {facts['target']}, doses {doses}"
    told = [("layers", facts["why"])] if facts.get("why") else []
    if facts.get("calibrated_interval"):
        low, high = facts["calibrated_interval"]
        known = f"{facts['calibrated_radius']:.3g}, 95% from {low:.3g} to {high:.3g}"
        told.append(("calibrated", f"radius {known} over the directions drawn"))
    told += [("note", remark) for remark in facts.get("remarks", ())]
    for prompt in summary.prompts[:2]:
        told.append(("asked", shorten(str(prompt.content), CUT)))
        told += [("greedy", shorten(c.text, CUT)) for c in summary.baseline.get(prompt.id, ())[:1]]
    same = "Perturbed or not, the model says the same, but for what is counted below."
    said = [fragility(summary), damage(summary), _folded(summary, listed)]
    if summary.hits:
        found, control = summary.hits
        said.append(f"looked for {summary.config['look_for']!r}: found {found}, control {control}")
    if summary.retest_hits and summary.retest_hits[0].trials:
        found, control = summary.retest_hits
        said.append(f"re-test of the most interesting: found {found}, control {control} texts")
    blocks = [
        Heading(counted(summary.found, summary.control)),
        Text(f"{facts['model']}{adapter}  {where}"),
        facts_of(*told),
        first(listed[:SHOWN]) if listed else Text(same),
        *(Text(sentence) for sentence in said if sentence),
        Text(f"one perturbation: educe show {folder} ID", "note"),
    ]
    tell(blocks, console)


def _folded(summary: Summary, listed: list[Behaviour]) -> str:
    """Say how many behaviours are not in the table, and why."""
    counts = Counter(b.verdict for b in summary.behaviours if b.weight < 0)
    each = [f"{counts[v]} {FOLDED[v]}" for v in Verdict if counts[v]]
    more = len(listed) - SHOWN
    said = ([f"{more} more as in the table"] if more > 0 else []) + each
    return f"Not shown: {', '.join(said)}." if said else ""


def where(report: Path, console: Console | None = None) -> None:
    """Say where the report is."""
    (console or screen()).print(
        written(str(report.resolve()), lead="report: "), soft_wrap=True, highlight=False
    )


def perturbation(summary: Summary, number: int, console: Console | None = None) -> None:
    """Print one perturbation with everything it wrote; number 0 is the unperturbed model.

    Raises:
        RunError: The run has no perturbation of that number.
    """
    console = console or screen()
    contents = {p.id: str(p.content) for p in (*summary.prompts, *summary.fresh)}
    if number == 0:
        _unperturbed(summary, contents, console)
        return
    item = _item(summary, number)
    row = item.row
    side = f"{item.side_effect:.2f} nats" if item.side_effect is not None else "not measured"
    again = "not re-tested"
    if item.retested:
        mean, low, high = item.retested
        again = f"{mean:.2f} ({low:.2f} to {high:.2f}) on {len(item.retest)} texts"
    scores = f"coherence {item.coherence:.2f}, novelty {item.novelty:.2f}, "
    told = [
        f"{row.method} ({row.arm}), radius {row.radius:.3g}, dose {dose(row.dose)}, "
        f"effect {row.effect:.3g}",
        f"{scores}interestingness {item.interestingness:.2f}",
        f"re-test {again}; side effect {side}",
        f"{row.file}, item {row.item}",
    ]
    tell([Heading(f"perturbation {row.id}"), *map(Text, told)], console)
    by_prompt: dict[int, list[CompletionRow]] = {}
    for completion in summary.texts.written((*item.completions, *item.retest)):
        by_prompt.setdefault(completion.prompt, []).append(completion)
    texts = [c.text for own in by_prompt.values() for c in own]
    room = max(1, console.width - 15)
    long = sum(len(text) // room + 1 for text in texts) + 2 * len(by_prompt) > SCREEN
    for prompt, own in by_prompt.items():
        base = summary.baseline[prompt][0].text
        put(console, line(contents[prompt], "bold"))
        put(console, line(base, "dim", lead="  unperturbed  "))
        for completion in own:
            if long:
                put(console, line(completion.text, lead="  perturbed    "))
            else:
                console.print(written(completion.text, lead="  perturbed    "))
    if long:
        console.print("[dim]the whole texts: --json, or the report[/dim]", highlight=False)


def _unperturbed(summary: Summary, contents: dict[int, str], console: Console) -> None:
    """Print what the unperturbed model answers, of every prompt as much as fits on a screen."""
    each = max(1, SCREEN // max(1, len(summary.baseline)) - 1)
    for prompt, answers in summary.baseline.items():
        put(console, line(contents[prompt], "bold"))
        for answer in answers[:each]:
            put(console, line(answer.text, lead=f"  T={answer.temperature:g}  "))
    if any(len(answers) > each for answers in summary.baseline.values()):
        console.print("[dim]the other samples: --json, or the report[/dim]", highlight=False)


def as_data(summary: Summary, number: int | None) -> dict[str, Any]:
    """Return the same as plain data.

    Raises:
        RunError: The run has no perturbation of that number.
    """
    if number is not None:
        if number == 0:
            return {
                str(p): [
                    c.row._asdict() | {n: v for n, v in c._asdict().items() if n != "row"}
                    for c in a
                ]
                for p, a in summary.baseline.items()
            }
        return _as_data(_item(summary, number), summary)
    return {
        "settings": summary.config,
        "facts": summary.facts,
        "hits": [h._asdict() for h in summary.hits] if summary.hits else None,
        "retest_hits": [h._asdict() for h in summary.retest_hits] if summary.retest_hits else None,
        "behaviours": [_behaviour(b) for b in summary.behaviours],
        "fragility": [
            {"arm": p.arm, "dose": p.dose}
            | {n: getattr(p, n)._asdict() for n in ("changed", "ended", "begun", "damaged")}
            for p in summary.pushes
        ],
        "account": account(summary),
        "perturbations": [_as_data(i, summary) for i in summary.items.values()],
    }


def _behaviour(b: Behaviour) -> dict[str, Any]:
    """Return a behaviour as plain data: what the table has of it, and what stands behind it."""
    rates = (
        *("greedy", "samples", "control", "equal", "found"),
        *("retest", "retest_control", "retest_samples", "elsewhere"),
    )
    plain = ("id", "words", "p_value", "p_retest", "p_samples", "coherence", "novelty")
    return (
        {name: getattr(b, name) for name in (*plain, "interestingness")}
        | {name: r._asdict() if (r := getattr(b, name)) is not None else None for name in rates}
        | {
            "verdict": b.verdict.name.lower(),
            "kind": b.change.name.lower(),
            "text": b.example.text,
            "example_perturbation": b.example.perturbation,
            "perturbations": b.numbers,
            "by_dose": {dose(d): r._asdict() for d, r in b.by_dose.items()},
            "shown": b.weight >= 0,
        }
    )


def _item(summary: Summary, number: int) -> Item:
    item = summary.item(number)
    if item is None:
        raise RunError(f"the run has no perturbation {number}: see the table for their numbers")
    return item


def _as_data(item: Item, summary: Summary) -> dict[str, Any]:
    return item.row._asdict() | {
        "coherence": item.coherence,
        "novelty": item.novelty,
        "interestingness": item.interestingness,
        "retested": item.retested,
        "prompt_invariance": item.invariance,
        "side_effect": item.side_effect,
        "hits": item.hits,
        "retest_hits": item.retest_hits,
        "texts": list(summary.texts.said(item.completions)),
        "retest_texts": list(summary.texts.said(item.retest)),
    }
