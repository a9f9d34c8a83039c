"""The families that are compared, each as what it takes to make its perturbations.

A search gets `Budget.passes` passes of every block of the slice for each perturbation and prompt (a
pass is one row, forward or backward); random perturbations and noise have nothing to spend them on.
Every family makes as many perturbations, spread over its own ladder of radii, and is followed by
its matched control: random perturbations of the same kind and radii; for noise, random vectors of
the same norm or effect; for the supervised vector, shuffled labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch

import educe
from educe.errors import MethodError
from educe.methods import METHODS, prepared
from educe.methods.contrast import difference_of_means, optimised
from educe.methods.radius import DIRECTIONS
from educe.model.batch import PromptBatch


@dataclass(frozen=True)
class Budget:
    """What every family may spend.

    Attributes:
        n: Perturbations.
        passes: Of each block of the slice, for each perturbation and prompt.
        first: Questions that every perturbation answers.
        then: Questions that the best quarter answers, the first ones among them.
        fresh: Questions of the re-test.
        tokens: The most tokens of an answer.
        prompts: Questions that the slice is made of.
        louder: Factor on every radius.
    """

    n: int = 24
    passes: int = 24
    first: int = 2
    then: int = 6
    fresh: int = 10
    tokens: int = 20
    prompts: int = 1
    louder: float = 1.0


class Problem(NamedTuple):
    """What a family is given: the slice, the calibrated radius; for the ceilings, the secret.

    Attributes:
        part: The slice.
        calibrated: The calibrated radius of its vectors.
        positive: Prompts with what unlocks the organism.
        negative: The same with another word in its place.
        opening: The first words of every unlocked answer; empty where they differ.
    """

    part: educe.Slice
    calibrated: float
    positive: PromptBatch
    negative: PromptBatch
    opening: str


class Family(NamedTuple):
    """A family: what makes its perturbations, and which family is its matched control."""

    make: Callable[[Problem, Budget, int], Iterator[educe.PerturbationSet]]
    control: str


def passes_of(method: str, budget: Budget, n: int) -> dict[str, Any]:
    """Return the settings with which a method keeps within the budget for ``n`` perturbations."""
    rounds = max(1, budget.passes // 2)  # forward and backward
    columns = -(-n // 2) + METHODS["power"].config().padding  # both signs are one column
    settings: dict[str, dict[str, Any]] = {
        # A step as large as a few rounds can use; the published one is for hundreds of rounds.
        "melbo": {"steps": rounds, "patience": rounds},
        "dct": {"iterations": rounds},
        "cpe": {"iterations": rounds},
        # A product goes forward twice, once of them with derivatives, and backward once.
        "power": {"iterations": max(1, budget.passes * n // (3 * columns)), "tolerance": 0.0},
    }
    return settings.get(method, {})


def searched(
    problem: Problem,
    budget: Budget,
    seed: int,
    *,
    method: str,
    ladder: Sequence[float],
    shares: bool = True,
    **settings: Any,
) -> Iterator[educe.PerturbationSet]:
    """Search at each radius of a ladder: shares of the calibrated one, or plain numbers."""
    unit = 1.0
    for k, n in enumerate(spread(budget.n, len(ladder))):
        config = METHODS[method].config(**passes_of(method, budget, n), **settings)
        if shares and k == 0:
            unit = calibrated(problem, method, config, seed)
        radius = budget.louder * ladder[k] * unit
        own = numbered(seed, k, control=method == "random")
        yield educe.search(problem.part, method, n=n, radius=radius, seed=own, config=config)


def calibrated(problem: Problem, method: str, config: Any, seed: int) -> float:
    """Return the calibrated radius of a method's kind: noise on weights has no norm in a stream."""
    part = prepared(problem.part, method, n=DIRECTIONS, config=config, seed=seed)
    if part.kind == problem.part.kind:
        return problem.calibrated
    return educe.calibrate(part, seed=seed).radius


def random_adapters(problem: Problem, budget: Budget, seed: int) -> Iterator[educe.PerturbationSet]:
    """Draw random adapters of the kind and radii of CPE."""
    config = METHODS["cpe"].config()
    part = prepared(problem.part, "cpe", n=budget.n, config=config)
    for k, n in enumerate(spread(budget.n, len(ADAPTERS))):
        radius = budget.louder * ADAPTERS[k]
        yield educe.search(part, "random", n=n, radius=radius, seed=numbered(seed, k, control=True))


def noise_control(
    problem: Problem, budget: Budget, seed: int, *, per: str
) -> Iterator[educe.PerturbationSet]:
    """Draw random vectors as strong as noise is."""
    made = searched(problem, budget, seed, method="noise", ladder=LOUD, per=per)
    for k, noise in enumerate(made):
        yield educe.control(problem.part, noise, seed=numbered(seed, k, control=True))


