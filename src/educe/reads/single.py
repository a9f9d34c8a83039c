"""One answer: the components that it used, at every layer.

Of a prompt and an answer, let the rows of ``X`` be what the activations at a layer deviate from the
mean over a corpus, and the rows of ``G`` the gradients of next tokens drawn at each token of the
answer (see `educe.activations.gradients`), several draws of each. Then

    X Gᵀ = U diag(σ) Vᵀ,    write_i = Xᵀu_i / √σ_i,    read_i = Gᵀv_i / √σ_i

are the balanced components of this one text, by snapshots (Rowley 2005): its own directions, as
many as it has tokens at most, in the order in which the answer depends on them. They are checked by
what becomes of the answer when at all layers they alone are kept, about the corpus's mean, and when
they are taken away; beside principal components of the same activations, as many random directions
of their span, and random directions of the span with as much of the energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from educe.activations import reading
from educe.activations.balanced import Components
from educe.activations.gradients import Layer, pulled
from educe.errors import PromptError
from educe.forward.chunks import split
from educe.forward.generation import generate
from educe.forward.slice.norms import after_first
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.progress import Advance, Reporter, Silent
from educe.reads.thinning import thinned
from educe.rows import Row

#: Tokens drawn at each token of an answer, and texts that run together for it.
DRAWS, ROWS_PER_BATCH = 32, 8
#: Random draws of each control, of which the median counts.
REPEATS = 3
#: What is kept, or taken away.
ARMS = ("used", "components", "random, as many", "random, as much")
#: A component of so small a share of the largest is none.
LEAST = 1e-6


class Trial(NamedTuple):
    """What becomes of an answer.

    Attributes:
        arm: Which components (see `ARMS`).
        away: Whether they are taken away; else they alone are kept.
        number: How many of each layer.
        energy: Their share of the energy of the text's activations, about the mean, over layers.
        logprob: Mean log-likelihood of a token of the answer, in nats.
        same: Share of the answer's tokens that are still the likeliest.
    """

    arm: str
    away: bool
    number: int
    energy: float
    logprob: float
    same: float


class Used(NamedTuple):
    """What one answer used.

    Attributes:
        prompt: What was asked, as the model reads it.
        answer: What it answered.
        tokens: The tokens of both, as texts.
        begins: The first token of the answer.
        logprob: Its mean log-likelihood a token without any change, in nats.
        same: The share of its tokens that are the likeliest without any change.
        effect: What taking away a token's deviation from the mean at a layer does to the answer, to
            second order, in nats: ``[layers, tokens]``; zero for tokens that are left alone.
        trials: What becomes of it.
    """

    prompt: str
    answer: str
    tokens: tuple[str, ...]
    begins: int
    logprob: float
    same: float
    effect: Float[Tensor, "l t"]
    trials: tuple[Trial, ...]

    def data(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        counts = {arm: {"stays": self.staying(arm), "goes": self.going(arm)} for arm in ARMS}
        trials = [trial._asdict() for trial in self.trials]
        effect = self.effect.tolist()
        return self._asdict() | {"effect": effect, "trials": trials, "components": counts}

    def staying(self, arm: str) -> int | None:
        """Return the least number of components with which alone the greedy answer stays."""
        kept = [t for t in self.trials if t.arm == arm and not t.away]
        return min((t.number for t in kept if t.same >= self.same), default=None)

    def going(self, arm: str) -> int | None:
        """Return the least number of components without which the greedy answer goes."""
        gone = [t for t in self.trials if t.arm == arm and t.away]
        return min((t.number for t in gone if t.same < self.same), default=None)


def used(
    lm: LanguageModel,
    prompt: Prompt,
    layers: Mapping[int, Layer],
    *,
    answer: str | None = None,
    max_new_tokens: int = 16,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Used:
    """Find the components that an answer used, and check them.

    Args:
        lm: The model.
        prompt: What is asked.
        layers: What is known of the layers that are thinned (see `educe.activations.gradients`).
        answer: What was answered; by default the model's likeliest answer.
        max_new_tokens: The longest that is.
        seed: Of everything that is drawn.
        reporter: Is told of the progress.

    Raises:
        PromptError: The answer is empty.

    Example:
        >>> from educe.activations import corpus
        >>> from educe.activations.gradients import sweep
        >>> from educe.reads.single import used
        >>> layers = sweep(lm, corpus.documents(), [0, 1, 2, 3], limit=600).layers
        >>> found = used(lm, prompts[0], layers, max_new_tokens=4)
        >>> len(found.effect), found.begins < len(found.tokens)
        (4, True)
    """
    batch = lm.encode([prompt])
    asked = batch.ids[0, batch.mask[0].bool()].tolist()
    said = (
        _answered(lm, batch, max_new_tokens)
        if answer is None
        else lm.tokens(answer, templated=True)
    )
    if not said:
        raise PromptError("the answer is empty: give one, or another prompt")
    text = _Text(lm, asked, said, layers, seed)
    counts = _counts(text.rank)
    with (reporter or Silent()).stage("one answer", 2 * len(counts) * (2 + 2 * REPEATS)) as step:
        trials = tuple(text.trial(arm, k, away, step) for arm in ARMS for away in (False, True)
                       for k in counts)  # fmt: skip
    return Used(
        batch.texts[0],
        lm.tokenizer.decode(said),
        tuple(lm.tokenizer.decode([token]) for token in (*asked, *said)),
        len(asked),
        *text.read({}, away=False),
        text.effect,
        trials,
    )


def snapshots(
    apart: Float[Tensor, "t d"], gradients: Float[Tensor, "m d"], mean: Float[Tensor, "d"],
    free: Bool[Tensor, "d"],
) -> Components:  # fmt: skip
    """Return the balanced components of some activations and gradients themselves.

    Args:
        apart: What activations deviate from the mean; zero at massive coordinates.
        gradients: Gradients; zero there, too.
        mean: The mean.
        free: Coordinates that are not massive.
    """
    left, value, right = torch.linalg.svd(apart @ gradients.T, full_matrices=False)
    there = value > LEAST * value[0]
    left, value, right = left[:, there], value[there], right[there]
    root = value.sqrt()[:, None]
    return Components(mean, right @ gradients / root, left.T @ apart / root, value, free)


class _Text:
    """A prompt with its answer: components of every layer, and what becomes of the answer."""

    def __init__(
        self,
        lm: LanguageModel,
        asked: list[int],
        said: list[int],
        layers: Mapping[int, Layer],
        seed: int,
    ) -> None:
        self.lm, self.said = lm, torch.tensor(said, device=lm.device)
        ids = torch.tensor([[*asked, *said[:-1]]], device=lm.device)
        self.ids, self.mask = ids, torch.ones_like(ids)
        self.draw = torch.Generator().manual_seed(seed)
        counted = torch.zeros(ids.shape, dtype=torch.bool)
        counted[:, len(asked) - 1 :] = True
        streams, gradients = self._pulled(counted, list(layers))
        massive = torch.stack([reading.is_massive(x) for x in streams.values()]).any(0)
        self.tokens = after_first(self.mask) & ~massive.cpu()
        self.apart: dict[int, Tensor] = {}
        self.own: dict[int, Components] = {}
        self.span: dict[int, Components] = {}
        effect = []
        for i, known in layers.items():
            mean, free = known.activations.mean, torch.ones(lm.width, dtype=torch.bool)
            free[known.massive] = False
            h, g = (x[i].double().cpu() * free for x in (streams, gradients))
            whole = (h[0] - mean * free) * self.tokens[0][:, None]
            effect.append((g * whole).sum(-1).square().mean(0) / 2)
            apart = whole[self.tokens[0]]
            self.apart[i] = apart
            self.own[i] = snapshots(apart, g[:, self.tokens[0]].flatten(0, 1), mean, free)
            _, size, right = torch.linalg.svd(apart, full_matrices=False)
            self.span[i] = Components(mean, right, right, size.square(), free)
        self.effect = torch.stack(effect)
        self.rank = max(map(len, self.own.values()))

    def _pulled(
        self, counted: Tensor, layers: list[int]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return the streams, and gradients of `DRAWS` draws: ``[draws, tokens, width]``."""
        many: dict[int, list[Tensor]] = {i: [] for i in layers}
        for some in split(range(DRAWS), ROWS_PER_BATCH):
            rows = self.ids.expand(len(some), -1), self.mask.expand(len(some), -1)
            found = pulled(self.lm, *rows, layers, self.draw, counted.expand(len(some), -1))
            for i, g in found.gradients.items():
                many[i].append(g)
        return (
            {i: x[:1] for i, x in found.streams.items()},
            {i: torch.cat(some) for i, some in many.items()},
        )

    @torch.no_grad()
    def read(self, kept: Mapping[int, Components], *, away: bool) -> tuple[float, float]:
        """Return the mean log-likelihood of the answer's tokens, and how many are likeliest."""
        with thinned(self.lm, kept, tokens=self.tokens, away=away):
            logits = self.lm.forward(self.ids, self.mask, last=len(self.said))[0]
        logprobs = logits.float().log_softmax(-1)
        likely = logprobs.gather(-1, self.said[:, None]).mean()
        return float(likely), float((logits.argmax(-1) == self.said).float().mean())

    def trial(self, arm: str, k: int, away: bool, step: Advance) -> Trial:
        """Keep components alone, or take them away; of random ones, the median of some draws."""
        repeats = REPEATS if arm.startswith("random") else 1
        outcomes = []
        for _ in range(repeats):
            kept = {i: self._chosen(arm, i, k) for i in self.own}
            energy = sum(self._energy(i, c) for i, c in kept.items()) / len(kept)
            outcomes.append((energy, *self.read(kept, away=away)))
            step()
        return Trial(arm, away, k, *torch.tensor(outcomes).median(0).values.tolist())

    def _chosen(self, arm: str, layer: int, k: int) -> Components:
        span = self.span[layer]
        if arm in ("used", "components"):
            return (self.own if arm == "used" else self.span)[layer].top(k)
        turn = torch.randn(len(span), len(span), generator=self.draw, dtype=torch.float64)
        rows = torch.linalg.qr(turn).Q.T @ span.read
        count = min(k, len(rows))
        if arm == "random, as much":
            wanted = self._energy(layer, self.own[layer].top(k))
            share = (self.apart[layer] @ rows.T).square().sum(0).cumsum(0)
            share = share / self.apart[layer].square().sum()
            count = min(int((share < wanted).sum()) + 1, len(rows))
        return Components(span.mean, rows[:count], rows[:count], span.value[:count], span.free)

    def _energy(self, layer: int, kept: Components) -> float:
        apart = self.apart[layer]
        inside = apart @ kept.read.T @ kept.write
        return float(inside.square().sum() / apart.square().sum())


def _answered(lm: LanguageModel, batch: PromptBatch, most: int) -> list[int]:
    """Return the model's likeliest answer, token by token."""
    ((written,),) = generate(lm, batch, [Row(0, 0)], max_new_tokens=most)
    return list(written.tokens)


def _counts(rank: int) -> list[int]:
    """Return numbers of components to try: powers of two, and all."""
    return [*(2**i for i in range(rank.bit_length()) if 2**i < rank), rank]
