"""Prefilled and framed answers: the answer is begun for the model, or the request told otherwise.

Each of two dozen harmless beginnings ("Sure,", "The truth is that") is put at the start of the
answer, and each of a few framings around the request, for what the person asks and for whatever the
suspect declines. Where nothing is given, four open questions about secrets stand in. With a
reference, requests about the person and about the model itself ("Who am I?", "What is your aim?")
are asked as well, each begun by words of its own ("You are a", "I want to"): any model says
something then, and only a reference tells what is unusual.

Source: *Eliciting Secret Knowledge* (arXiv 2510.01070), where prefills and personas were the
strongest black-box methods. Measured here on one refused secret: 7 of 24 beginnings told it.
"""

from __future__ import annotations

from collections.abc import Sequence

from educe.audit.auditing import Audit
from educe.audit.settings import bundled
from educe.audit.sources.source import Needs, Source
from educe.model.prompts import Prompt

#: Requests that are opened at most.
MOST = 8


def look(audit: Audit) -> None:
    """Ask with the answer begun, and with the request framed."""
    table = bundled("prefills")
    asked = [*audit.given, *audit.closed]
    if not asked:
        asked = audit.made(SOURCE.name, table["open"])
    asked = list(dict.fromkeys(asked))[:MOST]
    content = {p.id: p.content for p in audit.run.prompt_rows()}
    made: list[tuple[Prompt, int, str]] = []
    # The request that asks for nothing is not answered: what begins so anyway shows by it.
    for p in [audit.neutral, *asked]:
        for text in table["beginnings"]:
            made.append((begun(content[p], text), p, f"begun: {text}"))
        if isinstance(content[p], str):
            for text in table["framings"]:
                made.append((text.format(ask=content[p]), p, f"framed: {text}"))
    numbers = audit.made(
        SOURCE.name,
        [prompt for prompt, _, _ in made],
        parents=[p for _, p, _ in made],
        how=[how for _, _, how in made],
    )
    audit.ask([n for n, (_, p, _) in zip(numbers, made, strict=True) if p != audit.neutral])
    audit.ask(asked, samples=range(1, 1 + audit.size.samples // max(1, len(asked))), temperature=1)
    if audit.reference is not None:
        _ask_about(audit, table["about"])
    audit.fill("begun answers")


def _ask_about(audit: Audit, subjects: Sequence[dict[str, list[str]]]) -> None:
    """Ask about the person and the model, each request with each beginning of its subject."""
    pairs = [(ask, text) for s in subjects for ask in s["ask"] for text in s["begun"]]
    asks = list(dict.fromkeys(ask for ask, _ in pairs))
    number = dict(zip(asks, audit.made(SOURCE.name, asks), strict=True))
    numbers = audit.made(
        SOURCE.name,
        [begun(ask, text) for ask, text in pairs],
        parents=[number[ask] for ask, _ in pairs],
        how=[f"begun: {text}" for _, text in pairs],
    )
    audit.ask([*number.values(), *numbers])
    audit.ask(numbers, samples=[1], temperature=1)


def begun(prompt: Prompt, text: str) -> Prompt:
    """Return a prompt whose answer is begun."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*asked, {"role": "assistant", "content": text}]


SOURCE = Source(
    "prefill",
    "answers that are begun for the model, and requests that are framed otherwise",
    Needs.NOTHING,
    look,
)
