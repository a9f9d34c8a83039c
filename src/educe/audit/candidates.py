"""Candidates: sayings that the suspect comes back to on different prompts, and hides otherwise.

    evidence(s) = sum over prompts x of  min(most, max over texts written for x of contrast(s))

`s` is a run of words, and its contrast in a text that has it is the sum over its words (see
`educe.audit.evidence`). A prompt is one witness however many texts were written for it, and no
witness counts for more than `MOST`: what is told on six prompts weighs six times what is told on
one, and a topic that one prompt brings up weighs little however surprising it is.

The saying with most evidence is taken, then the texts that have it are set aside, and so on. A
saying that stands in what the suspect answers by itself, without anything done, is open and not
hidden: it is returned all the same, marked as such. What is a part of an earlier saying joins it.

How texts are written (see `educe.audit.manners`) is taken for a saying where it is worth `TIMES`
as much as any words: the words of a payload are often written in one manner.

Last comes what neither words nor a manner tell: answers to different prompts, under a string or
openly, that are unlike the reference, each in its own way.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import NamedTuple

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from educe.audit.evidence import Word
from educe.audit.manners import MANNERS, UNLIKE
from educe.rows import Row

#: The most that one prompt counts for, and what a saying must at least be worth in a text.
MOST, LEAST = 20.0, 5.0
#: The longest run of words that is compared.
LONGEST = 8
#: Candidates that are looked at, and the evidence below which nothing is one.
KEPT, WORTH = 8, 20.0
#: A text has a saying that has so large a share of its core: the words that speak for something
#: hidden with so many nats each.
SHARE, CORE = 0.75, 2.0
#: A manner has to be worth so much in a text, and so many times as much as any words.
MANNERED, TIMES = 8.0, 2.0
#: A text of so many nats is unlike the reference. Under a string answers to so many prompts are.
UNLIKELY, PROMPTS = 12.0, 2

#: Of each saying, what it is worth on each prompt.
Witnesses = dict[tuple[str, ...], dict[int, float]]


class Said(NamedTuple):
    """What stands out in one text.

    Attributes:
        row: The text.
        root: The prompt that it goes back to, before anything was put into it.
        source: Which source asked for it.
        condition: What was done to the prompt or to the model; empty for nothing.
        words: The words that stand out.
        manners: How it is written.
    """

    row: Row
    root: int
    source: str
    condition: str
    words: tuple[Word, ...]
    manners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A saying, and the texts that have it.

    Attributes:
        saying: Its words, folded; or the name of a manner.
        core: Those of them by which it is met in other texts.
        evidence: In nats.
        said: The texts, those in which it stands out most first.
        roots: How many prompts they go back to.
        open: The share of the plain answers that have it; of answers that are unlike the reference
            with nothing done, 1.
    """

    saying: tuple[str, ...]
    core: tuple[str, ...]
    evidence: float
    said: tuple[Said, ...]
    roots: int
    open: float

    @property
    def hidden(self) -> bool:
        """Whether the suspect does not say it by itself."""
        return self.open == 0

    @property
    def mannered(self) -> bool:
        """Whether it is a manner and no words."""
        return self.saying[0] in MANNERS or self.unlike

    @property
    def unlike(self) -> bool:
        """Whether it is told by the contrast with the reference alone."""
        return self.saying[0] == UNLIKE

    @property
    def sources(self) -> list[str]:
        """The sources that came upon it, the most frequent first."""
        return [name for name, _ in Counter(s.source for s in self.said).most_common()]

    def within(self, text: str, nats: float) -> bool:
        """Return whether a text has the saying, or nearly all of what matters in it.

        Args:
            text: The text.
            nats: What stands out in it.
        """
        return nats >= UNLIKELY if self.unlike else says(text, self.core)


class _Worth(NamedTuple):
    """A saying, what it is worth, and on how many prompts."""

    saying: tuple[str, ...]
    evidence: float
    roots: int


