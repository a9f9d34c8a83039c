"""Coherence: is it text that the unperturbed model could have written?

    coherence = min(1, exp(ℓ - ℓ₀)) · variety

``ℓ`` is the mean log-likelihood of the completion's tokens under the unperturbed model, ``ℓ₀`` that
of its own most likely answers to ordinary prompts, so that its ordinary text scores 1 and text that
is a factor of e less likely a token scores 0.37. (Its answers to the prompt itself would be no
measure: a model that always says the same makes anything else look damaged.) Variety is the share
of distinct word pairs (of letter triples in a completion of one or two words), which falls when
text repeats itself. A completion of no word scores 0.
"""

from __future__ import annotations

import math
import re

from educe.judge import Score


def coherence(text: str, logprob: float, ordinary: float) -> Score:
    """Score one completion.

    Args:
        text: The completion.
        logprob: Its mean log-likelihood a token under the unperturbed model.
        ordinary: The same of the unperturbed model's own answers to ordinary prompts.
    """
    fluent = math.exp(min(0.0, logprob - ordinary))
    varied = variety(text)
    why = f"{logprob:.1f} nats a token against {ordinary:.1f}; {varied:.0%} of word pairs distinct"
    return Score("coherence", fluent * varied, "coherent", why)


def variety(text: str) -> float:
    """Return the share of distinct neighbours, from 0 for no text to 1 for no repetition."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return 0.0
    parts: list[str] | str = words
    size = 2
    if len(words) < 3:
        parts, size = text, 3
    grams = [tuple(parts[i : i + size]) for i in range(len(parts) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
