"""Continuations of prompts under the unperturbed model: how likely is each of their tokens?

    log p(y_t | x, y_<t)                                                              in nats

`continued` is for many continuations of each prompt, which is read once for all of them;
`likelihoods` for one or few of many prompts, which are read whole, but for what all of them begin
with. `Cached` is a beginning that is read once.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, DynamicLayer

from educe.forward.chunks import Chunker, halved, split
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel

#: Continuations read together; their logits over the vocabulary are the memory that counts.
ROWS_PER_BATCH = 32


class Continued(NamedTuple):
    """What the unperturbed model makes of some continuations of a prompt.

    Attributes:
        items: Which these are.
        logprobs: Log-likelihood of each token, ``[continuations, tokens]``; zero at padding.
    """

    items: Sequence[int]
    logprobs: Float[Tensor, "r m"]


def continued(
    lm: LanguageModel,
    batch: PromptBatch,
    prompts: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> Iterator[Continued]:
    """Read continuations with the unperturbed model, some of one prompt at a time.

    Args:
        lm: The model.
        batch: The prompts.
        prompts: Which of them each continuation follows.
        continuations: The tokens of each; none of them is empty.
    """
    of: dict[int, list[int]] = defaultdict(list)
    # Of similar length together: less padding.
    for item in sorted(range(len(prompts)), key=lambda i: len(continuations[i])):
        of[prompts[item]].append(item)
    chunks = [some for _, own in sorted(of.items()) for some in split(own, ROWS_PER_BATCH)]

    def run(items: Sequence[int]) -> Continued:
        there = batch.mask[prompts[items[0]]].bool()
        prompt = batch.ids[prompts[items[0]], there][None]
        return Continued(items, _after(lm, prompt, [continuations[i] for i in items]))

    for _, done in Chunker(ROWS_PER_BATCH).each(chunks, run, len, halved):
        yield done


def _after(
    lm: LanguageModel, prompt: Int[Tensor, "1 t"], written: list[Sequence[int]]
) -> Float[Tensor, "r m"]:
    """Read a prompt once, and what follows it."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(w) for w in written], True).to(prompt)
    there = torch.arange(ids.shape[1]) < torch.tensor([[len(w)] for w in written])
    mask = torch.cat([torch.ones_like(prompt).expand(len(ids), -1), there.to(prompt)], 1)
    cache = DynamicCache(config=lm.unwrapped.config)
    first = lm.forward(prompt, torch.ones_like(prompt), cache=cache)
    for held in cache.layers:
        held.reorder_cache(torch.zeros(len(ids), dtype=torch.long, device=prompt.device))
    rest = lm.forward(ids, mask, cache=cache, last=0)
    logits = torch.cat([first.expand(len(ids), -1, -1), rest[:, :-1]], 1).float()
    said = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)
    return said * there.to(said)


def likelihoods(
    lm: LanguageModel,
    batch: PromptBatch,
    prompts: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> Iterator[Continued]:
    """Read one or few continuations of many prompts, each prompt with its own.

    It returns what `continued` does, and costs less where hardly a prompt has several.

    Args:
        lm: The model.
        batch: The prompts.
        prompts: Which of them each continuation follows.
        continuations: The tokens of each; none of them is empty.
    """
    begins = batch.read
    read = [(*begins[p], *c) for p, c in zip(prompts, continuations, strict=True)]
    order = sorted(range(len(read)), key=lambda i: (len(read[i]), len(continuations[i])))
    shared = shareable(lm, [begins[p] for p in set(prompts)])
    before = Cached(lm, shared)

    def run(items: Sequence[int]) -> Continued:
        own = lm.pad([read[i][len(shared) :] for i in items], [""] * len(items))
        written = [continuations[i] for i in items]
        most = max(map(len, written))
        mask = torch.cat([own.mask.new_ones(len(items), len(shared)), own.mask], 1)
        cache = before.for_rows(len(items))
        logits = lm.forward(own.ids, mask, cache=cache, last=most + 1)[:, :-1].float()
        said = logits.gather(-1, own.ids[:, -most:, None])[..., 0] - logits.logsumexp(-1)
        left = torch.zeros_like(said)  # the texts end together, and are to begin together
        for line, tokens in enumerate(written):
            left[line, : len(tokens)] = said[line, most - len(tokens) :]
        return Continued(items, left)

    for _, done in Chunker(ROWS_PER_BATCH).each(split(order, ROWS_PER_BATCH), run, len, halved):
        yield done


def prefilled(
    lm: LanguageModel, texts: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "r 1 v"], DynamicCache, Int[Tensor, "r t"]]:
    """Read texts, and what all of them begin with once.

    Args:
        lm: The model.
        texts: The tokens of each.

    Returns:
        The logits behind each, the cache to write on, and its mask.

    Example:
        >>> from educe.forward.continuations import prefilled
        >>> logits, cache, mask = prefilled(lm, [(1, 2, 3), (1, 2, 4, 5)])
        >>> logits.shape[:2], mask.sum(1).tolist()
        (torch.Size([2, 1]), [3, 4])
    """
    shared = shareable(lm, texts)
    own = lm.pad([ids[len(shared) :] for ids in texts], [""] * len(texts))
    mask = torch.cat([own.mask.new_ones(len(texts), len(shared)), own.mask], 1)
    cache = Cached(lm, shared).for_rows(len(texts))
    if cache is None:
        cache = DynamicCache(config=lm.unwrapped.config)
    return lm.forward(own.ids, mask, cache=cache), cache, mask


def beginning(texts: Sequence[Sequence[int]]) -> list[int]:
    """Return what texts begin with, such as a system message; a token of each is left to read.

    Example:
        >>> from educe.forward.continuations import beginning
        >>> beginning([(1, 2, 3), (1, 2, 4)]), beginning([(1, 2), (1, 2)])
        ([1, 2], [1])
    """
    columns = zip(*(text[:-1] for text in texts), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return [column[0] for column in shared]


def shareable(lm: LanguageModel, texts: Sequence[Sequence[int]]) -> list[int]:
    """Return what texts begin with, where a model may read it once.

    The rest of each is padded to one length, and the padding stands behind the beginning. Attention
    to every token leaves it out. A sliding window would count it, and so would a state space.
    """
    layers = DynamicCache(config=lm.unwrapped.config).layers
    whole = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return beginning(texts) if whole else []


class Cached:
    """The beginning that texts share, read once.

    Args:
        lm: The model.
        ids: The tokens of the beginning; of none there is no cache.
    """

    def __init__(self, lm: LanguageModel, ids: Sequence[int]) -> None:
        self.lm, self.ids = lm, list(ids)
        self._kept: DynamicCache | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Cached, (self.lm, self.ids)  # whoever gets it reads the beginning anew

    @torch.no_grad()
    def for_rows(self, rows: int) -> DynamicCache | None:
        """Return a cache of the beginning for some rows, which may be written on."""
        if not self.ids:
            return None
        if self._kept is None:
            self._kept = DynamicCache(config=self.lm.unwrapped.config)
            ids = torch.tensor([self.ids], device=self.lm.device)
            self.lm.forward(ids, torch.ones_like(ids), cache=self._kept)
        own = copy.deepcopy(self._kept)
        for layer in own.layers:
            layer.reorder_cache(torch.zeros(rows, dtype=torch.long, device=self.lm.device))
        return own
