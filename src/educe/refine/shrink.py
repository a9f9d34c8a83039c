"""Shrinking as far as what a vector does stays: a stopping rule.

The radius falls step by step, all vectors in one batch, each until what is measured is below a
share of what it was at the vector's own radius:

    look-for    how often a pattern is found in what the model writes to the run's prompts
    judge       the mean score of any judge on the same
    exponent    d log‖Δ‖ / d log R, exactly

The last radius at which it was still there is kept. With ``optimise`` the direction is improved at
every radius on the way, as in `educe.refine.continuation`; without, it stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from educe import files
from educe.forward.generation import generate
from educe.forward.slice import Slice
from educe.kinds import Vectors
from educe.methods import origin
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.refine.continuation import PathConfig, advance
from educe.refine.objective import of_method
from educe.refine.response import response
from educe.rendering import PromptBatch
from educe.rows import Row
from educe.run.reopened import directions, slice_of
from educe.run.settings import stored
from educe.run.store import Run

#: Takes what a vector wrote, one text a prompt, and returns a number.
Measure = Callable[[list[str]], float]


@dataclass(frozen=True)
class ShrinkPlan:
    """What is asked for.

    Attributes:
        numbers: The perturbations, by their numbers in the run.
        by: ``exponent``, or what texts are judged by: kept with the result.
        keep: The share of the start that is to stay.
        low: The smallest radius that is looked at, as a share of a vector's own.
        steps: Radii for each halving.
        optimise: Whether directions are improved on the way.
        identity: The judge's own, which scores depend on; empty without one.
    """

    numbers: tuple[int, ...]
    by: str
    keep: float = 0.8
    low: float = 0.1
    steps: int = 4
    optimise: bool = False
    identity: str = ""

    @property
    def key(self) -> str:
        """What its results are kept under."""
        told = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def shrink_run(
    run: Run,
    plan: ShrinkPlan,
    lm: LanguageModel,
    prompts: PromptBatch,
    *,
    measure: Measure | None = None,
    questions: PromptBatch | None = None,
    reporter: Any = None,
) -> dict[str, Any]:
    """Shrink perturbations of a run and keep what comes out in it.

    Args:
        run: The run.
        plan: What is asked for.
        lm: Its model.
        prompts: Its prompts, on which the slice is.
        measure: What texts are judged by; unless the exponent is.
        questions: What texts are written to; by default the prompts.
        reporter: Is told of the progress (see `educe.progress`).

    Returns:
        Of each vector the shares of its radius that were looked at, what was measured there, and
        the ``kept`` share: None where there was nothing to keep, as a rate of zero.
    """
    note = f"shrink-{plan.key}"
    done = run.note(note) if run.has(note) else None
    if done and done["done"]:
        return done
    reporter = reporter or Silent()
    part = slice_of(run, lm, prompts)
    v, radius = directions(run, plan.numbers, part)
    objective = of_method(run.note("facts")["method"], stored(run).method_settings)
    config = PathConfig(low=plan.low, high=1.0, steps=plan.steps)
    shares = config.shares[::-1]
    length = stored(run).max_new_tokens

    def measured(items: Tensor, at: Tensor) -> list[float]:
        if measure is None:
            return response(part, at).exponent.tolist()
        return judged(lm, questions or prompts, part, at, measure, length)

    data = done or {
        "key": plan.key,
        "numbers": list(plan.numbers),
        "by": plan.by,
        "keep": plan.keep,
        "radius": radius.tolist(),
        "curves": [[] for _ in plan.numbers],
        "kept": [None for _ in plan.numbers],
        "directions": v.tolist(),
        "done": False,
    }
    v = torch.tensor(data["directions"]).to(v)
    started = max(map(len, data["curves"]))
    going = torch.tensor(
        [
            not c or (k is not None and c[-1][0] == k)
            for c, k in zip(data["curves"], data["kept"], strict=True)
        ]
    )
    with reporter.stage(f"shrinking {len(v)}", len(shares), "radii") as step:
        step(started)
        for k in range(started, len(shares)):
            items = going.nonzero()[:, 0]
            if not len(items):
                break
            if plan.optimise and k:
                span = (radius[items] * shares[k - 1], radius[items] * shares[k])
                v[items] = advance(part, objective.select(going), v[items], span, config)[0].v
            values = measured(items, v[items] * (radius[items] * shares[k])[:, None])
            for i, value in zip(items.tolist(), values, strict=True):
                data["curves"][i].append([shares[k], value])
                start = data["curves"][i][0][1]
                if start > 0 and value >= plan.keep * start:
                    data["kept"][i] = shares[k]
                    data["directions"][i] = v[i].tolist()
                else:
                    going[i] = False
            run.remember(note, data)
            step()
    shorter = PerturbationSet(
        kind=Vectors(part.source, part.width, part.positions),
        directions=torch.tensor(data["directions"]),
        radius=torch.tensor([k or 1.0 for k in data["kept"]]) * radius.float().cpu(),
        origin=origin(part),
        method="shrink",
        seed=0,
        scores={"number": torch.tensor(plan.numbers, dtype=torch.float32)},
        config=asdict(plan) | {"numbers": list(plan.numbers)},
    )
    files.make_folder(run.folder / "paths")
    data |= {"done": True, "file": f"paths/shrink-{plan.key}.safetensors"}
    shorter.save(run.folder / data["file"])
    run.remember(note, data)
    return data


def judged(
    lm: LanguageModel,
    questions: PromptBatch,
    part: Slice,
    theta: Tensor,
    measure: Measure,
    max_new_tokens: int,
) -> list[float]:
    """Return what is measured of the most likely answers of vectors to every question."""
    rows = [Row(i + 1, j) for i in range(len(theta)) for j in range(len(questions))]
    kind = Vectors(part.source, part.width, part.positions)
    texts = [[""] * len(questions) for _ in theta]
    for some in generate(lm, questions, rows, theta, kind=kind, max_new_tokens=max_new_tokens):
        for c in some:
            texts[c.row.perturbation - 1][c.row.prompt] = c.text
    return [measure(own) for own in texts]
