"""Texts that are forced on perturbed models, against one sequence at a time and plain calls."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import LayerError
from educe.forward.continuations import continued, likelihoods
from educe.forward.forced import Forced, perturbing
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors, adapters

PROMPTS = tiny.ragged([6, 11, 3], seed=3)
ANSWERS = tiny.ragged([4, 1, 7], seed=4)
SOURCE = 1


def texts(lm: LanguageModel, *, before: int = SOURCE) -> Forced:
    return Forced(lm, lm.pad(PROMPTS), ANSWERS, before=before)


def vectors(n: int) -> Tensor:
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def by_itself(hf: Any, vector: Tensor, text: int) -> tuple[Tensor, list[Tensor]]:
    """Return log-probabilities at each token of one continuation, and the streams of the text."""
    whole = [*PROMPTS[text], *ANSWERS[text]]
    at = torch.ones(len(whole) - 1)
    logits, streams = tiny.run(hf, whole[:-1], source=SOURCE, vector=vector, at=at)
    return logits[len(PROMPTS[text]) - 1 :].log_softmax(-1), streams


def test_each_perturbation_reads_its_own_texts(tiny64: LanguageModel) -> None:
    forced, theta = texts(tiny64), vectors(3)
    own = torch.tensor([[0, 2], [1, 1], [2, 0]])
    kind = Vectors(SOURCE, 32)
    for measure in (forced.likelihood, forced.divergence):
        found = forced.each(theta, kind, measure, own)
        mean, _ = forced.value_and_grad(theta, kind, measure, own)
        for i, row in enumerate(own.tolist()):
            expected = []
            for k, text in enumerate(row):
                moved, _ = by_itself(tiny64.hf, theta[i], text)
                plain, _ = by_itself(tiny64.hf, 0 * theta[i], text)
                said = moved.gather(1, torch.tensor(ANSWERS[text])[:, None])[:, 0]
                if measure == forced.divergence:
                    said = (plain.exp() * (plain - moved)).sum(1)
                torch.testing.assert_close(found[i, k, : len(said)], said, rtol=1e-6, atol=1e-10)
                assert not found[i, k, len(said) :].any()
                expected.append(said)
            torch.testing.assert_close(mean[i], torch.cat(expected).mean(), rtol=1e-6, atol=0)


def test_streams_and_predictions_are_those_of_each_text_alone(tiny64: LanguageModel) -> None:
    forced, theta = texts(tiny64), vectors(1)
    read = forced.under(perturbing(tiny64, Vectors(SOURCE, 32), theta), [SOURCE, 3])
    longest = max(map(len, PROMPTS))
    for text, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        logprobs, streams = by_itself(tiny64.hf, theta[0], text)
        there = slice(longest - len(prompt), longest + len(answer) - 1)
        for layer in (SOURCE, 3):
            torch.testing.assert_close(read.streams[layer][0, text, there], streams[layer])
        torch.testing.assert_close(read.logprobs[0, text, : len(answer)], logprobs)
    assert torch.equal(forced.under(nullcontext()).logprobs[0], forced.plain)


def test_blocks_that_nothing_changes_run_once(
    tiny64: LanguageModel, request: pytest.FixtureRequest
) -> None:
    rows = {SOURCE: 0, SOURCE + 1: 0}

    def count(layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            rows[layer] += len(args[0])

        return hook

    for layer in rows:
        handle = tiny64.blocks[layer].mlp.register_forward_pre_hook(count(layer))
        request.addfinalizer(handle.remove)
    forced = texts(tiny64)
    forced.each(vectors(5), Vectors(SOURCE, 32), forced.divergence)
    assert rows == {SOURCE: 3, SOURCE + 1: 3 + 3 + 5 * 3}  # plain once, above the source


def test_perturbations_below_what_ran_once_are_an_error(tiny64: LanguageModel) -> None:
    forced = texts(tiny64, before=2)
    with pytest.raises(LayerError, match=r"vectors that act after block 1 .* up to 2, which run"):
        forced.each(vectors(1), Vectors(SOURCE, 32), forced.likelihood)
    # Above, they act where they say.
    lower, kind = texts(tiny64), adapters(tiny64, first=3, blocks=1)
    theta = kind.scaled(kind.draw(2, torch.Generator().manual_seed(1)).double(), 3.0)
    for measure in ("likelihood", "divergence"):
        high, low = (f.each(theta, kind, getattr(f, measure)) for f in (forced, lower))
        torch.testing.assert_close(high, low)


def test_continuations_that_do_not_fit_are_read_in_halves(
    tiny64: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, written = [0, 1, 0, 0, 0], [*ANSWERS, *ANSWERS[:2]]
    batch, forward, tried = tiny64.pad(PROMPTS), tiny64.forward, []

    def read() -> dict[int, Tensor]:
        found = {}
        for some in continued(tiny64, batch, prompts, written):
            for i, logprobs in zip(some.items, some.logprobs, strict=True):
                found[i] = logprobs[: len(written[i])]
        return found

    def scarce(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tried.append(len(ids))
        if len(ids) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return forward(ids, *args, **kwargs)

    whole = read()
    monkeypatch.setattr(tiny64, "forward", scarce)
    parts = read()
    assert whole.keys() == parts.keys() == set(range(5))
    for i in whole:
        torch.testing.assert_close(parts[i], whole[i])
    # A prompt is read before its continuations: with four, two and one of the first prompt.
    assert tried == [1, 4, 1, 2, *[1] * 10]


def test_one_continuation_of_many_prompts_is_read_as_one_text(tiny64: LanguageModel) -> None:
    read_as_one(tiny64)


def test_so_it_is_where_a_window_or_a_state_counts_padding(any_lm: LanguageModel) -> None:
    read_as_one(any_lm, 1e-4)


def read_as_one(lm: LanguageModel, within: float = 1e-5) -> None:
    """Compare with each text by itself, with and without a beginning that all prompts share."""
    texts = [[9, 8, 7, 6], [5], [4, 3, 2]]
    for begun in ([], list(range(40, 50))):
        prompts = [[*begun, *own] for own in ([10, 11], [12], [13, 14, 15])]
        batch = lm.pad(prompts)
        found: dict[int, list[float]] = {}
        for done in likelihoods(lm, batch, [0, 1, 2], texts):
            found |= dict(zip(done.items, done.logprobs.tolist(), strict=True))
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            ids = torch.tensor([prompt + text])
            whole = lm.forward(ids, torch.ones_like(ids), last=0).log_softmax(-1)[0]
            expected = [float(whole[len(prompt) + k - 1, token]) for k, token in enumerate(text)]
            assert found[i][: len(text)] == pytest.approx(expected, abs=within)
            assert found[i][len(text) :] == [0.0] * (len(found[i]) - len(text))
