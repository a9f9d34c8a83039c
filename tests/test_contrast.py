"""Contrast, against numpy on streams of plain transformers and one sequence at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import (
    EffectError,
    LayerError,
    MethodError,
    PositionsError,
    PromptError,
    RadiusError,
)
from educe.methods.contrast import Targets, difference_of_means, optimised
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from educe.perturbation.origin import digest

SOURCE = 1
POSITIVE, NEGATIVE = tiny.ragged([7, 12, 3], seed=1), tiny.ragged([9, 4], seed=2)
PROMPTS = tiny.ragged([6, 11], seed=3)
TARGET = "code"


def streams(hf: Any, rows: list[list[int]], tokens: str) -> np.ndarray:
    """Return the mean stream over some tokens of each prompt, by transformers itself."""
    found = []
    for row in rows:
        with torch.no_grad():
            out = hf(torch.tensor([row]), output_hidden_states=True)
        stream = out.hidden_states[SOURCE + 1][0].double().numpy()
        found.append(stream[tiny.chosen(tokens, len(row)).numpy()].mean(0))
    return np.stack(found)


def raw(found: Any) -> np.ndarray:
    """Return the differences as they were before they were scaled."""
    return (found.directions * found.scores["natural_norm"][:, None]).numpy()


# -- difference of means -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon_alibi"])
@pytest.mark.parametrize("tokens", ["last:1", "last:5", "all"])
def test_difference_of_means_is_that_of_the_streams(
    lm_of: Any, architecture: str, tokens: str
) -> None:
    lm = lm_of(architecture, torch.float64)
    positive, negative = lm.pad(POSITIVE), lm.pad(NEGATIVE)
    found = difference_of_means(lm, positive, negative, source=SOURCE, tokens=tokens)
    expected = streams(lm.hf, POSITIVE, tokens).mean(0) - streams(lm.hf, NEGATIVE, tokens).mean(0)
    np.testing.assert_allclose(raw(found)[0], expected, rtol=1e-5, atol=1e-6)
    norm = float(np.linalg.norm(expected))
    assert float(found.radius[0]) == pytest.approx(norm)
    assert float(found.directions[0].norm()) == pytest.approx(1)
    assert (len(found), found.method) == (1, "difference_of_means")
    assert found.config == {"tokens": tokens, "positive": 3, "negative": 2}


def test_difference_of_means_of_the_last_tokens_of_messages(tiny64: LanguageModel) -> None:
    texts = ["yes, please", "of course", "no"]
    positive, negative = tiny64.encode(texts[:2]), tiny64.encode(texts[2:])
    found = difference_of_means(tiny64, positive, negative, source=SOURCE, tokens="asked:1")
    rows = [list(ids[ids != 258]) for batch in (positive, negative) for ids in batch.ids]
    last = [tiny.run(tiny64.hf, row)[1][SOURCE][-3].detach() for row in rows]  # <eos><|assistant|>
    expected = (last[0] + last[1]) / 2 - last[2]
    np.testing.assert_allclose(raw(found)[0], expected, rtol=1e-5, atol=1e-6)


def test_difference_of_means_takes_the_radius_it_is_given(tiny_lm: LanguageModel) -> None:
    sets = tiny_lm.pad(POSITIVE), tiny_lm.pad(NEGATIVE)
    own = difference_of_means(tiny_lm, *sets, source=SOURCE)
    found = difference_of_means(tiny_lm, *sets, source=SOURCE, radius=2.5)
    assert found.radius.tolist() == [2.5]
    assert torch.equal(found.directions, own.directions)
    assert found.scores["natural_norm"].tolist() == own.radius.tolist() != [2.5]


def test_the_origin_says_where_the_difference_belongs(tiny_lm: LanguageModel) -> None:
    sets = tiny_lm.pad(POSITIVE), tiny_lm.pad(NEGATIVE)
    found = difference_of_means(tiny_lm, *sets, source=0.3, positions="generated")
    origin = found.origin
    assert found.kind == Vectors(SOURCE, 32, "generated")
    assert (origin.source, origin.readout) == (SOURCE, "last:1")
    assert origin.prompts_sha256 == digest(sets[0].texts + sets[1].texts)
    norms = [tiny.run(tiny_lm.hf, row)[1][SOURCE][1:].norm(dim=-1) for row in POSITIVE + NEGATIVE]
    assert origin.unit == pytest.approx(np.median(torch.cat(norms).numpy()), rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_shuffled_labels_are_the_even_splits_and_nothing_else(
    tiny64: LanguageModel, size: int
) -> None:
    sets = tiny64.pad(POSITIVE[:size]), tiny64.pad(NEGATIVE)
    found = difference_of_means(tiny64, *sets, source=SOURCE, shuffles=240)
    first, second = (streams(tiny64.hf, s, "last:1") for s in (POSITIVE[:size], NEGATIVE))
    # One prompt of each set on either side; which ones is all that differs.
    every = np.stack(
        [
            (first[i] + second[j] - first[k] - second[m]) / 2
            for i, k in itertools.permutations(range(size), 2)
            for j, m in itertools.permutations(range(2), 2)
        ]
    )
    np.testing.assert_allclose(every.sum(0), 0, atol=1e-12)  # no difference is expected
    near = np.abs(raw(found)[:, None] - every[None]).max(2) < 1e-5
    assert (near.sum(1) == 1).all()
    counts, expected = near.sum(0), 240 / len(every)
    assert ((counts - expected) ** 2 / expected).sum() < 31  # chi square, p below 0.002
    real = first.mean(0) - second.mean(0)
    assert found.radius.tolist() == pytest.approx([np.linalg.norm(real)] * 240)
    assert (len(found), found.method) == (240, "shuffled_labels")


def test_shuffles_come_from_the_seed(tiny_lm: LanguageModel) -> None:
    sets = tiny_lm.pad(POSITIVE), tiny_lm.pad(NEGATIVE)

    def drawn(seed: int) -> Tensor:
        return difference_of_means(tiny_lm, *sets, source=SOURCE, shuffles=9, seed=seed).directions

    assert torch.equal(drawn(4), drawn(4))
    assert not torch.equal(drawn(4), drawn(5))


def test_sets_that_cannot_be_told_apart_are_an_error(tiny_lm: LanguageModel) -> None:
    sets = tiny_lm.pad(POSITIVE), tiny_lm.pad(NEGATIVE)
    with pytest.raises(PromptError, match="have the same stream at layer 1"):
        difference_of_means(tiny_lm, sets[0], sets[0], source=SOURCE)
    with pytest.raises(PromptError, match="labels of a single prompt"):
        difference_of_means(tiny_lm, sets[0], tiny_lm.pad(NEGATIVE[:1]), source=SOURCE, shuffles=1)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"radius": 0.0}, RadiusError, "radius 0: it must be above zero"),
        ({"radius": math.inf}, RadiusError, "radius inf"),
        ({"tokens": "generated"}, PositionsError, "read-out 'generated' reads nothing"),
        ({"positions": "first:2"}, PositionsError, "first:2"),
        ({"source": 3}, LayerError, "source 3 is not below target 3"),
    ],
)
def test_impossible_settings_of_a_difference(
    tiny_lm: LanguageModel, options: Any, error: type, says: str
) -> None:
    sets = tiny_lm.pad(POSITIVE), tiny_lm.pad(NEGATIVE)
    with pytest.raises(error, match=says):
        difference_of_means(tiny_lm, *sets, **{"source": SOURCE, **options})


# -- the likelihood of a target ------------------------------------------------------------------


def said(lm: LanguageModel, text: str = TARGET) -> list[int]:
    ids: list[int] = lm.tokenizer(text)["input_ids"]
    return ids


def logprob(hf: Any, theta: Tensor | None, target: list[int], positions: str = "all") -> Tensor:
    """Return the mean log-probability of the target's tokens; differentiable."""
    each = []
    for row in PROMPTS:
        at = tiny.chosen(positions, len(row), len(target) - 1)
        logits, _ = tiny.run(
            hf,
            [*row, *target[:-1]],
            source=None if theta is None else SOURCE,
            vector=theta,
            at=at,
        )
        answers = torch.tensor(target)[:, None]
        each.append(logits[-len(target) :].log_softmax(-1).gather(1, answers))
    return torch.cat(each).mean()


