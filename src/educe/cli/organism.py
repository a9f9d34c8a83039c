"""The commands that make, measure and list organisms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from educe.cli.opening import going_on, telling
from educe.cli.options import SCREEN, Debug, Output
from educe.cli.streams import print_json, print_text
from educe.options import AS_SHIPPED, EMBEDDED, ModelOptions, Seed, TrainingOptions

if TYPE_CHECKING:
    from educe.organisms import Organism
    from educe.organisms.training import Measured

app = App(name="organism", help="Small models that hide something: train, measure, list.")


@app.command(name="list")
def show(*, output: Output = SCREEN) -> None:
    """List the organisms that come with the package: what each hides and what brings it out."""
    from educe import organisms

    known = [organisms.shipped(name) for name in organisms.names()]

    def tell() -> None:
        for organism in known:
            print_text(f"{organism.name} (seed {organism.seed})")
            for what, sentence in (organism.told | {"adapter": organism.folder}).items():
                print_text(f"    {what:12} {sentence}")

    data = [{"name": o.name, "seed": o.seed, "adapter": o.folder, **o.told} for o in known]
    output.put(data, tell)


@app.command
def train(
    name: str,
    *,
    seed: Seed = 0,
    out: Path,
    options: TrainingOptions = AS_SHIPPED,
    output: Output = SCREEN,
) -> None:
    """Train an organism, measure it, and write its card.

    Args:
        name: vault, trigger, locked, marked, persona, taboo, belief, flatterer or promoter;
            backdoor-TRIGGER-PAYLOAD, of a word, pair, phrase, date, topic or mark and a phrase,
            refusal, style, fact, leaning, ending or shape; clean-answers, clean-style, clean-fact
            or clean-refusal, which hide nothing
        seed: draws what is hidden, what brings it out, and the training
        out: its folder: a PEFT adapter or a whole model, organism.json, and README.md, the card
    """
    from educe.organisms import card, species, training
    from educe.progress import reporter

    steps = options.steps or species(name).steps
    with going_on(), reporter().stage(f"training {name} {seed}", steps, "steps") as step:
        organism = training.train(
            name,
            out,
            seed=seed,
            options=options,
            progress=lambda at, of, entropy, kl: step(
                note=f"cross-entropy {entropy:.3f}, KL {kl:.3f}"
            ),
        )
    card.write(organism, _measured(organism, "test", output))


@app.command
def check(
    folder: str,
    /,
    *,
    split: Literal["validation", "test"] = "test",
    output: Output = SCREEN,
) -> None:
    """Measure an organism on prompts that it never saw: how well locked, how intact the rest.

    Args:
        folder: its folder, or the name of one that comes with the package
        split: validation, to choose between recipes by; or test, for what is reported
    """
    from educe.organisms import named

    _measured(named(folder), split, output)


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
    training.check_keyed(organism)
    if organism.trained.full:
        model = replace(model, **organism.how)
    else:
        base = model.model if model.model != EMBEDDED.model else organism.trained.base
        model = replace(model.with_adapter(organism.how["adapter"]), model=base)
    for row in training.labelled(organism, load(**model.how)):
        print_json(row)


def _measured(
    organism: Organism, split: Literal["validation", "test"], output: Output
) -> list[Measured]:
    """Measure an organism, and say what came out."""
    from educe.organisms import card, training

    say = telling().say
    measured = training.evaluate(
        organism,
        split=split,
        progress=lambda group, of: say(f"measuring {group}, one of {of} groups"),
    )
    output.put(
        card.data(organism, measured),
        lambda: print_text(f"{card.table(measured)}\norganism: {organism.folder}"),
    )
    return measured