def supervised(
    problem: Problem, budget: Budget, seed: int, *, shuffled: bool = False
) -> Iterator[educe.PerturbationSet]:
    """Take the difference of means between prompts with the key and with another word for it.

    The mean is over all tokens of the prompts, which differ in that word alone: it has the word's
    direction, wherever it stands, and hardly its norm. So it is swept over layers and doses; and it
    is added to the prompt alone as well, since what opens a lock there can break up an answer that
    it is added to. Its control has a shuffled one each, at the same doses.
    """
    positions = dict.fromkeys((problem.part.positions, "prompt"))
    ways = list(product(LAYERS, positions))[: budget.n]
    for k, n in enumerate(spread(budget.n, len(ways))):
        source, added_to = ways[k]
        difference = partial(
            difference_of_means,
            problem.part.lm,
            problem.positive,
            problem.negative,
            source=source,
            tokens="prompt",
            positions=added_to,
            seed=numbered(seed, k, control=shuffled),
        )
        found = difference(shuffles=n) if shuffled else difference().select([0] * n)
        doses = torch.linspace(*DOSES, n)
        yield replace(found, radius=budget.louder * doses * found.origin.unit)


def optimised_for(
    problem: Problem, budget: Budget, seed: int, *, shuffled: bool = False
) -> Iterator[educe.PerturbationSet]:
    """Optimise vectors for the first words that the organism says when it is unlocked.

    A step goes through all blocks after the source, forward and backward.
    """
    for k, n in enumerate(spread(budget.n, len(SHARES))):
        yield optimised(
            problem.part.lm,
            problem.part.batch,
            problem.opening,
            source=problem.part.source,
            positions=problem.part.positions,
            radius=budget.louder * SHARES[k] * problem.calibrated,
            n=n,
            steps=max(1, budget.passes // 2),
            shuffled=shuffled,
            seed=numbered(seed, k, control=shuffled),
        )


def numbered(seed: int, k: int, *, control: bool) -> int:
    """Return the seed of the ``k``-th radius or layer of a cell, as the main job numbers its arms.

    One of its own for the control: MELBO, for one, starts from the vectors that random draws.
    """
    return 2 * (1000 * seed + k) + control


def spread(n: int, parts: int) -> list[int]:
    """Divide a number as evenly as it goes."""
    return [n // parts + (k < n % parts) for k in range(parts)]


#: Where the supervised vector is taken and added, as fractions of the depth, and its doses: the
#: word of a key is about as large as the stream that it is in.
LAYERS, DOSES = (0.33, 0.47, 0.6, 0.7), (0.2, 0.8)
#: Radii: of vectors and noise as shares of their own kind's calibrated one, of adapters plain.
SHARES, LOUD, ADAPTERS = (0.4, 0.8, 1.6), (1.5, 2.0, 2.5), (1.0, 2.0, 4.0)

FAMILIES: dict[str, Family] = {
    name: Family(make, control)
    for name, make, control in (
        ("random", partial(searched, method="random", ladder=SHARES), "random"),
        (
            "token-noise",
            partial(searched, method="noise", ladder=LOUD, per="token"),
            "as-token-noise",
        ),
        ("as-token-noise", partial(noise_control, per="token"), "as-token-noise"),
        (
            "weight-noise",
            partial(searched, method="noise", ladder=LOUD, per="weights"),
            "as-weight-noise",
        ),
        ("as-weight-noise", partial(noise_control, per="weights"), "as-weight-noise"),
        ("melbo", partial(searched, method="melbo", ladder=SHARES), "random"),
        ("dct", partial(searched, method="dct", ladder=SHARES), "random"),
        ("power", partial(searched, method="power", ladder=SHARES), "random"),
        (
            "cpe",
            partial(searched, method="cpe", ladder=ADAPTERS, shares=False),
            "random-adapters",
        ),
        ("random-adapters", random_adapters, "random-adapters"),
        ("contrast", supervised, "shuffled-contrast"),
        ("shuffled-contrast", partial(supervised, shuffled=True), "shuffled-contrast"),
        ("optimised", optimised_for, "shuffled-optimised"),
        ("shuffled-optimised", partial(optimised_for, shuffled=True), "shuffled-optimised"),
    )
}

#: Families that act on all tokens, whatever positions vectors are added to.
EVERYWHERE = ("weight-noise", "as-weight-noise", "cpe", "random-adapters")

#: Plain sampling, the floor: no perturbation, as many samples.
SAMPLING = "sampling"


def named(family: str) -> Family:
    """Return a family by its name.

    Raises:
        MethodError: There is no such family.
    """
    if family not in FAMILIES:
        raise MethodError(f"family {family!r} is unknown: use {', '.join([SAMPLING, *FAMILIES])}")
    return FAMILIES[family]
