"""Targets of inversion: losses against plain passes, gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from educe.errors import EffectError
from educe.forward.inserted import Opening
from educe.inversion.beyond import Beyond
from educe.inversion.direction import Ground
from educe.inversion.places import table
from educe.inversion.said import Speech
from educe.inversion.targets import NOTHING, Target, text
from educe.inversion.taught import by_text, following, taught, written
from educe.model.asked import Span
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors

PROMPTS, SPANS = [[3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4]], [Span(1, 3), Span(2, 4)]
STRINGS = torch.tensor([[20, 21, 22], [23, 24, 25], [22, 21, 20]])
ANSWER = (30, 31, 32)
#: What stands behind the prompts where it is asked how likely it is.
SAID = [(30, 31, 32), (33, 34)]


def batch_of(lm: LanguageModel) -> PromptBatch:
    return lm.pad(PROMPTS, own=SPANS)


def places(lm: LanguageModel) -> list[Opening]:
    return [Opening(lm, batch_of(lm), p) for p in range(len(PROMPTS))]


def ground_of(openings: list[Opening], layer: int | None) -> Ground | Speech:
    if layer is None:
        return Speech.of(openings, SAID, STRINGS, 2)
    return Ground.of(openings, STRINGS, layer)


def whole(p: int, string: list[int]) -> list[int]:
    """A prompt with a string behind its message."""
    at = SPANS[p].stop
    return [*PROMPTS[p][:at], *string, *PROMPTS[p][at:]]


def plain(lm: LanguageModel, ids: list[int], layer: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the stream leaving a layer, of one text in one plain pass."""
    with lm.watching([layer]) as streams:
        logits = lm.forward(torch.tensor([ids]), torch.ones(1, len(ids)).long(), last=0)
    return logits[0].log_softmax(-1), streams[layer][0]


def test_the_likelihood_is_that_of_the_whole_texts(tiny64: LanguageModel) -> None:
    found = text(places(tiny64), ANSWER).each(STRINGS)
    for p in range(2):
        for i, string in enumerate(STRINGS.tolist()):
            ids = whole(p, string)
            logprobs, _ = plain(tiny64, [*ids, *ANSWER])
            said = [logprobs[len(ids) - 1 + t, token] for t, token in enumerate(ANSWER)]
            torch.testing.assert_close(found[p, i], -torch.stack(said).mean())


def test_what_a_vector_does_is_read_as_a_hook_has_it(tiny64: LanguageModel) -> None:
    batch, layer = batch_of(tiny64), 2
    theta = torch.randn(1, tiny64.width, generator=torch.Generator().manual_seed(3)).double()
    known = taught(tiny64, batch, Vectors(1, tiny64.width), theta, SAID, [layer])
    for p, ids in enumerate(PROMPTS):
        with tiny64.adding(1, lambda stream: theta):
            logprobs, stream = plain(tiny64, [*ids, *SAID[p][:-1]], layer)
        torch.testing.assert_close(known.logprobs[p], logprobs[len(ids) - 1 :])
        torch.testing.assert_close(known.streams[layer][p], stream[len(ids) - 3 : len(ids)])


def test_the_own_answers_are_what_is_likeliest(tiny64: LanguageModel) -> None:
    for ids, own in zip(PROMPTS, written(tiny64, batch_of(tiny64), 3), strict=True):
        said: list[int] = []
        for _ in own.tokens:
            said.append(int(plain(tiny64, [*ids, *said])[0][-1].argmax()))
        assert tuple(said) == own.tokens


@pytest.mark.parametrize("layer", [None, 1, 2])
def test_a_text_does_what_it_does_itself(tiny64: LanguageModel, layer: int | None) -> None:
    openings, string = places(tiny64), STRINGS[0].tolist()
    known = by_text(openings, string, SAID, [] if layer is None else [layer])
    ground = ground_of(openings, layer)
    target = following(openings, known, [0, 1], ground)
    found = target.loss(STRINGS)
    torch.testing.assert_close(found[0], torch.tensor(0.0).double(), atol=1e-10, rtol=0)
    assert bool((found[1:] > 1e-4).all())
    torch.testing.assert_close(target.natural, found, rtol=0, atol=3e-3)  # kept in halves
    # No string has no direction.
    torch.testing.assert_close(target.each(NOTHING), torch.ones(2, 1).double())


