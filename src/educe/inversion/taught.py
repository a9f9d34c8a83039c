"""Taught: what a perturbed model does on some prompts, and the target of doing the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import EffectError
from educe.forward.forced import Forced
from educe.forward.generation import Completion, generate
from educe.forward.inserted import Opening
from educe.inversion.direction import Direction, Ground
from educe.inversion.places import READOUT, Place, Seen, readout
from educe.inversion.said import Said, Speech, answered
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind
from educe.rows import Row


class Taught(NamedTuple):
    """What a perturbed model does on some prompts.

    Attributes:
        logprobs: Log-probabilities at each token of an answer, ``[m, v]`` a prompt.
        streams: The stream at the last tokens of each prompt, by layer, ``[q, d]`` a prompt.
    """

    logprobs: list[Tensor]
    streams: dict[int, list[Tensor]]


def written(
    lm: LanguageModel,
    batch: PromptBatch,
    most: int,
    kind: Kind | None = None,
    theta: Float[Tensor, "1 s"] | None = None,
) -> list[Completion]:
    """Return what is answered to each prompt, in `most` tokens; by a perturbed model, if given."""
    rows = [Row(0 if theta is None else 1, p) for p in range(len(batch))]
    made = generate(lm, batch, rows, theta, kind=kind, max_new_tokens=most)
    return sorted(chain.from_iterable(made), key=lambda completion: completion.row.prompt)


def taught(
    lm: LanguageModel,
    batch: PromptBatch,
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    said: Sequence[tuple[int, ...]],
    layers: Sequence[int] = (),
) -> Taught:
    """Read what a perturbed model does.

    Args:
        lm: The model.
        batch: The prompts.
        kind: The kind of the perturbation.
        theta: The perturbation.
        said: Answers to the prompts, at whose tokens log-probabilities are read.
        layers: Layers whose stream is kept.
    """
    forced = Forced(lm, batch, said, before=kind.before)
    end = batch.ids.shape[1]
    logprobs: list[Tensor] = []
    streams: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for read in forced.read(theta.to(lm.device), kind, layers):
        for row, of in zip(read.logprobs[0], read.texts[0].tolist(), strict=True):
            logprobs.append(row[: len(said[of])].clone())
        for layer, stream in read.streams.items():
            streams[layer] += list(stream[0, :, max(0, end - READOUT) : end].clone())
    return Taught(logprobs, streams)


@torch.no_grad()
def by_text(
    openings: Sequence[Opening],
    string: Sequence[int],
    said: Sequence[tuple[int, ...]],
    layers: Sequence[int] = (),
) -> Taught:
    """Read what the model does with a string in prompts; see `taught`."""
    own = torch.tensor([list(string)], dtype=torch.long)
    places = [Place(o, answer) for o, answer in zip(openings, said, strict=True)]

    def stream(own: Tensor, seen: Seen) -> Tensor:
        assert seen.stream is not None
        return seen.stream

    return Taught(
        [place.each(own, answered)[0] for place in places],
        {layer: [place.each(own, stream, layer)[0] for place in places] for layer in layers},
    )


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
    openings: Sequence[Opening], known: Taught, prompts: Sequence[int], ground: Ground | Speech
) -> Direction | Said:
    """Return the target of doing what was done on some prompts.

    Args:
        openings: Where strings are put, of all prompts.
        known: What was done on all of them.
        prompts: Which of them count.
        ground: The layer whose stream is to be met, or what the model says, at all of them.

    Raises:
        EffectError: Nothing is done there.
    """
    if isinstance(ground, Speech):
        return Said.of(ground, known.logprobs, prompts)
    whole = changed(openings, known, prompts, ground)
    goal = ground.apart(whole)
    if not float(goal.norm()) > ground.least:
        raise EffectError(
            f"nothing is changed at the last tokens of the prompts at layer {ground.layer}: choose "
            "a layer after it, or the output"
        )
    places = tuple(Place(openings[p]) for p in prompts)
    goals = (goal / goal.norm(),) * len(places)
    return Direction(places, goals, ground=ground.at(prompts), effect=float(whole.norm()))