def likely(lm: LanguageModel, targets: list[list[int]], positions: str = "all") -> Targets:
    kind = Vectors(SOURCE, lm.width, positions)
    return Targets(lm, lm.pad(PROMPTS), torch.tensor(targets), kind=kind)


def vectors(lm: LanguageModel, n: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, lm.width, generator=draw, dtype=torch.float64).to(lm.dtype) / 4


def test_likelihood_is_that_of_one_sequence_at_a_time(any_lm: LanguageModel) -> None:
    targets, theta = [said(any_lm), [7, 8, 9, 7], said(any_lm)], 20 * vectors(any_lm)
    with torch.no_grad():
        expected = [
            float(logprob(any_lm.hf, row, t)) for row, t in zip(theta, targets, strict=True)
        ]
        plain = float(logprob(any_lm.hf, None, targets[0]))
    assert abs(expected[0] / plain - 1) > 1e-3
    part = likely(any_lm, targets)
    assert part.logprob(theta).tolist() == pytest.approx(expected, rel=1e-4)
    value, _ = part.value_and_grad(theta)
    assert value.tolist() == pytest.approx(expected, rel=1e-4)
    assert float(part.logprob(0 * theta)[0]) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last:2"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradient_is_that_of_the_whole_model(lm_of: Any, architecture: str, positions: str) -> None:
    lm = lm_of(architecture, torch.float64)
    targets, theta = [said(lm), [7, 8, 9, 7], said(lm)], vectors(lm)
    value, gradient = likely(lm, targets, positions).value_and_grad(theta)
    for row, target, came, slope in zip(theta, targets, value, gradient, strict=True):
        own = row.clone().requires_grad_()
        expected = logprob(lm.hf, own, target, positions)
        torch.testing.assert_close(came, expected.detach(), rtol=1e-6, atol=0)
        (dense,) = torch.autograd.grad(expected, own)
        assert float((slope - dense).norm() / dense.norm()) < 1e-5
        if architecture == "gpt2":  # in double precision throughout
            along, tiny_step = vectors(lm, 1)[0], 1e-5
            with torch.no_grad():
                ahead, behind = (
                    float(logprob(lm.hf, row + sign * tiny_step * along, target, positions))
                    for sign in (1, -1)
                )
            assert float(slope @ along) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def test_chunks_and_lack_of_memory_change_nothing(
    tiny64: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, theta = [said(tiny64), [7, 8, 9, 7], said(tiny64)], vectors(tiny64)
    part = likely(tiny64, targets)
    whole = part.value_and_grad(theta)
    forward, tried = tiny64.forward, []

    def scarce(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tried.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(tiny64, "forward", scarce)
    for came, expected in zip(part.value_and_grad(theta), whole, strict=True):
        torch.testing.assert_close(came, expected)
    assert tried == [6, 2, 1, 1, 1, 1, 1, 1]  # three perturbations on two prompts


# -- optimised vectors ---------------------------------------------------------------------------


def test_steps_are_adam_on_the_sphere(tiny64: LanguageModel) -> None:
    radius, step, steps, target = 3.0, 0.4, 4, said(tiny64)
    options: dict[str, Any] = {"source": SOURCE, "radius": radius, "n": 1, "seed": 5}
    batch = tiny64.pad(PROMPTS)
    found = optimised(tiny64, batch, TARGET, steps=steps, step=step, **options)
    start = optimised(tiny64, batch, TARGET, steps=0, **options).directions[0].double()
    v, first, second = start / start.norm(), 0 * start, 0 * start
    for count in range(1, steps + 1):
        own = v.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(logprob(tiny64.hf, radius * own, target), own)
        gradient = gradient / radius  # by the vector; Adam does not care for the scale
        gradient = gradient - (gradient @ v) * v
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**count) / (second / (1 - 0.999**count)).sqrt()
        rate = step / math.sqrt(tiny64.width) * (1 - (count - 1) / steps)
        v = v + rate * unbiased
        v = v / v.norm()
    torch.testing.assert_close(found.directions[0].double(), v, rtol=0, atol=1e-5)
    assert float(start @ v) < 0.9


def test_it_says_the_target_more_than_random_directions_do(tiny64: LanguageModel) -> None:
    batch, target = tiny64.pad(PROMPTS), said(tiny64)
    options: dict[str, Any] = {"source": SOURCE, "radius": 3.0, "seed": 1}
    seen = []
    found = optimised(
        tiny64, batch, TARGET, n=4, steps=20, on_step=lambda p: seen.append(p), **options
    )
    by_chance = optimised(tiny64, batch, TARGET, n=64, steps=0, **options)
    score, chance = found.scores["target_logprob"], by_chance.scores["target_logprob"]
    assert float(score.min()) > float(chance.max()) + 0.3
    with torch.no_grad():
        for theta, came in zip(found.theta.double(), score, strict=True):
            assert float(came) == pytest.approx(float(logprob(tiny64.hf, theta, target)), rel=1e-5)
        before = float(logprob(tiny64.hf, None, target))
    assert found.scores["target_logprob_before"].tolist() == pytest.approx([before] * 4)
    for scores in (score, chance):
        assert bool((scores.diff() <= 0).all())
    assert [p.done for p in seen] == [False] * 19 + [True]
    assert seen[0].objective < seen[-1].objective == pytest.approx(float(score.mean()), abs=0.3)
    assert found.radius.tolist() == [3.0] * 4
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(4))
    assert found.config == {"target": TARGET, "steps": 20, "step": 0.3}
    assert (found.method, found.origin.source, found.origin.target) == ("optimised", SOURCE, 3)


