"""What is measured of a model before and after: on prompts that took no part in the training.

KL       p ‖ q, a token of answers to fresh prompts of the run and to ordinary ones, in nats
same     how often an answer to a fresh prompt begins as the unperturbed model's did before
shows    how often what the run looks for is found in it, where it looks for something
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from educe.activations.corpus import questions
from educe.comparison.stats import Rate, bootstrap_mean, rate
from educe.derive.listing import looked_for
from educe.forward.benign import ordinary_prompts
from educe.hardening.pushes import Push, answered, apart, written
from educe.hardening.records import Level
from educe.model.batch import PromptBatch
from educe.model.prompts import Prompt
from educe.organisms import lora
from educe.run.scored import Mean
from educe.run.settings import encoded
from educe.run.work import Work
from educe.scores import Answer

#: Ordinary prompts: to train on; held out beside the bundled ones; looked at under each vector.
ORDINARY, HELD, UNDER = 64, 12, 12
#: Two answers begin alike if so many words do; and the most tokens of an answer.
WORDS, TOKENS = 8, 20


class Material(NamedTuple):
    """Prompts with what the model, as it was, answers."""

    asked: list[lora.Example]  #: the run's, to train on
    ordinary: list[lora.Example]  #: ordinary ones, to train on
    held: list[lora.Example]  #: ordinary ones, held out
    retest: list[lora.Example]  #: the run's fresh ones, or those asked where it has none
    batch: PromptBatch  #: the prompts of these
    plain: list[str]  #: what the model answers to them


def plain_batch(work: Work, prompts: Sequence[Prompt]) -> PromptBatch:
    """Read prompts as the run reads its own, without its first words of the answer."""
    return encoded(work.lm, replace(work.settings, prefill=""), prompts)


def ordinary(work: Work) -> tuple[list[Prompt], list[Prompt]]:
    """Return ordinary prompts to train on and others that are held out, none of them the run's."""
    own = {str(p.content) for p in work.run.prompt_rows() if p.role in ("asked", "fresh")}
    spread: list[Prompt] = [q for q in questions() if q not in own]
    held = [q for q in ordinary_prompts() if q not in own] + spread[::5][:HELD]
    rest = [q for q in spread if q not in held]
    return rest[:ORDINARY], held


def retested(work: Work) -> PromptBatch:
    """Return the fresh prompts of a run; where it has none, those that were searched with."""
    fresh = work.settings.fresh
    return encoded(work.lm, work.settings, fresh) if fresh else work.asked


def material(work: Work) -> Material:
    """Let the model, as it is now, answer what it is trained and measured on."""
    lm = work.lm
    train, held = ordinary(work)
    batch = retested(work)
    with work.reporter.stage("answers without a vector", 4, "groups of prompts") as step:

        def answers(prompts: PromptBatch) -> list[lora.Example]:
            step()
            return answered(lm, prompts, tokens=TOKENS)

        return Material(
            answers(work.asked),
            answers(plain_batch(work, train)),
            answers(plain_batch(work, held)),
            answers(batch),
            batch,
            texts(work, batch, []),
        )


def texts(work: Work, batch: PromptBatch, pushes: Sequence[Push]) -> list[str]:
    """Return what the model writes, prompt by prompt under one vector after the other."""
    came = written(work.lm, batch, pushes, tokens=work.settings.max_new_tokens)
    return [came[at].text for at in sorted(came)]


def level(work: Work, known: Material, pushes: Sequence[Push]) -> Level:
    """Measure the model, as it is now, under some vectors, or without one where there are none."""
    lm = work.lm
    if pushes:
        examples = known.retest + known.held[:UNDER]
        kl = bootstrap_mean([float(apart(lm, examples, push).mean()) for push in pushes])
    else:
        kl = bootstrap_mean(apart(lm, known.held).tolist())
    said = texts(work, known.batch, pushes)
    plain = known.plain * max(1, len(pushes))
    return Level(Mean(*kl), same(said, plain), shows(work, said))


def same(said: Sequence[str], plain: Sequence[str]) -> Rate:
    """Return how often two texts begin with the same words.

    Example:
        >>> from educe.hardening.measuring import same
        >>> same(["a b", "a c"], ["a b", "a b"])
        Rate(hits=1, trials=2, low=..., high=...)
    """
    pairs = zip(said, plain, strict=True)
    return rate(sum(a.split()[:WORDS] == b.split()[:WORDS] for a, b in pairs), len(plain))


def shows(work: Work, said: Sequence[str]) -> Rate | None:
    """Return how often what the run looks for is found; nothing where it looks for nothing."""
    judge = looked_for(work.run)
    if judge is None:
        return None
    found = judge.score([Answer("", text, ()) for text in said])
    return rate(sum(score.value > 0 for score in found), len(said))
