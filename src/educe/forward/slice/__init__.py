"""Slice: replay blocks ``source+1 .. target`` for many perturbations at once.

The unperturbed model runs once over the prompts; the residual stream at ``source`` is kept. A
perturbation ``θ`` is added to it, or changes blocks above it (see `educe.perturbation.kinds`), and
only the blocks between source and target run again, for rows of perturbation × prompt. With ``Z``
the stream leaving block ``target``, averaged over prompts and read-out positions,

    Δ(θ) = mean [ Z(θ) - Z(0) ]                                                     ``[width]``

`replay` runs the blocks, in `chunks` that fit into memory, with the arguments that the model calls
them with; `derivatives` are those of Δ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import LayerError
from educe.forward.chunks import Chunk
from educe.forward.slice.derivatives import Differentiable
from educe.forward.slice.norms import median_norm
from educe.forward.slice.shift import Shift
from educe.model.blocks import hooked
from educe.perturbation.kinds import Kind


class Slice(Differentiable):
    """The part of a model between a source and a target layer, on given prompts.

    Args:
        lm: The model.
        batch: The prompts: texts, lists of messages, or what ``lm.encode`` made of them.
        source: Layer whose outgoing stream is perturbed.
        target: Layer whose outgoing stream is read; after the source.
        positions: Prompt tokens that are perturbed (see `educe.perturbation.positions`).
        readout: Prompt tokens over which the effect is averaged.
        tokens_per_chunk: Rows × tokens that run together; halved when memory runs out.

    Attributes:
        start: Unperturbed stream at the source, ``[prompts, tokens, width]``.
        rest: Unperturbed stream at the target's read-out window, ``[prompts, k, width]``.
        kind: The kind of perturbation; vectors, unless `on` was asked for another.
        retain: Other prompts that a search keeps as they are, if any (see `educe.methods.retain`).
        counted: Tokens that norms are measured on, ``[prompts, tokens]``: all but the first of
            each prompt (see `educe.forward.slice.norms`).
        median_norm: Median norm of the stream at the source over these.
        calibrations: What `educe.methods.radius.calibrated` found, by kind and seed.

    Raises:
        LayerError: Source or target do not exist or are not in order.
        PositionsError: No prompt token is perturbed, or none is read after one that is.
        PromptError: A prompt is none.
        ModelError: The model is not loaded.

    Example:
        >>> part = educe.Slice(lm, ["Why?"], source=0.3, target=-1)
        >>> part.source, part.target, part.unit == part.median_norm
        (1, 3, True)
        >>> bool(part.effect(torch.zeros(2, part.width)).abs().max() < 1e-4)
        True
    """

    retain: Retain | None = None

    def on(self, kind: Kind) -> Slice:
        """Return the same slice for perturbations of another kind.

        Raises:
            LayerError: They act before the source, or after the target.
            PositionsError: They leave a prompt unperturbed, or all that is read.
        """
        if kind.before != self.source or kind.last > self.target:
            raise LayerError(
                f"{kind.name} in blocks {kind.before + 1} to {kind.last} do not fit a slice of "
                f"blocks {self.source + 1} to {self.target}: they begin where it does and end in "
                "it, as with --target -1"
            )
        part = copy.copy(self)
        part._take(kind)
        part.retain = self.retain and self.retain.on(kind)
        if kind.positions != self.positions:
            part._run_past()
        return part

    @property
    def unit(self) -> float:
        """The radius whose dose is 1, for the kind of perturbation at hand."""
        return self.kind.unit(self.median_norm, self._taken)

    def _taken(self, paths: Sequence[str]) -> list[float]:
        """Return the median norm of what some modules of the slice take, without perturbation."""
        taken: dict[str, list[Tensor]] = {path: [] for path in paths}

        def note(path: str) -> Callable[..., None]:
            def hook(module: Any, args: Any) -> None:
                taken[path].append(args[0].float().norm(dim=-1, keepdim=True).cpu())

            return hook

        inner = self.lm.unwrapped.get_submodule
        whole = copy.copy(self)
        whole._tail = []  # all tokens count
        with hooked([inner(path).register_forward_pre_hook(note(path)) for path in paths]):
            whole.effect(torch.zeros(1, self.kind.size, device=self.device, dtype=self.work_dtype))
        return [median_norm(torch.cat(lines), self.counted) for lines in taken.values()]

    @torch.no_grad()
    def effect(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n d"]:
        """Return the effect Δ of each perturbation.

        Raises:
            EffectError: An effect is NaN or infinite.
        """
        if not len(theta):
            return theta.new_zeros(0, self.width)
        return self._summed(theta, lambda chunk: self.shift(theta, chunk).mean.to(theta))

    @torch.no_grad()
    def measure(
        self, theta: Float[Tensor, "n s"], objective: Callable[[Shift], Float[Tensor, "n"]]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """Return the effect and an objective (see `value_and_grad`) of each, from one pass."""

        def run(chunk: Chunk) -> Tensor:
            shift = self.shift(theta, chunk)
            return torch.cat([shift.mean.to(theta), objective(shift)[:, None].to(theta)], 1)

        joined = self._summed(theta, run)
        return joined[:, :-1], joined[:, -1]

    def shift(self, theta: Float[Tensor, "n s"], chunk: Chunk | None = None) -> Shift:
        """Return the change at every read-out position, differentiable in ``theta``.

        Args:
            theta: All perturbations.
            chunk: Which of them on which prompts; by default all on all, in one pass.
        """
        chunk = chunk or Chunk(0, len(theta), 0, len(self.batch))
        return self._shift(theta[chunk.first : chunk.last], chunk)


class Retain(Protocol):
    """Other prompts, to which perturbations ought to do little (see `educe.methods.retain`)."""

    @property
    def weight(self) -> float:
        """How much they count."""

    @property
    def by(self) -> str:
        """What is kept small on them."""

    @property
    def part(self) -> Slice:
        """The same blocks on these prompts."""

    def on(self, kind: Kind) -> Retain:
        """Return the same for perturbations of another kind."""

    def value_and_grad(
        self, theta: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return what perturbations do to these prompts, and its gradient."""