def test_a_shuffled_target_is_optimised_in_the_targets_stead(tiny64: LanguageModel) -> None:
    batch = tiny64.pad(PROMPTS)
    options: dict[str, Any] = {"source": SOURCE, "radius": 3.0, "n": 6, "seed": 2}
    found = optimised(tiny64, batch, TARGET, steps=6, shuffled=True, **options)
    targets = found.config["targets"]
    assert len(set(targets)) > 1
    assert all(t != TARGET and sorted(t) == sorted(TARGET) for t in targets)
    scores = found.scores["target_logprob"], found.scores["target_logprob_before"]
    with torch.no_grad():
        for text, theta, after, before in zip(targets, found.theta.double(), *scores, strict=True):
            own = said(tiny64, text)
            assert float(after) == pytest.approx(float(logprob(tiny64.hf, theta, own)), rel=1e-5)
            assert float(before) == pytest.approx(float(logprob(tiny64.hf, None, own)), rel=1e-5)
            assert after > before
    assert found.method == "shuffled_target"
    two = optimised(tiny64, batch, "ab", steps=0, shuffled=True, **options)
    assert two.config["targets"] == ["ba"] * 6
    # Both start from the same directions.
    starts = [
        optimised(tiny64, batch, TARGET, steps=0, shuffled=shuffled, **options).directions
        for shuffled in (False, True)
    ]
    torch.testing.assert_close(*(s[s[:, 0].argsort()] for s in starts))


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_seed_decides(tiny_lm: LanguageModel, shuffled: bool) -> None:
    def run(seed: int) -> Any:
        return optimised(
            tiny_lm,
            tiny_lm.pad(PROMPTS),
            TARGET,
            source=SOURCE,
            radius=3.0,
            n=3,
            steps=3,
            shuffled=shuffled,
            seed=seed,
        )

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.directions, again.directions)
    assert first.config == again.config
    assert not torch.equal(first.directions, other.directions)
    assert (first.seed, other.seed) == (0, 1)


