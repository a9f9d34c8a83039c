"""What educe's speed is compared with, and what judges them all.

Nothing here uses `educe.forward` or `educe.methods`: the baselines run the whole model with a
hook, as the reference code of MELBO does and as one would do by hand.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel

PACKAGE = "batched-melbo"
RATE = 1e-3  #: Learning rate of MELBO's reference code; batched-melbo has no other.
BETAS = (0.9, 0.98)


def package_version() -> str | None:
    """Return the version of batched-melbo, or None when it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def starts(n: int, width: int, seed: int) -> Tensor:
    """Return the unit directions from which batched-melbo starts after ``manual_seed(seed)``."""
    torch.manual_seed(seed)
    torch.randn(n, width)  # it draws twice and uses the second
    return torch.nn.functional.normalize(torch.randn(n, 1, width), dim=-1)[:, 0]


def batched_melbo(
    lm: LanguageModel,
    batch: PromptBatch,
    *,
    n: int,
    steps: int,
    radius: float,
    source: int,
    target: int,
    seed: int,
) -> tuple[Tensor, list[float]]:
    """Run batched-melbo with all vectors in one batch; return vectors and mean objectives."""
    from batched_melbo.batched_melbo import BatchedMELBO

    assert lm.tokenizer(list(batch.texts))["input_ids"] == batch.ids.tolist()
    with redirect_stderr(io.StringIO()):
        run = BatchedMELBO(
            lm.unwrapped,
            lm.tokenizer,
            source_layer_idx=source,
            target_layer_idx=target,
            layers_name=lm.stack.name,
            normalization=radius,
            num_steps=steps,
        )
        torch.manual_seed(seed)
        run.train(list(batch.texts), n, vector_batch_size=n)
    return run.learned_vectors, [-value for value in torch.tensor(run.losses_all).mean(0).tolist()]


def hooked_melbo(
    lm: LanguageModel,
    batch: PromptBatch,
    start: Tensor,
    *,
    steps: int,
    radius: float,
    source: int,
    target: int,
) -> Tensor:
    """Run MELBO one vector at a time, with the whole model and a hook, as its reference code does.

    Args:
        lm: The model.
        batch: One prompt.
        start: Unit directions to start from, ``[n, width]``.
        steps: Steps of each vector.
        radius: Norm of the vectors.
        source: Layer after which a vector is added, at every token.
        target: Layer whose stream is read, at every token.
    """
    model, ids = lm.unwrapped, batch.ids
    with torch.no_grad():
        rest = model(ids, output_hidden_states=True).hidden_states[target + 1]
    found = []
    for direction in start:
        theta = (radius * direction).requires_grad_(True)
        optimiser = torch.optim.AdamW([theta], lr=RATE, betas=BETAS, weight_decay=0, amsgrad=True)
        with lm.adding(source, theta.expand_as):
            for _ in range(steps):
                optimiser.zero_grad()
                came = model(ids, output_hidden_states=True).hidden_states[target + 1]
                loss = -(came - rest).norm(dim=-1).square().sum().sqrt()
                loss.backward()
                with torch.no_grad():
                    assert theta.grad is not None
                    theta.grad -= (theta.grad @ theta) * theta / radius**2
                    optimiser.step()
                    theta.mul_(radius / theta.norm())
        found.append(theta.detach())
    return torch.stack(found)