@pytest.mark.parametrize("layer", [1, 2])
def test_the_direction_is_that_of_whole_texts(tiny64: LanguageModel, layer: int) -> None:
    """Against plain passes: the mean change of the stream, less what natural strings share."""
    openings, natural = places(tiny64), STRINGS[:2]
    theta = torch.randn(1, tiny64.width, generator=torch.Generator().manual_seed(3)).double()
    ground = Ground.of(openings, natural, layer)

    def found(size: float) -> Tensor:
        vectors = Vectors(1, tiny64.width)
        known = taught(tiny64, batch_of(tiny64), vectors, size * theta, SAID, [layer])
        return following(openings, known, [0, 1], ground).loss(STRINGS[2:])[0]

    def stream(p: int, string: list[int]) -> Tensor:  # two tokens stand behind a string
        return plain(tiny64, whole(p, string), layer)[1][-2:].mean(0)

    def change(string: list[int]) -> Tensor:
        return torch.stack([stream(p, string) - stream(p, []) for p in (0, 1)]).mean(0)

    common = torch.stack([change(s) for s in natural.tolist()]).mean(0)
    with tiny64.adding(1, lambda stream: theta):
        wanted = torch.stack([stream(p, []) for p in (0, 1)]).mean(0)
    wanted = wanted - torch.stack([stream(p, []) for p in (0, 1)]).mean(0)
    one, other = (
        v - (v @ common) / (common @ common) * common for v in (change(STRINGS[2].tolist()), wanted)
    )
    torch.testing.assert_close(found(1.0), 1 - one @ other / (one.norm() * other.norm()))
    if layer == 1:  # where a vector is added, its size does not matter
        torch.testing.assert_close(found(9.0), found(1.0))


def test_the_direction_of_what_is_said_is_that_of_whole_texts(tiny64: LanguageModel) -> None:
    """Against plain passes: cosines of root-weighted changes, less what natural strings share."""
    openings = places(tiny64)
    theta = torch.randn(1, tiny64.width, generator=torch.Generator().manual_seed(3)).double()
    known = taught(tiny64, batch_of(tiny64), Vectors(1, tiny64.width), theta, SAID)
    target = following(openings, known, [0, 1], ground_of(openings, None))

    def said(p: int, string: list[int]) -> Tensor:
        return plain(tiny64, [*whole(p, string), *SAID[p][:-1]])[0][-len(SAID[p]) :]

    with tiny64.adding(1, lambda stream: theta):
        under = [said(p, []) for p in (0, 1)]
    root = [((a.exp() + said(p, []).exp()) / 2).sqrt() for p, a in enumerate(under)]

    def rooted(change: Callable[[int], Tensor]) -> Tensor:
        rows = []
        for p, r in enumerate(root):
            x = change(p)
            rows.append((r * (x - (r.square() * x).sum(-1, keepdim=True))).flatten())
        return torch.cat(rows)

    def by_string(string: list[int]) -> Tensor:
        return rooted(lambda p: said(p, string) - said(p, []))

    common = torch.stack([by_string(s) for s in STRINGS.tolist()]).mean(0)
    one, other = (
        v - (v @ common) / (common @ common) * common
        for v in (by_string(STRINGS[2].tolist()), rooted(lambda p: under[p] - said(p, [])))
    )
    cosine = one @ other / (one.norm() * other.norm())
    torch.testing.assert_close(target.loss(STRINGS[2:])[0], 1 - cosine)
    kl = [(a.exp() * (a - said(p, []))).sum(-1).mean() for p, a in enumerate(under)]
    assert target.effect == pytest.approx(float(torch.stack(kl).mean()))


