"""Taught: what a perturbed model does on some prompts, and the target of doing the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import EffectError
from educe.forward.forced import Forced
from educe.forward.generation import Completion, generate
from educe.forward.inserted import Opening
from educe.inversion.direction import Direction, Ground
from educe.inversion.places import READOUT, Place, readout
from educe.inversion.targets import TOKENS, Target
from educe.model.language import LanguageModel
from educe.model.rendering import PromptBatch
from educe.perturbation.kinds import Kind, Vectors
from educe.rows import Row


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
        tokens: The most tokens of an answer; without any, only streams are read.
    """
    rows = [Row(1, j) for j in range(len(batch))]
    written = generate(lm, batch, rows, theta, kind=kind, max_new_tokens=tokens) if tokens else ()
    return _read(lm, batch, _answers(written, len(rows)), kind, theta, layers)


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
        tokens: The most tokens of an answer; without any, only streams are read.
    """
    lm = openings[0].lm
    batch = lm.pad([[*o.before.ids, *string, *o.after] for o in openings])
    none = Vectors(min(layers, default=0), lm.width)
    return taught(lm, batch, none, torch.zeros(1, lm.width), layers, tokens=tokens)


def changed(
    openings: Sequence[Opening], known: Taught, prompts: Sequence[int], ground: Ground
) -> Float[Tensor, "d"]:
    """Return what is changed at a layer, in the mean over prompts and over their last tokens."""
    total = torch.zeros_like(ground.plain[0])
    for p in prompts:
        stream = known.streams[ground.layer][p][-readout(openings[p].after) :]
        total += stream.mean(0).to(total) - ground.plain[p]
    return total / len(prompts)


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
    goal = ground.apart(changed(openings, known, prompts, ground))
    if not float(goal.norm()) > ground.least:
        raise EffectError(
            f"nothing is changed at the last tokens of the prompts at layer {ground.layer}: choose "
            "a layer after it, or the output"
        )
    return Direction(places, (goal / goal.norm(),) * len(places), ground.at(prompts))


def _answers(written: Iterable[list[Completion]], n: int) -> list[tuple[int, ...]]:
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
