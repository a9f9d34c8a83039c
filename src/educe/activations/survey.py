"""Passports of perturbations of a run, kept in it: one pass over the corpus for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from educe.activations import corpus as texts
from educe.activations import kept
from educe.activations.ground import Ground
from educe.activations.passport import Labels, depths, examine_on
from educe.activations.reading import Place
from educe.activations.record import Passport
from educe.model import LanguageModel
from educe.progress import Reporter
from educe.rendering import PromptBatch
from educe.run import same_model
from educe.run.fill import groups
from educe.run.store import Run


def examine_run(
    run: Run,
    numbers: Sequence[int],
    lm: LanguageModel,
    prompts: PromptBatch,
    *,
    corpus: str = texts.BUNDLED,
    tokens: int = 100_000,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[Passport]:
    """Write the passports of some perturbations and keep them in their run.

    Args:
        run: The run.
        numbers: The perturbations, by their numbers in it.
        lm: Its model.
        prompts: Its prompts.
        corpus: See `educe.activations.corpus.documents`.
        tokens: The most tokens of the corpus that are read.
        seed: Of samples and controls.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        PromptError: The corpus cannot be read, or is too small to hold anything out.
        RunError: The model is not the run's.
    """
    same_model.check(run, lm)
    target = run.note("facts")["target"]
    arms = {p.id: p.arm for p in run.perturbation_rows()}
    members = groups(run, numbers)
    layers = [depths(group.kind.last, target, lm.depth) for group in members]
    places = [Place(layer) for layer in sorted({layer for some in layers for layer in some})]
    gathered = kept.gather(
        lm, texts.documents(corpus), places, limit=tokens, seed=seed, reporter=reporter
    )
    made = {}
    for group, seen in zip(members, layers, strict=True):
        ground = Ground(lm, gathered, group.kind.before, seen, seed=seed)
        for i, number in enumerate(group.numbers):
            passport = examine_on(
                ground,
                group.kind,
                group.theta[i : i + 1].to(lm.device),
                prompts=prompts,
                labels=Labels(number, arms[number], target, corpus),
                reporter=reporter,
            )
            run.remember(f"passport-{number:06d}", passport.data())
            made[number] = passport
    return [made[number] for number in numbers]
