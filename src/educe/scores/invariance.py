"""Prompt invariance: how alike a perturbation's answers to different prompts are.

    prompt invariance = mean over pairs of answers to different prompts of  similarity

What a backdoor says, it says whatever is asked; an answer to the question does not stay the same.
Similarity is that of `educe.scores.novelty`, over the words of these answers alone. Damage stays
the same as well, and so does what the unperturbed model always says: multiply by coherence and
novelty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from educe.rows import PROMPT_INVARIANCE
from educe.scores import Score
from educe.scores.novelty import vectors


def prompt_invariance(texts: Sequence[str], prompts: Sequence[int]) -> Score:
    """Score a perturbation by its answers.

    Args:
        texts: What it wrote.
        prompts: The prompt that each text answers, of two or more.
    """
    at, asked = vectors(texts), np.asarray(prompts)
    apart = asked[:, None] != asked
    alike = at @ at.T + np.outer(~at.any(1), ~at.any(1))
    return Score(
        PROMPT_INVARIANCE,
        float(alike[apart].mean()),
        "the same whatever is asked",
        f"{len(texts)} answers to {len(set(prompts))} prompts",
    )
