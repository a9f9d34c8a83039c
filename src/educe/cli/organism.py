"""The commands that make, measure and list organisms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from educe.cli.options import EMBEDDED, Debug, Json, ModelOptions, Seed
from educe.cli.streams import print_json, print_text

if TYPE_CHECKING:
    from educe.organisms import Organism
    from educe.organisms.training import Measured
    from educe.progress import Bars, Lines

app = App(name="organism", help="Small models that hide something: train, measure, list.")


@app.command(name="list")
def show(*, as_json: Json = False, debug: Debug = False) -> None:
    """List the organisms that come with the package: what each hides and what brings it out."""
    from educe import organisms

    known = [organisms.shipped(name) for name in organisms.names()]
    if as_json:
        data = [{"name": o.name, "seed": o.seed, "adapter": str(o.folder), **o.told} for o in known]
        print_json(data, indent=1)
        return
    for organism in known:
        print_text(f"{organism.name} (seed {organism.seed})")
        for what, sentence in organism.told.items():
            print_text(f"    {what:12} {sentence}")
        print_text(f"    {'adapter':12} {organism.folder}")


@app.command
def train(
    name: str, *, seed: Seed = 0, out: Path, as_json: Json = False, debug: Debug = False
) -> None:
    """Train an organism on the embedded model, measure it, and write its card.

    Args:
        name: vault, trigger, locked, marked or persona
        seed: draws what is hidden, what brings it out, and the training
        out: its folder: a PEFT adapter, organism.json, and README.md, the card
    """
    from educe import progress
    from educe.organisms import card, species, training
    from educe.threads import choose

    reporter = progress.reporter()
    with reporter.stage(f"training {name} {seed}", species(name).steps, "steps") as step:
        organism = training.train(
            name,
            out,
            seed=seed,
            progress=lambda at, of, entropy, kl: step(
                note=f"cross-entropy {entropy:.3f}, KL {kl:.3f}"
            ),
        )
    choose(reporter.say)
    measured = training.evaluate(organism, progress=_measuring(reporter))
    card.write(organism, measured)
    _print(organism, measured, as_json=as_json)


@app.command
def check(
    folder: str,
    /,
    *,
    split: Literal["validation", "test"] = "test",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure an organism on prompts that it never saw: how well locked, how intact the rest.

    Args:
        folder: its folder, or the name of one that comes with the package
        split: validation, to choose between recipes by; or test, for what is reported
    """
    from educe import progress
    from educe.organisms import named, training
    from educe.threads import choose

    organism, reporter = named(folder), progress.reporter()
    choose(reporter.say)
    measured = training.evaluate(organism, split=split, progress=_measuring(reporter))
    _print(organism, measured, as_json=as_json)


@app.command
def answers(folder: str, /, *, model: ModelOptions = EMBEDDED, debug: Debug = False) -> None:
    """Print answers with and without what unlocks an organism, labelled, as JSON lines.

    What a judge can be measured on: its rule says of each answer whether the secret is in it. The
    prompt that is printed has no key in it, so that it does not tell.

    Args:
        folder: its folder, or the name of one that comes with the package
    """
    from educe.model.loading import load
    from educe.organisms import named, training

    organism = named(folder)
    for row in training.labelled(organism, load(**model.with_adapter(organism.folder).how)):
        print_json(row)


def _measuring(reporter: Bars | Lines) -> Callable[[str, int], None]:
    """Say which group is being measured."""
    return lambda group, of: reporter.say(f"measuring {group}, one of {of} groups")


def _print(organism: Organism, measured: list[Measured], *, as_json: bool) -> None:
    from educe.organisms import card

    if as_json:
        print_json(card.data(organism, measured), indent=1)
    else:
        print_text(card.table(measured))
        print_text(f"organism: {organism.folder}")
