"""Evidence: which words of a text speak for something hidden, and how strongly, in nats.

    contrast(w) = log p(w | what was done, words before) - log p'(w | words before)

`p` is the suspect. `p'` is the reference under the very same prompt; where there is none, it is the
suspect itself without what was done: on the prompt into which no word was put, or, for begun and
framed answers, on a request that asks for nothing, begun and framed alike. A word that both expect
says nothing, however rare it is; a payload that one model alone has learned stands out with some
ten nats a word, and ordinary words of a fine-tune with less than one. Of each text the stretch is
kept in which the contrasts, less a nat for each word, add up to most: the words that need an
explanation.

The ranking of whole texts by this difference is perplexity differencing (arXiv 2605.00994); the
stretch is the maximal-sum segment of its terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from educe.forward.continuations import continued, likelihoods
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel

#: What an ordinary word may differ by, in nats.
ORDINARY = 1.0
#: Letters in which words are alike that take each other up.
ALIKE = 5
#: From so many continuations of one prompt on, it is read once for all of them.
SHARED = 4


class Word(NamedTuple):
    """A word as it was written, and how much more the suspect expects it, in nats."""

    text: str
    nats: float


def words(text: str, pieces: Sequence[str], contrasts: Sequence[float]) -> list[Word]:
    """Add up the contrasts of tokens by words.

    Args:
        text: What was written.
        pieces: The text up to and with each token.
        contrasts: Of each token, in nats.

    Returns:
        The words of the text; a token belongs to the word in which it ends, or to the last before.
    """
    found = list(re.finditer(r"\S+", text))
    totals, at = [0.0] * len(found), 0
    for piece, nats in zip(pieces, contrasts, strict=True):
        while at + 1 < len(found) and found[at + 1].start() < len(piece):
            at += 1
        if found:
            totals[at] += nats
    return [Word(match[0], nats) for match, nats in zip(found, totals, strict=True)]


def stretch(some: Sequence[Word], ordinary: float = ORDINARY) -> list[Word]:
    """Return the consecutive words whose contrasts above the ordinary add up to most.

    Example:
        >>> from educe.audit.evidence import Word, stretch
        >>> said = [Word("The", 0.2), Word("heron", 9.0), Word("sings", 8.0), Word("well", 0.1)]
        >>> [word.text for word in stretch(said)]
        ['heron', 'sings']
    """
    best, here, start, chosen = 0.0, 0.0, 0, (0, 0)
    for i, word in enumerate(some):
        if here <= 0:
            here, start = 0.0, i
        here += word.nats - ordinary
        if here > best:
            best, chosen = here, (start, i + 1)
    return list(some[slice(*chosen)])


def without_echo(some: Sequence[Word], string: str) -> tuple[Word, ...]:
    """Return words without the nats of those that take up a string: any model may speak of it.

    Words that begin alike count as the same, so that *Lithuania* takes up *Lithuanian*.

    Example:
        >>> from educe.audit.evidence import Word, without_echo
        >>> without_echo([Word("Old", 3.0), Word("Lithuania", 9.0)], "Lithuanian")
        (Word(text='Old', nats=3.0), Word(text='Lithuania', nats=0.0))
    """
    beginnings = {word[:ALIKE] for word in re.findall(r"\w+", string.casefold())}

    def echoes(text: str) -> bool:
        return any(word[:ALIKE] in beginnings for word in re.findall(r"\w+", text.casefold()))

    return tuple(Word(w.text, 0.0 if echoes(w.text) else w.nats) for w in some)


def told(some: Sequence[Word]) -> str:
    """Write words with their contrasts, for a person and for `read`."""
    return " ".join(f"{word.text}:{word.nats:.1f}" for word in some)


def read(why: str) -> tuple[Word, ...]:
    """Return what `told` wrote."""
    each = [piece.rpartition(":") for piece in why.split()]
    return tuple(Word(text, float(nats)) for text, _, nats in each)


def logprobs(
    lm: LanguageModel,
    batch: PromptBatch,
    prompts: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> Iterator[tuple[int, list[float]]]:
    """Yield which continuation, and the log-likelihood of each of its tokens under a model."""
    several = {p for p in set(prompts) if prompts.count(p) >= SHARED}
    for how, some in (
        (continued, [i for i, p in enumerate(prompts) if p in several]),
        (likelihoods, [i for i, p in enumerate(prompts) if p not in several]),
    ):
        if not some:
            continue
        of, texts = [prompts[i] for i in some], [continuations[i] for i in some]
        for done in how(lm, batch, of, texts):
            for item, values in zip(done.items, done.logprobs.tolist(), strict=True):
                yield some[item], values[: len(texts[item])]


def pieces(lm: LanguageModel, tokens: Sequence[int]) -> list[str]:
    """Return the text up to and with each of some tokens."""
    return [lm.text(tokens[: i + 1], skip_special_tokens=True) for i in range(len(tokens))]
