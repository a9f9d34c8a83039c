"""In expectation: a vector as a rank-1 adapter, for servers that know adapters and no vectors.

    W x + v ⟨u, x⟩   in place of   W x + v        with  u = argmin Σ (⟨u, x⟩ - 1)² + λ ‖u‖²

``W`` is the matrix whose output block ``i`` adds to the stream last, so where ``⟨u, x⟩`` is 1 this
is the vector after block ``i``. ``u`` is fitted to what ``W`` takes in the bundled texts and scaled
so that the mean of ``⟨u, x⟩`` is 1. How far it is from 1 at single tokens is measured on texts that
it was not fitted to, and what that does on the run's own prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from educe.activations.corpus import documents, tokens
from educe.errors import ExportError, ModelError
from educe.forward.generation import next_logits
from educe.model.batch import PromptBatch
from educe.model.blocks import hooked
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Adapters
from educe.perturbation.set import PerturbationSet
from educe.rows import Row

#: Penalties that are tried, as shares of the mean square of what the matrix takes.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Documents that are read, and tokens of each: every other one is to fit, the rest to measure.
DOCUMENTS, TOKENS = 128, 64


@dataclass(frozen=True)
class Approximated:
    """A vector as an adapter.

    Attributes:
        adapter: A set of one.
        gate: Root mean square of ``⟨u, x⟩ - 1`` at tokens of texts that it was not fitted to.
        off: ``‖z' - z‖ / ‖z - z₀‖``, the mean over the run's prompts, of the next token's logits
            under the adapter, the vector and neither.
    """

    adapter: PerturbationSet
    gate: float
    off: float

    def __str__(self) -> str:
        return (
            f"only in expectation: its factor is 1 ± {self.gate:.2f} from token to token, and the "
            f"change of the next token's logits is off by {self.off:.0%} on the run's prompts"
        )


class Gate(NamedTuple):
    """What stands for 1 in a block: all vectors after it share this."""

    kind: Adapters  #: rank 1 on the matrix that the block adds to the stream last
    u: Float[Tensor, "i"]
    error: float  #: root mean square of ``⟨u, x⟩ - 1`` on texts that it was not fitted to


def gate(lm: LanguageModel, layer: int) -> Gate:
    """Fit what stands for 1 in a block.

    Raises:
        ExportError: The block does not end with a single matrix, or is block 0.
    """
    if layer < 1:
        raise ExportError("a vector after block 0 is no adapter: blocks from 1 on can have one")
    try:
        projection = lm.projection(layer, "mlp")
        writers = lm.writers(layer)
    except ModelError as error:
        raise ExportError(f"a vector after block {layer} is no adapter there: {error}") from error
    module = lm.unwrapped.get_submodule(projection.path)
    if writers[-1] is not module:
        raise ExportError(
            f"a vector after block {layer} is no adapter: {lm.name} works on what "
            f"{projection.path} returns before it adds it to the stream"
        )
    fit, test = (_taken(lm, module, first) for first in (0, 1))
    tried = [(float((test @ u - 1).square().mean().sqrt()), u) for u in _fitted(fit)]
    off, u = min(tried, key=itemgetter(0))
    kind = Adapters(layer, (projection.path,), (projection.inputs,), lm.width)
    return Gate(kind, u, off)


def approximated(
    lm: LanguageModel, one: PerturbationSet, by: Gate, prompts: PromptBatch
) -> Approximated:
    """Return the adapter that does in expectation what a vector does.

    Args:
        lm: The model.
        one: A set of one vector.
        by: What stands for 1 in its block.
        prompts: On which the difference is measured.
    """
    u, v = by.u, one.theta[0].double()
    theta = torch.cat([u / u.norm(), v / v.norm()]).float()[None]
    radius = (u.norm() * v.norm()).float()[None]
    adapter = replace(one, kind=by.kind, directions=theta, radius=radius, outputs=None)
    came, wanted = (_logits(lm, prompts, some) for some in (adapter, one))
    off = (came - wanted).norm(dim=1) / (wanted - _logits(lm, prompts, one, 0)).norm(dim=1)
    return Approximated(adapter, by.error, float(off.mean()))


def _fitted(x: Float[Tensor, "m i"]) -> Iterator[Float[Tensor, "i"]]:
    """Yield the vector whose product with the rows is nearest to 1, by each penalty."""
    ones, wide = x.new_ones(len(x)), len(x) < x.shape[1]
    gram = x @ x.T if wide else x.T @ x  # the smaller of two that lead to the same
    for share in PENALTIES:
        penalty = share * gram.trace() / x.shape[1] * torch.eye(len(gram)).to(gram)
        right = torch.linalg.solve(gram + penalty, ones if wide else x.T @ ones)
        u = x.T @ right if wide else right
        yield u / (x @ u).mean()


@torch.no_grad()
def _taken(lm: LanguageModel, module: nn.Module, first: int) -> Float[Tensor, "m i"]:
    """Return what a matrix takes at every token of every other document."""
    rows: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        rows.append(args[0].reshape(-1, args[0].shape[-1]).double().cpu())

    with hooked([module.register_forward_pre_hook(note)]):
        for document in islice(documents(), first, DOCUMENTS, 2):
            read = tokens(lm, document)[: min(TOKENS, lm.context or TOKENS)]
            ids = torch.tensor([read], device=lm.device)
            lm.forward(ids, torch.ones_like(ids))
    return torch.cat(rows)


def _logits(
    lm: LanguageModel, prompts: PromptBatch, one: PerturbationSet, number: int = 1
) -> Float[Tensor, "p v"]:
    """Return the logits of the first token of each answer, under a perturbation; 0 for none."""
    lines: dict[Row, Tensor] = {}
    rows = [Row(number, place) for place in range(len(prompts))]
    for some, logits in next_logits(lm, prompts, rows, one.theta, kind=one.kind):
        lines |= dict(zip(some, logits.float().cpu(), strict=True))
    return torch.stack([lines[row] for row in rows])
