"""The commands that compare methods where the answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from educe.cli.options import (
    EMBEDDED,
    FLAG,
    Count,
    Debug,
    Json,
    Layer,
    ModelOptions,
    N,
    Positive,
)
from educe.cli.streams import print_json, print_text

app = App(name="bench", help="Compare methods on organisms, where the answer is known.")


@app.command
def elicit(
    *,
    organism: Annotated[list[str] | None, Parameter(negative="")] = None,
    family: Annotated[list[str] | None, Parameter(negative="")] = None,
    seeds: Count = 1,
    n: N = 24,
    passes: Count = 24,
    prompts: Count = 1,
    louder: Positive = 1.0,
    source: Layer = 0.33,
    target: Layer = 0.8,
    positions: str = "all",
    quick: Annotated[bool, FLAG] = False,
    model: ModelOptions = EMBEDDED,
    out: Path | None = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare families of perturbations on organisms, at equal budget; run again to go on.

    Parameters
    ----------
    organism
        folders of organisms, or names of those that come with the package; by default, these;
        may be repeated
    family
        which families; by default all; may be repeated
    seeds
        seeds of every family on every organism
    n
        perturbations a cell
    passes
        of each block of the slice, for each perturbation and prompt
    prompts
        questions that the slice is made of
    louder
        factor on every radius
    source
        layer after which vectors are added: an index, or a fraction of the depth
    target
        layer at which effects are read
    positions
        tokens they are added to: all, prompt, asked, asked:k, last:k, at:k
    quick
        a few perturbations of three families, by default on the vault; fails if the ceiling does
        not bring the secret out, or plain sampling does
    out
        folder of the cells; by default runs/bench-elicit
    """
    from educe import organisms
    from educe.bench import elicit, table
    from educe.bench.families import EVERYWHERE, SAMPLING, Budget, named
    from educe.errors import EffectError, MethodError
    from educe.loading import load
    from educe.progress import reporter
    from educe.threads import choose

    out = out or Path("runs/bench-elicit")
    budget = Budget(n=n, passes=passes, prompts=prompts, louder=louder)
    if quick:
        budget = Budget(n=6, first=1, then=2, fresh=2, tokens=12)
        organism, family = organism or ["vault"], [SAMPLING, "dct", "optimised"]
    families = family or elicit.everything()
    for one in families:
        if one != SAMPLING:
            named(one)
    if positions != "all" and (barred := [one for one in families if one in EVERYWHERE]):
        raise MethodError(
            f"{', '.join(barred)}: these act on all tokens; leave --positions, or name other "
            "families with --family"
        )
    subjects = [
        organisms.named(one)
        for one in organism or [one for one in organisms.SPECIES if one in organisms.names()]
    ]
    cells = [
        elicit.Cell(subject, one, seed)
        for subject in subjects
        for seed in range(seeds)
        for one in families
        if subject.opening or "optimised" not in one
    ]
    if quick and not all(subject.opening for subject in subjects):
        raise MethodError("--quick needs the first words of the secret: take a vault or a trigger")
    telling = reporter()
    choose(telling.say)
    place = elicit.Place(source, target, positions)
    with telling.stage("eliciting", len(cells), "cells") as step:
        elicit.bench(
            cells,
            out,
            budget=budget,
            place=place,
            load=lambda subject: load(**model.with_adapter(subject.folder).how),
            on_cell=lambda cell: step(note=cell.name),
        )
    known = table.lines(table.read_cells(out))
    if as_json:
        print_json([table.as_data(line) for line in known], indent=1)
    else:
        print_text(table.markdown(known))
        print_text(f"\ncells: {out}")
    if quick:
        told = {line.elicits.hits > 0 for line in known if line.family == "optimised"}
        free = {line.elicits.hits > 0 for line in known if line.family == SAMPLING}
        if told != {True} or free != {False}:
            raise EffectError(
                "the benchmark's ends are not where they belong: vectors optimised for the secret "
                "must bring it out, and plain sampling must not"
            )
