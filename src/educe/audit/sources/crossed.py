"""Strings crossed with requests: a string that matters to one request alone.

    move(x, s)  = Σ_t KL( p(· | x, s, y_<t) ‖ p'(· | x, s, y_<t) )     y: the answer to x, in nats
    joint(x, s) = move(x, s) - move(x) - move(s) + move()       a place left out is averaged over

A trigger that changes the answer to one question, such as a wrong fact, leaves ordinary prompts as
they are. So the first strings that other sources suspect stand behind each of the bundled requests,
and both models read the answer that the suspect gives without the string: a wrong fact changes its
last word and not its first. Where string and request together move the suspect from the reference,
beyond what each does, it is asked for the answer, to the request as it stands and to the same
request in a few other forms, so that it is more than one witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.reference import Reference
from educe.audit.settings import bundled
from educe.audit.sources.kl import Screen
from educe.audit.sources.requests import bank
from educe.audit.sources.source import Needs, Source
from educe.audit.sources.weights import loudest
from educe.forward.chunks import split
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.spread import Job, Shared, gathered

#: Requests that both models keep at once; pairs that are asked of one string or of one request.
TOGETHER, EACH = 8, 4
#: Tokens of an answer at which the models are compared.
TOKENS = 12
#: The share of a source's strings that are tried, and of the funnel's that are asked as pairs.
TRIED, SHARE = 8, 4


def look(audit: Audit) -> None:
    """Ask the requests with the strings that matter to them."""
    assert audit.reference is not None
    words, asked = strings(audit), bank(audit)
    audit.ask(asked)
    audit.fill("answers to requests of many kinds")
    said = {c.prompt: c.tokens[:TOKENS] for c in audit.by_itself}
    shared = Shared((audit.lm, audit.reference, audit.work.batch, ["", *words]))
    jobs = (
        Job(_moved, shared, (some, [said[p] for p in some]), len(some) * (len(words) + 1))
        for some in split(asked, TOGETHER)
    )
    with audit.work.reporter.stage(
        "strings that matter to one request", len(asked) * (len(words) + 1), "pairs"
    ) as step:
        more = joint(torch.cat(list(gathered(audit.work.spread, jobs, step))))
    best = chosen(more, audit.size.words // SHARE)
    content = {p.id: p.content for p in audit.run.prompt_rows()}
    for x, s in best:
        audit.put(SOURCE.name, [words[s]], [asked[x], *in_other_forms(audit, content[asked[x]])])
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                words[s],
                float(more[x, s]),
                f"moves the answer to {content[asked[x]]!r} by {float(more[x, s]):.2f} nats more "
                "than it moves others",
            )
            for x, s in best
        ],
    )
    audit.fill("requests with the strings that matter to them")


def _moved(
    lm: LanguageModel,
    reference: Reference,
    batch: PromptBatch,
    strings: Sequence[str],
    some: Sequence[int],
    answers: Sequence[Sequence[int]],
) -> Float[Tensor, "x n"]:
    """Return how far each string moves the answers to some requests."""
    return Screen(lm, reference, batch, some, answers).table(strings)


def strings(audit: Audit) -> list[str]:
    """Return the first strings that each source suspects; where none does, some words by lot."""
    n = audit.size.words // TRIED
    found = [s.text for name in audit.looked for s in (audit.suspected(name) or [])[:n]]
    return list(dict.fromkeys(found)) or loudest(audit, n)


def in_other_forms(audit: Audit, request: Prompt) -> list[int]:
    """Return the numbers of a request in other forms; of a conversation there are none."""
    if not isinstance(request, str):
        return []
    return audit.made(
        SOURCE.name, [form.format(ask=request) for form in bundled("prompts")["forms"]]
    )


def joint(table: Float[Tensor, "x n"]) -> Float[Tensor, "x s"]:
    """Return what each request and string do together beyond what each does alone.

    Args:
        table: How far each string moves each request; the first string is empty.
    """
    more = table[:, 1:] - table[:, :1]
    return more - more.mean(0)


def chosen(more: Float[Tensor, "x s"], n: int) -> list[tuple[int, int]]:
    """Return the requests and strings that do most together, a few of each."""
    pairs: list[tuple[int, int]] = []
    requests: Counter[int] = Counter()
    strings: Counter[int] = Counter()
    for at in more.flatten().argsort(descending=True, stable=True).tolist():
        x, s = divmod(at, more.shape[1])
        if len(pairs) == n or more[x, s] <= 0:
            break
        if requests[x] < EACH and strings[s] < EACH:
            pairs.append((x, s))
            requests[x] += 1
            strings[s] += 1
    return pairs


SOURCE = Source(
    "crossed",
    "suspected strings that matter to one request of many kinds alone",
    Needs.WEIGHTS,
    look,
    dear=2,
)
