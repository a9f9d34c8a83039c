"""Side effect: what a perturbation does to ordinary prompts it was not searched on.

    KL( p_unperturbed(· | x) ‖ p_perturbed(· | x) )   in nats, of the first token of the answer,

averaged over ordinary prompts ``x``. The bundled ones are plain requests of many kinds; any list can
be given instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor

from educe import positions as where
from educe.errors import PositionsError
from educe.judge import Score
from educe.model import LanguageModel, PromptBatch


def ordinary_prompts() -> list[str]:
    """Return the bundled ordinary prompts."""
    text = files("educe.judge").joinpath("ordinary.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


@torch.no_grad()
def side_effects(
    lm: LanguageModel,
    batch: PromptBatch,
    vectors: Float[Tensor, "n d"],
    *,
    source: int,
    positions: str = "all",
) -> Iterator[Score]:
    """Score perturbations one after the other.

    Args:
        lm: The model.
        batch: Ordinary prompts.
        vectors: What each perturbation adds.
        source: The layer after which it is added.
        positions: Tokens to which it is added.

    Raises:
        PositionsError: The positions spare the prompt, so the first token cannot change.
    """
    at = where.in_prompt(positions, batch.mask)
    if not at.any():
        raise PositionsError(f"positions {positions!r} leave the first token as it is")
    plain = lm.forward(batch.ids, batch.mask)[:, -1].float().log_softmax(-1)
    for vector in vectors:
        with lm.adding(source, lambda h, v=vector: at[:, :, None].to(h) * v.to(h)):
            moved = lm.forward(batch.ids, batch.mask)[:, -1].float().log_softmax(-1)
        each = (plain.exp() * (plain - moved)).sum(-1)
        worst = int(each.argmax())
        yield Score(
            "side_effect",
            float(each.mean()),
            "changed on ordinary prompts",
            f"{len(each)} ordinary prompts, most on number {worst + 1} ({each[worst]:.2f} nats)",
        )


def bundled(lm: LanguageModel, prompts: Sequence[str] | None = None) -> PromptBatch:
    """Return ordinary prompts as the model reads them."""
    return lm.encode(list(prompts) if prompts is not None else ordinary_prompts())
