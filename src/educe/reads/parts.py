"""How the parts of a block read the stream: their matrices, with the norm's gain folded in.

A part (attention or MLP) reads ``W diag(g) n(h)``: ``n(h)`` is ``h / rms(h)``, or in a layer norm
``(h - mean)/std``, and ``W`` has queries, keys and values one below the other, or gate and up.
Folded, it reads ``Ŵ h / s(h)`` with ``Ŵ = W diag(g)`` and one number ``s`` a token. The gain is not
looked up but measured: what goes into the norm and what comes out of it give it, and prove it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from educe.errors import ModelError
from educe.model.blocks import (
    find_projections,
    find_reads,
    hooked,
    matrices_called,
    stream_in,
)
from educe.model.language import LanguageModel

#: What a measured gain may leave unexplained of what a norm gives.
TOLERANCE = 0.02
#: Tokens of the text that the matrices are found on.
TRIED = 16


class Norm(NamedTuple):
    """What is done to the stream before a matrix reads it.

    Attributes:
        module: The norm; none where the stream is read as it is.
        gain: What each coordinate is multiplied with.
        centred: Whether the mean over coordinates is taken off before.
    """

    module: nn.Module | None
    gain: Float[Tensor, "d"]
    centred: bool

    def folded(self, weight: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Return a matrix that reads the stream itself, up to a number for each token."""
        rows = weight.double() * self.gain
        return rows - rows.mean(1, keepdim=True) if self.centred else rows

    def scale(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Return ``s(h)``, by which what a token's activation adds is divided."""
        if self.module is None:
            return torch.ones_like(h[..., 0])
        return (h - h.mean(-1, keepdim=True) if self.centred else h).square().mean(-1).sqrt()


class Part(NamedTuple):
    """A part of a block.

    Attributes:
        name: ``attention`` or ``mlp``.
        norm: What comes before.
        matrices: Those that read, by their names in the block, in the order in which they run.
        output: The matrix that writes to the stream.
    """

    name: str
    norm: Norm
    matrices: dict[str, nn.Module]
    output: nn.Module

    @property
    def rows(self) -> list[Float[Tensor, "m d"]]:
        """What each matrix reads by, with the gain folded in."""
        width = len(self.norm.gain)
        return [self.norm.folded(dense(m, width)) for m in self.matrices.values()]


class Heads(NamedTuple):
    """How many heads attention has, and the width of one."""

    queries: int
    width: int

    @classmethod
    def of(cls, lm: LanguageModel) -> Heads:
        """Read them from a configuration."""
        count = lm.config.num_attention_heads
        return cls(count, getattr(lm.config, "head_dim", None) or lm.width // count)


def parts_of(lm: LanguageModel, block: int) -> list[Part]:
    """Return the parts of a block.

    Raises:
        ModelError: It does not read and write by matrices, as a mixture of experts does not, or
            something else than a norm comes before them.

    Example:
        >>> from educe.reads.parts import parts_of
        >>> [list(part.matrices) for part in parts_of(lm, 1)][0]
        ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj']
    """
    own, calls = lm.blocks[block], list[tuple[nn.Module, Tensor, Tensor]]()

    def run() -> None:
        with lm.ending(block):
            calls[:] = _calls(lm, own)

    called = matrices_called(own, run)
    outputs = find_projections(own, lm.width, run)
    mixer = called[0][0].split(".")[0]
    found = []
    for name, path in find_reads(own, lm.width, run).items():
        reader = own.get_submodule(path)
        given = next((x for module, x, _ in calls if module is reader), None)
        if given is None or name not in outputs:
            raise ModelError(
                f"the {name} of block {block} of {lm.name} does not read and write the stream by "
                "a matrix each"
            )
        matrices = {
            path: own.get_submodule(path)
            for path, x, _ in called
            if (path.split(".")[0] == mixer) == (name == "attention") and _same(x, given)
        }
        output = own.get_submodule(outputs[name].path)
        found.append(Part(name, _norm(lm, calls, given, f"block {block}"), matrices, output))
    return found


def last_norm(lm: LanguageModel) -> Norm:
    """Return what is done to the stream before the unembedding reads it."""
    head = lm.unwrapped.get_output_embeddings()
    calls = _calls(lm, lm.unwrapped)
    given = next(x for module, x, _ in calls if module is head)
    return _norm(lm, calls, given, "the unembedding")


@torch.no_grad()
def dense(matrix: nn.Module, width: int) -> Float[Tensor, "m d"]:
    """Return what a module multiplies with: of a quantized one, or one with an adapter, too."""
    weight = next(matrix.parameters())
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    eye = torch.eye(width, dtype=dtype, device=weight.device)
    out: Tensor = matrix(eye) - matrix(torch.zeros_like(eye[:1]))
    return out.T.double().cpu()


def _try(lm: LanguageModel) -> Tensor:
    ids = torch.arange(TRIED, device=lm.device)[None] % lm.vocabulary
    return lm.forward(ids, torch.ones_like(ids), last=0)


def _same(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and torch.equal(one, other)


def _calls(lm: LanguageModel, root: nn.Module) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Return what modules take and give of a few tokens, in order; those of one tensor alone."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = stream_in(args, kwargs)[0]
        if isinstance(given, Tensor) and isinstance(output, Tensor):
            found.append((module, given, output))

    members = [m for m in root.modules() if not isinstance(m, nn.ModuleList)]
    with hooked([m.register_forward_hook(note, with_kwargs=True) for m in members]):
        _try(lm)
    return found


def _norm(
    lm: LanguageModel, calls: list[tuple[nn.Module, Tensor, Tensor]], given: Tensor, where: str
) -> Norm:
    """Find what made something that is read out of the stream, and measure its gain."""
    made = [(m, x) for m, x, out in calls if _same(out, given) and not _same(x, given)]
    if not made:
        return Norm(None, torch.ones(lm.width, dtype=torch.float64), False)
    module, stream = made[-1]
    h, out = (x.reshape(-1, lm.width).double().cpu() for x in (stream, given))
    for centred in (False, True):
        plain = Norm(module, torch.ones(lm.width, dtype=torch.float64), centred)
        n = (h - h.mean(1, keepdim=True) if centred else h) / plain.scale(h)[:, None]
        apart, spread = out - out.mean(0), n - n.mean(0)
        gain = (apart * spread).sum(0) / spread.square().sum(0)
        if (apart - gain * spread).norm() <= TOLERANCE * apart.norm():
            return plain._replace(gain=gain)
    raise ModelError(
        f"{where} of {lm.name} reads the stream through a {type(module).__name__}, which is no "
        "norm with a gain: what it reads cannot be told from weights"
    )
