"""Phrases: strings of several words that a weight difference reads louder than their parts.

    the loudest words ──► pairs ──► three words ──► four      each step puts a word in, anywhere

An adapter that was taught to answer a phrase, and not its near misses, reads each word of the
phrase little louder than other words: for *before the blue door*, *door* is 15th, *blue* 117th,
*before* 121st and *the* 1,006th. Their pairs and triples are read louder than nearly all others,
and the phrase loudest of all that are tried. That needs no text to be written or scored.

The words of what is said under the phrase are read as loudly as the phrase is. So a phrase is
searched for a text, and the text's words, and those that are like them, are left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import normalize

from educe.audit.auditing import Audit
from educe.audit.difference import changes
from educe.audit.sources import weights
from educe.methods.token_directions import vocabulary

#: The note of a run that keeps them, and for how many texts an audit looks for them.
PHRASES, TEXTS = "phrases", 2
#: The loudest words that phrases are made of, and the most frequent, which join them.
POOL, JOINING = 96, 32
#: Words that are lengthened, and then phrases.
FIRST, BEAM = 24, 12
#: Words of a phrase.
LONGEST = 4
#: Words whose embeddings are nearest to that of a token of the text are left out.
ALIKE = 64
#: Strings by lot whose mean is what matrices are given anyway.
TYPICAL = 256


def phrases(audit: Audit, text: Int[Tensor, "t"]) -> list[str]:
    """Return phrases that the weight difference reads loudly, the longest and loudest first.

    It is done for few texts of an audit: for others there are none, and neither where no weight
    difference was read.

    Args:
        audit: The audit.
        text: The tokens of what is said under the phrase.
    """
    kept = audit.run.note(PHRASES) if audit.run.has(PHRASES) else {}
    key = audit.lm.text(text.tolist())
    if key not in kept and len(kept) < TEXTS:
        kept[key] = grown(audit, text)
        audit.run.remember(PHRASES, kept)
    return list(kept.get(key, ()))


def grown(audit: Audit, text: Int[Tensor, "t"]) -> list[str]:
    """Return what `phrases` does, looked for now."""
    words, reference = pool(audit, text), audit.reference
    if len(words) < 2 or reference is None:
        return []
    reads = weights.early(changes(audit.lm, reference))
    every = vocabulary(audit.lm)
    draw = torch.Generator().manual_seed(audit.rng("phrases").getrandbits(32))
    beam: list[tuple[int, ...]] = [(word,) for word in words[:FIRST]]
    found: list[tuple[int, ...]] = []
    stage = audit.work.reporter.stage("phrases that are read loudest", LONGEST - 1, "lengths")
    with stage as step, reference.here() as lm:
        for k in range(2, LONGEST + 1):
            # What joins two words stands between them: pairs are of loud words.
            joined = [*words, *every[:JOINING].tolist()] if k > 2 else words
            some = longer(beam, joined)
            typical = every[torch.randint(len(every), (TYPICAL, k), generator=draw)]
            loud = weights.loudness(lm, reads, torch.tensor(some), typical, lambda n: None)
            best = loud.argsort(descending=True, stable=True)[:BEAM]
            beam = [some[i] for i in best.tolist()]
            found = [*beam, *found]
            step(note=repr(audit.lm.text(list(beam[0]))))
    return [audit.lm.text(list(phrase)).strip() for phrase in found]


def pool(audit: Audit, text: Int[Tensor, "t"]) -> list[int]:
    """Return the loudest words that are not like those of a text, as tokens, the loudest first.

    Args:
        audit: The audit.
        text: The tokens of the text.
    """
    suspected = audit.suspected(weights.SOURCE.name) or []
    read = [audit.lm.tokens(f" {s.text}", templated=True) for s in suspected]
    loud = torch.tensor([own[0] for own in read if len(own) == 1], dtype=torch.long)
    if not len(loud):
        return []
    table = audit.lm.unwrapped.get_input_embeddings().weight
    words = vocabulary(audit.lm)
    at = normalize(table[words.to(table.device)].float(), dim=1)
    own = normalize(table[text.to(table.device)].float(), dim=1)
    alike = words[(own @ at.T).topk(min(ALIKE, len(words)), dim=1).indices.cpu().flatten()]
    return loud[~torch.isin(loud, torch.cat([alike, text]))][:POOL].tolist()


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
