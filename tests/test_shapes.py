"""The checker of shapes sees a wrong one: in what goes in, in what comes out, and in educe."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from educe.perturbation.positions import in_prompt
from shapes import checked


def swapped(
    a: Float[Tensor, "n m"], b: Float[Tensor, "m k"] | None = None, *, turn: bool = False
) -> tuple[Float[Tensor, "m n"], int]:
    return (a.clone() if turn else a.T.clone()), 1


def test_arrays_of_the_promised_shapes_pass() -> None:
    guarded = checked(swapped)
    assert guarded(torch.ones(2, 3))[0].shape == (3, 2)
    guarded(torch.ones(2, 3), torch.ones(3, 5))
    guarded(torch.ones(2, 2), turn=True)


@pytest.mark.parametrize(
    ("a", "b", "turn", "wrong"),
    [
        (torch.ones(2), None, False, "a has the shape"),
        (torch.ones(2, 3, dtype=torch.int64), None, False, "a has the shape"),
        (torch.ones(2, 3), torch.ones(2, 3), False, "b has the shape"),
        (torch.ones(2, 3), None, True, "return has the shape"),
    ],
)
def test_a_wrong_shape_is_an_error(a: Tensor, b: Tensor | None, turn: bool, wrong: str) -> None:
    with pytest.raises(TypeError, match=wrong):
        checked(swapped)(a, b, turn=turn)


def test_functions_of_educe_are_watched() -> None:
    with pytest.raises(TypeError, match=r"in_prompt: mask has the shape \(3,\)"):
        in_prompt("all", torch.ones(3), None)
