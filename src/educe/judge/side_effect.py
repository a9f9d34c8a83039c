"""Side effect: what a perturbation does to ordinary prompts it was not searched on.

    KL( p_unperturbed(· | x) ‖ p_perturbed(· | x) )   in nats, of the first token of the answer,

averaged over ordinary prompts ``x``. The bundled ones are plain requests of many kinds. It judges a
perturbation and not an answer, so it is no `educe.judge.Judge`: it must run the perturbed model.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor

from educe import positions as where
from educe.errors import PositionsError
from educe.generation import next_logits, rows_of
from educe.judge import Score
from educe.kinds import Kind
from educe.model import LanguageModel, PromptBatch

#: Perturbations whose ordinary prompts run together.
PERTURBATIONS_PER_BATCH = 4


def ordinary_prompts() -> list[str]:
    """Return the bundled ordinary prompts."""
    text = files("educe.judge").joinpath("ordinary.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def side_effects(
    lm: LanguageModel,
    batch: PromptBatch,
    theta: Float[Tensor, "n s"],
    *,
    kind: Kind,
) -> Iterator[Score]:
    """Score perturbations, in order.

    Args:
        lm: The model.
        batch: Ordinary prompts.
        theta: The perturbations.
        kind: Their kind.

    Raises:
        PositionsError: The positions spare the prompt, so the first token cannot change.
    """
    if not where.in_prompt(kind.positions, batch.mask).any():
        raise PositionsError(f"positions {kind.positions!r} leave the first token as it is")
    plain = lm.forward(batch.ids, batch.mask)[:, -1].float().log_softmax(-1)
    each = PERTURBATIONS_PER_BATCH
    for first in range(0, len(theta), each):
        items = torch.arange(first, min(first + each, len(theta)))
        some = theta[items]
        rows = rows_of(len(some), len(batch))
        divergence = torch.zeros(len(some), len(batch))
        for done, logits in next_logits(
            lm, batch, rows, some, kind=kind.select(items), rows_per_batch=len(rows)
        ):
            prompts = [row.prompt for row in done]
            known, moved = plain[prompts], logits.float().log_softmax(-1)
            kl = (known.exp() * (known - moved)).sum(-1).cpu()
            divergence[[row.perturbation for row in done], prompts] = kl
        for line in divergence:
            worst = int(line.argmax())
            yield Score(
                "side_effect",
                float(line.mean()),
                "changed on ordinary prompts",
                f"{len(line)} prompts, most on number {worst + 1} ({line[worst]:.2f} nats)",
            )
