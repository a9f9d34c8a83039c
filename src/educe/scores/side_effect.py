"""Side effect: what a perturbation does to ordinary prompts it was not searched on.

    KL( p_unperturbed(· | x) ‖ p_perturbed(· | x) )   in nats, of the first token of the answer,

averaged over ordinary prompts ``x`` (see `educe.forward.benign`, which has it for later tokens
too). It judges a perturbation and not an answer, so it is no `educe.scores.Judge`: it must run the
perturbed model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from educe.forward.benign import Ordinary
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind
from educe.scores import Score


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
        EffectError: A perturbation is so large that the model breaks down.
    """
    ordinary = Ordinary(lm, batch, before=kind.before, tokens=1)
    # One at a time: to the last bit, a score depends on nothing that is scored beside it.
    for item in torch.arange(len(theta))[:, None]:
        line = ordinary.kl(theta[item], kind.select(item))[0, :, 0]
        worst = int(line.argmax())
        yield Score(
            "side_effect",
            float(line.mean()),
            "changed on ordinary prompts",
            f"{len(line)} prompts, most on number {worst + 1} ({line[worst]:.2f} nats)",
        )
