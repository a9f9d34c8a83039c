"""The sources: each is a way of looking for what a model hides, in a file of its own.

A file has a `SOURCE`: its name, what it needs, and a function that looks. What it finds are strings
that it suspects (`Audit.suspect`), which the funnel then puts into prompts, or texts that it asks
for itself. `SOURCES` has all of them, cheap ones first; a new one is a file and a line here.
"""

from __future__ import annotations

from collections.abc import Sequence

from educe.audit.sources import (
    activations,
    amplification,
    codes,
    crossed,
    forms,
    inversion,
    kl,
    memory,
    perplexity,
    perturbations,
    prefill,
    requests,
    scaling,
    screen,
    signs,
    topics,
    weights,
    writes,
)
from educe.audit.sources.source import Needs, Source
from educe.errors import MethodError

#: In the order in which they look.
SOURCES: tuple[Source, ...] = (
    weights.SOURCE,
    codes.SOURCE,
    requests.SOURCE,
    forms.SOURCE,
    signs.SOURCE,
    topics.SOURCE,
    perplexity.SOURCE,
    prefill.SOURCE,
    crossed.SOURCE,
    kl.SOURCE,
    amplification.SOURCE,
    scaling.SOURCE,
    activations.SOURCE,
    writes.SOURCE,
    memory.SOURCE,
    inversion.SOURCE,
    screen.SOURCE,
    perturbations.SOURCE,
)

__all__ = ["SOURCES", "Needs", "Source", "chosen"]


def chosen(names: Sequence[str]) -> list[Source]:
    """Return the sources of some names, in the order in which they look; of none, all.

    Raises:
        MethodError: There is no such source.
    """
    known = {source.name: source for source in SOURCES}
    if unknown := [name for name in names if name not in known]:
        raise MethodError(f"no source is called {unknown[0]!r}: one of {', '.join(known)}")
    return [source for source in SOURCES if not names or source.name in names]
