"""Reach: the test whether a text does what a perturbation does, one target after the other.

A `Bench` has the prompts, the strings to begin with and the budget, which are the same for all that
is inverted on it: perturbation and controls are then compared at equal cost. The first prompts are
searched on, the others count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from educe.comparison.stats import bootstrap_mean
from educe.errors import PromptError
from educe.forward.inserted import Opening
from educe.inversion.control import Known
from educe.inversion.direction import Ground
from educe.inversion.examples import natural, requests
from educe.inversion.report import Case, Settings
from educe.inversion.said import Speech
from educe.inversion.searches import Found, search
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import text
from educe.inversion.taught import Taught, by_text, following, taught, written
from educe.methods.state import State
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kind import Kind
from educe.scores.novelty import vectors
from educe.whole import check_fields

#: Natural strings to begin with, and to compare with how likely a string is.
EXAMPLES = 64
#: Tokens of the answers that are shown and compared by their words.
WRITTEN = 24
#: The natural strings that a search begins at, and points of its curve that are kept.
BEGUN, POINTS = 8, 24


class Bench:
    """What perturbations and their controls are inverted on.

    Args:
        lm: The model.
        batch: Prompts: those that are searched on, then those that count.
        settings: How.

    Attributes:
        openings: Where strings are put, behind each prompt's message.
        first: Natural strings.

    Raises:
        PromptError: There are too few prompts, or a message cannot be found in one.
        MethodError: A setting is out of bounds.
    """

    def __init__(self, lm: LanguageModel, batch: PromptBatch, settings: Settings) -> None:
        check_fields(settings)
        self.lm, self.settings = lm, settings
        needed = settings.searched + settings.fresh
        if len(batch) < needed:
            raise PromptError(
                f"{len(batch)} prompts, of which {settings.searched} are searched on and "
                f"{settings.fresh} count: give more, or ask for fewer"
            )
        self.batch = batch.select(range(needed))
        self.openings = [Opening(lm, batch, p) for p in range(needed)]
        self.vocabulary = Vocabulary(lm)
        self._natural = natural(self.vocabulary, settings.tokens, EXAMPLES)
        some = (requests(self.vocabulary, settings.tokens), self._natural)
        self.first = torch.cat(some).unique(dim=0)
        self.searched = range(settings.searched)
        self.fresh = range(settings.searched, needed)
        self._grounds: dict[int | None, Ground | Speech] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Bench, (self.lm, self.batch, self.settings)  # what is read once, is read anew

    def ground(self, layer: int | None) -> Ground | Speech:
        """Return what changes are measured against: of the stream leaving a layer, or the output.

        What natural strings change there is read once.
        """
        if layer not in self._grounds:
            self._grounds[layer] = (
                Speech.of(self.openings, self.said, self.first[::2], self.settings.searched)
                if layer is None
                else Ground.of(self.openings, self.first, layer)
            )
        return self._grounds[layer]

    @cached_property
    def said(self) -> list[tuple[int, ...]]:
        """What the unperturbed model answers to each prompt, as far as it is looked at."""
        made = written(self.lm, self.batch, self.settings.answer)
        return [completion.tokens or (0,) for completion in made]  # of one that ends at once, any

    def done(self, known: Known, kind: Kind, layer: int | None) -> Taught:
        """Return what is done on all prompts to a layer's stream; None for the output."""
        said = self.said if layer is None else [(0,)] * len(self.batch)
        layers = [] if layer is None else [layer]
        if known.theta is None:
            return by_text(self.openings, known.string, said, layers)
        return taught(self.lm, self.batch, kind, known.theta, said, layers)

    @cached_property
    def unlikely(self) -> Float[Tensor, "n"]:
        """How unlikely sentences are at the first of the fresh prompts, in nats a token."""
        return self._fluency(self._natural)

    @cached_property
    def plain(self) -> list[str]:
        """What the unperturbed model answers to the fresh prompts."""
        return self.answers(())

    def case(
        self,
        known: Known,
        kind: Kind,
        layer: int | None = None,
        *,
        wanted: Sequence[str] = (),
        state: State | None = None,
        on_step: Callable[[State], None] | None = None,
    ) -> Case:
        """Invert one target, and check the string that comes of it where nobody searched.

        Args:
            known: What does what is to be done.
            kind: The kind of perturbations.
            layer: The layer whose stream is to be met; None for the output.
            wanted: What the answers to the fresh prompts are to be like, if they are to be written.
            state: Where the search was left.
            on_step: Called after each step of the search.
        """
        settings, ground = self.settings, self.ground(layer)
        done = self.done(known, kind, layer)
        train, count = (
            following(self.openings, done, some, ground) for some in (self.searched, self.fresh)
        )
        order = train.natural.argsort(stable=True)
        nearest, loss = ground.strings[order], train.natural[order]
        if settings.method == "nearest":
            found = Found(nearest, loss, torch.tensor([[0.0, float(loss[0])]]))
        else:
            found = search(
                train,
                self.vocabulary,
                nearest[:BEGUN],
                settings.method,
                budget=settings.budget,
                seed=settings.seed,
                state=state,
                on_step=on_step,
            )
        losses, nearly = count.each(torch.cat([found.strings[:1], nearest[:1]])).T
        share, low, high = bootstrap_mean(1 - losses.numpy())
        nll = self._fluency(found.strings[:1])
        with_it = self.answers(found.best) if wanted else []
        return Case(
            role=known.role,
            name=known.name,
            string=self.vocabulary.text(found.best),
            share=share,
            low=low,
            high=high,
            searched=1 - float(found.loss[0]),
            effect=count.effect,
            perplexity=float(nll.exp()),
            natural=float((self.unlikely >= nll).double().mean()),
            nearest=self.vocabulary.text(nearest[0].tolist()),
            nearest_share=1 - float(nearly.mean()),
            alike=_alike(with_it, wanted) if wanted else None,
            plain=_alike(self.plain, wanted) if wanted else None,
            texts=(self.plain[0], wanted[0], with_it[0]) if wanted else (),
            reads=int(found.curve[-1, 0]),
            curve=_thinned(found),
            front=self._front(found),
        )

    def answers(
        self, string: Sequence[int], kind: Kind | None = None, theta: Tensor | None = None
    ) -> list[str]:
        """Return what is answered to the fresh prompts with a string, or under a perturbation."""
        openings = [self.openings[p] for p in self.fresh]
        batch = self.batch.select(list(self.fresh))
        if string:
            batch = self.lm.pad([[*o.before.ids, *string, *o.after] for o in openings])
        return [c.text for c in written(self.lm, batch, WRITTEN, kind, theta)]

    def _front(self, found: Found) -> tuple[tuple[str, float, float], ...]:
        """Return strings of a front with their shares on the prompts searched and perplexities."""
        rows = zip(*(values.tolist() for values in found.front), strict=True)
        return tuple(
            (self.vocabulary.text(own), 1 - loss, math.exp(nll)) for own, loss, nll in rows
        )

    def _fluency(self, strings: Tensor) -> Float[Tensor, "n"]:
        """Return how unlikely strings are behind the first of the fresh prompts."""
        return text([self.openings[self.fresh[0]]], [0]).fluent(strings)[1]


def _alike(texts: Sequence[str], wanted: Sequence[str]) -> float:
    """Return how alike texts are, two by two, by their words."""
    pairs = [vectors([a, b]) for a, b in zip(texts, wanted, strict=True)]
    return float(np.mean([float(x @ y) + (not x.any() and not y.any()) for x, y in pairs]))


def _thinned(found: Found) -> tuple[tuple[float, float], ...]:
    """Return some points of a search's curve, first and last among them."""
    at = np.unique(np.linspace(0, len(found.curve) - 1, POINTS).round().astype(int))
    best = found.curve[:, 1].cummin(0).values
    return tuple((float(found.curve[i, 0]), float(best[i])) for i in at)
