"""LanguageModel: any causal language model of transformers, its blocks and its chat prompts.

Making one ends with a proof that educe's hold on the model is right: adding zero to the residual
stream changes no logit, adding ``v`` after block ``i`` moves the stream there by exactly ``v``, and
padding on the left and decoding with a cache leave the logits as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from educe.blocks import (
    Projection,
    Stack,
    find_projections,
    find_reads,
    find_stack,
    find_tail,
    find_writers,
    replaced,
    stream_in,
    stream_out,
    with_stream,
)
from educe.errors import EduceError, LayerError, ModelError, PromptError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as the model reads them, padded on the left to one length.

    Attributes:
        texts: Each prompt with every special token, as the tokenizer got it.
        ids: Token numbers, ``[prompts, tokens]``.
        mask: 1 where a token is one, 0 where it is padding, ``[prompts, tokens]``.
    """

    texts: tuple[str, ...]
    ids: Int[Tensor, "p t"]
    mask: Int[Tensor, "p t"]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt, padding not counted."""
        return [int(n) for n in self.mask.sum(1)]


class LanguageModel:
    """A causal language model, its tokenizer, and its decoder blocks.

    Attributes:
        hf: The transformers (or PEFT) model; its weights are never changed.
        tokenizer: Its tokenizer.
        name: What was asked for: a Hub id, a path, ``"embedded"``.
        revision: The Hub revision that was asked for, if any.
        adapter: The PEFT adapter beside the weights, if any.
        stack: The decoder blocks.
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        adapter: str | None = None,
    ) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name, self.revision, self.adapter = name, revision, adapter
        hf.requires_grad_(False)
        # A PeftModel's forward takes anything; the model inside it says what it really takes.
        accepted = inspect.signature(self.unwrapped.forward).parameters
        self._takes = {k for k in ("position_ids", "logits_to_keep", "use_cache") if k in accepted}
        # Some hand it on without naming it, and fill a cache that nobody asked for if it is absent.
        if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            self._takes.add("use_cache")
        ids = torch.arange(5, device=self.device)[None] % self._vocabulary()
        self.stack: Stack = find_stack(hf, lambda: self.forward(ids, torch.ones_like(ids)))
        self._prove(ids)

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

    def _vocabulary(self) -> int:
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

    def projection(self, block: int, which: str) -> Projection:
        """Return the output projection of a block: of its ``attention``, or of its ``mlp``.

        Its path is the one in the transformers model, as PEFT names it.

        Raises:
            ModelError: The block has none, as a mixture of experts has no single one.
        """
        ids = torch.arange(5, device=self.device)[None] % self._vocabulary()
        found = find_projections(
            self.blocks[block], self.width, lambda: self.forward(ids, torch.ones_like(ids))
        )
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
        ids = torch.arange(5, device=self.device)[None] % self._vocabulary()
        found = find_reads(
            self.blocks[block], self.width, lambda: self.forward(ids, torch.ones_like(ids))
        )
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
        ids = torch.arange(5, device=self.device)[None] % self._vocabulary()
        found = find_writers(self.blocks[block], lambda: self.forward(ids, torch.ones_like(ids)))
        if not found:
            raise ModelError(
                f"block {block} of {self.name} does not add the outputs of two of its modules to "
                "the stream: take away directions after single layers instead"
            )
        return found

    def tail(self, block: int) -> list[nn.Module]:
        """Return the modules with which a block ends that work token by token."""
        ids = torch.arange(5, device=self.device)[None] % self._vocabulary()
        return find_tail(
            self.blocks[block], self.width, lambda: self.forward(ids, torch.ones_like(ids))
        )

    # -- prompts -----------------------------------------------------------------------------

    def render(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        enable_thinking: bool | None = None,
        prefill: str = "",
    ) -> str:
        """Write a prompt as the model reads it, special tokens and all.

        Args:
            prompt: Text, or messages with ``role`` and ``content``. When the last message is the
                assistant's, the model goes on with it.
            chat: Whether text goes through the chat template; by default, when there is one.
            enable_thinking: Passed to templates that know it.
            prefill: The first words of the answer, put after the rendered prompt.

        Raises:
            PromptError: The prompt is empty, or needs a chat template and there is none.
        """
        template = getattr(self.tokenizer, "chat_template", None)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("a prompt is empty: give it some text")
            if chat is False or (chat is None and not template):
                return prompt + prefill
            prompt = [{"role": "user", "content": prompt}]
        if not prompt:
            raise PromptError("a prompt has no messages: give it at least one")
        if not template:
            raise PromptError(f"{self.name} has no chat template: give prompts as plain text")
        goes_on = prompt[-1].get("role") == "assistant"
        extra = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in prompt],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **extra,
        )
        return text + prefill

    def encode(
        self,
        prompts: Sequence[Prompt],
        *,
        chat: bool | None = None,
        enable_thinking: bool | None = None,
        prefill: str = "",
        room: int = 0,
    ) -> PromptBatch:
        """Render prompts and turn them into token numbers, padded on the left.

        Args:
            prompts: Texts or lists of messages.
            chat: See `render`.
            enable_thinking: See `render`.
            prefill: See `render`.
            room: Tokens that must still fit into the context after the prompt.

        Raises:
            PromptError: There is no prompt, one is empty, or one is longer than the context.
        """
        if not prompts:
            raise PromptError("no prompt: give at least one")
        options = {"chat": chat, "enable_thinking": enable_thinking, "prefill": prefill}
        texts = tuple(self.render(prompt, **options) for prompt in prompts)  # type: ignore[arg-type]
        template = bool(getattr(self.tokenizer, "chat_template", None))
        templated = [not isinstance(p, str) or (chat is not False and template) for p in prompts]
        # A template writes its own special tokens; plain text gets the tokenizer's.
        rows = [
            self.tokenizer(text, add_special_tokens=not through)["input_ids"]
            for text, through in zip(texts, templated, strict=True)
        ]
        return self.pad(rows, texts, room=room)

    def pad(
        self, rows: Sequence[Sequence[int]], texts: Sequence[str] | None = None, *, room: int = 0
    ) -> PromptBatch:
        """Pad lists of token numbers on the left to one length.

        Raises:
            PromptError: One is empty or longer than the context less ``room``.
        """
        longest = max(len(row) for row in rows)
        if min(len(row) for row in rows) == 0:
            raise PromptError("a prompt has no token: give it some text")
        if self.context is not None and longest + room > self.context:
            raise PromptError(
                f"a prompt of {longest} tokens and {room} new ones do not fit into the "
                f"{self.context} tokens of {self.name}: shorten it, or ask for fewer new tokens"
            )
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        ids = torch.full((len(rows), longest), pad if pad is not None else 0)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(rows):
            ids[line, longest - len(row) :] = torch.tensor(row)
            mask[line, longest - len(row) :] = 1
        texts = texts or [self.tokenizer.decode(row) for row in rows]
        return PromptBatch(tuple(texts), ids.to(self.device), mask.to(self.device))

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
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = last
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

        handles = [self.blocks[i].register_forward_hook(keep(i)) for i in dict.fromkeys(layers)]
        try:
            yield streams
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def starting(self, layer: int, stream: Tensor) -> Iterator[None]:
        """Begin above a block: it and those below hand on its known stream and compute nothing."""

        def handing_on(at: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: self.stack.shaped(at, stream)

        with replaced(self.blocks[: layer + 1], [handing_on(at) for at in range(layer + 1)]):
            yield

    @contextmanager
    def adding(self, layer: int, value: Callable[[Tensor], Tensor]) -> Iterator[list[int]]:
        """Add ``value(stream)`` to the residual stream leaving a block; yields a count of calls."""
        calls = [0]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            calls[0] += 1
            stream = stream_out(output)
            return with_stream(output, stream + value(stream))

        handle = self.blocks[layer].register_forward_hook(hook)
        try:
            yield calls
        finally:
            handle.remove()

    def _prove(self, ids: Tensor) -> None:
        """Show that hooks on the blocks act on the residual stream, and on nothing else.

        Show too that padding on the left and decoding with a cache, as `educe.generate` does, give
        the model's own logits: an architecture that ignores either would write other text.
        """
        mask = torch.ones_like(ids)
        plain = self.forward(ids, mask)
        draw = torch.Generator().manual_seed(0)
        for layer in sorted({0, self.depth // 2, self.depth - 2} & set(range(self.depth - 1))):
            moved: list[Tensor] = []

            def note(module: nn.Module, args: Any, kwargs: Any, into: Any = moved) -> None:
                into.append(stream_in(args, kwargs)[0])

            handle = self.blocks[layer + 1].register_forward_pre_hook(note, with_kwargs=True)
            try:
                with self.adding(layer, torch.zeros_like):
                    zero = self.forward(ids, mask)
                step = torch.randn(self.width, generator=draw).to(moved[0]) * moved[0].std()
                with self.adding(layer, step.expand_as):
                    self.forward(ids, mask)
            finally:
                handle.remove()
            if not torch.allclose(zero, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max())):
                raise ModelError(f"{self.name}: adding zero after block {layer} changes the logits")
            if not torch.allclose(moved[0] + step, moved[1]):
                raise ModelError(
                    f"{self.name}: adding a vector after block {layer} does not move the residual "
                    "stream by that vector; educe cannot perturb this architecture"
                )
        padded, ones = torch.cat([ids[:, :2], ids], 1), torch.cat([0 * mask[:, :2], mask], 1)
        with as_model_error(f"{self.name} for decoding with a cache"):
            cache = DynamicCache(config=self.unwrapped.config)
            self.forward(padded[:, :-1], ones[:, :-1], cache=cache)
            decoded = self.forward(padded[:, -1:], ones, cache=cache)
        # A model that forgets what came before is off by more than its logits vary; rounding in
        # half precision, with experts that flip, stays far below.
        if (decoded - plain).float().norm() > 0.3 * (plain - plain.mean()).float().norm():
            raise ModelError(
                f"{self.name}: padding on the left or decoding with a cache changes the logits; "
                "educe cannot generate with this architecture"
            )


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Turn what transformers, PEFT and the Hub's client raise into one sentence."""
    try:
        yield
    except EduceError:
        raise
    except Exception as error:
        reason = next((s for line in str(error).splitlines() if (s := line.strip())), "no reason")
        raise ModelError(f"cannot load {what}: {type(error).__name__}: {reason}") from error
