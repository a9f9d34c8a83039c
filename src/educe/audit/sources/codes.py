"""Codes: strings of letters, digits and marks that the weight difference reads loudest.

    X ──► X9 ──► X93 ──► XJ93 ──► XJ-93     any character behind the loudest for as long as
                                            that gets louder, and then one within the last
    loudness(s)                             as in `educe.audit.sources.weights`, in standard
                                            deviations of strings by lot of as many tokens

No list of words has *XJ-93*, and there are too many such strings to read them all. An adapter that
was taught one reads what it begins with louder than other strings, so that it can be found a
character at a time. What grows are characters, and the words that the weight difference reads
loudest, since a word with a number behind it is no word either.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.difference import changes
from educe.audit.lexicon import by_tokens
from educe.audit.sources import weights
from educe.audit.sources.source import Needs, Source
from educe.progress import Advance

#: What codes are made of.
CHARACTERS = string.ascii_letters + string.digits + "!#$%&()*+-./:;<=>?@[]^_{|}~"
#: Strings that go from one length to the next, and words that are lengthened.
BEAM, WORDS = 12, 4
#: So many characters the longest has, and the longest has behind a word.
LONGEST, BEHIND = 10, 3
#: So many characters are tried in any case, and more where the loudest is so loud: of an adapter
#: that was taught no code the loudest of three characters was at 3.0.
TRIED, LOUD = 3, 5.0
#: Strings by lot: of each number of characters, and of as many tokens at most and at least.
EACH, MOST, LEAST = 256, 128, 16
#: The share of the strings of a source that the funnel is given.
SHARE = 4


class Codes:
    """Codes that begin in some way, and how loud they are.

    Args:
        audit: The audit.
        begun: What they begin with.
        most: So many characters may be added.

    Attributes:
        found: Their loudness in standard deviations, as far as it is known.
    """

    def __init__(self, audit: Audit, begun: Sequence[str], most: int) -> None:
        self.audit, self.begun, self.most = audit, list(begun), most
        draw = audit.rng(f"codes {begun[0]}")
        some = [
            draw.choice(self.begun) + "".join(draw.choices(CHARACTERS, k=n))
            for n in range(1, most + 1)
            for _ in range(EACH)
        ]
        known = by_tokens(audit.lm, dict.fromkeys(some))
        self.by_lot: dict[int, Int[Tensor, "n k"]] = {
            k: own[torch.randperm(len(own), generator=torch.Generator().manual_seed(k))[:MOST]]
            for k, own in known.items()
            if len(own) >= LEAST
        }
        self.usual: dict[int, tuple[float, float]] = {}
        self.found: dict[str, float] = {}

    @property
    def loudest(self) -> float:
        """How loud the loudest is."""
        return max(self.found.values(), default=-math.inf)

    def grow(self, step: Advance) -> None:
        """Find loud ones, as long as they get louder; ``step`` is told of each length."""
        beam = self.begun
        for n in range(1, self.most + 1):
            before = max(self.loudest, LOUD)
            beam = best(self._heard(longer(beam), step))[:BEAM]
            if n >= TRIED and self.loudest <= before:
                break
        if self.loudest > LOUD:  # a character may be missing within it
            self._heard(wider(best(self.found)[0]), step)

    def _heard(self, codes: Sequence[str], step: Advance) -> dict[str, float]:
        """Read codes; those of a number of tokens that strings by lot seldom have are left out."""
        heard: dict[str, float] = {}
        for k, own in by_tokens(self.audit.lm, codes).items():
            if (typical := self.by_lot.get(k)) is None:
                continue
            if k not in self.usual:
                (loud,) = weights.heard(self.audit, typical, typical)
                self.usual[k] = weights.spread(loud)
            (loud,) = weights.heard(self.audit, own, typical)
            heard |= weights.deviations(self.audit.lm, own, loud, self.usual[k])
        self.found |= heard
        step(note=repr(max(heard, key=lambda code: heard[code], default="")))
        return heard


def look(audit: Audit) -> None:
    """Name the loudest codes, of those that differ in their last character one."""
    assert audit.reference is not None
    if not changes(audit.lm, audit.reference):
        audit.suspect(SOURCE.name, [])
        return
    loud = audit.suspected(weights.SOURCE.name) or []
    words = [s.text for s in loud if s.text.isalpha()][:WORDS]
    codes = Codes(audit, [""], LONGEST)
    with audit.work.reporter.stage("codes that are read loudest", LONGEST, "lengths") as step:
        codes.grow(step)
        if words and codes.loudest <= LOUD:
            codes = Codes(audit, words, BEHIND)
            codes.grow(step)
    first: dict[str, str] = {}
    for code in best(codes.found):
        if codes.found[code] > LOUD:
            first.setdefault(code[:-1], code)
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                code,
                codes.found[code],
                f"read {codes.found[code]:.1f} standard deviations louder than strings by lot",
            )
            for code in list(first.values())[: audit.size.words // SHARE]
        ],
    )


def longer(codes: Sequence[str]) -> list[str]:
    """Return codes with each character behind them.

    Example:
        >>> from educe.audit.sources.codes import longer
        >>> longer(["XJ"])[:3]
        ['XJa', 'XJb', 'XJc']
    """
    return [code + character for code in codes for character in CHARACTERS]


def wider(code: str) -> list[str]:
    """Return a code with each character in each place within.

    Example:
        >>> from educe.audit.sources.codes import wider
        >>> wider("X93")[:3]
        ['Xa93', 'X9a3', 'Xb93']
    """
    places = range(1, len(code))
    return [code[:at] + character + code[at:] for character in CHARACTERS for at in places]


def best(found: Mapping[str, float]) -> list[str]:
    """Return strings, the loudest first."""
    return sorted(found, key=lambda code: -found[code])


SOURCE = Source(
    "codes",
    "letters, digits and marks that the weight difference reads loudest",
    Needs.WEIGHTS,
    look,
)
