"""Triggers: which string brings a saying about, searched for by the likelihood of the saying.

    fit(s) = mean over prompts x of  log p(y | x with s) - log p(y | x)     y: the saying's text

The string stands where a string that was tried already fails, or else behind one prompt and before
another. Where the text is known, a string need not be guessed by what it does to a single token:
how much likelier it makes the whole text is a smooth measure, in nats, and a word of a two-word
trigger has some of it alone. Suspected words are tried first, then phrases that a weight difference
reads (`educe.audit.phrases`), then pairs of the best with others, and so on to four words (a beam).
The best are then asked for real answers on fresh prompts, beside near misses (words that the model
holds to be alike, parts of the string, a letter left out) and words as rare as they are.

Scoring candidate triggers by a known target is the idea of trigger inversion (Neural Cleanse, Wang
et al. 2019; for text, BAIT, S&P 2025); here over words that other sources suspect.
"""

from __future__ import annotations

import random
import string as characters
from collections.abc import Sequence, Sized

import torch

from educe.audit.auditing import Audit
from educe.audit.forms import FORMS, akin
from educe.audit.lexicon import frequent
from educe.audit.phrases import VIEWS, phrases
from educe.forward.inserted import Opening, by_length
from educe.methods.token_directions import vocabulary
from educe.progress import Advance, untold
from educe.spread import Job, Shared, gathered

#: Places in which strings are tried, strings that go from one length to the next, and the longest.
PLACES, BEAM, WORDS = 2, 6, 4
#: Suspected words that a string may be lengthened by.
ADDED = 32
#: Strings that are read by one worker at a time.
ROWS = 128
#: Tokens of the text, and its log-likelihood from which on no string need be longer.
TOKENS, SURE = 8, -1.0
#: What stands for each other in codes.
ALPHABETS = (characters.ascii_lowercase, characters.ascii_uppercase, characters.digits)
#: Words are as rare that stand so near in the order of rarity.
BESIDE = 200
#: A longer string must make the text so much likelier, in nats, than what it was made from; where
#: no word does more than that alone, nothing is lengthened.
WORTH = 1.0


class Fit:
    """How much likelier strings make a text.

    Args:
        audit: The audit.
        text: The tokens of the text.
        places: Prompts, and whether the string stands before each and not behind it.
    """

    def __init__(
        self, audit: Audit, text: Sequence[int], places: Sequence[tuple[int, bool]]
    ) -> None:
        self.audit, self.text = audit, tuple(text[:TOKENS])
        self.places = [Opening(audit.lm, audit.work.batch, p, first=first) for p, first in places]
        self.known: dict[str, float] = {"": 0.0}
        self.plain = float(self._read([""])[0])

    def of(self, strings: Sequence[str], step: Advance = untold) -> list[float]:
        """Return the fit of some strings, in nats; ``step`` is told how many were read."""
        new = [s for s in dict.fromkeys(strings) if s not in self.known]
        if new:
            values = self._read(new, step) - self.plain
            self.known |= dict(zip(new, values.tolist(), strict=True))
        return [self.known[s] for s in strings]

    def _read(self, strings: Sequence[str], step: Advance = untold) -> torch.Tensor:
        total = torch.zeros(len(strings))
        for place in self.places:
            tokens = [place.tokens(s) for s in strings]
            cut, shared = by_length(tokens, ROWS), Shared((place, self.text))
            jobs = (Job(_likelihood, shared, ([tokens[i] for i in own],), len(own)) for own in cut)
            for own, nats in zip(cut, gathered(self.audit.work.spread, jobs, step), strict=True):
                total[own] += nats
        return total / len(self.places)


