"""Targets: what a string should do, as a loss of what the model makes of it.

    direction   1 - cos( P (Z_ℓ(x + s) - Z_ℓ(x)), P (Z_ℓ(x; θ) - Z_ℓ(x)) )   at the source or target
    output      mean over tokens t of  KL( p(· | x, y_<t; θ) ‖ p(· | x + s, y_<t) )          in nats
    likelihood  - mean over tokens t of  log p(y_t | x + s, y_<t)                            in nats

each a mean over prompts ``x``. ``Z_ℓ`` is the stream leaving layer ``ℓ``, in the mean over the last
tokens of the prompt, ``θ`` the perturbation, ``s`` the string, and ``y`` what the model says under
``θ``, or a text that is wanted. ``P`` leaves out the direction in which natural strings change that
prompt's stream in the mean, whatever they say. Activations under a perturbation are almost surely
those of no text at all (arXiv 2604.09839), so that in the stream the direction of a change is
compared, and not its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from educe.errors import EffectError
from educe.forward.chunks import Chunker, halved, split
from educe.forward.forced import Forced
from educe.forward.generation import Completion, generate
from educe.forward.inserted import Opening
from educe.inversion.places import READOUT, Place, Seen, readout, table
from educe.model.language import LanguageModel
from educe.model.rendering import PromptBatch
from educe.perturbation.kinds import Kind, Vectors
from educe.rows import Row

#: Tokens of the answers that are compared.
TOKENS = 4
#: Strings that are read at once, at most.
ROWS = 128
#: A change is none that is less than this share of the stream's norm.
LEAST = 1e-4
#: No string.
NOTHING = torch.zeros(1, 0, dtype=torch.long)


class Slope(NamedTuple):
    """Losses of some strings, and their gradients in what stands for their tokens."""

    loss: Float[Tensor, "r"]
    nll: Float[Tensor, "r"]  #: of the string itself, in nats a token
    embedded: Float[Tensor, "r k d"]  #: of the loss in the embeddings
    tokens: Float[Tensor, "r k v"]  #: in the one-hot of each token: of the loss, and of the nll
    fluent: Float[Tensor, "r k v"]


class Ground(NamedTuple):
    """What changes of the stream leaving a layer are measured against, at some places.

    Attributes:
        layer: The layer.
        plain: The stream without a string, in the mean over the last tokens.
        common: The direction in which natural strings change it in the mean, of norm one.
        size: How much natural strings change it: the median norm, over strings and places.
    """

    layer: int
    plain: Float[Tensor, "p d"]
    common: Float[Tensor, "p d"]
    size: float

    @classmethod
    def of(cls, openings: Sequence[Opening], strings: Int[Tensor, "n k"], layer: int) -> Ground:
        """Read natural strings at some places."""
        read = partial(streams, openings, layer=layer)
        plain = read(NOTHING)[:, 0]
        change = read(strings) - plain[:, None]
        return cls(
            layer, plain, normalize(change.mean(1), dim=1), float(change.norm(dim=2).median())
        )

    def at(self, places: Sequence[int]) -> Ground:
        """Return the same at some of the places."""
        some = list(places)
        return self._replace(plain=self.plain[some], common=self.common[some])

    def direction(self, stream: Float[Tensor, "r q d"], place: int) -> Float[Tensor, "r d"]:
        """Return the directions of changes at a place, less what is common; zero where none is."""
        plain, common = (of[place].to(stream) for of in (self.plain, self.common))
        change = stream.mean(1) - plain
        change = change - (change @ common)[:, None] * common
        return change / change.norm(dim=1, keepdim=True).clamp_min(LEAST * float(plain.norm()))


@torch.no_grad()
def streams(
    openings: Sequence[Opening], strings: Int[Tensor, "n k"], *, layer: int
) -> Float[Tensor, "p n d"]:
    """Return the stream behind strings at some places, in the mean over the last tokens."""
    found = []
    for opening in openings:
        place = Place(opening)
        rows = (place.read(some, layer).stream for some in strings.split(ROWS))
        found.append(torch.cat([row.mean(1).cpu() for row in rows if row is not None]))
    return torch.stack(found)


@dataclass(frozen=True)
class Target:
    """What a string should do at some places.

    Attributes:
        places: The places.
        goals: What the model should make of it at each: log-probabilities ``[m, v]``, a direction
            ``[d]``, or the tokens of a text ``[m]``.
        ground: What changes of the stream are measured against; None where the answer counts.

    Example:
        >>> from educe.forward.inserted import Opening
        >>> from educe.inversion.targets import text
        >>> places = [Opening(lm, part.batch, p) for p in range(len(part.batch))]
        >>> wanted = text(places, lm.tokens(" yes", templated=True))
        >>> wanted.loss(torch.tensor([[40, 41], [41, 40]])).shape
        torch.Size([2])
    """

    places: tuple[Place, ...]
    goals: tuple[Tensor, ...]
    ground: Ground | None = None

    @property
    def lm(self) -> LanguageModel:
        """The model."""
        return self.places[0].lm

    def at_one(self, place: int) -> Target:
        """Return the same target at one of its places alone."""
        one = slice(place, place + 1)
        ground = None if self.ground is None else self.ground.at([place])
        return Target(self.places[one], self.goals[one], ground)

    def at(self, place: int, seen: Seen) -> Float[Tensor, "r"]:
        """Return the loss of strings at a place."""
        if self.ground is not None:
            assert seen.stream is not None
            return 1 - self.ground.direction(seen.stream, place) @ self.goals[place].to(seen.stream)
        assert seen.answer is not None
        goal = self.goals[place].to(seen.answer.device)
        if goal.dim() == 1:
            said = seen.answer.gather(-1, goal.expand(len(seen.answer), -1)[..., None])
            return -said[..., 0].mean(1)
        goal = goal.to(seen.answer)
        return (goal.exp() * (goal - seen.answer)).sum(-1).mean(1)

    @property
    def layer(self) -> int | None:
        """The layer whose stream is looked at, if any."""
        return None if self.ground is None else self.ground.layer

    def each(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "p n"]:
        """Return the loss of strings at each place."""
        return torch.stack([values for values, _ in self._over(strings, fluency=False)])

    def loss(self, strings: Int[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Return the mean loss of strings of one length over the places."""
        return self.each(strings).mean(0)

    def fluent(self, strings: Int[Tensor, "n k"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Return the mean loss of strings, and how unlikely they are, in nats a token."""
        values, nll = zip(*self._over(strings, fluency=True), strict=True)
        return torch.stack(values).mean(0), torch.stack(nll).mean(0)

    def _over(
        self, strings: Tensor, *, fluency: bool
    ) -> Iterator[tuple[Float[Tensor, "n"], Float[Tensor, "n"]]]:
        """Yield, place by place, the losses of all strings and how unlikely they are."""
        for i, place in enumerate(self.places):
            k = strings.shape[1]
            rows = max(1, min(ROWS, Chunker.of(self.lm.device).most // max(1, k + place.tokens)))
            values, nll = (torch.zeros(len(strings), dtype=torch.float64) for _ in range(2))

            def run(
                items: Sequence[int], i: int = i, place: Place = place
            ) -> tuple[Tensor, Tensor]:
                own = strings[list(items)]
                seen = place.read(own, self.layer, fluency=fluency)
                return self.at(i, seen).cpu(), unlikely(own, seen).cpu()

            chunks = split(range(len(strings)), rows)
            for items, (own, unfluent) in Chunker(rows).each(chunks, run, len, halved):
                values[list(items)], nll[list(items)] = own.double(), unfluent.double()
            yield values, nll

    def slope(
        self,
        strings: Int[Tensor, "r k"],
        embedded: Float[Tensor, "r k d"] | None = None,
        *,
        fluency: bool = False,
    ) -> Slope:
        """Return losses and gradients, in the embeddings and in the one-hots of the tokens.

        Args:
            strings: The tokens of strings of one length, few enough to run at once.
            embedded: What stands for their embeddings; by default these.
            fluency: Whether the gradient of how unlikely the string is is asked for.

        Raises:
            EffectError: A loss is NaN or infinite.
        """
        rows = table(self.lm)
        x = (rows[strings.to(rows.device)] if embedded is None else embedded).detach()
        total, nll = x.new_zeros(len(x)), x.new_zeros(len(x))
        steep, smooth = torch.zeros_like(x), torch.zeros_like(x)
        direct = x.new_zeros(*strings.shape, len(rows)) if fluency else None
        n = len(self.places)
        for i, place in enumerate(self.places):
            own = x.clone().requires_grad_()
            seen = place.read(strings, self.layer, embedded=own, fluency=fluency)
            with torch.enable_grad():
                value = self.at(i, seen)
                unfluent = unlikely(strings, seen)
            (g,) = torch.autograd.grad(value.sum(), own, retain_graph=fluency)
            steep += g / n
            if fluency and seen.string is not None and direct is not None:
                (g,) = torch.autograd.grad(unfluent.sum(), own, allow_unused=True)
                smooth += 0 if g is None else g / n
                direct -= seen.string.detach() / (n * strings.shape[1])
            total += value.detach() / n
            nll += unfluent.detach().to(nll) / n
        if not bool(torch.isfinite(total).all()):
            raise EffectError("the loss of a string is NaN or infinite: use a wider dtype")
        fluent = smooth @ rows.T + direct if direct is not None else torch.zeros(0, 0, 0)
        return Slope(total, nll, steep, steep @ rows.T, fluent)


def unlikely(strings: Int[Tensor, "r k"], seen: Seen) -> Float[Tensor, "r"]:
    """Return how unlikely strings are where they stand, in nats a token; zero if nobody asked."""
    if seen.string is None or not strings.shape[1]:
        return torch.zeros(len(strings))
    own = strings.to(seen.string.device)
    return -seen.string.gather(-1, own[..., None])[..., 0].mean(1)


def text(openings: Sequence[Opening], wanted: Sequence[int]) -> Target:
    """Return the target of a wanted text: its tokens as the answer to each prompt."""
    places = tuple(Place(opening, wanted) for opening in openings)
    return Target(places, tuple(torch.tensor(list(wanted)) for _ in openings))


class Taught(NamedTuple):
    """What a perturbed model does on some prompts.

    Attributes:
        answers: What it says, the likeliest token each time.
        logprobs: Log-probabilities at each token of an answer, ``[m, v]`` a prompt.
        streams: The stream at the last tokens of each prompt, by layer, ``[q, d]`` a prompt.
    """

    answers: list[tuple[int, ...]]
    logprobs: list[Tensor]
    streams: dict[int, list[Tensor]]

    def shuffled(self, order: Sequence[int]) -> Taught:
        """Return the same with the prompts' answers exchanged."""
        return Taught(
            [self.answers[i] for i in order],
            [self.logprobs[i] for i in order],
            {layer: [of[i] for i in order] for layer, of in self.streams.items()},
        )


def taught(
    lm: LanguageModel,
    batch: PromptBatch,
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    layers: Sequence[int] = (),
    *,
    tokens: int = TOKENS,
) -> Taught:
    """Let a perturbed model answer prompts, and read what it does.

    Args:
        lm: The model.
        batch: The prompts.
        kind: The kind of the perturbation.
        theta: The perturbation.
        layers: Layers whose stream is kept.
        tokens: The most tokens of an answer.
    """
    rows = [Row(1, j) for j in range(len(batch))]
    written = generate(lm, batch, rows, theta, kind=kind, max_new_tokens=tokens)
    answers = _answers(written, len(rows))
    return _read(lm, batch, answers, kind, theta, layers)


def by_text(
    openings: Sequence[Opening],
    string: Sequence[int],
    layers: Sequence[int] = (),
    *,
    tokens: int = TOKENS,
) -> Taught:
    """Let the model answer prompts into which a string is put, and read what that does.

    Args:
        openings: Where the string is put.
        string: Its tokens.
        layers: Layers whose stream is kept.
        tokens: The most tokens of an answer.
    """
    lm = openings[0].lm
    batch = lm.pad([[*o.before.ids, *string, *o.after] for o in openings])
    rows = [Row(0, j) for j in range(len(batch))]
    answers = _answers(generate(lm, batch, rows, max_new_tokens=tokens), len(rows))
    none = Vectors(min(layers, default=0), lm.width)
    return _read(lm, batch, answers, none, torch.zeros(1, lm.width), layers)


def following(
    openings: Sequence[Opening],
    known: Taught,
    prompts: Sequence[int],
    ground: Ground | None = None,
) -> Target:
    """Return the target of doing what was done on some prompts.

    Args:
        openings: Where strings are put, of all prompts.
        known: What was done on all of them.
        prompts: Which of them count.
        ground: The layer whose stream is to be met, at all of them; None for what the model says.

    Raises:
        EffectError: Nothing is done at the layer.
    """
    places = tuple(Place(openings[p], known.answers[p] if ground is None else ()) for p in prompts)
    if ground is None:
        return Target(places, tuple(known.logprobs[p] for p in prompts))
    streams = known.streams[ground.layer]
    goals = tuple(
        ground.direction(streams[p][None, -readout(openings[p].after) :], p)[0] for p in prompts
    )
    if not all(bool(goal.norm() > 0.5) for goal in goals):
        raise EffectError(
            f"nothing is changed at the last tokens of a prompt at layer {ground.layer}: choose a "
            "layer after it, or the output"
        )
    return Target(places, goals, ground.at(prompts))


def _answers(written: Iterator[list[Completion]], n: int) -> list[tuple[int, ...]]:
    """Return the tokens of answers; of one that ends at once any token, which is only predicted."""
    found: list[tuple[int, ...]] = [(0,)] * n
    for some in written:
        for completion in some:
            found[completion.row.prompt] = completion.tokens or (0,)
    return found


def _read(
    lm: LanguageModel,
    batch: PromptBatch,
    answers: list[tuple[int, ...]],
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    layers: Sequence[int],
) -> Taught:
    """Read what a perturbed model makes of prompts and its answers."""
    forced = Forced(lm, batch, answers, before=kind.before)
    end = batch.ids.shape[1]
    logprobs: list[Tensor] = []
    streams: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for read in forced.read(theta.to(lm.device), kind, layers):
        for row, of in zip(read.logprobs[0], read.texts[0].tolist(), strict=True):
            logprobs.append(row[: len(answers[of])].clone())
        for layer, stream in read.streams.items():
            streams[layer] += list(stream[0, :, max(0, end - READOUT) : end].clone())
    return Taught(answers, logprobs, streams)
