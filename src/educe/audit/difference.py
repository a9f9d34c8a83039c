"""The weight difference between the suspect and its reference, matrix by matrix.

    ΔW = W_suspect - W_reference

Of a LoRA adapter it is known by its factors, `ΔW = s B A` of rank r, and nothing of the size of W
is made: with `B = Q_b R_b`, `A = (Q_a R_a)ᵀ` the singular values of ΔW are those of `s R_b R_aᵀ`,
which is r by r. Of full weights it is the difference itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from educe.audit.reference import Reference
from educe.errors import ModelError
from educe.model.language import LanguageModel


@dataclass(frozen=True)
class Change:
    """How one matrix differs: ``up @ down``.

    Attributes:
        path: The module, as the reference has it.
        block: The block that it is in.
        module: The reference's module: what it is given is what the change reads.
        up: ``[out, r]``; None where the difference has no factors.
        down: ``[r, in]``; the difference itself where it has none, ``[out, in]``.
    """

    path: str
    block: int
    module: nn.Module
    up: Float[Tensor, "o r"] | None
    down: Float[Tensor, "r i"]

    def made_of(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Return what the change makes of some inputs."""
        inner = x.to(self.down) @ self.down.T
        return inner if self.up is None else inner @ self.up.T

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the singular value decomposition: ``[out, k]``, ``[k]`` and ``[k, in]``."""
        if self.up is None:
            return tuple(torch.linalg.svd(self.down, full_matrices=False))
        q_up, r_up = torch.linalg.qr(self.up)
        q_down, r_down = torch.linalg.qr(self.down.T)
        u, s, vh = torch.linalg.svd(r_up @ r_down.T)
        return q_up @ u, s, vh @ q_down.T

    @property
    def size(self) -> float:
        """The Frobenius norm of the difference."""
        if self.up is None:
            return float(self.down.norm())
        gram = (self.up.T @ self.up) @ (self.down @ self.down.T)
        return float(gram.trace().clamp(min=0).sqrt())


@torch.no_grad()
def changes(lm: LanguageModel, reference: Reference) -> list[Change]:
    """Return how the matrices of the blocks differ from the reference's; equal ones are left out.

    Raises:
        ModelError: The two are of different shapes, or the adapter is of a kind whose effect is no
            difference of weights.
    """
    found = list(_of_adapter(lm) if reference.beneath else _of_weights(lm, reference.lm))
    return [change for change in found if change.size > 0]


def _blocks(lm: LanguageModel) -> Iterator[tuple[int, str, Any]]:
    """Yield each module of the blocks, with its block and its path in it."""
    for i, block in enumerate(lm.blocks):
        for path, module in block.named_modules():
            yield i, path, module


def _of_adapter(lm: LanguageModel) -> Iterator[Change]:
    """Yield the changes that the active adapters of a PEFT model make."""
    for i, path, module in _blocks(lm):
        if not hasattr(module, "active_adapters") or not hasattr(module, "base_layer"):
            continue
        for name in module.active_adapters:
            a, b = getattr(module, "lora_A", {}), getattr(module, "lora_B", {})
            if name in a and isinstance(a[name], nn.Linear) and not _dora(module, name):
                up = b[name].weight.float() * module.scaling[name]
                yield Change(f"{i}.{path}", i, module, up, a[name].weight.float())
            elif hasattr(module, "get_delta_weight") and not _dora(module, name):
                delta: Any = module.get_delta_weight(name)
                yield Change(f"{i}.{path}", i, module, None, delta.float())
            else:
                raise ModelError(
                    f"the adapter changes {path} of block {i} by more than a difference of "
                    "weights: merge it into the weights, and name its base as the reference"
                )


def _dora(module: Any, name: str) -> bool:
    """Return whether an adapter scales a matrix besides (DoRA)."""
    return bool(getattr(module, "use_dora", {}).get(name, False))


def _of_weights(lm: LanguageModel, other: LanguageModel) -> Iterator[Change]:
    """Yield the differences of the matrices of two models."""
    theirs = {(i, path): module for i, path, module in _blocks(other)}
    for i, path, module in _blocks(lm):
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or weight is None:
            continue
        beside = theirs.get((i, path))
        if beside is None or beside.weight.shape != weight.shape:
            raise ModelError(
                f"{lm.name} and {other.name} differ in shape at block {i}, {path}: they have no "
                "difference of weights; leave the sources that need one out"
            )
        delta = weight.float() - beside.weight.float().to(weight.device)
        yield Change(f"{i}.{path}", i, beside, None, delta)
