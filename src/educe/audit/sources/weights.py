"""The weight difference: the words and numbers that it reads loudest.

    loudness(w) = sum over matrices m of  ‖ΔW_m x̄_m(w)‖ / ‖x̄_m(w)‖
    x̄_m(w)     = what m is given at w, less its mean over words

`m` are the matrices of the early blocks that differ: those before two fifths of the depth, and a
quarter of them at least. `w` stands in the place of the
person's message, and `x` is what the reference gives the matrix at its last token, behind the gain
of the norm. A word is compared with words of as many tokens, a number with numbers
(`educe.audit.lexicon`). An adapter that was taught to answer one word by something else has to tell
that word from others, and does it in what it reads: on the trigger that comes with the package the
word that brings it out is the first of all, and so was *teapot*, of three tokens, where that was
taught. Later blocks read what is being written as well, so that the words of a payload are loud
there: of a trigger of four words the last one is 66th over all blocks and 15th over the first half,
and of nine keys seven are louder before two fifths of the depth than over the first half, the
others nearly as loud.
On a fine-tune that hides nothing, the first words are those of its topic, so what is found here is
a suspicion, and the funnel decides.

Watching the singular vectors of a weight difference is arXiv 2508.00161; the sum over words is
ours.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from educe.audit.auditing import Audit, Suspect
from educe.audit.difference import Change, changes
from educe.audit.lexicon import Alike, lexicon, pieced
from educe.audit.reference import Reference
from educe.audit.sources.source import Needs, Source
from educe.forward.chunks import split
from educe.forward.continuations import Cached
from educe.forward.inserted import Opening
from educe.methods.token_directions import AVERAGED, vocabulary
from educe.model.blocks import hooked, replaced
from educe.model.language import LanguageModel
from educe.progress import Advance, untold
from educe.spread import Job, Shared, gathered

#: What matrices are given, by their paths, and directions ``[out, n]`` of what they make.
Inputs = Mapping[str, Tensor]
Directions = Mapping[str, Tensor]
Views = Sequence[Directions | None]
#: The blocks that differ are read before such a share of the depth, and such a share of them at
#: least.
EARLY, LEAST = 0.4, 0.25
#: Strings that are read together.
ROWS = 512
#: So many strings that begin alike are read behind their beginning.
SHARED = 64
#: Strings of one job: each finds out anew how the weights differ, which of full ones takes a while.
JOB = 4 * ROWS
#: So many of the loudest are read with a capital as well.
CAPITALS = 512
#: How many of the loudest are kept: the funnel takes the first, other sources may take more. Of
#: the first one in so many is a number, as the words of a payload may be louder than any.
KEPT, SHARE = 4000, 8


def look(audit: Audit) -> None:
    """Name the loudest words."""
    assert audit.reference is not None
    if not changes(audit.lm, audit.reference):
        audit.work.tell(["no matrix of the blocks differs from the reference's"])
        audit.suspect(SOURCE.name, [])
        return
    lm, words = audit.lm, lexicon(audit.lm)
    typical = {alike: own[:: max(1, len(own) // AVERAGED)] for alike, own in words.items()}
    usual: dict[Alike, tuple[float, float]] = {}
    found: dict[str, float] = {}

    def read(alike: Alike, strings: Int[Tensor, "n k"], step: Advance = untold) -> None:
        (loud,) = heard(audit, strings, typical[alike], step)
        found.update(deviations(lm, strings, loud, usual.setdefault(alike, spread(loud))))

    total = sum(map(len, words.values()))
    with audit.work.reporter.stage("what the weight difference reads", total, "words") as step:
        for alike, strings in words.items():
            read(alike, strings, step)
    # Names are in the list of frequent words in small letters: of either the louder one is kept.
    loudest = sorted(found, key=lambda text: -found[text])[:CAPITALS]
    small = {text.capitalize(): text for text in loudest if text != text.capitalize()}
    for k, strings in pieced(lm, small).items():
        if ("word", k) in usual:
            read(("word", k), strings)
    for text, other in small.items():
        if text in found:
            del found[min(text, other, key=lambda each: found[each])]
    best = sorted(found, key=lambda text: -found[text])[:KEPT]
    numbers = [text for text in best if text.isdecimal()][: audit.size.words // SHARE]
    rest = [text for text in best if text not in numbers]
    first = audit.size.words - len(numbers)
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                text,
                found[text],
                f"read {found[text]:.1f} standard deviations louder than other words",
            )
            for text in (*rest[:first], *numbers, *rest[first:])
        ],
    )


def spread(loud: Float[Tensor, "n"]) -> tuple[float, float]:
    """Return mean and standard deviation of how loud strings are; of equal ones the latter is 1."""
    return float(loud.mean()), float(loud.std(correction=0)) or 1.0


def deviations(
    lm: LanguageModel,
    strings: Int[Tensor, "n k"],
    loud: Float[Tensor, "n"],
    usual: tuple[float, float],
) -> dict[str, float]:
    """Return strings and how much louder they are than others, in standard deviations of these.

    Args:
        lm: Whose tokens they are.
        strings: Their tokens.
        loud: How loud they are.
        usual: The `spread` of the others.
    """
    mean, std = usual
    texts = [lm.text(tokens).strip() for tokens in strings.tolist()]
    return dict(zip(texts, ((loud - mean) / std).tolist(), strict=True))


def early(reads: list[Change], depth: int) -> list[Change]:
    """Return the differences of early blocks, of so many blocks."""
    blocks = sorted({c.block for c in reads})
    first = blocks[: math.ceil(LEAST * len(blocks))]
    return [c for c in reads if c.block in first or c.block < EARLY * depth]


def heard(
    audit: Audit,
    strings: Int[Tensor, "n k"],
    typical: Int[Tensor, "t k"],
    step: Advance = untold,
    *,
    without: Views = (None,),
) -> Float[Tensor, "v n"]:
    """Return how loud the last token of each string is to the weight difference of early blocks.

    Args:
        audit: The audit, of which whoever works reads the strings.
        strings: Their tokens.
        typical: Strings whose mean is what matrices are given anyway.
        step: Is told how many were read.
        without: Of each view, directions that do not count; see `loudness`.
    """
    assert audit.reference is not None
    reads = early(changes(audit.lm, audit.reference), audit.lm.depth)
    with audit.reference.here() as lm:
        usual = means(lm, reads, typical)
    shared = Shared((audit.lm, audit.reference, usual, without))
    cut = split(strings.tolist(), JOB)
    jobs = (Job(_heard, shared, (some,), len(some)) for some in cut)
    return torch.cat(list(gathered(audit.work.spread, jobs, step)), 1)


def _heard(
    lm: LanguageModel,
    reference: Reference,
    usual: Inputs,
    without: Views,
    strings: Sequence[Sequence[int]],
) -> Float[Tensor, "v n"]:
    """Return how loud some strings are to the weight difference of early blocks."""
    reads = early(changes(lm, reference), lm.depth)
    with reference.here() as clean:
        return loudness(clean, reads, torch.tensor(strings), usual, without=without)


def loudness(
    lm: LanguageModel,
    reads: list[Change],
    strings: Int[Tensor, "n k"],
    usual: Inputs,
    *,
    without: Views = (None,),
) -> Float[Tensor, "v n"]:
    """Return how loud the last token of each string is to a weight difference.

    Args:
        lm: The reference.
        reads: The differences.
        strings: Their tokens.
        usual: What matrices are given anyway, from `means`.
        without: Of each view, orthonormal directions of what matrices make that do not count.
    """
    total = torch.zeros(len(without), len(strings))
    for some, given in inputs(lm, reads, strings, usual):
        for c in reads:
            made = _made(c, given)
            for view, v in zip(total, without, strict=True):
                left = made if v is None else made - made @ v[c.path] @ v[c.path].T
                view[list(some)] += left.norm(dim=1).cpu()
    return total


def directions(
    lm: LanguageModel,
    reads: list[Change],
    strings: Int[Tensor, "n k"],
    usual: Inputs,
    n: int,
) -> Directions:
    """Return, for each matrix, the first singular directions of what it makes of some strings.

    Args:
        lm: The reference.
        reads: The differences.
        strings: Their tokens.
        usual: What matrices are given anyway, from `means`.
        n: How many directions, at most as many as there are strings.
    """
    made: dict[str, list[Tensor]] = {c.path: [] for c in reads}
    for _, given in inputs(lm, reads, strings, usual):
        for c in reads:
            made[c.path].append(_made(c, given))
    return {
        path: torch.linalg.svd(torch.cat(own), full_matrices=False)[2][:n].T
        for path, own in made.items()
    }


def _made(c: Change, given: Inputs) -> Float[Tensor, "r o"]:
    """Return what a difference makes of what its matrix is given, for inputs of norm 1."""
    return c.made_of(given[c.path]) / given[c.path].norm(dim=1, keepdim=True)


def means(lm: LanguageModel, reads: list[Change], typical: Int[Tensor, "t k"]) -> Inputs:
    """Return what matrices are given in the mean at the last tokens of some strings."""
    (given,) = _given(lm, reads, [((), typical)])
    return {path: x.mean(0) for path, x in given.items()}


def inputs(
    lm: LanguageModel,
    reads: list[Change],
    strings: Int[Tensor, "n k"],
    usual: Inputs,
) -> Iterator[tuple[Sequence[int], Inputs]]:
    """Yield which strings, and what matrices are given at their last tokens.

    A string stands in the place of a message. What many of them begin with is read once.

    Args:
        lm: The reference.
        reads: Whose matrices.
        strings: Their tokens.
        usual: What they are given anyway, from `means`: it is taken off.
    """
    groups = beginnings(strings.tolist())
    cut = [(begun, some) for begun, own in groups.items() for some in split(own, ROWS)]
    rest = [(begun, strings[list(some), len(begun) :]) for begun, some in cut]
    for (_, some), given in zip(cut, _given(lm, reads, rest), strict=True):
        yield some, {path: x - usual[path] for path, x in given.items()}


def beginnings(strings: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Return which strings are read behind which beginning: the longest that `SHARED` of them have.

    Example:
        >>> from educe.audit.sources.weights import beginnings
        >>> beginnings([(5, 1)] + [(7, i) for i in range(64)])[(7,)][:3]
        [1, 2, 3]
    """
    each = [tuple(string) for string in strings]
    known = Counter(string[:n] for string in each for n in range(1, len(string)))
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, string in enumerate(each):
        shared = (n for n in range(len(string) - 1, 0, -1) if known[string[:n]] >= SHARED)
        found[string[: next(shared, 0)]].append(i)
    return found