def test_blocks_up_to_the_source_run_no_oftener_for_more_steps(tiny_lm: LanguageModel) -> None:
    counts = []
    for steps in (1, 4):
        calls = [0, 0]

        def count(layer: int, calls: list[int] = calls) -> Any:
            return lambda *args: calls.__setitem__(layer, calls[layer] + 1)

        inner = [block.mlp for block in tiny_lm.blocks[SOURCE : SOURCE + 2]]
        handles = [m.register_forward_hook(count(i)) for i, m in enumerate(inner)]
        optimised(tiny_lm, tiny_lm.pad(PROMPTS), TARGET, source=SOURCE, radius=1.0, steps=steps)
        for handle in handles:
            handle.remove()
        counts.append(calls)
    (below, above), (still, more) = counts
    assert (still, more) == (below, above + 3)


def test_the_model_is_left_as_it_was(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.pad(PROMPTS)
    before = tiny_lm.forward(batch.ids, batch.mask)
    optimised(tiny_lm, batch, TARGET, source=SOURCE, radius=3.0, steps=2)
    assert torch.equal(tiny_lm.forward(batch.ids, batch.mask), before)
    assert all(w.grad is None and not w.requires_grad for w in tiny_lm.hf.parameters())
    assert not before.requires_grad


@pytest.mark.parametrize(
    ("target", "options", "error", "says"),
    [
        ("", {}, PromptError, "the target is empty"),
        ("a" * 130, {}, PromptError, "have 141 tokens, the context of llama 128"),
        ("a", {"shuffled": True}, MethodError, "has one order only"),
        ("aaa", {"shuffled": True}, MethodError, "has one order only"),
        ("a", {"positions": "generated"}, PositionsError, "or a longer target"),
        (TARGET, {"positions": "first:2"}, PositionsError, "first:2"),
        (TARGET, {"n": 0}, MethodError, "n = 0"),
        (TARGET, {"radius": -1.0}, RadiusError, "radius -1"),
        (TARGET, {"source": 3}, LayerError, "source 3 is not below target 3"),
        (TARGET, {"radius": 1e39}, EffectError, "use a smaller radius"),
    ],
)
def test_impossible_settings(
    tiny_lm: LanguageModel, target: str, options: Any, error: type, says: str
) -> None:
    with pytest.raises(error, match=says):
        optimised(
            tiny_lm, tiny_lm.pad(PROMPTS), target, **{"source": SOURCE, "radius": 1.0, **options}
        )
