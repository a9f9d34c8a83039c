"""Scaling: the suspect with its weight difference from the reference made larger.

    W_f = W' + f (W - W')        f = 1 is the suspect, f = 0 the reference in these matrices

What an adapter does weakly or seldom it does strongly or often when it is scaled up. Nothing is
written to the weights: every matrix that differs adds `f - 1` times what its difference makes of
its input.

Source: amplification of adapters in the diffing-toolkit (arXiv 2510.13900).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from educe.audit.auditing import Audit
from educe.audit.difference import Change, changes
from educe.audit.reference import Reference
from educe.audit.roles import AMPLIFIED
from educe.audit.sources.perplexity import ask_others
from educe.audit.sources.source import Needs, Source
from educe.forward.generation import Completion, generate, rows_at_once
from educe.model.batch import PromptBatch
from educe.model.blocks import hooked
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.run import fill
from educe.spread import Shared

#: How many times the difference.
FACTORS = (2.0, 3.0)


def look(audit: Audit) -> None:
    """Let the scaled suspect answer ordinary prompts and beginnings."""
    ask_others(audit, SOURCE.name, begin(audit))
    audit.fill("with the weight difference scaled up")


def begin(audit: Audit) -> list[int]:
    """List the scaled models, and say who writes for them; return their numbers."""
    numbers = [audit.another(AMPLIFIED, SOURCE.name, factor) for factor in FACTORS]
    for number, factor in zip(numbers, FACTORS, strict=True):
        audit.work.writers[number] = partial(_written, audit, number, factor)
    return numbers


def _written(
    audit: Audit, number: int, factor: float, rows: Sequence[Row], temperature: float
) -> Iterator[list[Completion]]:
    settings = audit.work.settings
    plain = [row._replace(perturbation=0) for row in rows]
    how = {"max_new_tokens": settings.max_new_tokens, "seed": settings.seed}
    shared = Shared((audit.lm, audit.reference, audit.work.batch, factor, how))
    jobs = fill.decodings(_wrote, shared, plain, temperature, rows_at_once(audit.lm))
    for done in audit.work.spread.map(jobs):
        yield [c._replace(row=c.row._replace(perturbation=number)) for c in done.value]


def _wrote(
    lm: LanguageModel,
    reference: Reference,
    batch: PromptBatch,
    factor: float,
    how: Mapping[str, Any],
    rows: Sequence[Row],
    temperature: float,
) -> list[Completion]:
    """Let the scaled suspect write one batch."""
    with scaled(lm, changes(lm, reference), factor):
        came = generate(lm, batch, rows, temperature=temperature, **how)
        return [completion for some in came for completion in some]


@contextmanager
def scaled(lm: LanguageModel, found: Sequence[Change], factor: float) -> Iterator[None]:
    """Scale the weight difference of a model, for the time of a ``with`` statement.

    Args:
        lm: The suspect.
        found: How its matrices differ from the reference's.
        factor: How many times.
    """

    def more(change: Change) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + (factor - 1) * change.made_of(args[0]).to(output)

        return hook

    def own(change: Change) -> nn.Module:
        return lm.blocks[change.block].get_submodule(change.path.partition(".")[2])

    with hooked([own(change).register_forward_hook(more(change)) for change in found]):
        yield


SOURCE = Source(
    "scaling",
    "what the suspect says when its weight difference is scaled up",
    Needs.WEIGHTS,
    look,
    dear=2,
    begin=begin,
)
