"""What a run found, on one screen of a terminal or as data."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any
from unicodedata import category

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from educe.errors import RunError
from educe.report import path_table
from educe.runs import CompletionRow
from educe.summary import Behaviour, Item, Summary, Verdict, dose

#: What comparisons and scores of `norm` are called.
EQUAL = {"radius": "as used", "effect": "effect", "kl": "KL"}
SCORED = {
    "coherence": "coherence",
    "novelty": "novelty",
    "striking": "striking",
    "kl": "mean KL",
    "high": "KL, 95%",
    "score": "judged",
}
SHOWN = 8  #: behaviours in the table
SCREEN = 34  #: lines of texts that are printed at once


def table(summary: Summary, folder: Path, console: Console | None = None) -> None:
    """Print the behaviours, the control beside them, and what is noise."""
    console = console or Console()
    facts = summary.facts
    adapter = f" + {Path(facts['adapter']).name}" if facts.get("adapter") else ""
    doses = ", ".join(dose(r / facts["unit"]) for r in facts["radii"])
    console.print(
        f"[bold]{escape(facts['model'] + adapter)}[/bold]  {facts['method']}, "
        f"resid_post.{facts['source']} → {facts['target']}, doses {doses}, "
        f"{len(summary.found)} found and {len(summary.control)} random perturbations"
    )
    if facts.get("why"):
        console.print(Text(f"layers      {facts['why']}", style="dim"))
    for prompt in summary.prompts[:2]:
        answers = summary.baseline.get(prompt.id, ())
        console.print(Text(f"asked       {_short(str(prompt.content), 68)}"))
        if answers:
            console.print(Text(f"unperturbed {_short(answers[0].text, 68)}", style="dim"))
    shown = (Verdict.BEHAVIOUR, Verdict.HELD, Verdict.RARE)
    told = [b for b in summary.behaviours if b.verdict in shown]
    grid = Table(box=None, padding=(0, 1), header_style="bold dim")
    for name in ("found", "random", "re-test", "strik.", "id"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("what the model writes")  # the one column that gives way
    for behaviour in told[:SHOWN]:
        again = behaviour.retest[0]
        grid.add_row(
            f"{behaviour.found.hits}/{behaviour.found.trials}",
            f"{behaviour.control.hits}/{behaviour.control.trials}",
            f"{again.hits}/{again.trials}" if again.trials else "",
            f"{behaviour.striking:.2f}",
            str(behaviour.example.perturbation),
            Text(
                _short(behaviour.example.text, 200),
                style="" if _clear(behaviour) else "dim",
                no_wrap=True,
                overflow="ellipsis",
            ),
        )
    console.print(grid if told else "No behaviour but those of the unperturbed model and damage.")
    for verdict in Verdict:
        those = [b for b in summary.behaviours if b.verdict is verdict]
        if those:
            many = len({item.row.id for b in those for item in b.items})
            console.print(
                f"{len(those):4d} {_plural(those)}  {verdict.value}  "
                f"[dim]({many} perturbations)[/dim]"
            )
    if summary.hits:
        found, control = summary.hits
        console.print(
            f"looked for {escape(repr(summary.config['look_for']))}: "
            f"found {found}, random {control}",
            highlight=False,
        )
    if summary.retest_hits and summary.retest_hits[0].trials:
        found, control = summary.retest_hits
        console.print(
            f"re-test of the most striking: found {found}, random {control} texts", highlight=False
        )
    console.print(
        f"[dim]one perturbation: educe show {escape(str(folder))} ID[/dim]", highlight=False
    )


def where(report: Path, console: Console | None = None) -> None:
    """Say where the report is."""
    (console or Console()).print(
        f"[bold]report:[/bold] {escape(str(report.resolve()))}", soft_wrap=True, highlight=False
    )


def norm(told: dict[str, Any], console: Console | None = None) -> None:
    """Print what the norm tells (see `educe.norm.survey`)."""
    console = console or Console()
    head = ("", "arm", "dose", "leaves", "flat", "new", "nons.")
    rules = ("linear", "steep", f"{told['budget']:g} nat")
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold dim")
    for name in (*head, *rules):
        grid.add_column(name, justify="right", no_wrap=True)
    for c in told["curves"]:
        arm = "found" if c["arm"] == "found" else "random"
        ends = (*c["marks"].values(), *c["choices"].values())
        shown = ["–" if v is None else f"{v:.2f}" for v in ends]
        sign = "+" if c["sign"] > 0 else "−"
        grid.add_row(f"{sign}{c['number']}", arm, dose(c["dose"]), *shown)
    console.print(
        "[bold]Where curves bend[/bold]: leaves its plateau, flattens, new text, nonsense; the\n"
        "[bold]radius by three rules[/bold]; shares of the radius used, – is not on the grid"
    )
    console.print(grid)
    shows = f"{told['judge']}" if told["judge"] else "–"
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold dim")
    columns = "dose,at equal,arm,n,radius,KL 95%,it,p,new,p,nons."
    for name in columns.split(","):
        table.add_column(name, justify="right", no_wrap=True)
    for e in told["equal"]:
        for arm in ("found", "control"):
            of = e[arm]
            first = arm == "found"
            table.add_row(
                dose(e["dose"]) if first else "",
                EQUAL[e["at"]] if first else "",
                "found" if first else "random",
                str(of["reached"]),
                f"{of['radius']:.3g}",
                f"{of['high']:.2f}",
                f"{of['shows']['hits']}/{of['shows']['trials']}" if told["judge"] else "–",
                f"{e['p_shows']:.2g}" if first and told["judge"] else "",
                f"{of['new']['hits']}/{of['new']['trials']}",
                f"{e['p_new']:.2g}" if first else "",
                f"{of['nonsense']['hits']}/{of['nonsense']['trials']}",
            )
    console.print(Text(f"Found and random perturbations; it: {shows}", style="bold"))
    console.print(table)
    console.print(
        "[bold]The top of each score[/bold], and its p-values: within its set, and against"
    )
    console.print("random ones; as it is, and after regression on the log of the effect")
    tops = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold dim")
    for name in ("dose", "score", "top", "", "set", "random", "beyond effect", "set", "random"):
        tops.add_column(name, justify="right", no_wrap=True)
    for s in told["spreads"]:
        top, left = s["top"], s["left"]
        tops.add_row(
            dose(s["dose"]),
            SCORED[s["score"]],
            f"{top['value']:.2f}",
            str(top["number"]),
            *(f"{top[k]:.2g}" for k in ("grubbs", "random")),
            str(left["number"]),
            *(f"{left[k]:.2g}" for k in ("grubbs", "random")),
        )
    console.print(tops)


def passport(p: dict[str, Any], console: Console | None = None) -> None:
    """Print a passport (see `educe.manifold.record`) on one screen."""
    console = console or Console()
    massive = f", coordinates {', '.join(map(str, p['massive']))}" if p["massive"] else ""
    console.print(
        Panel(
            Text(p["words"]),
            title=f"perturbation {p['number']} ({p['arm']}), layer {p['layer']}, "
            f"norm {p['norm']:.3g}",
            title_align="left",
        )
    )
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold dim")
    for name in ("", "this", "natural", "random", "%ile"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    rows = {"energy in massive": (p["massive_share"], ".2f")} if p["massive"] else {}
    rows |= {
        f"energy in top {p['rank']} of {p['width']}": (p["share"], ".2f"),
        "Mahalanobis, same norm": (p["length"], ".3g"),
        "Mahalanobis, own norms": (p["size"], ".3g"),
    }
    if p["prompt"]:
        rows[f"energy in prompt's {p['prompt_rank']}"] = (p["prompt"], ".2f")
    for name, (of, form) in rows.items():
        controls = (_range(of[kind], form) for kind in ("natural", "random"))
        grid.add_row(name, f"{of['found']:{form}}", *controls, f"{100 * of['percentile']:.1f}")
    grid.add_row()
    for at in p["depth"]:
        of, still = at["distance"], at["still_distance"]
        controls = (_range(of[kind], ".0%") for kind in ("natural", "random"))
        small = "" if at["enough"] else "?"
        name = f"distance at {at['layer']}{small} ({still:.0%})"
        grid.add_row(name, f"{of['found']:.0%}", *controls, f"{100 * of['percentile']:.1f}")
    grid.add_row()
    outputs = {o["name"]: o for o in p["outputs"]}
    for name, form in (("kl", ".3f"), ("entropy", ".2f"), ("perplexity", ".0f")):
        plain = f" ({outputs['unperturbed'][name]:{form}})" if name != "kl" else ""
        controls = (
            _range(_spread([o[name] for n, o in outputs.items() if n.split()[0] == kind]), form)
            for kind in ("natural", "random")
        )
        grid.add_row(f"{name}{plain}", f"{outputs['the perturbation'][name]:{form}}", *controls)
    for part in ("its part inside", "its part outside"):
        if part in outputs:
            grid.add_row(f"kl, {part}", f"{outputs[part]['kl']:.3f}")
    for taken in p["taken"]:
        name = f"kl, taken away ({taken['form']})"
        grid.add_row(name, f"{taken['kl']:.3f}", "", _range(taken["random"], ".3f"))
    console.print(grid)
    console.print(
        "[dim]natural: differences between activations, random: vectors, of this norm; %ile: among "
        f"natural ones. At later layers and below it {p['controls'][0]} and {p['controls'][1]}, "
        "lowest to highest. In brackets: unperturbed. ?: too little text.[/dim]",
        highlight=False,
    )
    if p["taken"]:
        told = ", ".join(f"{t['form']} {t['outside']:.1%}" for t in p["taken"])
        console.print(
            f"[dim]of what taking it away changes, in directions not used: {told} "
            f"(natural {p['unused'][0]:.1%}, random {p['unused'][1]:.0%})[/dim]",
            highlight=False,
        )
    last = p["growth"][-1]
    console.print(
        f"[dim]{last['tokens']} tokens ({p['corpus']}), held-out ones {last['optimism']:.2f} "
        f"times as far out; without first tokens{massive}[/dim]",
        highlight=False,
    )


def path(p: dict[str, Any], run: Path, console: Console | None = None) -> None:
    """Print vectors that were followed through the radius, and their nulls."""
    console = console or Console()
    console.print(
        f"[bold]through the radius[/bold]  {p['shares'][0]:.2g} to {p['shares'][-1]:.2g} of their "
        f"own, optimised anew at {len(p['shares'])} radii"
    )
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold dim")
    for name in ("", "moved", "sine", "drift", "turning", "exp.", "effect's", "slopes", "left at"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    for r in path_table.rows(p):
        numbers = (r["sine"], r["drift"], r["turning"], r["exponent"], r["effect_turning"])
        told = [f"{x:.2f}" if x is not None else "–" for x in numbers]
        slopes = r["neurons_variance"]
        told.append(f"{slopes:.2g}" if slopes is not None else "–")
        away = " ".join(f"{share:.2g}" for share in r["left"]) or "nowhere"
        grid.add_row(f"#{r['number']}", f"{r['moved']:.0f}°", *told, away)
    grid.add_row()
    for title, m in path_table.middles(p).items():
        names = ("turning", "exponent", "effect_turning", "neurons_variance")
        sine, *columns = (m[name].split(" ")[0] for name in ("sine", *names))
        grid.add_row(title, "", sine, "", *columns, "", style="dim")
    console.print(grid)
    console.print(
        "[dim]drift: what it turns with the radius held, per e-fold of a step\n"
        "slopes: variance over the neurons of the target's MLP of d response / dR\n"
        "left at: the share of its radius at which it left its basin[/dim]",
        highlight=False,
    )
    console.print(Text(f"their vectors: {run / p['file']} (educe discover --given)", style="dim"))


def shrunk(p: dict[str, Any], run: Path, console: Console | None = None) -> None:
    """Print how far vectors could shrink."""
    console = console or Console()
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold dim")
    for name in ("", p["by"], "kept at", "", "then", ""):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    for number, curve, kept in zip(p["numbers"], p["curves"], p["kept"], strict=True):
        if kept is None:
            grid.add_row(f"#{number}", f"{curve[0][1]:.2f}", "nothing to keep")
            continue
        values = dict(map(tuple, curve))
        after = [f"{curve[-1][0]:.2f}", f"{curve[-1][1]:.2f}"] if curve[-1][0] != kept else []
        grid.add_row(
            f"#{number}", f"{curve[0][1]:.2f}", f"{kept:.2f}", f"{values[kept]:.2f}", *after
        )
    console.print(f"[bold]shrunk[/bold]  while {p['by']} stays at {p['keep']:.0%} or more")
    console.print(grid)
    console.print(Text(f"their vectors: {run / p['file']} (educe discover --given)", style="dim"))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def _range(of: dict[str, float], form: str) -> str:
    return f"{of['median']:{form}} ({of['low']:{form}}–{of['high']:{form}})"


def perturbation(summary: Summary, number: int, console: Console | None = None) -> None:
    """Print one perturbation with everything it wrote; number 0 is the unperturbed model.

    Raises:
        RunError: The run has no perturbation of that number.
    """
    console = console or Console()
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
    console.print(
        Panel(
            f"{row.method} ({row.arm}), radius {row.radius:.3g}, dose {dose(row.dose)}, effect "
            f"{row.effect:.3g}\ncoherence {item.coherence:.2f}, novelty {item.novelty:.2f}, "
            f"striking {item.striking:.2f}; re-test {again}; side effect {side}\n"
            f"{row.file}, item {row.item}",
            title=f"perturbation {row.id}",
            title_align="left",
        )
    )
    written: dict[int, list[CompletionRow]] = {}
    for completion in (*item.completions, *item.retest):
        written.setdefault(completion.prompt, []).append(completion)
    texts = [c.text for own in written.values() for c in own]
    long = sum(len(text) // (console.width - 15) + 1 for text in texts) + 2 * len(written) > SCREEN
    for prompt, own in written.items():
        base = summary.baseline[prompt][0].text
        _line(console, "", contents[prompt], "bold")
        _line(console, "  unperturbed  ", base, "dim")
        for completion in own:
            if long:
                _line(console, "  perturbed    ", completion.text)
            else:
                console.print(Text(f"  perturbed    {_visible(completion.text)}"))
    if long:
        console.print("[dim]the whole texts: --json, or the report[/dim]", highlight=False)


def _unperturbed(summary: Summary, contents: dict[int, str], console: Console) -> None:
    """Print what the unperturbed model answers, of every prompt as much as fits on a screen."""
    each = max(1, SCREEN // max(1, len(summary.baseline)) - 1)
    for prompt, answers in summary.baseline.items():
        _line(console, "", contents[prompt], "bold")
        for answer in answers[:each]:
            _line(console, f"  T={answer.temperature:g}  ", answer.text)
    if any(len(answers) > each for answers in summary.baseline.values()):
        console.print("[dim]the other samples: --json, or the report[/dim]", highlight=False)


def _line(console: Console, lead: str, text: str, style: str = "") -> None:
    line = lead + " ".join(_visible(text).split())
    console.print(Text(line, style), no_wrap=True, overflow="ellipsis")


def as_data(summary: Summary, number: int | None) -> dict[str, Any]:
    """Return the same as plain data.

    Raises:
        RunError: The run has no perturbation of that number.
    """
    if number is not None:
        if number == 0:
            return {str(p): [c._asdict() for c in a] for p, a in summary.baseline.items()}
        return _as_data(_item(summary, number))
    return {
        "settings": summary.config,
        "facts": summary.facts,
        "hits": [h._asdict() for h in summary.hits] if summary.hits else None,
        "retest_hits": [h._asdict() for h in summary.retest_hits] if summary.retest_hits else None,
        "behaviours": [
            {
                "id": b.id,
                "verdict": b.verdict.name.lower(),
                "words": b.words,
                "example": b.example.text,
                "example_perturbation": b.example.perturbation,
                "perturbations": [i.row.id for i in b.items],
                "found": b.found._asdict(),
                "control": b.control._asdict(),
                "p_value": b.p_value,
                "p_retest": b.p_retest,
                "held": b.held._asdict(),
                "coherence": b.coherence,
                "novelty": b.novelty,
                "striking": b.striking,
            }
            for b in summary.behaviours
        ],
        "perturbations": [_as_data(i) for i in (*summary.found, *summary.control)],
    }


def _item(summary: Summary, number: int) -> Item:
    item = summary.item(number)
    if item is None:
        raise RunError(f"the run has no perturbation {number}: see the table for their numbers")
    return item


def _as_data(item: Item) -> dict[str, Any]:
    return item.row._asdict() | {
        "coherence": item.coherence,
        "novelty": item.novelty,
        "striking": item.striking,
        "retested": item.retested,
        "constancy": item.constancy,
        "side_effect": item.side_effect,
        "hits": item.hits,
        "retest_hits": item.retest_hits,
        "texts": [c.text for c in item.completions],
        "retest_texts": [c.text for c in item.retest],
    }


def _clear(behaviour: Behaviour) -> bool:
    return behaviour.verdict in (Verdict.BEHAVIOUR, Verdict.HELD)


def _plural(those: list[Behaviour]) -> str:
    return "behaviour " if len(those) == 1 else "behaviours"


def _short(text: str, limit: int) -> str:
    line = " ".join(_visible(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _visible(text: str) -> str:
    """Replace what a terminal would obey rather than show: a model can write escape sequences."""
    return "".join("�" if category(c) == "Cc" and c not in "\n\t" else c for c in text)