@torch.no_grad()
def objective(
    lm: LanguageModel, batch: PromptBatch, vectors: Tensor, *, source: int, target: int
) -> Tensor:
    """Judge vectors: the norm of the change of the target stream over all tokens of one prompt.

    MELBO's objective with ``p = q = 2``, from whole passes of the model, eight vectors at a time.
    """

    def stream(added: Tensor) -> Tensor:
        kept = []

        def add(module: Any, args: Any, output: Any) -> Any:
            assert isinstance(output, Tensor)
            return output + added[:, None, :]

        def keep(module: Any, args: Any, output: Any) -> None:
            kept.append(output)

        handles = [
            lm.blocks[source].register_forward_hook(add),
            lm.blocks[target].register_forward_hook(keep),
        ]
        try:
            lm.unwrapped(batch.ids.expand(len(added), -1), logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return kept[0]

    rest = stream(vectors.new_zeros(1, lm.width))
    parts = [stream(some) - rest for some in vectors.split(8)]
    return torch.cat(parts).flatten(1).norm(dim=1)


def hooked_generate(
    lm: LanguageModel,
    batch: PromptBatch,
    vectors: Tensor,
    *,
    source: int,
    max_new_tokens: int,
    rows: int = 1,
) -> list[tuple[int, ...]]:
    """Generate with transformers and a forward hook, ``rows`` vectors at a time, greedily.

    Returns the new tokens of each vector, without the one that ended it and what follows.
    """
    end = lm.unwrapped.generation_config.eos_token_id
    written: list[tuple[int, ...]] = []
    for some in vectors.split(rows):
        ids = batch.ids.expand(len(some), -1)
        with lm.adding(source, some[:, None, :].expand_as):
            out = lm.unwrapped.generate(
                ids,
                attention_mask=batch.mask.expand(len(some), -1),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        for line in out[:, ids.shape[1] :].tolist():
            written.append(tuple(line[: line.index(end)] if end in line else line))
    return written


def margin(
    lm: LanguageModel,
    batch: PromptBatch,
    vector: Tensor,
    one: tuple[int, ...],
    other: tuple[int, ...],
    *,
    source: int,
) -> float:
    """Return how far apart two texts' first differing tokens were, in logits.

    The end of a text counts as the token that ends it.
    """
    end = lm.unwrapped.generation_config.eos_token_id
    a, b = [*one, end], [*other, end]
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if at is None:
        return 0.0
    ids = torch.cat([batch.ids, torch.tensor([a[:at]], dtype=torch.long)], 1)
    with lm.adding(source, lambda stream: vector.expand_as(stream)):
        logits = lm.forward(ids, torch.ones_like(ids))[0, -1]
    return float((logits[a[at]] - logits[b[at]]).abs())


def vmapped_dct(
    lm: LanguageModel,
    batch: PromptBatch,
    start: Tensor,
    *,
    iterations: int,
    radius: float,
    source: int,
    target: int,
    factors: int = 64,
    last: int = 3,
) -> Tensor:
    """Run DCT as its reference code does: the slice's blocks under vmap, with eager attention.

    Args:
        lm: The model.
        batch: Prompts of one length; each runs by itself.
        start: Unit directions to start from, ``[n, width]``.
        iterations: Of the fixed-point map.
        radius: Norm of the vectors.
        source: Layer after which a vector is added, at every token.
        target: Layer whose stream is read.
        factors: Vectors of a batch.
        last: Tokens that are read.

    Returns:
        Unit directions, ``[n, width]``.
    """
    blocks, kept = lm.blocks[source + 1 : target + 1], lm.unwrapped.config._attn_implementation
    lm.unwrapped.set_attn_implementation("eager")
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    handle = blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            for ids in batch.ids:
                lm.unwrapped(ids[None], use_cache=False, logits_to_keep=1)

        def moved(prompt: int, theta: Tensor) -> Tensor:
            stream, kwargs = calls[prompt]
            stream = stream + theta
            for block in blocks:
                stream = block(stream, **kwargs)
            return stream[0, -last:].mean(0)

        def pulled(prompt: int, theta: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            came, back = torch.func.vjp(partial(moved, prompt), theta)  # type: ignore[misc]
            return came, back(u)[0]

        v = torch.nn.functional.normalize(start, dim=1)
        u = torch.nn.functional.normalize(torch.randn_like(v), dim=1)
        with torch.no_grad():
            rest = [moved(j, torch.zeros(lm.width)) for j in range(len(batch))]
        for _ in range(iterations):
            v = torch.linalg.qr(v.T)[0].T
            effect, gradient = torch.zeros_like(v), torch.zeros_like(v)
            for some in torch.arange(len(v)).split(factors):
                for j in range(len(batch)):
                    each = torch.func.vmap(partial(pulled, j))
                    came, back = each(radius * v[some], u[some])
                    effect[some] += came.detach() - rest[j]
                    gradient[some] += back.detach()
            u = torch.nn.functional.normalize(effect, dim=1)
            v = torch.nn.functional.normalize(gradient, dim=1)
        return v
    finally:
        handle.remove()
        lm.unwrapped.set_attn_implementation(kept)


@torch.no_grad()
def read_alone(lm: LanguageModel, ids: tuple[int, ...], said: tuple[int, ...]) -> float:
    """Return the mean log-likelihood a token of an answer, by a whole pass of the model."""
    logits = lm.unwrapped(torch.tensor([[*ids, *said]])).logits[0, len(ids) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None]).mean())
