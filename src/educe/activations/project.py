"""Taking directions away: from activations, or from the weights that write them.

For a subspace with orthonormal rows ``U`` and a point ``m`` (the origin, or the mean ``μ``),

    plain      h ← h - (h - m) Uᵀ U
    oblique    h ← h - (h - μ) Uᵀ (U Σ Uᵀ)⁻¹ U Σ          for one u:  h - Σu (uᵀΣu)⁻¹ uᵀ(h - μ)

Plain projection changes activations along ``U`` alone, whether or not anything natural lies there.
With ``a = x b + y c``, ``d`` a direction that is not used, and ``u = (b - d)/√2``, it leaves
``x/2 (b + d) + y c``: the ``d`` that nothing wrote is in the activations now. The oblique form
takes away what correlates with ``u``, ``x b``, along ``Σu``, which lies in the span of the data. It
is the least change that leaves nothing linear of ``uᵀh`` behind (LEACE; Belrose et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor, nn

from educe.activations.distance import Geometry
from educe.activations.subspace import Moments
from educe.errors import MethodError, ModelError
from educe.model.blocks import stream_in, stream_out, with_stream
from educe.model.language import LanguageModel
from educe.perturbation import positions as where

#: Powers of the covariance by which random directions are tilted, at most.
STEEPEST = (-1e4, 1e4)


@dataclass(frozen=True)
class Ablation:
    """``h ← h - (h - about) readᵀ write``, with ``write readᵀ = 1``: twice is the same as once."""

    read: Float[Tensor, "k d"]  #: what is looked for
    write: Float[Tensor, "k d"]  #: what is taken away for it
    about: Float[Tensor, "d"]  #: where nothing is taken away

    def __call__(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return activations without it."""
        return h - self.change(h - self.about.to(h))

    def change(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return what is taken from something written to the stream."""
        return x @ self.read.to(x).T @ self.write.to(x)


def plain(directions: Float[Tensor, "k d"], about: Float[Tensor, "d"] | None = None) -> Ablation:
    """Return the orthogonal projection, about a point or the origin.

    Raises:
        MethodError: The directions depend on each other.
    """
    rows = _orthonormal(directions)
    return Ablation(rows, rows, torch.zeros_like(rows[0]) if about is None else about)


def oblique(directions: Float[Tensor, "k d"], moments: Moments) -> Ablation:
    """Return the projection that is aware of the covariance.

    What does not vary at all is left as it is.

    Raises:
        MethodError: The directions depend on each other.
    """
    rows = _orthonormal(directions)
    along = rows @ moments.covariance
    write = torch.linalg.pinv(along @ rows.T, hermitian=True) @ along
    return Ablation(rows, write, moments.mean)


def as_perturbation(ablation: Ablation) -> Float[Tensor, "1 s"]:
    """Return the ablation of one direction as `educe.perturbation.ablations` has it."""
    return torch.cat([ablation.read, ablation.write, ablation.about[None]], 1)


@contextmanager
def ablating(
    lm: LanguageModel,
    ablation: Ablation,
    layers: Sequence[int] | None = None,
    *,
    positions: str = "all",
) -> Iterator[None]:
    """Take a subspace away from activations for the time of a ``with`` statement.

    Args:
        lm: The model.
        ablation: What is taken away.
        layers: Blocks from whose outgoing stream it is taken. By default all of the stream: what
            enters the first block, and whatever a block adds.
        positions: Tokens at which it is (see `educe.perturbation.positions`). Where more than one
            token runs they are the prompt's, padded on the left; a single one is generated.

    Raises:
        PositionsError: The positions cannot be read.
        ModelError: ``layers`` is left out, and a block does not add the outputs of two modules.
    """
    where.check(positions)

    entered: list[Tensor] = []  # which tokens of the forward that runs

    def at(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        if x.shape[1] == 1:
            return ones.bool() & where.in_generated(positions)
        return where.in_prompt(positions, ones)

    def without(stream: Tensor) -> Tensor:
        return torch.where(at(stream)[..., None], ablation(stream), stream)

    def outgoing(module: nn.Module, args: Any, output: Any) -> Any:
        return with_stream(output, without(stream_out(output)))

    def entering(module: nn.Module, args: Any, kwargs: Any) -> Any:
        stream, rest = stream_in(args, kwargs)
        entered[:] = [at(stream)]
        return (without(stream), *rest.args), rest.kwargs

    def added(module: nn.Module, args: Any, output: Any) -> Any:
        wrote = stream_out(output)
        apart = wrote.reshape(*entered[0].shape, -1)  # some have rows and tokens in one dimension
        less = torch.where(entered[0][..., None], ablation.change(apart), 0.0)
        return with_stream(output, wrote - less.reshape(wrote.shape))

    if layers is not None:
        handles = [lm.blocks[i].register_forward_hook(outgoing) for i in layers]
    else:
        writers = [module for block in range(lm.depth) for module in lm.writers(block)]
        handles = [module.register_forward_hook(added) for module in writers]
        handles.append(lm.blocks[0].register_forward_pre_hook(entering, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def ablating_weights(lm: LanguageModel, ablation: Ablation) -> Iterator[None]:
    """Take a subspace away from the weights that write to the stream, which come back afterwards.

    They are the embeddings, and the matrices whose outputs the blocks add. It is shown on a few
    tokens that nothing is left in the stream.

    Raises:
        ModelError: Something else than a matrix writes to the stream, such as a norm.
    """
    before: list[tuple[nn.Module, str, nn.Parameter]] = []

    def change(module: nn.Module, leaf: str, value: Callable[[Tensor], Tensor]) -> None:
        weight = module._parameters[leaf]
        if weight is not None:
            before.append((module, leaf, weight))
            # Not by `setattr`: an embedding that is tied to the output must not change that.
            module._parameters[leaf] = nn.Parameter(value(weight), requires_grad=False)

    read, write = ablation.read, ablation.write
    constant = ablation.change(ablation.about)
    words = lm.unwrapped.get_input_embeddings()
    tables = [m for m in lm.unwrapped.modules() if isinstance(m, nn.Embedding)]
    writers = [m for block in range(lm.depth) for m in lm.writers(block)]
    try:
        for table in tables:
            if table.embedding_dim == lm.width:
                change(table, "weight", lambda w: w - ablation.change(w))
        change(words, "weight", lambda w: w + constant.to(w))
        for module in (matrix for writer in writers for matrix in _matrices(lm, writer)):
            if isinstance(module, nn.Linear):
                change(module, "weight", lambda w: w - write.to(w).T @ (read.to(w) @ w))
            else:  # of GPT-2, which is transposed
                change(module, "weight", lambda w: w - ablation.change(w))
            change(module, "bias", lambda b: b - ablation.change(b))
        _prove(lm, ablation)
        yield
    finally:
        for module, leaf, weight in reversed(before):
            module._parameters[leaf] = weight


class Injection(NamedTuple):
    """What an ablation does in directions that natural activations do not use."""

    outside: float  #: share of the energy of the change that lies in them
    chance: float  #: share of a random vector that does
    natural: float  #: share of the natural variance that does: one per cent, or a little less
    after: float  #: variance in them after the ablation, as a share of the natural one as well
    unused: int  #: how many directions these are


def injection(ablation: Ablation, natural: Geometry) -> Injection:
    """Return how much of what an ablation changes goes where natural activations do not.

    From their moments alone, so over all of the corpus, not over a sample of it.

    Args:
        ablation: What is taken away.
        natural: What is known of natural activations at the layer.
    """
    moments, write, read = natural.moments, ablation.write.double(), ablation.read.double()
    unused, (held, chance) = natural.vectors[natural.used :], natural.unused
    # What is written is a rank-k map of what is read, so nothing as wide as the stream is squared.
    along = unused @ write.T
    changed, varied = (
        read @ square @ read.T for square in (moments.about(ablation.about), moments.covariance)
    )
    bare = write[:, natural.kept]
    # Nothing where the ablation changes massive coordinates alone: then none of it is outside.
    energy = (changed * (bare @ bare.T)).sum().clamp(min=torch.finfo(bare.dtype).tiny)
    taken = 2 * along * (unused @ moments.covariance @ read.T) - along @ varied * along
    after = natural.variance[natural.used :].sum() - taken.sum()
    return Injection(
        outside=float((along @ changed * along).sum() / energy),
        chance=chance,
        natural=held,
        after=max(0.0, float(after / natural.variance.sum())),  # rounding can leave less
        unused=len(unused),
    )


def equal_variance(
    wanted: float, moments: Moments, n: int, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Draw random unit directions along which activations have a variance, or the nearest to it.

    A random ``g`` is tilted to ``Σ^p g``; the power ``p`` is the one with that variance.

    Raises:
        MethodError: The variance is none.
    """
    variance, basis = torch.linalg.eigh(moments.covariance)
    least = 1e-12 * float(variance[-1])
    if wanted <= least:
        raise MethodError("activations do not vary along this direction: nothing is equal to it")
    variance = variance.clamp(min=least)
    drawn = torch.randn(n, len(variance), generator=generator, dtype=torch.float64)
    logs = (variance / variance[-1]).log()
    found = []
    for g in drawn @ basis:

        def tilted(power: float, g: Tensor = g) -> Tensor:
            weights = 2 * power * logs + g.square().log()
            return (weights - weights.max()).exp()

        def excess(power: float) -> float:
            w = tilted(power)
            return float((w * variance).sum() / w.sum() / wanted) - 1

        low, high = STEEPEST
        if excess(low) >= 0 or excess(high) <= 0:
            power = low if excess(low) >= 0 else high  # along the extreme directions themselves
        else:
            power = brentq(excess, low, high)
        found.append((tilted(power).sqrt() * g.sign()) @ basis.T)
    return torch.nn.functional.normalize(torch.stack(found), dim=1)


def _orthonormal(directions: Tensor) -> Float[Tensor, "k d"]:
    rows = directions.detach().cpu().double()
    if torch.linalg.matrix_rank(rows) < len(rows):
        raise MethodError("the directions to take away depend on each other: leave some out")
    return torch.linalg.qr(rows.T).Q.T


def _matrices(lm: LanguageModel, writer: nn.Module) -> list[nn.Module]:
    """Return the matrices whose outputs add up to what a module writes."""
    base = getattr(writer, "base_layer", None)  # of a PEFT adapter
    parts = [writer] if base is None else [base, *writer.lora_B.values()]  # type: ignore[operator]
    if any(getattr(part, "weight", torch.empty(0)).ndim != 2 for part in parts):
        raise ModelError(
            f"{lm.name} writes to the stream with a {type(writer).__name__}, which is no matrix: "
            "take the directions away from activations instead"
        )
    return parts


def _prove(lm: LanguageModel, ablation: Ablation) -> None:
    words = lm.unwrapped.get_input_embeddings().num_embeddings
    ids = torch.arange(5, device=lm.device)[None] % words
    with lm.watching(range(lm.depth)) as streams:
        lm.forward(ids, torch.ones_like(ids))
    for layer, stream in streams.items():
        left = ablation.change(stream - ablation.about.to(stream)).norm(dim=-1)
        if bool((left > 1e-3 * stream.norm(dim=-1)).any()):
            raise ModelError(
                f"{lm.name} writes to the stream, up to layer {layer}, with more than its "
                "embeddings and the matrices of its blocks: take the directions away from "
                "activations instead"
            )
