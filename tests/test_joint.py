"""Vectors after several blocks, at some tokens: against hooks on the model, without a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import educe
from educe.forward.forced import Forced
from educe.model.language import LanguageModel
from educe.perturbation import positions
from educe.perturbation.joint import Joint
from educe.perturbation.origin import Origin
from educe.perturbation.set import PerturbationSet

PROMPTS = ["Where is it?", "Why?"]
LAYERS, SIZE, LONG = (1, 2), 25.0, 5
WAYS = ["all", "prompt", "generated", "last:2", "at:2", "asked"]
THETA = torch.tensor([[1.0, 0.5], [-0.3, 1.0]])


def kind(lm: LanguageModel, where: str) -> Joint:
    draw = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(2, 2, lm.width, generator=draw), dim=-1)
    return Joint(LAYERS, SIZE * rows, where)


@contextmanager
def hooked(lm: LanguageModel, made: Joint, theta: torch.Tensor, at: torch.Tensor) -> Iterator[None]:
    """Add to the streams of the plain model at the tokens of its one row."""

    def hook(i: int) -> Any:
        def add(module: Any, args: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            stream = stream + at[None, :, None] * (theta @ made.rows[:, i])
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return add

    handles = [
        lm.unwrapped.model.layers[layer].register_forward_hook(hook(i))
        for i, layer in enumerate(LAYERS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tokens(lm: LanguageModel, prompt: str, where: str, more: int) -> tuple[Any, torch.Tensor]:
    """Return a prompt's tokens, and which of it and of ``more`` behind it are meant."""
    batch = lm.encode([prompt])
    ids = list(batch.read[0])
    meant = batch.at(where)[0, -len(ids) :].float()
    behind = torch.full((more,), float(positions.in_generated(where)))
    return ids, torch.cat([meant, behind])


@pytest.mark.parametrize("where", WAYS)
def test_what_is_written_is_what_hooks_make_the_plain_model_write(
    where: str, tiny_lm: LanguageModel
) -> None:
    made = kind(tiny_lm, where)
    wanted = {}
    for i, theta in enumerate(THETA, 1):
        for j, prompt in enumerate(PROMPTS):
            ids, at = tokens(tiny_lm, prompt, where, LONG)
            said: list[int] = []
            for _ in range(LONG):
                with hooked(tiny_lm, made, theta, at[: len(ids)]), torch.no_grad():
                    logits = tiny_lm.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
                said.append(int(logits.argmax()))
                ids.append(said[-1])
            wanted[educe.Row(i, j)] = said
    batch, rows = tiny_lm.encode(PROMPTS), educe.rows_of(2, 2)
    how: dict[str, Any] = {"kind": made, "max_new_tokens": LONG}
    came = {c.row: c for some in educe.generate(tiny_lm, batch, rows, THETA, **how) for c in some}
    for row, said in wanted.items():
        own = list(came[row].tokens)
        assert own == said[: len(own)]
        assert len(own) == LONG or came[row].finished
    plain = {
        c.row.prompt: c.tokens
        for some in educe.generate(tiny_lm, batch, [educe.Row(0, 0), educe.Row(0, 1)],
                                   max_new_tokens=LONG)
        for c in some
    }  # fmt: skip
    assert any(came[row].tokens != plain[row.prompt] for row in rows)


@pytest.mark.parametrize("where", WAYS)
def test_the_model_itself_and_likelihoods_are_those_of_hooks(
    where: str, tiny_lm: LanguageModel
) -> None:
    made, theta = kind(tiny_lm, where), THETA[0]
    text = tuple(tiny_lm.tokens("no, it is", templated=True))
    ids, at = tokens(tiny_lm, PROMPTS[0], where, len(text))
    whole = torch.tensor([[*ids, *text]])
    with hooked(tiny_lm, made, theta, at), torch.no_grad():
        logs = tiny_lm.hf(whole, use_cache=False).logits[0].log_softmax(-1)
    each = logs[len(ids) - 1 : -1].gather(1, torch.tensor(text)[:, None])[:, 0]
    forced = Forced(tiny_lm, tiny_lm.encode(PROMPTS[:1]), [text], before=1)
    came = forced.each(THETA, made, forced.likelihood)[0, 0]
    torch.testing.assert_close(came.float(), each, atol=1e-3, rtol=1e-3)
    if where != "generated":  # the slice has prompts alone
        part = educe.Slice(tiny_lm, PROMPTS[:1], source=1, target=2, positions=where)
        effect = part.on(made).effect(THETA[:1])[0]
        streams = []
        for some in (at[: len(ids)], torch.zeros(len(ids))):
            with hooked(tiny_lm, made, theta, some), tiny_lm.watching([2]) as seen, torch.no_grad():
                tiny_lm.hf(torch.tensor([ids]), use_cache=False)
            streams.append(seen[2][0, -3:])
        wanted = (streams[0] - streams[1]).mean(0)
        torch.testing.assert_close(effect.float(), wanted, atol=1e-3, rtol=1e-3)
    found = PerturbationSet(made, theta[None], torch.ones(1), _origin(tiny_lm), "sampled", 0)
    with found.applied(tiny_lm), torch.no_grad():
        ours = tiny_lm.hf(torch.tensor([ids]), use_cache=False).logits[0]
    with hooked(tiny_lm, made, theta, at[: len(ids)]), torch.no_grad():
        theirs = tiny_lm.hf(torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def _origin(lm: LanguageModel) -> Origin:
    part = educe.Slice(lm, PROMPTS[:1], source=1, target=3)
    return educe.search(part, "random", n=1, radius=1.0).origin
