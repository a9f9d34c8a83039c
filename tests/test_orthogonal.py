"""Rows that no decomposition's choice of sides and bases reaches."""

from __future__ import annotations

import torch

from educe.orthogonal import orthonormal, projected, upright
from toy_slice import normal


def test_orthonormal_rows_keep_their_side_and_their_flag() -> None:
    v = normal(5, 7)
    q = orthonormal(v)
    torch.testing.assert_close(q @ q.T, torch.eye(5, dtype=torch.float64))
    assert bool(((q * v).sum(1) > 0).all())
    for k in range(1, 6):  # the first k span what the first k did
        torch.testing.assert_close(v[:k] @ q[:k].T @ q[:k], v[:k])
    several = orthonormal(torch.stack([v, -v]))
    torch.testing.assert_close(several, torch.stack([q, -q]))


def test_what_is_projected_depends_on_the_span_and_not_on_its_basis() -> None:
    span, rows = orthonormal(normal(3, 8)), normal(2, 3, 8, seed=1)
    other = orthonormal(normal(3, 3, seed=2)) @ span
    found = projected(rows, span)
    torch.testing.assert_close(found, projected(rows, other))
    torch.testing.assert_close(found @ span.T @ span, found)
    torch.testing.assert_close(found @ found.mT, torch.eye(3).double().expand(2, 3, 3))
    first = rows[:, 0] @ span.T @ span
    torch.testing.assert_close(found[:, 0], first / first.norm(dim=1, keepdim=True))


def test_upright_rows_are_the_same_from_either_side() -> None:
    v = torch.tensor([[1.0, -3, 2], [-1, 0.5, 0], [0, 2, 1], [0, 0, 0]])
    expected = torch.tensor([[-1.0, 3, -2], [1, -0.5, 0], [0, 2, 1], [0, 0, 0]])
    assert torch.equal(upright(v), expected)
    assert torch.equal(upright(-v), expected)