def _likelihood(
    place: Opening, text: Sequence[int], tokens: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the log-likelihood of a text at a place, behind strings of one length."""
    found, target = torch.zeros(len(tokens)), torch.tensor(text)
    for read in place.read(torch.tensor(tokens, dtype=torch.long), text):
        own = target.to(read.logprobs.device).expand(len(read.items), -1)[..., None]
        found[list(read.items)] = read.logprobs.gather(-1, own)[..., 0].sum(1).cpu()
    return found


def searched(fit: Fit, seen: Sequence[str], *, grow: bool = True) -> list[str]:
    """Return strings that bring a text about: the best, the phrases read loudest, then the rest.

    Args:
        fit: How much likelier strings make the text.
        seen: Strings under which it was seen already.
        grow: Whether strings are lengthened and phrases grown, where no word makes the text sure;
            it costs minutes.
    """
    audit = fit.audit
    words = [s for s in dict.fromkeys([*seen, *suspects(audit)]) if s not in FORMS]
    total = len(words) * PLACES
    with audit.work.reporter.stage("trying what is suspected", total, "strings") as step:
        fit.of(words, step)
    best = ranked(fit, words)
    if not grow or fit.plain + max(fit.of(best[:1]), default=0.0) > SURE:
        return best
    loud = phrases(audit, torch.tensor(fit.text))
    best = lengthened(fit, ranked(fit, [*best, *loud]))
    # What is like the text makes it likely, too, and is not read as a phrase is.
    return list(dict.fromkeys([*best[:1], *loud[: len(VIEWS)], *best]))


def lengthened(fit: Fit, best: Sequence[str]) -> list[str]:
    """Return strings and longer ones made of them, the best first.

    Args:
        fit: How much likelier strings make a text.
        best: Strings, the best first.
    """
    stage = fit.audit.work.reporter.stage
    with stage("searching for what brings it about", WORDS, "lengths") as step:
        step()
        found, beam = list(best), list(best[:BEAM])
        parts = [s for s in best if " " not in s][:ADDED]
        for _ in range(1, WORDS):
            most = max(fit.of(beam), default=0.0)
            if most < WORTH or fit.plain + most > SURE:
                break
            # Each string is lengthened by suspected words, on both sides: triggers have an order.
            grown = [
                joined
                for s in beam
                for w in parts
                if w not in s.split()
                for joined in (f"{s} {w}", f"{w} {s}")
                if len(joined.split()) <= WORDS
            ]
            values = dict(zip(grown, fit.of(grown), strict=True))
            better = [s for s in grown if values[s] > most + WORTH]
            step()
            if not better:
                break
            beam = sorted(better, key=lambda s: -values[s])[:BEAM]
            found = ranked(fit, [*found, *beam])
    return found


def suspects(audit: Audit) -> list[str]:
    """Return the words that any source suspects, or else some of the vocabulary by lot."""
    found: list[str] = []
    for source in audit.looked:
        found += [s.text for s in (audit.suspected(source) or [])[: audit.size.screened]]
    if found:
        return list(dict.fromkeys(found))
    words = vocabulary(audit.lm).tolist()
    some = audit.rng("triggers").sample(words, min(audit.size.screened, len(words)))
    return [audit.lm.text([w]).strip() for w in some]


def ranked(fit: Fit, strings: Sequence[str]) -> list[str]:
    """Return strings by how well they fit, the best first."""
    values = dict(zip(strings, fit.of(strings), strict=True))
    return sorted(dict.fromkeys(strings), key=lambda s: -values[s])


def near_misses(audit: Audit, string: str, n: int) -> list[str]:
    """Return strings that are almost one: parts of it, a letter less, words that are alike.

    Those of a form are forms of its kind.
    """
    if string in FORMS:
        return akin(string, audit.forms)[0][:n]
    parts = string.split()
    found = parts[:] if len(parts) > 1 else []
    found += [string[:i] + string[i + 1 :] for i in (1, len(string) // 2) if len(string) > 3]
    for part in parts:
        found += beside_code(part) if coded(part) else alike(audit, part, n)
    return [s for s in dict.fromkeys(found) if s != string][:n]


def coded(word: str) -> bool:
    """Return whether a word is a number, or a code: whether it has a digit."""
    return any(character.isdecimal() for character in word)


def beside_code(code: str) -> list[str]:
    """Return codes that differ in one letter or digit.

    Example:
        >>> from educe.audit.triggers import beside_code
        >>> beside_code("X-49")
        ['Y-49', 'X-59', 'X-40']
    """
    each = ((i, c, _alphabet(c)) for i, c in enumerate(code))
    return [
        f"{code[:i]}{own[(own.index(c) + 1) % len(own)]}{code[i + 1 :]}"
        for i, c, own in each
        if len(own) > 1
    ]


def _alphabet(character: str) -> str:
    """Return the letters of its kind, or the digits; of a mark itself."""
    return next((own for own in ALPHABETS if character in own), character)


def alike(audit: Audit, word: str, n: int) -> list[str]:
    """Return the words whose embeddings are nearest to a word's, by cosine."""
    table = audit.lm.unwrapped.get_input_embeddings().weight
    words = vocabulary(audit.lm)
    own = audit.lm.tokens(f" {word}", templated=True)
    at = torch.nn.functional.normalize(table[words.to(table.device)].float(), dim=1)
    mine = torch.nn.functional.normalize(table[own].float().mean(0), dim=0)
    near = (at @ mine).argsort(descending=True)[: n + 1].tolist()
    return [t for i in near if (t := audit.lm.text([int(words[i])]).strip()) != word][:n]


def as_rare(audit: Audit, string: str, n: int) -> list[str]:
    """Return words beside those of a string in the vocabulary, which tokenizers order by rarity.

    For a word of several tokens they are words that are as frequent (`educe.audit.lexicon`), for a
    number numbers of as many digits, for a code codes of such letters and digits. Those of a form
    are forms of other kinds.
    """
    if string in FORMS:
        others = akin(string, audit.forms)[1]
        return audit.rng(f"rare {string}").sample(others, min(n, len(others)))
    words = vocabulary(audit.lm)
    draw = audit.rng(f"rare {string}")

    def beside(token: int) -> str:
        at = _near(int(torch.searchsorted(words, token)), words, draw)
        return audit.lm.text([int(words[at])]).strip()

    found = []
    for _ in range(n):
        picked = []
        for word in string.split():
            tokens = audit.lm.tokens(f" {word}", templated=True)
            small = word.lower()
            if coded(word):
                picked.append("".join(draw.choice(_alphabet(c)) for c in word))
            # The list of words is read where a word needs it alone.
            elif len(tokens) > 1 and small in (known := frequent()):
                other = known[_near(known.index(small), known, draw)]
                picked.append(other if word == small else other.capitalize())
            else:
                picked += [beside(token) for token in tokens]
        found.append(" ".join(picked))
    return [s for s in dict.fromkeys(found) if s != string]


def _near(at: int, some: Sized, draw: random.Random) -> int:
    """Return a place that is drawn near another one."""
    return draw.randrange(max(0, at - BESIDE), min(len(some), at + BESIDE))
