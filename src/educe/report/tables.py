"""What `educe examine` and `educe derive` found, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from educe.report import derived, paths
from educe.report.screen import escaped, line, screen, written
from educe.summary import dose

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

#: Heads of the columns of `paths.VECTORS`, on one screen.
SHORT = {
    "sine": "sine",
    "drift": "drift",
    "turning": "turning",
    "exponent": "exp.",
    "effect_turning": "effect's",
    "neurons_variance": "slopes",
}


def norm(told: dict[str, Any], console: Console | None = None) -> None:
    """Print what the norm tells (see `educe.norm.survey`)."""
    console = console or screen()
    head = ("", "arm", "dose", "leaves", "flat", "new", "nons.")
    rules = ("linear", "steep", f"{told['budget']:g} nat")
    grid = _grid(*head, *rules)
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
    rates = ("it", "p", "new", "p", "nons.")
    table = _grid("dose", "at equal", "arm", "n", "radius", "KL 95%", *rates)
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
    console.print(written(shows, "bold", lead="Found and random perturbations; it: "))
    console.print(table)
    console.print(
        "[bold]The top of each score[/bold], and its p-values: within its set, and against"
    )
    console.print("random ones; as it is, and after regression on the log of the effect")
    tops = _grid("dose", "score", "top", "", "set", "random", "beyond effect", "set", "random")
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
    console = console or screen()
    massive = f", coordinates {', '.join(map(str, p['massive']))}" if p["massive"] else ""
    console.print(
        Panel(
            written(p["words"]),
            title=f"perturbation {p['number']} ({p['arm']}), layer {p['layer']}, "
            f"norm {p['norm']:.3g}",
            title_align="left",
        )
    )
    grid = _grid("", "this", "natural", "random", "%ile")
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
        f"[dim]{last['tokens']} tokens ({escaped(p['corpus'])}), held-out ones "
        f"{last['optimism']:.2f} times as far out; without first tokens{massive}[/dim]",
        highlight=False,
    )


def path(p: paths.Path, run: Path, console: Console | None = None) -> None:
    """Print vectors that were followed through the radius, and their nulls."""
    console = console or screen()
    console.print(
        f"[bold]through the radius[/bold]  {p.shares[0]:.2g} to {p.shares[-1]:.2g} of their "
        f"own, optimised anew at {len(p.shares)} radii"
    )
    grid = _grid("", "dose", "moved", *SHORT.values(), "left at")
    for row in paths.vectors(p):
        grid.add_row(*(cell or "–" for cell in row))
    grid.add_row()
    for of, own in paths.middles(p, paths.VECTORS).items():
        columns = (own[name].split(" ")[0] for name in paths.VECTORS)
        grid.add_row(of, "", "", *columns, "", style="dim")
    console.print(grid)
    console.print(
        "[dim]drift: what it turns at the same radius, per e-fold of a step\n"
        "slopes: variance over the neurons of the target's MLP of d response / dR\n"
        "left at: the share of its radius at which it left its basin[/dim]",
        highlight=False,
    )
    _vectors(run / p.file, console)


def shrunk(
    curves: Mapping[int, Sequence[tuple[float, float]]],
    kept: Mapping[int, float | None],
    by: str,
    keep: float,
    file: Path | None,
    console: Console | None = None,
) -> None:
    """Print how far perturbations could shrink.

    Args:
        curves: The shares of the radius that were looked at, and what was measured, by number.
        kept: The smallest share at which enough was left; None where there was nothing to keep.
        by: What was measured.
        keep: The share of it that was to stay.
        file: Of those that were kept.
        console: Where to.
    """
    console = console or screen()
    grid = _grid("", escaped(by), "kept at", "", "then", "")
    for number, curve in curves.items():
        start, share, last = f"{curve[0][1]:.2f}", kept[number], curve[-1]
        if share is None:
            grid.add_row(f"#{number}", start, "nothing to keep")
            continue
        after = [f"{last[0]:.2f}", f"{last[1]:.2f}"] if last[0] != share else []
        grid.add_row(f"#{number}", start, f"{share:.2f}", f"{dict(curve)[share]:.2f}", *after)
    console.print(f"[bold]shrunk[/bold]  while {escaped(by)} stays at {keep:.0%} or more")
    console.print(grid)
    if file:
        _vectors(file, console)


def front(points: Sequence[derived.Point], console: Console | None = None) -> None:
    """Print the front of what was found, and both arms within budgets of side effect."""
    console = console or screen()
    grid = _grid("side effect", "effect", "dose", "id", title="on the front")
    for p in sorted((p for p in points if p.front and p.arm == "found"), key=lambda p: p.kl):
        style = "bold" if p.hit else ""
        told = (f"{p.kl:.2f}", f"{p.effect:.3g}", dose(p.dose), str(p.perturbation))
        grid.add_row(*told, style=style)
    console.print(grid)
    grid = _grid("within", "found", "largest", "hits", "random", "largest", "hits")
    for budget, reached in derived.within(points):
        cells = [f"{budget:g} nats"]
        for own in reached.values():
            effect = "" if own.effect is None else f"{own.effect:.3g}"
            cells += [str(own.count), effect, own.hits or ""]
        grid.add_row(*cells)
    console.print(grid)


def sparse(s: derived.Sparse, console: Console | None = None) -> None:
    """Print how few groups keep a share of each vector's effect, and what these score."""
    console = console or screen()
    grid = _grid("id", *derived.ORDERS, "norm", "whole", "sparse", "re-test", "writes")
    for one in s.vectors:
        grid.add_row(
            str(one.number),
            *(str(one.needed[order]) for order in derived.ORDERS),
            f"{one.norm:.2f}",
            str(one.scores["whole"]),
            str(one.scores["lasso"]),
            f"{one.again['whole']} → {one.again['lasso']}",
            line(one.texts["lasso"]),
        )
    told = f"groups of {s.groups} in {escaped(s.basis)} that keep {s.keep:.0%} of the effect"
    console.print(told, style="bold")
    console.print(grid)


def ungated(scan: derived.Scan, console: Console | None = None) -> None:
    """Print the best sign and size of each arm, and its re-test."""
    console = console or screen()
    grid = _grid("arm", "id", "constant", "score", "re-test", "writes")
    for cell in (*scan.best.values(), *scan.gated):
        grid.add_row(
            cell.arm,
            str(cell.number),
            "gated" if cell.share is None else f"{cell.share:+g}",
            str(cell.score),
            str(cell.again or ""),
            line(cell.text),
        )
    console.print(grid)


def _vectors(file: Path, console: Console) -> None:
    console.print(written(f"{file} (educe discover --given)", "dim", lead="their vectors: "))


def _grid(*names: str, title: str | None = None) -> Table:
    """Return an empty table: words on the left, numbers on the right; what is written gives way."""
    grid = Table(
        box=None,
        padding=(0, 1),
        pad_edge=False,
        header_style="bold dim",
        title=title,
        title_justify="left",
    )
    for i, name in enumerate(names):
        words = name in ("arm", "writes") or not (i or name)
        grid.add_column(name, justify="left" if words else "right", no_wrap=name != "writes")
    return grid


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def _range(of: dict[str, float], form: str) -> str:
    return f"{of['median']:{form}} ({of['low']:{form}}–{of['high']:{form}})"
