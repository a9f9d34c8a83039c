"""LoRA: the adapters of MELBO, on the output projection of one feed-forward part.

    max over columns of norm one of   Σ_prompts ( Σ_tokens ‖Z(W + R B Aᵀ) - Z(W)‖₂ᵖ )^(1/q)

``A`` and ``B`` have ``rank`` columns. Mack & Turner, "Mechanistically eliciting latent behaviors in
language models" (2024). The ascent is that of `educe.methods.melbo`, every column on its own
sphere: the gradient loses its part along the column, AdamW with AMSGrad takes a step, the column is
scaled back to norm one. The matrix is that of block ``source + 1``, the first that differs.

What differs from the reference code, and why: as in `educe.methods.melbo`; and ``R`` scales each
column, where there it is a ``lora_alpha`` that PEFT divides by the rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from educe.forward.slice import Slice
from educe.methods import melbo
from educe.methods.melbo import AscentConfig
from educe.methods.state import Progress, State
from educe.perturbation import kinds
from educe.whole import AtLeast

finish = melbo.finish


@dataclass(frozen=True)
class LoraConfig(AscentConfig):
    """Settings: those of the ascent (see `AscentConfig`), and one more.

    Attributes:
        rank: Columns of ``A`` and ``B``. The published run has 512, and a file of such adapters is
            as large as that sounds.

    Example:
        >>> config = LoraConfig(rank=2, steps=3)
        >>> educe.search(part, "lora", n=2, radius=1.0, config=config).kind.rank
        2
    """

    rank: Annotated[int, AtLeast(1)] = 8


def kind(part: Slice, n: int, config: LoraConfig, seed: int) -> kinds.Kind:
    """Return adapters on the feed-forward part of the first block of the slice."""
    first = part.source + 1
    return kinds.adapters(part.lm, first=first, blocks=1, projection="mlp", rank=config.rank)


def start(part: Slice, n: int, radius: float, config: Any, draw: torch.Generator) -> State:
    """Draw the first adapters."""
    return melbo.at_rest(part.kind.draw(n, draw).to(part.device, part.work_dtype))


def step(part: Slice, radius: float, config: LoraConfig, state: State) -> tuple[State, Progress]:
    """Take one projected step of all adapters at once; none when they have converged."""
    return melbo.ascend(part, radius, config, state)
