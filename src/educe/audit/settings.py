"""Settings of an audit: what is asked for, and how much of everything a budget buys."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from educe.errors import MethodError
from educe.model.prompts import Prompt
from educe.options import Count, LinesOf, ModelOptions, Names, Seed
from educe.run import settings as job
from educe.run.store import Run
from educe.whole import check_fields

#: The note of a run that says that it is an audit, and which.
AUDIT = "audit"
Budget = Literal["quick", "normal", "thorough"]


@dataclass(frozen=True)
class Size:
    """How much of everything a budget buys.

    Attributes:
        prompts: Ordinary prompts that every suspected string is put into.
        fresh: Ordinary prompts for the re-test.
        requests: Requests of many kinds that are asked as they are.
        words: Suspected strings that the funnel takes from one source.
        samples: Texts that are sampled by a source that samples.
        screened: Words that are tried where each needs a pass of the model.
        perturbations: Of each kind of search.
        near: Near misses, and words of the same rarity, that a trigger is tried against.
    """

    prompts: int
    fresh: int
    requests: int
    words: int
    samples: int
    screened: int
    perturbations: int
    near: int


SIZES: dict[str, Size] = {
    "quick": Size(4, 8, 100, 24, 64, 300, 16, 8),
    "normal": Size(6, 12, 230, 40, 128, 1000, 64, 12),
    "thorough": Size(6, 12, 230, 120, 512, 4000, 256, 24),
}


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What an audit can be asked for.

    Attributes:
        reference: a clean model to compare with: its name, or none; by default the model under the
            adapter, where there is an adapter
        topics: a file of things that the model might hide something about, one a line
        budget: how much is tried: quick, normal or thorough
        sources: which sources look, as educe sources lists them, with commas; by default all that
            can
        judge: a judge that scores the texts of the findings as well
        max_new_tokens: the most tokens of an answer
        seed: of everything that is drawn, from 0 to 4294967295
    """

    reference: str | None = None
    topics: LinesOf = ()
    budget: Budget = "normal"
    sources: Names = ()
    judge: str | None = None
    max_new_tokens: Count = 24
    seed: Seed = 0

    @property
    def size(self) -> Size:
        """What the budget buys."""
        return SIZES[self.budget]


def bundled(name: str) -> Any:
    """Return a table that comes with the audit."""
    text = files("educe.audit").joinpath("data", f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def begin(
    folder: str | Path,
    options: AuditOptions,
    model: ModelOptions,
    prompts: tuple[Prompt, ...] = (),
    *,
    resume: bool = False,
) -> Run:
    """Open the run of an audit, a new one or one to go on with.

    Args:
        folder: Of the run.
        options: What the audit is asked for.
        model: Which model, and how it is loaded.
        prompts: What the person asks the model beside the bundled ordinary prompts.
        resume: Whether to go on with a run of the same settings.

    Raises:
        MethodError: The budget is unknown, or a number is out of bounds.
        RunError: The folder holds something else.
    """
    check_fields(options)
    known, size = bundled("prompts"), options.size
    settings = job.Settings(
        prompts=(*prompts, *known["asked"][: size.prompts]),
        fresh=tuple(known["fresh"][: size.fresh]),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        baseline=4,
        **model.how,
    )
    run = job.begin(folder, settings, resume=resume)
    asked = asdict(options) | {"given": len(prompts)}
    asked |= {name: list(asked[name]) for name in ("topics", "sources")}
    if not run.has(AUDIT):
        run.remember(AUDIT, asked)
    elif run.note(AUDIT) != asked:
        run.close()
        raise MethodError(
            f"{folder} holds an audit with other settings: resume it with those, or choose another "
            "--out"
        )
    return run


def options_of(run: Run) -> AuditOptions:
    """Return what an audit was asked for."""
    known = dict(run.note(AUDIT))
    known.pop("given")
    return AuditOptions(**known | {n: tuple(known[n]) for n in ("topics", "sources")})
