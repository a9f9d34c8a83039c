"""Places: where a string is put into a prompt, and what the model makes of it, with gradients.

    [ before | string | after | answer ]
      cached   tokens, or any embeddings in their place

A loss of a string is differentiable in what stands for its tokens. With ``e_v`` the row of token
``v`` in the table of embeddings, and ``x_i`` what stands at the string's token ``i``,

    d loss / d onehot_iv = e_v · d loss / d x_i

is exact, since an embedding is linear in the one-hot (Ebrahimi et al. 2018, HotFlip).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from educe.forward.chunks import Chunker, halved, split
from educe.forward.inserted import Opening
from educe.model.blocks import hooked
from educe.model.language import LanguageModel

#: Tokens at the end of a prompt at which streams are compared, at most.
READOUT = 3
#: Strings that are read at once, at most.
ROWS = 128


class Seen(NamedTuple):
    """What a model makes of strings at a place.

    Attributes:
        answer: Log-probabilities of every token at each token of the answer; none where only a
            stream is asked for.
        stream: The stream leaving a layer at the last tokens before the answer, where it is asked
            for.
        string: Log-probabilities of every token at each token of the string, where these are asked
            for.
    """

    answer: Float[Tensor, "r m v"] | None
    stream: Float[Tensor, "r q d"] | None
    string: Float[Tensor, "r k v"] | None


class Place:
    """A place in a prompt, and the answer that is forced behind it.

    Args:
        opening: Where in which prompt; places that share one share what is cached of it.
        answer: The tokens of the answer.

    Example:
        >>> from educe.forward.inserted import Opening
        >>> from educe.inversion.places import Place
        >>> place = Place(Opening(lm, part.batch, 0), answer=(5, 6))
        >>> place.read(torch.tensor([[7, 8], [8, 7], [9, 9]])).answer.shape[:2]
        torch.Size([3, 2])
    """

    def __init__(self, opening: Opening, answer: Sequence[int] = ()) -> None:
        self.lm, self.before, self.after = opening.lm, opening.before, list(opening.after)
        self.answer = tuple(answer)

    def each(
        self,
        strings: Int[Tensor, "n k"],
        of: Callable[[Tensor, Seen], Tensor],
        layer: int | None = None,
        *,
        fluency: bool = False,
    ) -> Float[Tensor, "n *w"]:
        """Read strings of one length, as many at a time as memory holds, and keep a part of it.

        Args:
            strings: Their tokens.
            of: What is kept of some strings and what the model makes of them.
            layer: See `read`.
            fluency: See `read`.
        """
        tokens = strings.shape[1] + len(self.after) + len(self.answer)
        rows = max(1, min(ROWS, Chunker.of(self.lm.device).most // max(1, tokens)))

        def run(items: Sequence[int]) -> Tensor:
            own = strings[list(items)]
            return of(own, self.read(own, layer, fluency=fluency)).cpu()

        done = Chunker(rows).each(split(range(len(strings)), rows), run, len, halved)
        return torch.cat([kept for _, kept in done])  # in their order

    def read(
        self,
        strings: Int[Tensor, "r k"],
        layer: int | None = None,
        *,
        embedded: Float[Tensor, "r k d"] | None = None,
        fluency: bool = False,
    ) -> Seen:
        """Read strings of one length, few enough to run at once.

        Args:
            strings: Their tokens.
            layer: The layer whose stream is read; None for the answer.
            embedded: What stands for the tokens' embeddings, to differentiate by.
            fluency: Whether log-probabilities at the tokens of the string are asked for.
        """
        lm, (r, k) = self.lm, strings.shape
        behind = torch.tensor([*self.after, *self.answer[:-1]], dtype=torch.long, device=lm.device)
        ids = torch.cat([strings.to(lm.device), behind.expand(r, -1)], 1)
        cached = len(self.before.ids) if ids.shape[1] else 0
        if not cached:  # nothing is put behind what stands there
            whole = ids.new_tensor(self.before.ids).expand(r, -1)
            ids = torch.cat([whole, ids], 1)
        mask = ids.new_ones(r, cached + ids.shape[1])
        # Before anything is hooked: what is cached is the model's own.
        cache = self.before.for_rows(r) if cached else None
        m, t = max(1, len(self.answer)), ids.shape[1]
        with ExitStack() as during:
            streams: dict[int, Tensor] = {}
            if embedded is not None:
                during.enter_context(_standing_in(lm, embedded))
            if layer is not None:
                streams = during.enter_context(lm.watching([layer]))
                if not fluency:
                    during.enter_context(lm.ending(layer))
            logits = lm.forward(
                ids,
                mask,
                cache=cache,
                last=t if fluency else m,
                differentiable=embedded is not None,
            )
        logprobs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        answer = logprobs[:, -m:] if layer is None else None
        stream = None
        if layer is not None:
            end = t - (m - 1)
            stream = streams[layer][:, end - readout(self.after) : end]
        string = None
        if fluency:
            begun = self._begun.to(logprobs).expand(r, 1, -1)
            string = torch.cat([begun, logprobs[:, : k - 1]], 1)[:, :k]
        return Seen(answer, stream, string)

    @cached_property
    def _begun(self) -> Float[Tensor, "v"]:
        """Log-probabilities of the string's first token; zero where nothing is before it."""
        if not self.before.ids:
            return torch.zeros(self.lm.vocabulary, device=self.lm.device)
        ids = torch.tensor([self.before.ids], device=self.lm.device)
        logits = self.lm.forward(ids, torch.ones_like(ids))[0, -1]
        return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def readout(after: Sequence[int]) -> int:
    """Return how many of the last tokens a stream is read at: such as stand behind a string."""
    return max(1, min(READOUT, len(after)))


@contextmanager
def _standing_in(lm: LanguageModel, embedded: Float[Tensor, "r k d"]) -> Iterator[None]:
    """Let vectors stand for the embeddings of the first tokens of each row."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([embedded.to(output), output[:, embedded.shape[1] :]], 1)

    with hooked([lm.unwrapped.get_input_embeddings().register_forward_hook(hook)]):
        yield


@torch.no_grad()
def table(lm: LanguageModel) -> Float[Tensor, "v d"]:
    """Return what the blocks read of each token, as the model scales it."""
    ids = torch.arange(lm.vocabulary, device=lm.device)
    rows: Tensor = lm.unwrapped.get_input_embeddings()(ids)
    return rows
