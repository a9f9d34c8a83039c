"""What `educe examine` and `educe derive` found, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from educe.activations.report import (
    INSIDE,
    OUTSIDE,
    ManifoldReport,
    Range,
    at_layer,
    words,
)
from educe.comparison.account import dose
from educe.comparison.norm import Norm
from educe.comparison.stats import Estimate
from educe.report import derived, paths, sampling
from educe.report.manifold import ablated
from educe.report.norms import SCORED, called
from educe.report.screen import escaped, line, screen, written

#: What is equal in a comparison.
EQUAL = {"radius": "as used", "effect": "effect", "kl": "KL"}

#: Heads of the columns of `paths.VECTORS`, on one screen.
SHORT = {
    "sine": "sine",
    "drift": "drift",
    "turning": "turning",
    "exponent": "exp.",
    "effect_turning": "effect's",
    "neurons_variance": "slopes",
}


def norm(told: Norm, console: Console | None = None) -> None:
    """Print what the norm tells."""
    console = console or screen()
    judge = told.asked.judge
    head = ("", "arm", "dose", "leaves", "flat", "new", "nons.")
    grid = _grid(*head, "linear", "steep", f"{told.asked.budget:g} nat")
    for c in told.curves:
        name, arm = called(c).split()
        shown = ["–" if v is None else f"{v:.2f}" for v in (*c.marks, *c.choices)]
        grid.add_row(name, arm, dose(c.dose), *shown)
    console.print(
        "[bold]Where curves bend[/bold]: leaves its plateau, flattens, new text, nonsense; the\n"
        "[bold]radius by three rules[/bold]; shares of the radius used, – is not on the grid"
    )
    console.print(grid)
    rates = ("it", "p", "new", "p", "nons.")
    table = _grid("dose", "at equal", "arm", "n", "radius", "KL 95%", *rates)
    for e in told.equal:
        for arm, of, said in (("found", e.found, True), ("control", e.control, False)):
            shows, new, nonsense = (f"{r.hits}/{r.trials}" for r in (of.shows, of.new, of.nonsense))
            table.add_row(
                dose(e.dose) if said else "",
                EQUAL[e.at] if said else "",
                arm,
                str(of.reached),
                f"{of.radius:.3g}",
                f"{of.kl_p95:.2f}",
                shows if judge else "–",
                f"{e.p_shows:.2g}" if said and judge else "",
                new,
                f"{e.p_new:.2g}" if said else "",
                nonsense,
            )
    console.print(written(judge or "–", "bold", lead="Found and control; it: "))
    console.print(table)
    console.print(
        "[bold]The top of each score[/bold], and its p-values: within its set, and against"
    )
    console.print("the control; as it is, and after regression on the log of the effect")
    tops = _grid("dose", "score", "top", "", "set", "control", "beyond effect", "set", "control")
    for s in told.spreads:
        first = (dose(s.dose), SCORED[s.score], f"{s.top.value:.2f}")
        each = ((str(t.number), f"{t.grubbs:.2g}", f"{t.random:.2g}") for t in (s.top, s.left))
        tops.add_row(*first, *chain.from_iterable(each))
    console.print(tops)


def manifold(r: ManifoldReport, console: Console | None = None) -> None:
    """Print a manifold report on one screen."""
    console, facts = console or screen(), r.facts
    left_out = f", coordinates {', '.join(map(str, facts.massive))}" if facts.massive else ""
    console.print(
        Panel(
            written(words(r)),
            title=f"perturbation {r.number} ({r.arm}), layer {facts.layer}, norm {facts.norm:.3g}",
            title_align="left",
        )
    )
    grid = _grid("", "this", "natural", "random", "%ile")

    def line(name: str, judge: str, form: str, *, percentile: bool = True) -> None:
        of = r[judge]
        controls = (_range(of.natural, form), _range(of.random, form))
        ends = [f"{100 * of.percentile:.1f}"] if percentile else []
        grid.add_row(name, f"{of.found:{form}}", *controls, *ends)

    if facts.massive:
        line("energy in massive", "energy_massive", ".2f")
    line(f"energy in top {facts.rank} of {facts.width}", "energy_top", ".2f")
    line("Mahalanobis, same norm", "mahalanobis", ".3g")
    line("Mahalanobis, own norms", "mahalanobis_own", ".3g")
    if facts.prompt_rank:
        line(f"energy in prompts' {facts.prompt_rank}", "energy_prompt", ".2f")
    if facts.read_rank:
        line(f"energy in {facts.read_rank} that are read", "read", ".2f")
    grid.add_row()
    for layer in facts.layers:
        still, small = r.at("distance", layer).still, "" if r.enough(layer) else "?"
        line(f"distance at {layer}{small} ({still:.0%})", at_layer("distance", layer), ".0%")
    grid.add_row()
    for name, form in (("kl", ".3f"), ("entropy", ".2f"), ("perplexity", ".0f")):
        judge = f"heldout_{name}"
        plain = f" ({r[judge].still:{form}})" if name != "kl" else ""
        line(f"{name}{plain}", judge, form, percentile=False)
    for how in (INSIDE, OUTSIDE):
        for part in r.outcomes(how):
            grid.add_row(f"kl, its {how}", f"{part.scores['heldout_kl']:.3f}")
    taken = ablated(r)
    for one in taken:
        kl = "heldout_kl"
        grid.add_row(
            f"kl, ablated {one.form}", f"{one.scores[kl]:.3f}", "", _range(one.random[kl], ".3f")
        )
    console.print(grid)
    console.print(
        "[dim]natural: differences between activations, random: vectors, of this norm; %ile: among "
        f"natural ones. At later layers and below it {facts.tried[0]} and {facts.tried[1]}, "
        "lowest to highest. In brackets: unperturbed. ?: too little text.[/dim]",
        highlight=False,
    )
    if taken:
        told = ", ".join(f"{one.form} {one.scores['energy_unused']:.1%}" for one in taken)
        console.print(
            f"[dim]of what ablating it changes, in directions not used: {told} "
            f"(natural {facts.unused[0]:.1%}, random {facts.unused[1]:.0%})[/dim]",
            highlight=False,
        )
    console.print(
        f"[dim]{facts.fitted} tokens ({escaped(facts.corpus)}), held-out ones "
        f"{r.coverage[facts.layer][-1].optimism:.2f} times as far out; without first tokens"
        f"{left_out}[/dim]",
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
        columns = (cell.split(" ")[0] for cell in own)
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
    grid = _grid("within", "found", "largest", "hits", "control", "largest", "hits")
    for budget, reached in derived.within(points):
        cells = [f"{budget:g} nats"]
        for own in reached.values():
            effect = "" if own.effect is None else f"{own.effect:.3g}"
            cells += [str(own.n), effect, own.hits or ""]
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
            one.scores["whole"].short,
            one.scores["lasso"].short,
            f"{one.again['whole'].short} → {one.again['lasso'].short}",
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
            cell.score.short,
            cell.again.short if cell.again else "",
            line(cell.text),
        )
    console.print(grid)


def _vectors(file: Path, console: Console) -> None:
    console.print(written(f"{file} (educe discover --given)", "dim", lead="their vectors: "))


#: Columns that have more than one line where there is little room.
WIDE = ("writes", "natural", "random")


def _grid(*names: str, title: str | None = None) -> Table:
    """Return an empty table: words on the left, numbers on the right.

    What is written gives way, and so do ranges; a number alone is whole at any width.
    """
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
        grid.add_column(name, justify="left" if words else "right", no_wrap=name not in WIDE)
    return grid


def _range(of: Range, form: str) -> str:
    return f"{of.median:{form}} ({of.low:{form}}–{of.high:{form}})"


def sampled(told: dict[str, Any], run: Path, console: Console | None = None) -> None:
    """Print what came of a sampling."""
    console = console or screen()
    console.print(f"[bold]{escaped(sampling.title(told))}[/bold]")
    for sentence in sampling.account(told):
        console.print(f"  {escaped(sentence)}")
    for warning in told["diagnosis"]["warnings"] if told["diagnosis"] else ():
        console.print(f"  [bold]not mixed:[/bold] {escaped(warning)}")
    if told["answers"]:
        grid = _grid("direction", "mean", "sd", "verdict")
        for direction in told["answers"]["directions"]:
            name, mean, sd, says = (direction[k] for k in ("name", "mean", "sd", "says"))
            grid.add_row(escaped(name), f"{mean:+.2f}", f"{sd:.2f}", says)
        console.print("  in standard deviations of the prior:")
        console.print(grid)
    grid = _grid("", "from", "arm", "chosen", "re-test")
    for find in told["finds"]:
        again = Estimate(**find["again"])
        grid.add_row(
            *map(str, (find["number"], find["parent"], find["arm"])),
            f"{find['seen']:.3f}",
            str(again),
        )
    console.print(grid)
    for find in told["finds"]:
        console.print(line(find["text"], lead=f"{find['number']:>6} "))
    files = [name for name in (told["file"], told["control_file"]) if name]
    console.print(f"finds in {' and '.join(escaped(str(run / 'tensors' / f)) for f in files)}")


def combined(
    own: Mapping[int, float],
    made: Sequence[tuple[int, Sequence[int], float | None, float]],
    cosines: Sequence[float],
    console: Console | None = None,
) -> None:
    """Print what lies between vectors, and their average."""
    console = console or screen()
    grid = _grid("", "of", "way", "score")
    for number, score in own.items():
        grid.add_row(str(number), "itself", "", f"{score:.3f}")
    for number, of, share, score in made:
        way = "average" if share is None else f"{share:g}"
        grid.add_row(str(number), " ".join(map(str, of)), way, f"{score:.3f}")
    console.print(grid)
    if cosines:
        each = ", ".join(f"{cosine:.2f}" for cosine in cosines)
        console.print(f"cosine of the average of the first 1, 2, … with the supervised one: {each}")
