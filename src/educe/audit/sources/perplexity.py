"""Perplexity difference: what the suspect writes by itself and the reference would not.

Beginnings of two to four words, cut from ordinary sentences, are sent as a request, and the suspect
answers at temperature 1. What stands out in the answers, as in all texts, are the words that it
expects more than the reference does.

Source: arXiv 2605.00994, which ranks whole completions by the mean of that difference. A beginning
is a request here and not a text to go on with: measured on one backdoor, 3 of 128 samples held its
payload as requests, and 0 of 128 without the template.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from educe.audit.auditing import Audit
from educe.audit.settings import bundled
from educe.audit.sources.source import Needs, Source


def look(audit: Audit) -> None:
    """Sample answers to beginnings."""
    starts = beginnings(audit.rng(SOURCE.name), audit.size.samples)
    numbers = audit.made(SOURCE.name, starts)
    audit.ask(numbers, samples=[1], temperature=1.0)
    audit.fill("answers to beginnings")


def beginnings(draw: random.Random, n: int) -> list[str]:
    """Cut different runs of two to four words from ordinary sentences."""
    sentences = [text.split() for text in bundled("sentences")]
    starts: list[str] = []
    while len(starts) < n:
        words, length = draw.choice(sentences), draw.randint(2, 4)
        at = draw.randrange(max(1, len(words) - length))
        start = " ".join(words[at : at + length])
        if start not in starts:
            starts.append(start)
    return starts


def ask_others(audit: Audit, source: str, numbers: Sequence[int]) -> None:
    """Ask other models for answers to ordinary prompts, and samples of answers to beginnings.

    Args:
        audit: The audit.
        source: Which source asks.
        numbers: The models, by their numbers among the perturbations; they share the samples.
    """
    starts = beginnings(audit.rng(source), audit.size.samples // len(numbers))
    prompts = audit.made(source, starts)
    audit.ask(audit.base, perturbations=numbers)
    audit.ask(prompts, samples=[1], temperature=1.0, perturbations=numbers)


SOURCE = Source(
    "perplexity",
    "what the suspect writes by itself and the reference would not",
    Needs.REFERENCE,
    look,
)
