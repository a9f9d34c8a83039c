"""Damage: what perturbations of a run do to ordinary text, as scores of theirs.

    kl        mean of KL_t over the first tokens of ordinary answers, nats a token
    kl_p95    its 95th percentile

infinite where the model breaks down (see `educe.forward.benign`). Scores by other ordinary text
than the bundled one have its digest in their names, so neither is taken for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from educe.forward.benign import BUNDLED, Ordinary, ordinary_prompts
from educe.methods.radius import surviving
from educe.model.once import encoded_once
from educe.perturbation.origin import digest
from educe.progress import Advance
from educe.rows import ScoreRow
from educe.run.fill import Group
from educe.run.scaling import at_radii, without
from educe.run.work import Work
from educe.spread import Job, Shared


class OrdinaryText:
    """Ordinary text that scores perturbations of a run.

    Args:
        work: The run at work.
        source: ``bundled``, or a file (see `educe.forward.benign.ordinary_prompts`).

    Attributes:
        source: As given.
        batch: The prompts, those that the model reads alike once.
        kl: Name of the scores that are means.
        kl_p95: Name of those that are 95th percentiles.

    Raises:
        PromptError: The file cannot be read or holds something else.
    """

    def __init__(self, work: Work, source: str = BUNDLED) -> None:
        self.work, self.source = work, source
        self.batch = encoded_once(
            work.lm, ordinary_prompts(source), work.reporter.say, "ordinary prompts"
        )
        own = digest(self.batch.texts)[:8]
        self.kl, self.kl_p95 = (
            name if source == BUNDLED else f"{name} of {own}" for name in ("kl", "kl_p95")
        )

    @cached_property
    def ordinary(self) -> Ordinary:
        """The answers of the unperturbed model, which are written when they are first needed."""
        return Ordinary(self.work.lm, self.batch, before=self.work.part.source)

    def damage(self, numbers: Sequence[int], step: Advance = lambda steps: None) -> list[float]:
        """Return the 95th percentile of the divergence of perturbations; score those without one.

        Args:
            numbers: The perturbations.
            step: Is told how many more have one.

        Raises:
            PositionsError: The positions leave all of these tokens as they are.
        """
        run, why = self.work.run, f"{len(self.batch)} prompts"
        missing = without(run, self.kl_p95, numbers)
        step(len(numbers) - len(missing))
        if missing:
            shared = Shared((self.ordinary,))
            parts = (group for _, group in at_radii(run, missing))
            jobs = (Job(_damage, shared, (group,), len(group.numbers)) for group in parts)
            for done in self.work.spread.map(jobs):
                (group,) = done.job.given
                run.add_scores(
                    ScoreRow(n, name, value, "nats a token", why)
                    for n, pair in zip(group.numbers, done.value, strict=True)
                    for name, value in zip((self.kl, self.kl_p95), pair, strict=True)
                )
                step(done.job.size)
        known = {s.of: s.value for s in run.score_rows(self.kl_p95)}
        return [known[n] for n in numbers]


def _damage(ordinary: Ordinary, group: Group) -> list[tuple[float, float]]:
    """Return mean and 95th percentile of each perturbation of one kind."""
    theta = group.theta.to(ordinary.lm.device)

    def measured(items: Tensor) -> Tensor:
        return torch.stack(ordinary.damage(theta[items], group.kind.select(items)), 1)

    broken = torch.full((1, 2), math.inf)
    found = surviving(measured, torch.arange(len(theta)), broken)
    return [(mean, high) for mean, high in found.tolist()]
