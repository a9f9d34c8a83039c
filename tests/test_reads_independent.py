"""Thinning curves against numpy and plain transformers, on another architecture (GPT-2).

Nothing here is computed as the package does it: gradients come from a leaf that is added by a hook,
tokens are drawn by numpy, principal components are singular vectors, and the balanced projection is
that onto eigenvectors of ``Σ F``. What is drawn differs, so gradients and balanced curves agree to
some per cent; the others exactly, but for random directions, which are others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from educe.activations import corpus, reading
from educe.activations.gradients import sweep
from educe.activations.natural import is_held
from educe.model.language import LanguageModel
from educe.reads.thinning import Texts, components_of

LAYER, KEPT, TOKENS = 1, (2, 8, 16, 24), 2500
Matrix = NDArray[np.float64]


@contextmanager
def changing(hf: torch.nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change the stream that leaves the block."""

    def hook(module: object, args: object, out: object) -> object:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)  # type: ignore[arg-type]

    handle = hf.transformer.h[LAYER].register_forward_hook(hook)  # type: ignore[union-attr]
    yield
    handle.remove()


def moments(hf: torch.nn.Module, texts: list[list[int]]) -> tuple[Matrix, Matrix, Matrix]:
    """Return activations and gradients, a row for each token but the first of a text."""
    rng, rows, slopes = np.random.default_rng(5), [], []
    for ids in texts:
        leaf = torch.zeros(1, len(ids), 32, dtype=torch.float64, requires_grad=True)
        with changing(hf, lambda h, leaf=leaf: h + leaf):
            seen = hf(torch.tensor([ids]), output_hidden_states=True)
        said = seen.logits[0].log_softmax(-1)
        drawn = [int(rng.choice(len(p), p=p / p.sum())) for p in said.detach().exp().numpy()[1:]]
        said[torch.arange(1, len(ids)), drawn].sum().backward()
        rows.append(seen.hidden_states[LAYER + 1][0, 1:].detach().numpy())
        slopes.append(leaf.grad[0, 1:].numpy())  # type: ignore[index]
    return np.concatenate(rows), np.concatenate(slopes), np.zeros(0)


def loss(hf: torch.nn.Module, texts: list[list[int]], keep: Matrix, mean: Matrix) -> float:
    """Return the mean divergence of the output where ``h`` becomes ``mean + keep (h - mean)``."""

    def change(h: Tensor) -> Tensor:
        thin = torch.tensor(mean) + (h - torch.tensor(mean)) @ torch.tensor(keep).T
        return torch.cat([h[:, :1], thin[:, 1:]], 1)

    found = []
    for ids in texts:
        with torch.no_grad():
            whole = hf(torch.tensor([ids])).logits[0, 1:].log_softmax(-1)
            with changing(hf, change):
                thin = hf(torch.tensor([ids])).logits[0, 1:].log_softmax(-1)
        found.append((whole.exp() * (whole - thin)).sum(-1))
    return float(torch.cat(found).mean())


def test_curves_are_those_of_independent_code(lm_of: Callable[..., LanguageModel]) -> None:
    lm = lm_of("gpt2", torch.float64)
    hf = lm.hf
    pieces = list(reading.pieces(lm, corpus.documents(), limit=TOKENS))
    # Without a shared beginning: only the first token of a text does not count.
    seen = [p for p in pieces if not is_held(p.document)]
    known = sweep(lm, corpus.documents(), [LAYER], limit=TOKENS).layers[LAYER]
    own = components_of(known)
    more = reading.pieces(lm, corpus.documents(), limit=20 * TOKENS)
    held = [p._replace(ids=p.ids[:24]) for p in more if is_held(p.document) and not p.start][:6]
    assert all(p.skip == 1 for p in (*seen, *held))

    rows, slopes, _ = moments(hf, [p.ids for p in seen])
    mean, spread = rows.mean(0), np.cov(rows.T, bias=True)
    fisher = slopes.T @ slopes / len(slopes)
    principal = np.linalg.svd(rows - mean, full_matrices=False)[2]
    active = np.linalg.svd(slopes, full_matrices=False)[2]
    value, right = np.linalg.eig(spread @ fisher)
    right = right[:, np.argsort(-value.real)].real
    left = np.linalg.inv(right)
    random = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 32, 32)))[0]

    texts, there = Texts(lm, held), [p.ids for p in held]
    for k in KEPT:
        found = {form: texts.under({LAYER: c.top(k)}).kl for form, c in own.items()}
        by_hand = {
            "components": principal[:k].T @ principal[:k],
            "gradients": active[:k].T @ active[:k],
            "balanced": right[:, :k] @ left[:k],
        }
        for form, keep in by_hand.items():
            exact = 1e-3 if form == "components" else 0.25
            assert found[form] == pytest.approx(loss(hf, there, keep, mean), rel=exact), (form, k)
        among = [loss(hf, there, q[:, :k] @ q[:, :k].T, mean) for q in random]
        assert min(among) * 0.9 < found["random"] < max(among) * 1.1