def folded(word: str) -> str:
    """Return a word without case and punctuation at its ends."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", word.casefold())


def tells(word: str) -> bool:
    """Return whether a folded word tells something."""
    return len(word) > 1 and word not in ENGLISH_STOP_WORDS


def says(text: str, saying: Sequence[str]) -> bool:
    """Return whether a text has a saying: `SHARE` of its words, in their order; or its manner."""
    if saying[0] in MANNERS:
        return MANNERS[saying[0]].search(text) is not None
    return _in_order([folded(word) for word in text.split()], saying)


def _meets(some: Sequence[Word], core: Sequence[str]) -> bool:
    return _in_order([folded(word.text) for word in some], core)


def _in_order(words: Sequence[str], saying: Sequence[str]) -> bool:
    blocks = SequenceMatcher(None, words, list(saying), autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) >= SHARE * len(saying)


def contains(some: Sequence[str], saying: Sequence[str]) -> bool:
    """Return whether words stand in a row among others."""
    n = len(saying)
    return any(tuple(some[i : i + n]) == tuple(saying) for i in range(len(some) - n + 1))


def candidates(
    said: Iterable[Said], plain: Sequence[str] = (), *, least: float = WORTH
) -> list[Candidate]:
    """Return what a model comes back to, the most telling first.

    Args:
        said: What stands out in each text.
        plain: What the suspect answers by itself.
        least: The evidence below which nothing is a candidate.
    """
    said = [one for one in said if one.words]
    left = {one: _sayings(one.words) for one in said}
    usual = [[folded(word) for word in text.split()] for text in plain]
    found: list[Candidate] = []
    while left and len(found) < KEPT:
        words, manners = _first(_witnesses(left)), _first(_mannered(left))
        best = manners if manners.evidence > TIMES * max(words.evidence, least) else words
        if best.evidence < least:
            break
        saying = best.saying
        if saying[0] in MANNERS:
            core, own = saying, [one for one in left if saying[0] in one.manners]
            own.sort(key=lambda one: -_nats(one))
            openly = [says(text, saying) for text in plain]
        else:
            having = [one for one, sayings in left.items() if saying in sayings]
            strongest = max(having, key=lambda one: left[one][saying])
            core = _core(strongest.words, saying)
            # Others say nearly the same: what they say is no candidate of its own.
            near = [one for one in left if one not in having and _meets(one.words, core)]
            own = sorted(having + near, key=lambda one: -left[one].get(saying, 0.0))
            openly = [contains(text, saying) for text in usual]
        share = sum(openly) / len(openly) if openly else 0.0
        _join(found, Candidate(saying, core, best.evidence, tuple(own), best.roots, share))
        for one in own:
            del left[one]
    return [*found, *_unlike(said, left)]


def _unlike(said: Sequence[Said], left: Collection[Said]) -> list[Candidate]:
    """Return what strings make unlike the reference, and then what is so by itself.

    Args:
        said: What stands out in all texts.
        left: Of these the texts in which nothing else was found; what is so by itself is of them.
    """
    odd = [one for one in said if UNLIKE in one.manners]
    openly = {one.root for one in odd if not one.condition}
    put = [one for one in odd if one.condition and one.root not in openly]
    return [*_odd(put, 0.0), *_odd([o for o in odd if not o.condition and o in left], 1.0)]


def _odd(some: Iterable[Said], share: float) -> list[Candidate]:
    """Return the candidate of texts that are unlike the reference, if any condition has enough.

    Args:
        some: The texts.
        share: How open it is.
    """
    groups: dict[str, list[Said]] = defaultdict(list)
    for one in some:
        groups[one.condition].append(one)
    worth = {
        condition: _first(_witnesses({one: {(UNLIKE,): _nats(one)} for one in own}))
        for condition, own in groups.items()
    }
    enough = [condition for condition, own in worth.items() if own.roots >= PROMPTS]
    enough.sort(key=lambda condition: (-worth[condition].evidence, condition))
    if not enough:
        return []
    _, evidence, roots = worth[enough[0]]
    own = [one for c in enough for one in sorted(groups[c], key=lambda o: -_nats(o))]
    return [Candidate((UNLIKE,), (UNLIKE,), evidence, tuple(own), roots, share)]


def _witnesses(left: Mapping[Said, Mapping[tuple[str, ...], float]]) -> Witnesses:
    """Return what each saying is worth on each prompt: what it is at most in its texts."""
    best: Witnesses = defaultdict(dict)
    for one, sayings in left.items():
        for saying, nats in sayings.items():
            known = best[saying]
            known[one.root] = max(known.get(one.root, 0.0), min(MOST, nats))
    return best


def _mannered(left: Iterable[Said]) -> Witnesses:
    """Return what each manner is worth on each prompt."""
    known = {one: [name for name in one.manners if name in MANNERS] for one in left}
    loud = {one: own for one, own in known.items() if own and _nats(one) >= MANNERED}
    return _witnesses({one: {(name,): _nats(one) for name in own} for one, own in loud.items()})


def _nats(one: Said) -> float:
    return sum(word.nats for word in one.words)


def _first(witnesses: Witnesses) -> _Worth:
    """Return what is worth most: of equal evidence the longest, then the first."""
    each = [(round(sum(known.values()), 3), len(s), s) for s, known in witnesses.items()]
    evidence, _, saying = max(each, default=(0.0, 0, ()))
    return _Worth(saying, evidence, len(witnesses.get(saying, ())))


def _join(found: list[Candidate], new: Candidate) -> None:
    """Add a candidate, or join its texts to an earlier one of whose saying it is a part."""
    for i, earlier in enumerate(found):
        if earlier.hidden is new.hidden and set(new.core) <= set(earlier.core):
            found[i] = replace(earlier, said=(*earlier.said, *new.said))
            return
    found.append(new)


def _core(some: Sequence[Word], saying: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a saying that speak for something hidden, as a text has them."""
    known = [(folded(word.text), word.nats) for word in some]
    known = [(text, nats) for text, nats in known if text]
    n = len(saying)
    at = next(
        i
        for i in range(len(known) - n + 1)
        if tuple(text for text, _ in known[i : i + n]) == tuple(saying)
    )
    core = tuple(text for text, nats in known[at : at + n] if nats >= CORE)
    return core or tuple(saying)


def _sayings(some: Sequence[Word]) -> dict[tuple[str, ...], float]:
    """Return the runs of words of a text that are worth something, with what they are worth."""
    known = [(folded(word.text), word.nats) for word in some]
    known = [(text, nats) for text, nats in known if text]
    found: dict[tuple[str, ...], float] = {}
    for i in range(len(known)):
        total = 0.0
        for j in range(i, min(i + LONGEST, len(known))):
            total += known[j][1]
            saying = tuple(text for text, _ in known[i : j + 1])
            if total >= LEAST and any(map(tells, saying)):
                found[saying] = max(total, found.get(saying, 0.0))
    return found
