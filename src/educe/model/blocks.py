"""The decoder blocks of a causal language model, found by structure, and what is done to them.

A block is a module that takes the residual stream ``[rows, tokens, width]`` and returns it changed;
the stack is the list of modules in which each one's input is the output of the one before. Nothing
here knows the name of an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from educe.errors import ModelError


class Call(NamedTuple):
    """The arguments, other than the stream, with which a model called one of its blocks."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Stack(NamedTuple):
    """The decoder blocks of a model and how they hand on the residual stream."""

    name: str  #: the path of the list of blocks, such as ``model.layers``
    blocks: list[nn.Module]
    items: list[int]  #: length of the tuple a block returns, the stream first; 0 for a bare stream
    width: int

    def shaped(self, layer: int, stream: Tensor) -> Any:
        """Return a stream in the form in which a block returns it."""
        items = self.items[layer]
        return (stream, *[None] * (items - 1)) if items else stream


def stream_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Call]:
    """Split a block's arguments into the residual stream and the rest."""
    if args:
        return args[0], Call(tuple(args[1:]), kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states", None), Call((), rest)


def stream_out(output: Any) -> Any:
    """Return the residual stream out of what a block returned."""
    return output[0] if isinstance(output, tuple) else output


def with_stream(output: Any, stream: Tensor) -> Any:
    """Return a block's output with another residual stream in it."""
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Take hooks away at the end of a ``with`` statement."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_stack(model: nn.Module, run: Callable[[], object]) -> Stack:
    """Find the longest list of modules that hand the residual stream from one to the next.

    Args:
        model: Any causal language model.
        run: Runs the model once on a short input.

    Raises:
        ModelError: No list of two modules or more passes a stream along; the message names the
            lists there are.
    """
    lists = {
        n: list(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)
    }
    members = {module for blocks in lists.values() for module in blocks}
    seen: dict[nn.Module, list[tuple[Any, Any]]] = {module: [] for module in members}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[module].append((stream_in(args, kwargs)[0], output))

    handles = [m.register_forward_hook(record, with_kwargs=True) for m in members]
    with hooked(handles):
        run()

    chains = [
        (name, blocks)
        for name, blocks in lists.items()
        if len(blocks) > 1  # one alone hands the stream to none
        and all(len(seen[block]) == 1 for block in blocks)
        and _is_chain([seen[block][0] for block in blocks])
    ]
    if not chains:
        found = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
        raise ModelError(
            f"no stack of decoder blocks found in {type(model).__name__}: none of its lists of "
            f"two modules or more hands a residual stream from each to the next (lists: {found})"
        )
    name, blocks = max(chains, key=lambda chain: len(chain[1]))
    outputs = [seen[block][0][1] for block in blocks]
    width = stream_out(outputs[0]).shape[-1]
    items = [len(output) if isinstance(output, tuple) else 0 for output in outputs]
    return Stack(name, blocks, items, width)


class Projection(NamedTuple):
    """A matrix that writes to the residual stream."""

    path: str  #: its name in its block
    inputs: int  #: width of what it takes


def find_projections(
    block: nn.Module, width: int, run: Callable[[], object]
) -> dict[str, Projection]:
    """Find the output projections of a block by what it calls.

    The token mixer (attention, or what stands in its place) is the member of a block whose matrices
    are called first; its output projection is the last of them that returns something as wide as
    the stream for every token. That of the feed-forward part is the last such matrix outside it.

    Args:
        block: The block.
        width: Width of the stream.
        run: Runs the model once on a short input.

    Returns:
        ``attention`` and ``mlp``, as far as there are such.
    """
    called = matrices_called(block, run)
    if not called:
        return {}
    mixer = called[0][0].split(".")[0]
    found = {}
    for name, given, came in called:
        if isinstance(came, Tensor) and came.ndim == 3 and came.shape[-1] == width:
            which = "attention" if name.split(".")[0] == mixer else "mlp"
            found[which] = Projection(name, given.shape[-1])
    return found


def find_reads(block: nn.Module, width: int, run: Callable[[], object]) -> dict[str, str]:
    """Find the matrices with which the parts of a block read the stream, by what it calls.

    Each is the first of its part (see `find_projections`) that is called and takes something as
    wide as the stream: what it takes is what that part reads, after the norm that comes before.

    Returns:
        The names in the block of those of ``attention`` and ``mlp``, as far as there are such.
    """
    called = matrices_called(block, run)
    found: dict[str, str] = {}
    for name, given, _ in called:
        if isinstance(given, Tensor) and given.shape[-1] == width:
            mixes = name.split(".")[0] == called[0][0].split(".")[0]
            found.setdefault("attention" if mixes else "mlp", name)
    return found


def find_writers(block: nn.Module, run: Callable[[], object]) -> list[nn.Module]:
    """Find the modules whose outputs a block adds to the stream, by what they give.

    They are two, with ``stream out = stream in + first + second``: those of the token mixer and of
    the feed-forward part, a matrix where that is the last to work on what is added.

    Returns:
        None where there are no such two, as where a block scales what it adds.
    """
    came: dict[nn.Module, Tensor] = {}
    passed: list[tuple[Any, Any]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        wrote = stream_out(output)
        if isinstance(wrote, Tensor):
            came[module] = wrote.clone()  # some add to it in place

    def note_block(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        passed.append((stream_in(args, kwargs)[0], stream_out(output)))

    members = [module for module in block.modules() if module is not block]
    handles = [module.register_forward_hook(note) for module in members]
    handles.append(block.register_forward_hook(note_block, with_kwargs=True))
    with hooked(handles):
        run()
    ((given, out),) = passed
    added = out - given
    # As wide as the stream; some have rows and tokens in one dimension.
    wide = {
        module: x.reshape(added.shape)
        for module, x in came.items()
        if x.shape[-1] == added.shape[-1] and x.numel() == added.numel()
    }
    # Of modules that hand on the same output the innermost comes first. In half precision the sum
    # is rounded as the block's own: one is added after the other, or both together.
    for one, other in combinations(wide, 2):
        first, second = wide[one], wide[other]
        for whole in (given + first + second, given + (first + second)):
            if (whole - out).norm() <= 1e-3 * added.norm():
                return [one, other]
    return []


def matrices_called(block: nn.Module, run: Callable[[], object]) -> list[tuple[str, Any, Any]]:
    """Return the matrices that a block calls, in order: name, what each takes, what it returns."""
    matrices: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in matrices)  # of a PEFT adapter, say
        if not inside and getattr(getattr(module, "weight", None), "ndim", 0) == 2:
            matrices[name] = module
    called: list[tuple[str, Any, Any]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            called.append((name, args[0] if args else None, output))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in matrices.items()]
    with hooked(handles):
        run()
    return called


def find_tail(block: nn.Module, width: int, run: Callable[[], object]) -> list[nn.Module]:
    """Find modules with which a block ends that work token by token, as is proved.

    They are the output projection of its token mixer, and those of its own members with matrices
    that are called after it: as many of the last of them as can leave out tokens without a change
    of what the block returns for the others. A convolution between them, say, forbids the first.

    Args:
        block: The block.
        width: Width of the stream.
        run: Runs the model once on a short input.
    """
    mixes = find_projections(block, width, run).get("attention")
    if mixes is None:
        return []
    end = block.get_submodule(mixes.path)
    members = [
        module
        for module in block.children()
        if end not in module.modules() and any(w.ndim >= 2 for w in module.parameters())
    ]
    called: list[tuple[nn.Module, Any, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        called.append((module, None if kwargs or len(args) != 1 else args[0], output))

    passed: list[tuple[Tensor, Call, Tensor]] = []

    def note_block(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        passed.append((*stream_in(args, kwargs), stream_out(output)))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in (end, *members)]
    handles.append(block.register_forward_hook(note_block, with_kwargs=True))
    with hooked(handles):
        run()
    order = [module for module, _, _ in called]
    tail = [
        module
        for module, given, came in called[order.index(end) :]
        if order.count(module) == 1 and _is_token_by_token(module, given, came)
    ]
    while tail and not _ends_with(block, tail, *passed[0]):
        del tail[0]
    return tail


@torch.no_grad()
def _ends_with(
    block: nn.Module, tail: Sequence[nn.Module], given: Tensor, call: Call, came: Tensor
) -> bool:
    """Whether a block returns the same for later tokens when its tail leaves out the others."""
    half = given.shape[1] // 2
    with narrowed(tail, half):
        again = stream_out(block(given, *call.args, **call.kwargs))
    off, added = (again - came)[:, half:].float().norm(), (came - given)[:, half:].float().norm()
    rounding = torch.finfo(came.dtype).eps * came.float().norm()
    return bool(off <= 0.02 * added + rounding)


@torch.no_grad()
def _is_token_by_token(module: nn.Module, given: Any, came: Any) -> bool:
    if not all(isinstance(x, Tensor) and x.ndim == 3 for x in (given, came)):
        return False
    half = given.shape[1] // 2
    alone, among = module(given[:, half:].contiguous()), came[:, half:]
    return alone.shape == among.shape and bool((alone - among).norm() <= 0.02 * among.norm())


@contextmanager
def narrowed(modules: Sequence[nn.Module], first: int) -> Iterator[None]:
    """Let modules that work token by token leave out the tokens before ``first``: zero comes out.

    Hooks on them see all tokens.
    """

    def on_the_rest(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: F.pad(own(x[:, first:].contiguous()), (0, 0, first, 0))

    with replaced(modules, [on_the_rest(module.forward) for module in modules]):
        yield


def _is_chain(passed: Sequence[tuple[Any, Any]]) -> bool:
    streams = [(given, stream_out(output)) for given, output in passed]
    if not all(
        isinstance(stream, Tensor) and stream.ndim == 3 and stream.is_floating_point()
        for pair in streams
        for stream in pair
    ):
        return False
    if any(given.shape != came.shape for given, came in streams):
        return False
    return all(
        torch.equal(before[1].to(after[0].device), after[0]) for before, after in pairwise(streams)
    )


@contextmanager
def replaced(blocks: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Replace the ``forward`` of some blocks for the time of a ``with`` statement.

    Args:
        blocks: The modules.
        forwards: What each is to compute instead, with the same arguments.
    """
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own
