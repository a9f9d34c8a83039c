"""LanguageModel: a causal language model of transformers, its blocks and its chat prompts.

Making one ends with a proof that educe's hold on the model is right (see `educe.model.proof`): the
logits are those of the model's own plain call, whatever way it is run, and adding ``v`` after block
``i`` moves the stream there by exactly ``v``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from educe.errors import LayerError, ModelError, as_model_error
from educe.model import digest
from educe.model.blocks import (
    Projection,
    Stack,
    find_projections,
    find_reads,
    find_stack,
    find_tail,
    find_writers,
    hooked,
    replaced,
    stream_in,
    stream_out,
    with_stream,
)
from educe.model.pair import ordinary_tokens, plain_call, plain_model, plain_tokenizer
from educe.model.proof import TOKENS, Same, prove
from educe.model.rendering import Reads

#: Errors of the machine, whatever model runs on it.
FAILURES = (MemoryError, OSError, torch.OutOfMemoryError, torch.AcceleratorError)


def loaded(lm: Any) -> LanguageModel:
    """Return a model that is loaded.

    Raises:
        ModelError: It is something else, such as a name.
    """
    if not isinstance(lm, LanguageModel):
        named = repr(lm) if isinstance(lm, str) else type(lm).__name__
        raise ModelError(f"{named} is no loaded model: make one of it with educe.load")
    return lm


class LanguageModel(Reads):
    """A causal language model, its tokenizer, and its decoder blocks.

    Attributes:
        hf: The transformers (or PEFT) model; its weights are never changed.
        tokenizer: Its tokenizer.
        name: What was asked for: a Hub id, a path, ``"embedded"``.
        revision: The Hub revision that was asked for, if any.
        adapter: The PEFT adapter beside the weights, if any.
        how: Keywords of `educe.load` that load it again; None where it was given as a loaded pair.
        stack: The decoder blocks.

    Example:
        >>> lm.depth, lm.width, lm.layer(0.5)
        (4, 32, 2)
        >>> lm.encode(["Why?"]).lengths
        [7]
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        adapter: str | None = None,
        how: Mapping[str, Any] | None = None,
    ) -> None:
        self.hf = plain_model(hf).eval()
        self.hf.requires_grad_(False)
        self.tokenizer = plain_tokenizer(tokenizer)
        self.name, self.revision, self.adapter, self.how = name, revision, adapter, how
        # A PeftModel's forward takes anything; the model inside it says what it really takes.
        accepted = inspect.signature(self.unwrapped.forward).parameters
        self._takes = {k for k in ("position_ids", "logits_to_keep", "use_cache") if k in accepted}
        # Some hand it on without naming it, and fill a cache that nobody asked for if it is absent.
        if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            self._takes.add("use_cache")
        ids = ordinary_tokens(self.vocabulary, self.unwrapped.config, self.tokenizer, TOKENS)
        self._tried = ids.to(self.device)
        self._same = Same(name, self.unwrapped, plain_call(self.hf, self._tried, name))
        self._hindrances: dict[int, str | None] = {}
        whole: list[Tensor] = []
        with as_model_error(f"{name} ({type(self.unwrapped).__name__})"):
            self.stack: Stack = find_stack(self.hf, lambda: whole.append(self._try()))
            prove(self, self._tried, whole[0], self._same)

    def _try(self) -> Tensor:
        return self.forward(self._tried, torch.ones_like(self._tried), last=0)

    @property
    def unwrapped(self) -> Any:
        """The transformers model, inside a PEFT model when there is an adapter."""
        inner = getattr(self.hf, "get_base_model", None)
        return inner() if inner is not None else self.hf

    @property
    def config(self) -> Any:
        """The text part of the transformers configuration."""
        return self.unwrapped.config.get_text_config(decoder=True)

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, from the first to the last."""
        return self.stack.blocks

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.stack.blocks)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.stack.width

    @property
    def device(self) -> torch.device:
        """Where token numbers go: the device of the embedding."""
        return self.unwrapped.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the embedding."""
        return self.unwrapped.get_input_embeddings().weight.dtype

    @property
    def context(self) -> int | None:
        """The most tokens the model takes, where its configuration says so."""
        return getattr(self.config, "max_position_embeddings", None)

    @cached_property
    def parts(self) -> Mapping[str, str]:
        """What the model is known by again, part by part (see `educe.model.digest`); read once."""
        return digest.parts(self.hf, self.tokenizer)

    @property
    def digest(self) -> str:
        """A SHA-256 of weights, adapter, configuration, tokenizer, chat template and dtype.

        It is the same on every device; a change of a single weight changes it.
        """
        return digest.whole(self.parts)

    @property
    def vocabulary(self) -> int:
        """How many token numbers the model takes."""
        return self.unwrapped.get_input_embeddings().weight.shape[0]

    # -- layers ------------------------------------------------------------------------------

    def layer(self, which: int | float) -> int:
        """Return the index of a block from an index, a negative index or a fraction of the depth.

        Example:
            With 30 blocks, ``layer(8)`` is 8, ``layer(-1)`` is 29 and ``layer(0.5)`` is 15.

        Raises:
            LayerError: There is no such block.
        """
        if isinstance(which, float) and not which.is_integer():
            if not 0 < which < 1:
                raise LayerError(f"layer {which}: a fraction of the depth lies between 0 and 1")
            return int(which * self.depth)
        index = int(which)
        if not -self.depth <= index < self.depth:
            raise LayerError(
                f"layer {index} does not exist: {self.name} has {self.depth} blocks "
                f"(0 to {self.depth - 1}); a fraction such as 0.5 names the middle"
            )
        return index % self.depth

    def source(self, which: int | float) -> int:
        """Return the index of a block above which the model can begin, given the stream there.

        Raises:
            LayerError: There is no such block, or blocks above it need more of those below than the
                stream, as the last of Gemma 4 need keys and values, or keep their past in a cache
                that is not one layer a block.
        """
        layer = self.layer(which)
        if why := self._hindrance(layer):
            below = next((i for i in range(layer)[::-1] if not self._hindrance(i)), None)
            raise LayerError(
                f"nothing can be added after block {layer} of {self.name}: blocks above it need "
                "more of those below than the stream; "
                + ("it cannot be perturbed" if below is None else f"block {below} is the last")
                + f" ({why})"
            )
        return layer

    def _hindrance(self, layer: int) -> str | None:
        """Try what `educe.generate` does: the stream and the cache of the blocks below, kept.

        Returns:
            What came of it, if the model cannot begin above the block.
        """
        if layer not in self._hindrances:
            head, tail = self._tried.split([TOKENS - 1, 1], 1)
            mask = torch.ones_like(self._tried)
            kept, cache = (DynamicCache(config=self.unwrapped.config) for _ in range(2))
            with self.watching([layer]) as streams:
                whole = self.forward(head, mask[:, :-1], cache=kept, last=0)
            try:
                with self.starting(layer, streams[layer]):
                    begun = self.forward(head, mask[:, :-1], cache=cache, last=0)
                cache.layers[: layer + 1] = kept.layers[: layer + 1]
                begun = torch.cat([begun, self.forward(tail, mask, cache=cache)], 1)
                whole = torch.cat([whole, self._try()[:, -1:]], 1)
                self._same(begun, whole, f"begun above block {layer}", "it needs those below")
                self._hindrances[layer] = None
            except Exception as error:  # whatever comes of blocks that miss something
                # A machine that is out of memory or broken says nothing of the model.
                if should_reduce_batch_size(error) or isinstance(error, FAILURES):
                    raise
                said = str(error).strip().split("\n")[0]
                self._hindrances[layer] = f"{type(error).__name__}: {said}"
        return self._hindrances[layer]

    def projection(self, block: int, which: str) -> Projection:
        """Return the output projection of a block: of its ``attention``, or of its ``mlp``.

        Its path is the one in the transformers model, as PEFT names it.

        Raises:
            ModelError: The block has none, as a mixture of experts has no single one.
        """
        found = find_projections(self.blocks[block], self.width, self._try)
        if which not in found:
            raise ModelError(
                f"block {block} of {self.name} has no single matrix that ends its {which} part"
            )
        paths = {module: name for name, module in self.unwrapped.named_modules()}
        within = found[which]
        return within._replace(path=f"{paths[self.blocks[block]]}.{within.path}")

    def reads(self, block: int) -> dict[str, nn.Module]:
        """Return the matrices that take what the ``attention`` and the ``mlp`` of a block read.

        Raises:
            ModelError: The block has none, or none for its feed-forward part.
        """
        found = find_reads(self.blocks[block], self.width, self._try)
        if len(found) < 2:
            raise ModelError(
                f"block {block} of {self.name} has no two parts whose first matrices read the "
                "stream: only the stream itself can be looked at there"
            )
        return {part: self.blocks[block].get_submodule(name) for part, name in found.items()}

    def writers(self, block: int) -> list[nn.Module]:
        """Return the two modules whose outputs a block adds to the stream.

        Raises:
            ModelError: There are no such two.
        """
        found = find_writers(self.blocks[block], self._try)
        if not found:
            raise ModelError(
                f"block {block} of {self.name} does not add the outputs of two of its modules to "
                "the stream: take away directions after single layers instead"
            )
        return found

    def tail(self, block: int) -> list[nn.Module]:
        """Return the modules with which a block ends that work token by token."""
        return find_tail(self.blocks[block], self.width, self._try)

    # -- running -----------------------------------------------------------------------------

    def forward(
        self,
        ids: Int[Tensor, "r t"],
        mask: Int[Tensor, "r s"],
        *,
        cache: Any = None,
        last: int = 1,
        differentiable: bool = False,
    ) -> Float[Tensor, "r l v"]:
        """Run the model and return the logits of the last positions.

        Args:
            ids: Token numbers; with a cache, only those that it does not hold.
            mask: 1 for tokens and 0 for padding, over the cached and the new tokens.
            cache: A transformers cache, filled in place.
            last: For how many positions logits are computed; 0 for all.
            differentiable: Keep what is needed to differentiate by something put in by a hook.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._takes:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = places[:, -ids.shape[1] :]
        if "logits_to_keep" in self._takes and last:
            # As places, not as a number: told a number, Gemma 4 drops tokens from its blocks too.
            first = max(ids.shape[1] - last, 0)
            arguments["logits_to_keep"] = torch.arange(first, ids.shape[1], device=ids.device)
        if "use_cache" in self._takes:
            arguments["use_cache"] = cache is not None
        if cache is not None:
            arguments["past_key_values"] = cache
        with torch.set_grad_enabled(differentiable):
            logits: Tensor = self.hf(**arguments).logits
        return logits[:, -last:] if last else logits

    @contextmanager
    def watching(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Keep the residual stream leaving some blocks: ``{layer: [rows, tokens, width]}``."""
        streams: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                streams[layer] = stream_out(output)

            return hook

        with hooked([self.blocks[i].register_forward_hook(keep(i)) for i in dict.fromkeys(layers)]):
            yield streams

    @contextmanager
    def starting(self, layer: int, stream: Tensor) -> Iterator[None]:
        """Begin above a block: it and those below hand on its known stream and compute nothing."""

        def handing_on(at: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: self.stack.shaped(at, stream)

        with replaced(self.blocks[: layer + 1], [handing_on(at) for at in range(layer + 1)]):
            yield

    @contextmanager
    def ending(self, layer: int) -> Iterator[None]:
        """End above a block: those above it hand on the stream and compute nothing."""

        def handing_on(at: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return self.stack.shaped(at, stream_in(args, kwargs)[0])

            return forward

        above = range(layer + 1, self.depth)
        with replaced(self.blocks[layer + 1 :], [handing_on(at) for at in above]):
            yield

    @contextmanager
    def adding(self, layer: int, value: Callable[[Tensor], Tensor]) -> Iterator[list[int]]:
        """Add ``value(stream)`` to the residual stream leaving a block; yields a count of calls."""
        calls = [0]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            calls[0] += 1
            stream = stream_out(output)
            return with_stream(output, stream + value(stream))

        with hooked([self.blocks[layer].register_forward_hook(hook)]):
            yield calls
