"""Derivatives of what perturbations do at the target, all of them exact.

With ``J`` the Jacobian of the effect Δ at ``θ``, row by row of perturbations:

    jvp J v     vjp Jᵀ u     hvp ∇²⟨u, Δ⟩ v     second_derivative ∂²Δ(θ + ε v)/∂ε²

`gram`, `push` and `pull` are of every read-out position instead of their mean; `value_and_grad` and
`objective_hvp` are of any objective that adds up over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from educe.errors import ModelError
from educe.forward.chunks import Chunk
from educe.forward.slice.replay import Replay
from educe.forward.slice.shift import Shift
from educe.model.language import LanguageModel


class Differentiable(Replay):
    """A replay that can be differentiated in the perturbations."""

    def jvp(
        self,
        theta: Float[Tensor, "n s"],
        tangent: Float[Tensor, "n s"],
        *,
        of: Callable[[Shift], Float[Tensor, "n m"]] = lambda shift: shift.mean,
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """Return ``Δ(θ)`` and the Jacobian at ``θ`` times ``tangent``, row by row, exactly.

        Forward-mode differentiation: one pass, no approximation.

        Args:
            theta: Perturbations.
            tangent: In which direction each is changed.
            of: What is differentiated in the place of the effect, a function of the shift of a
                chunk; over all prompts it is the sum over chunks of prompts.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no forward-mode derivative.
        """

        def both(chunk: Chunk) -> Tensor:
            (pair,) = self._moved(theta, tangent, chunk, lambda at: [of(self._shift(at, chunk))])
            return torch.cat(pair, 1).to(theta)

        with _forward_mode(self.lm):
            value, moved = self._summed(theta, both).chunk(2, dim=1)
        return value, moved

    def vjp(
        self, theta: Float[Tensor, "n s"], cotangent: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n s"]]:
        """Return ``Δ(θ)`` and the transposed Jacobian at ``θ`` times ``cotangent``, row by row."""

        def project(shift: Shift) -> tuple[Tensor, Tensor]:
            mean = shift.mean
            rows = cotangent[shift.chunk.first : shift.chunk.last]
            return (mean * rows.to(mean)).sum(1), mean

        return self._differentiated(theta, project)

    def gram(
        self, theta: Float[Tensor, "n s"], tangent: Float[Tensor, "n s"]
    ) -> Float[Tensor, "n s"]:
        """Return ``JᵀJ tangent`` row by row, ``J`` the Jacobian of *every* read-out position.

        Nothing is averaged: ``JᵀJ`` is the sum over prompts and read-out positions. Exact: one
        forward-mode pass and one backward pass.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no forward-mode derivative.
        """

        def run(chunk: Chunk) -> Tensor:
            def values(at: Tensor) -> list[Tensor]:
                return [self._shift(at, chunk).values]

            ((_, moved),) = self._moved(theta, tangent, chunk, values)
            at = theta[chunk.first : chunk.last].detach().clone().requires_grad_(True)
            with torch.enable_grad():
                return torch.autograd.grad(values(at), at, [moved])[0]

        with _forward_mode(self.lm):
            return self._summed(theta, run)

    def push(
        self, tangent: Float[Tensor, "n s"], layers: Sequence[int]
    ) -> Float[Tensor, "l n p k d"]:
        """Return the Jacobians at zero of several layers times ``tangent``, from one pass.

        Args:
            tangent: Perturbations.
            layers: Layers of the slice, in order.

        Returns:
            The change of every read-out position of every prompt at each layer, none averaged.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no forward-mode derivative.
        """
        pushed = self.rest.new_zeros(len(layers), len(tangent), *self.rest.shape)

        def run(chunk: Chunk) -> Tensor:
            def streams(at: Tensor) -> list[Tensor]:
                return self._streams(at, chunk, layers)

            rows, prompts = slice(chunk.first, chunk.last), slice(chunk.start, chunk.stop)
            pairs = self._moved(torch.zeros_like(tangent), tangent, chunk, streams)
            for into, (_, moved) in zip(pushed, pairs, strict=True):
                into[rows, prompts] = self._readout_of(moved, chunk)
            return pushed[:, rows, prompts].square().sum((0, 2, 3, 4))[:, None]

        with _forward_mode(self.lm):
            self._summed(tangent, run)
        return pushed

    def pull(
        self, cotangent: Float[Tensor, "l n p k d"], layers: Sequence[int]
    ) -> Float[Tensor, "n s"]:
        """Return the transposed Jacobians of `push` times cotangents, summed over the layers.

        Raises:
            EffectError: A value is NaN or infinite.
        """
        zero = self.rest.new_zeros(cotangent.shape[1], self.kind.size).to(self.device)

        def run(chunk: Chunk) -> Tensor:
            rows, prompts = slice(chunk.first, chunk.last), slice(chunk.start, chunk.stop)
            at = zero[rows].requires_grad_(True)
            with torch.enable_grad():
                streams = self._streams(at, chunk, layers)
                seen = [self._readout_of(stream, chunk) for stream in streams]
                return torch.autograd.grad(seen, at, list(cotangent[:, rows, prompts]))[0]

        return self._summed(zero, run)

    def value_and_grad(
        self, theta: Float[Tensor, "n s"], objective: Callable[[Shift], Float[Tensor, "n"]]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Differentiate an objective of the shift, one value a perturbation.

        Args:
            theta: Perturbations.
            objective: Maps the shift of a chunk to a value for each of its perturbations; the value
                over all prompts is the sum of its values over chunks of prompts.

        Raises:
            EffectError: A value or gradient is NaN or infinite.
        """

        def alone(shift: Shift) -> tuple[Tensor, Tensor]:
            value = objective(shift)
            return value, value[:, None]

        value, gradient = self._differentiated(theta, alone)
        return value[:, 0], gradient

    def hvp(
        self,
        theta: Float[Tensor, "n s"],
        cotangent: Float[Tensor, "n d"],
        tangent: Float[Tensor, "n s"],
    ) -> Float[Tensor, "n s"]:
        """Return the Hessian of ``⟨cotangent, Δ⟩`` at ``θ`` times ``tangent``, row by row, exactly.

        Reverse mode over reverse mode, twice as much work as `vjp`.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no second derivative.
        """

        def along(shift: Shift) -> Tensor:
            mean = shift.mean
            return (mean * cotangent[shift.chunk.first : shift.chunk.last].to(mean)).sum(1)

        return self.objective_hvp(theta, along, tangent)

    def objective_hvp(
        self,
        theta: Float[Tensor, "n s"],
        objective: Callable[[Shift], Float[Tensor, "n"]],
        tangent: Float[Tensor, "n s"],
    ) -> Float[Tensor, "n s"]:
        """Return the Hessian of an objective (see `value_and_grad`) times ``tangent``, exactly.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no second derivative.
        """

        def run(chunk: Chunk) -> Tensor:
            at, v = (x[chunk.first : chunk.last] for x in (theta, tangent))
            at = at.detach().clone().requires_grad_(True)
            value = objective(self._shift(at, chunk)).sum()
            (slope,) = torch.autograd.grad(value, at, create_graph=True)
            return torch.autograd.grad((slope * v.to(slope)).sum(), at)[0]

        return self._twice(theta, run)

    def second_derivative(
        self, theta: Float[Tensor, "n s"], tangent: Float[Tensor, "n s"]
    ) -> Float[Tensor, "n d"]:
        """Return the second derivative of ``Δ(θ + ε tangent)`` in ``ε`` at zero, row by row.

        Exactly, as the derivative in ``w`` of ``⟨tangent, hvp(θ, w, tangent)⟩``, which is linear in
        it: reverse mode three times over, in seven times the memory of `vjp`. Nested forward mode
        needs less of it but no less time, and PyTorch's leaves a term out of LayerNorm's second
        derivative without a word (pytorch/pytorch#196700; #198017 has more of the kind).

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no second derivative.
        """

        def run(chunk: Chunk) -> Tensor:
            at, v = (x[chunk.first : chunk.last] for x in (theta, tangent))
            at = at.detach().clone().requires_grad_(True)
            w = at.new_zeros(len(at), self.width, requires_grad=True)
            mean = self._shift(at, chunk).mean
            (slope,) = torch.autograd.grad((mean * w.to(mean)).sum(), at, create_graph=True)
            (bend,) = torch.autograd.grad((slope * v).sum(), at, create_graph=True)
            return torch.autograd.grad((bend * v).sum(), w)[0]

        return self._twice(theta, run)

    def _moved(
        self,
        theta: Tensor,
        tangent: Tensor,
        chunk: Chunk,
        of: Callable[[Tensor], Sequence[Tensor]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Return values at the perturbations of a chunk, and their derivatives along a tangent."""
        rows = slice(chunk.first, chunk.last)
        with torch.no_grad(), _plain_kernels(self.lm), forward_ad.dual_level():
            dual = forward_ad.make_dual(theta[rows].clone(), tangent[rows].to(theta))
            pairs = [forward_ad.unpack_dual(value) for value in of(dual)]
        return [(v, torch.zeros_like(v) if moved is None else moved) for v, moved in pairs]

    def _twice(self, theta: Tensor, run: Callable[[Chunk], Tensor]) -> Tensor:
        """Sum over chunks what takes second derivatives."""
        try:
            with torch.enable_grad(), _plain_kernels(self.lm):
                return self._summed(theta, lambda chunk: run(chunk).detach())
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise ModelError(
                f"{self.lm.name} has an operation without second derivative "
                f"({str(error).splitlines()[0]}): use a method that needs first derivatives only"
            ) from error

    def _differentiated(
        self, theta: Tensor, objective: Callable[[Shift], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return the second of what ``objective`` gives, and the gradient of the first."""

        def run(chunk: Chunk) -> Tensor:
            rows = theta[chunk.first : chunk.last].detach().clone().requires_grad_(True)
            with torch.enable_grad():
                value, kept = objective(self._shift(rows, chunk))
                (gradient,) = torch.autograd.grad(value.sum(), rows)
            return torch.cat([kept.detach().to(gradient), gradient], 1)

        joined = self._summed(theta, run)
        return joined[:, : -theta.shape[1]], joined[:, -theta.shape[1] :]


@contextmanager
def _plain_kernels(lm: LanguageModel) -> Iterator[None]:
    """Compute attention and experts from elementary operations.

    The fused kernels of both have neither a forward-mode nor a second derivative.
    """
    before = getattr(lm.unwrapped.config, "_experts_implementation", None)
    switch = before == "grouped_mm" and lm.unwrapped._can_set_experts_implementation()
    try:
        if switch:
            lm.unwrapped.set_experts_implementation("eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if switch:
            lm.unwrapped.set_experts_implementation(before)


@contextmanager
def _forward_mode(lm: LanguageModel) -> Iterator[None]:
    """Say which model cannot be differentiated in forward mode."""
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(
            f"{lm.name} has an operation without forward-mode derivative "
            f"({str(error).splitlines()[0]}): use a method that needs no Jacobian product"
        ) from error