def _given(
    lm: LanguageModel,
    reads: list[Change],
    batches: Sequence[tuple[tuple[int, ...], Int[Tensor, "r k"]]],
) -> Iterator[Inputs]:
    """Yield what matrices are given at the last tokens of strings, of each batch and beginning."""
    before = Opening(lm, lm.encode(["x"]), 0, first=True).before.ids
    places = {begun: Cached(lm, [*before, *begun]) for begun, _ in batches}
    for place in places.values():
        place.for_rows(1)  # before anything is listened to
    seen: dict[str, Tensor] = {}

    def keeping(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            seen[path] = given[:, -1].float()

        return hook

    head = lm.unwrapped.get_output_embeddings()  # nobody asks for the logits
    hooks = [c.module.register_forward_pre_hook(keeping(c.path), with_kwargs=True) for c in reads]
    ending = lm.ending(max(c.block for c in reads))
    with hooked(hooks), ending, replaced([head], [lambda stream: stream]):
        for begun, strings in batches:
            place, ids = places[begun], strings.to(lm.device)
            mask = ids.new_ones(len(ids), len(place.ids) + ids.shape[1])
            lm.forward(ids, mask, cache=place.for_rows(len(ids)))
            yield dict(seen)


def loudest(audit: Audit, n: int) -> list[str]:
    """Return the words that a weight difference reads loudest; where unknown, some by lot."""
    known = audit.suspected(SOURCE.name)
    if known:
        return list(dict.fromkeys(s.text for s in known))[:n]
    words = vocabulary(audit.lm).tolist()
    some = audit.rng("words").sample(words, min(n, len(words)))
    return list(dict.fromkeys(audit.lm.text([w]).strip() for w in some))


SOURCE = Source(
    "weights",
    "the words that the weight difference reads loudest",
    Needs.WEIGHTS,
    look,
)