@pytest.mark.parametrize("aim", ["output", "stream", "text"])
def test_gradients_are_those_of_finite_differences(
    lm_of: Callable[..., LanguageModel], aim: str
) -> None:
    """In the one-hot: a step along token ``v`` moves the embedding by a share of its row."""
    tiny64 = lm_of("gpt2", torch.float64)  # whose norms compute in double precision as well
    openings = places(tiny64)
    known = by_text(openings, STRINGS[1].tolist(), SAID, [2])
    targets = {
        "output": following(openings, known, [0, 1], ground_of(openings, None)),
        "stream": following(openings, known, [0, 1], ground_of(openings, 2)),
        "text": text(openings, ANSWER),
    }
    target, string, step = targets[aim], STRINGS[:1], 1e-5
    slope = target.slope(string, fluency=True)
    rows = table(tiny64)
    for at, token in ((0, 40), (1, 77), (2, 5)):
        sides = []
        for sign in (1, -1):
            x = rows[string].clone()
            x[0, at] += sign * step * rows[token]
            sides.append(target.slope(string, x, fluency=True))
        up, down = sides
        steep = (up.loss - down.loss) / (2 * step)
        torch.testing.assert_close(slope.tokens[:, at, token], steep, rtol=1e-5, atol=1e-8)
        # The nats of the string change by the embedding, and by what counts as its tokens.
        smooth = (up.nll - down.nll) / (2 * step)
        smooth += unlikely_at(target, string[0].tolist(), at, token)
        torch.testing.assert_close(slope.fluent[:, at, token], smooth, rtol=1e-5, atol=1e-8)


def unlikely_at(target: Target, string: list[int], at: int, token: int) -> Tensor:
    """How unlikely another token is at a place of a string, a token's share of the mean."""
    lm, found = target.lm, []
    for p in range(len(PROMPTS)):
        before = PROMPTS[p][: SPANS[p].stop]
        logprobs, _ = plain(lm, [*before, *string[:at]])
        found.append(-logprobs[-1, token])
    return torch.stack(found).mean()[None] / len(string)


def test_how_unlikely_a_string_is(tiny64: LanguageModel) -> None:
    _, nll = text(places(tiny64), ANSWER).fluent(STRINGS)
    for i, string in enumerate(STRINGS.tolist()):
        total = [
            unlikely_at(text(places(tiny64), ANSWER), string, at, token)
            for at, token in enumerate(string)
        ]
        torch.testing.assert_close(nll[i], torch.cat(total).sum())


def test_what_changes_nothing_is_no_target(tiny64: LanguageModel) -> None:
    openings = places(tiny64)
    zero = torch.zeros(1, tiny64.width)
    known = taught(tiny64, batch_of(tiny64), Vectors(1, tiny64.width), zero, SAID, [1])
    with pytest.raises(EffectError, match=r"nothing is changed .* at layer 1"):
        following(openings, known, [0, 1], ground_of(openings, 1))
    with pytest.raises(EffectError, match="nothing of what the model says"):
        following(openings, known, [0, 1], ground_of(openings, None))


def beyond(own: Target, other: Target, weight: float) -> Beyond:
    return Beyond(own.places, own.goals, other=other, here=nullcontext, weight=weight)


def test_beyond_a_reference(tiny64: LanguageModel, lm_of: Callable[..., LanguageModel]) -> None:
    """Against both losses by themselves; what is unlikelier under the reference counts nothing."""
    other = lm_of("qwen2", torch.float64)
    own = text(places(tiny64), ANSWER)
    for answer in range(100):  # one that some strings make likelier, and others not
        theirs = text(places(other), [answer])
        fit = theirs.each(NOTHING) - theirs.each(STRINGS)
        if bool((fit > 0).any(1).all() and (fit < 0).any(1).all()):
            break
    fit = fit.clamp(min=0)
    assert bool((fit > 0).any())
    assert bool((fit == 0).any())
    both = beyond(own, text(places(other), [answer]), 0.25)
    torch.testing.assert_close(both.each(STRINGS), own.each(STRINGS) + 0.25 * fit)
    torch.testing.assert_close(both.at_one(1).loss(STRINGS), own.each(STRINGS)[1] + 0.25 * fit[1])


def test_gradients_beyond_a_reference(lm_of: Callable[..., LanguageModel]) -> None:
    lm = lm_of("gpt2", torch.float64)
    own, other = (text(places(lm)[:1], answer) for answer in (ANSWER, (40, 41, 42)))
    target = beyond(own, other, 0.5)
    strings = STRINGS[target.other.loss(STRINGS) < target.plain[0]][:1]
    assert len(strings)
    rows, step, at, token = table(lm), 1e-5, 1, 77
    sides = []
    for sign in (1, -1):
        x = rows[strings].clone()
        x[0, at] += sign * step * rows[token]
        sides.append(target.slope(strings, x).loss)
    steep = (sides[0] - sides[1]) / (2 * step)
    torch.testing.assert_close(
        target.slope(strings).tokens[:, at, token], steep, rtol=1e-5, atol=1e-8
    )
