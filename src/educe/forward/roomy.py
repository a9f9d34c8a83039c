"""Roomy: a cache of keys and values that has room for the tokens to come.

transformers' own copies all that it knows of a layer for each new token, which for ``m`` tokens
after ``t`` is ``m (t + m / 2)`` of them; here they are written behind what is there.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import DynamicLayer
from typing_extensions import override


def with_room(cache: Any, tokens: int) -> None:
    """Let a cache have room for so many more tokens, in layers that only ever grow."""
    cache.layers[:] = [
        Roomy(layer, tokens) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in cache.layers
    ]


class Roomy(DynamicLayer):
    """A layer whose keys and values are the beginning of larger tensors.

    Args:
        layer: What is known.
        room: Tokens for which there is room at once.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values, self.room = layer.keys, layer.values, room
        self._whole = layer.keys, layer.values

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._whole
        keys, self.keys = self._behind(keys, self.keys, key_states)
        values, self.values = self._behind(values, self.values, value_states)
        self._whole = keys, values
        return self.keys, self.values

    def _behind(
        self, whole: Tensor, known: Float[Tensor, "r h t d"], new: Float[Tensor, "r h n d"]
    ) -> tuple[Tensor, Tensor]:
        """Write what is new behind what is known; return all, with the room, and what is known."""
        last = known.shape[-2] + new.shape[-2]
        # Who leaves rows out puts other tensors in place.
        if known.data_ptr() != whole.data_ptr() or last > whole.shape[-2]:
            room = max(self.room, new.shape[-2])
            whole = known.new_empty(*known.shape[:-2], known.shape[-2] + room, known.shape[-1])
            whole[..., : known.shape[-2], :] = known
        whole[..., known.shape[-2] : last, :] = new
        return whole, whole[..., :last, :]
