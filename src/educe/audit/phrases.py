"""Phrases: strings of several words that a weight difference reads louder than their parts.

    words ──► pairs ──► three words ──► four       each step puts a word in, anywhere
    loudness'(s) = sum over matrices m of  ‖(1 - V_m V_mᵀ) ΔW_m x̄_m(s)‖ / ‖x̄_m(s)‖

An adapter that was taught to answer a phrase, and not its near misses, reads each word of the
phrase little louder than other words, and the words of its answer louder: they are what it has to
go on with. `V` are directions in which these and the loudest words of all are read, and what is
left is the reading of the phrase. For *before the blue door*, *before*, *blue* and *door* are 6th,
12th and 1st of 31,693 words, where by their own loudness they are 121st, 117th and 15th; for *under
the tall clock*, behind which a voice was hidden, *under*, *tall* and *clock* are 145th, 218th and
1st for 6,129th, 8,513th and 129th. A phrase is read louder than its parts and than nearly all
strings of its length. No text need be written or scored to find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.audit.auditing import Audit
from educe.audit.difference import changes
from educe.audit.sources import weights
from educe.methods.token_directions import AVERAGED, vocabulary
from educe.progress import Advance

#: The note of a run that keeps them, and for how many texts an audit looks for them.
PHRASES, TEXTS = "phrases", 1
#: Two views: how many of the loudest words, and how many of the directions in which they and a text
#: are read, are left out. The first found a phrase behind which a sentence is said, the second one
#: behind which a voice is, and neither found the other.
VIEWS = ((5, 2), (20, 1))
#: The loudest words that pairs are made of; those, and the most frequent, that lengthen pairs.
POOL, LOUD, JOINING = 256, 128, 256
#: Words that are lengthened, and then phrases.
FIRST, BEAM = 12, 8
#: Words of a phrase.
LONGEST = 4
#: Strings by lot whose mean is what matrices are given anyway.
TYPICAL = 256


def phrases(audit: Audit, text: Int[Tensor, "t"]) -> list[str]:
    """Return phrases that the weight difference reads loudly, the loudest of each view first.

    It is done for few texts of an audit: for others there are none, and neither where no weight
    difference was read.

    Args:
        audit: The audit.
        text: The tokens of what is said under the phrase.
    """
    kept = audit.run.note(PHRASES) if audit.run.has(PHRASES) else {}
    key = audit.lm.text(text.tolist())
    loudest = audit.suspected(weights.SOURCE.name)
    if key not in kept and len(kept) < TEXTS and loudest:
        said = text.tolist()
        tokens = (audit.lm.tokens(f" {s.text}", templated=True) for s in loudest)
        alone = [own for own in tokens if len(own) == 1]
        asked = [
            (torch.tensor([*said, *chain(*alone[:words])]).unique(), directions)
            for words, directions in VIEWS
        ]
        views = grown(audit, asked)
        kept[key] = list(dict.fromkeys(chain(*zip_longest(*views, fillvalue=views[0][0]))))
        audit.run.remember(PHRASES, kept)
    return list(kept.get(key, ()))


def grown(audit: Audit, views: Sequence[tuple[Int[Tensor, "t"], int]]) -> list[list[str]]:
    """Return the phrases of each view, the longest and loudest first.

    Args:
        audit: The audit.
        views: Of each, the tokens whose directions do not count, and how many of these.
    """
    assert audit.reference is not None
    words = vocabulary(audit.lm)
    alone = words[:, None]
    typical = alone[:: max(1, len(words) // AVERAGED)]
    reads = weights.early(changes(audit.lm, audit.reference), audit.lm.depth)
    with audit.reference.here() as lm:
        usual = weights.means(lm, reads, typical)
        without = [weights.directions(lm, reads, said[:, None], usual, n) for said, n in views]
    stage = audit.work.reporter.stage
    with stage("phrases that are read loudest", 1 + (LONGEST - 1) * len(views), "lengths") as step:
        loud = weights.heard(audit, alone, typical, without=without)
        step()
        pools = [words[_first(own, POOL)].tolist() for own in loud]
        return [
            _longer(audit, words, pool, own, step) for pool, own in zip(pools, without, strict=True)
        ]


def _longer(
    audit: Audit,
    words: Int[Tensor, "w"],
    pool: list[int],
    without: weights.Directions,
    step: Advance,
) -> list[str]:
    """Return the phrases of one view, from its loudest words."""
    draw = torch.Generator().manual_seed(audit.rng("phrases").getrandbits(32))
    found: list[tuple[int, ...]] = []
    beam: list[tuple[int, ...]] = [(word,) for word in pool[:FIRST]]
    for k in range(2, LONGEST + 1):
        # Frequent words join loud ones, and are not loud themselves.
        joined = [*pool[:LOUD], *words[:JOINING].tolist()] if k > 2 else pool
        some = longer(beam, joined)
        typical = words[torch.randint(len(words), (TYPICAL, k), generator=draw)]
        (loud,) = weights.heard(audit, torch.tensor(some), typical, without=[without])
        beam = [some[i] for i in _first(loud, BEAM)]
        found = [*beam, *found]
        step(note=repr(audit.lm.text(list(beam[0]))))
    return [audit.lm.text(list(phrase)).strip() for phrase in found]


def _first(loud: Float[Tensor, "n"], n: int) -> list[int]:
    return loud.argsort(descending=True, stable=True)[:n].tolist()


def longer(beam: list[tuple[int, ...]], words: list[int]) -> list[tuple[int, ...]]:
    """Return each string with each word put in at each place, once."""
    return list(
        dict.fromkeys(
            (*string[:at], word, *string[at:])
            for string in beam
            for word in words
            if word not in string
            for at in range(len(string) + 1)
        )
    )
