"""The proof at loading: educe's hold on a model is right, or the model is refused.

The measure of all things is the model's own plain call: token numbers in, logits out. What educe
does instead (its own forward, padding, a cache, hooks that add nothing) has to give the same logits
for the same tokens, and a hook that adds something has to move the stream by that, and the logits.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from educe.errors import ModelError, as_model_error
from educe.model.blocks import stream_in

#: What is proved: it is made with this proof, so that it cannot be imported here.
LanguageModel = Any


#: How many tokens are tried, and with how many two sequences begin alike.
TOKENS, SHARED = 8, 5


def prove(
    lm: LanguageModel,
    ids: Int[Tensor, "1 t"],
    whole: Float[Tensor, "1 t v"],
    same: Same,
) -> None:
    """Show that educe's ways of running a model are the model's own, and that hooks act.

    It costs eight short forwards, whatever the depth.

    Args:
        lm: The model.
        ids: `TOKENS` token numbers.
        whole: What educe's forward answers to them.
        same: Holds logits against each other; made from the model's own plain call.

    Raises:
        ModelError: One of the ways gives other logits, or NaN; or a hook does not act.
    """
    same(
        whole,
        same.own,
        "run with a mask and position numbers",
        "it counts positions in its own way, or answers anew at each call",
    )
    _prove_hooks(lm, ids, whole, same)
    # One row has less and begins with padding; the other has other tokens at its end.
    less = TOKENS - SHARED
    other = torch.cat([ids[:, :SHARED], ids[:, :less]], 1)
    both = torch.cat([torch.cat([ids[:, -less:], ids[:, :SHARED]], 1), other])
    mask = torch.ones_like(both)
    mask[0, :less] = 0
    alike = whole[:, :SHARED]
    padded, beside = lm.forward(both, mask, last=0).split(1)
    not_causal = "it is no causal language model, or was not made as a decoder"
    same(beside[:, :SHARED], alike, "run with other tokens at the end", not_causal)
    why = "educe cannot generate with this architecture"
    same(padded[:, less:], alike, "run with padding on the left", why)
    with as_model_error(f"{lm.name} for decoding with a cache"):
        cache = DynamicCache(config=lm.unwrapped.config)
        steps = [lm.forward(both[:, :-2], mask[:, :-2], cache=cache, last=0)]
        steps.append(lm.forward(both[:, -2:-1], mask[:, :-1], cache=cache))
        steps.append(lm.forward(both[:, -1:], mask, cache=cache))
    padded, decoded = torch.cat(steps, 1).split(1)
    same(padded[:, less:], alike, "decoding with a cache and padding on the left", why)
    same(decoded, beside, "decoding with a cache", why)


class Same:
    """Hold logits against others of the same tokens, position by position.

    ``own`` is what the model's own plain call answers to the tokens that are tried.
    What is compared is the norm of the difference, as a share of the norm of how the logits vary.
    The tolerance is sixteen roundings of the logits' floating-point type, as many as the sum of 256
    independent ones has, and 1e-3 at least, since some compute parts in float32 whatever they are
    told. Over 17 tiny families of transformers, padding and a cache moved the worst position by up
    to 2.5 roundings of bfloat16, 2 of float16, and by 1.4e-4 in float32 and float64 (Nemotron-H).
    In half precision a rounding can send a token to another expert, which changes everything from
    there on but leaves most positions as they are: there it is the median position that counts.
    """

    def __init__(self, name: str, hf: Any, own: Float[Tensor, "1 t v"]) -> None:
        self.name, self.hf, self.own = name, hf, own
        # Some fill what they never write, as the numbers of image tokens, with one low value.
        self.varies = (own != own[:, :1]).any(1)[0]
        unit = torch.finfo(own.dtype).eps
        self.tolerance, self.exact = max(16 * unit, 1e-3), unit < 1e-6
        self.finite(own, "for a plain prompt")
        if not self.varies.any():
            raise ModelError(f"{name} gives the same logits whatever it reads")

    def finite(self, logits: Tensor, when: str) -> None:
        """Raise a ModelError where a logit is NaN or infinite."""
        if not logits[..., self.varies].isfinite().all():
            attention = getattr(self.hf.config, "_attn_implementation", None)
            raise ModelError(
                f"{self.name} gives NaN or infinite logits {when} (in {logits.dtype}, with "
                f"{attention} attention): load it with another dtype or attn_implementation"
            )

    def __call__(self, logits: Tensor, expected: Tensor, when: str, why: str) -> None:
        """Raise a ModelError where logits ``[rows, tokens, vocabulary]`` are not those expected."""
        self.finite(logits, f"when {when}")
        a, b = (x[..., self.varies].double() for x in (logits, expected))
        off = (a - b).norm(dim=-1) / (b - b.mean(-1, keepdim=True)).norm(dim=-1)
        share = float(off.max() if self.exact else off.median())
        if not share <= self.tolerance:
            raise ModelError(
                f"{self.name} ({type(self.hf).__name__}) gives other logits when "
                f"{when}, by {share:.2g} of how they vary: {why}"
            )


def _prove_hooks(lm: LanguageModel, ids: Tensor, plain: Tensor, same: Same) -> None:
    """Show that adding to the stream leaving a block moves the next block's, and the logits."""
    mask = torch.ones_like(ids)
    draw = torch.Generator().manual_seed(0)
    left: list[Tensor] = []
    reached: list[Tensor] = []

    def step(stream: Tensor) -> Tensor:
        added = torch.randn(lm.width, generator=draw).to(stream) * stream.std()
        left.append(stream + added)
        return added.expand_as(stream)

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        reached.append(stream_in(args, kwargs)[0])

    with ExitStack() as hooks:
        for layer in range(lm.depth):
            hooks.enter_context(lm.adding(layer, torch.zeros_like))
        zero = lm.forward(ids, mask)
    same(zero, plain[:, -1:], "adding zero after its blocks", "it answers anew at each call")
    noise = (zero - plain[:, -1:]).norm()

    with ExitStack() as hooks:
        for layer, block in enumerate(lm.blocks):
            hooks.enter_context(lm.adding(layer, step))
            hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        lm.forward(ids, mask)
    for layer, (came, given) in enumerate(zip(left[:-1], reached[1:], strict=True)):
        if not torch.equal(came.to(given.device), given):
            raise ModelError(
                f"{lm.name}: adding a vector after block {layer} does not move the residual "
                "stream by that vector; educe cannot perturb this architecture"
            )
    for layer in (0, lm.depth - 1):
        with lm.adding(layer, step):
            moved = lm.forward(ids, mask)
        if not (moved - zero).norm() > 2 * noise:
            raise ModelError(
                f"{lm.name}: adding a vector after block {layer} changes no logit; what was found "
                "is not the stack of blocks that this model writes with"
            )
