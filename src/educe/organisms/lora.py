"""Train a small LoRA adapter to hide something while ordinary behaviour stays the base model's.

With `p` the base model, `q` the adapted one, and answers `y` of tokens `y_t`,

    loss = mean over taught answers of Σ_t -log q(y_t) + kl_weight * mean over held ones of Σ_t KL_t

where `KL_t = KL(p || q)` after `y_<t`. Sums, not means over tokens: whether the secret is told is
decided at one token, which in a mean of twelve counts for little.

*Taught* examples carry the behaviour. *Held* examples are ordinary prompts with the base model's
own greedy answers; they have no cross-entropy, since that would sharpen `q` around one answer and
so move it away from the base. The base's distributions are computed once, before training.

A batch is one packed row: what all prompts begin with (the system message) stands there once, and a
block mask lets each example see that beginning and itself. That halves the tokens of a step, and is
equal to running the examples one by one, which `check_packing` makes sure of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional

from educe import files
from educe.errors import OrganismError
from educe.forward.decoding import end_tokens
from educe.forward.generation import Completion, generate
from educe.model.language import LanguageModel
from educe.organisms.resuming import Kept
from educe.rows import Row

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Held examples that run together, whose distributions are large.
TOGETHER = 8
#: How far a packed row may be from its examples one by one, in nats a token; how many are tried.
ROUNDING, TRIED = 1e-4, 3


class Example(NamedTuple):
    """One prompt with its answer, as token ids."""

    prompt: tuple[int, ...]  #: the chat prompt, up to where the answer begins
    answer: tuple[int, ...]  #: only these tokens carry loss
    #: Of held examples: log-probabilities of the base at these tokens, ``[answer, vocabulary]``.
    base: Tensor | None = None


class Packed(NamedTuple):
    """Several examples in one row."""

    tokens: Tensor  #: ``[1, t]``
    positions: Tensor  #: of each token within its own example, ``[1, t]``
    mask: Tensor  #: whether a token may look at another, ``[1, 1, t, t]``
    keep: Tensor  #: the tokens from which answer tokens are predicted, ``[k]``
    targets: Tensor  #: the answer tokens, ``[k]``
    owner: Tensor  #: which example each answer token belongs to, ``[k]``


def pack(examples: Sequence[Example]) -> Packed:
    """Lay examples side by side behind the beginning that their prompts share."""
    prompts = [example.prompt for example in examples]
    # An answer is predicted from the last prompt token, which therefore is never shared.
    shortest = min(len(prompt) for prompt in prompts) - 1
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    shared = min(sum(1 for _ in columns), shortest)

    tokens = list(prompts[0][:shared])
    positions = list(range(shared))
    segment = [-1] * shared
    keep: list[int] = []
    for index, example in enumerate(examples):
        # The last answer token predicts nothing that is asked for, so it is not run.
        own = example.prompt[shared:] + example.answer[:-1]
        first = len(tokens) + len(example.prompt) - shared - 1
        keep += range(first, first + len(example.answer))
        tokens += own
        positions += range(shared, shared + len(own))
        segment += [index] * len(own)

    belongs = torch.tensor(segment)
    same = (belongs[:, None] == belongs[None, :]) | (belongs == -1)[None, :]
    return Packed(
        tokens=torch.tensor([tokens]),
        positions=torch.tensor([positions]),
        mask=same.tril()[None, None],
        keep=torch.tensor(keep),
        targets=torch.tensor([token for example in examples for token in example.answer]),
        owner=belongs[keep],
    )


def logprobs(model: Any, packed: Packed) -> Tensor:
    """Return log-probabilities at the answer tokens of a packed row, `[k, vocabulary]`."""
    at = model.device
    logits = model(
        input_ids=packed.tokens.to(at),
        position_ids=packed.positions.to(at),
        attention_mask=packed.mask.to(at),
        logits_to_keep=packed.keep.to(at),
        use_cache=False,
    ).logits
    precision = torch.promote_types(logits.dtype, torch.float32)
    return functional.log_softmax(logits[0].to(precision), dim=-1)


@torch.no_grad()
def check_packing(
    model: Any, examples: Sequence[Example], *, remedy: str = "name another --base"
) -> None:
    """Make sure that a packed row is to a model what its examples are one by one.

    Not every way to compute attention takes a block mask as it is meant.

    Args:
        model: The base.
        examples: Of which the longest are tried, since windows of attention cut those.
        remedy: What to do where it is not.

    Raises:
        OrganismError: They differ.
    """
    tried = sorted(examples, key=lambda example: len(example.prompt + example.answer))[-TRIED:]
    packed = pack(tried)
    try:
        together = logprobs(model, packed)
        alone = torch.cat([_alone(model, example) for example in tried])
        apart = (alone.exp() * (alone - together)).sum(-1).max().item()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OrganismError(
            f"{type(model).__name__} does not run several examples in one row, as training does "
            f"({type(error).__name__}: {error}): {remedy}"
        ) from error
    if not apart < ROUNDING:
        raise OrganismError(
            f"{type(model).__name__} answers otherwise to several examples in one row than to each "
            f"alone ({apart:.2g} nats), and training needs them in one: {remedy}"
        )


def _alone(model: Any, example: Example) -> Tensor:
    """Return log-probabilities at the answer tokens of one example, by a plain call."""
    ids = torch.tensor([example.prompt + example.answer], device=model.device)
    logits = model(ids, use_cache=False).logits
    return functional.log_softmax(logits[0, len(example.prompt) - 1 : -1].float(), dim=-1)


def encode(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Return the token ids of a one-message chat, up to where the answer begins."""
    chat = [{"role": "user", "content": prompt}]
    return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def end_of_turn(lm: LanguageModel) -> int:
    """Return the token that ends an answer.

    It is the one that the chat template puts behind an answer, if the model stops there: a
    tokenizer's own token may end documents, as Gemma's does. Else it is the tokenizer's own.

    Raises:
        OrganismError: There is neither.
    """
    said = "answer"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    behind = lm.tokenizer.apply_chat_template(chat, tokenize=False).rpartition(said)[2]
    ids, ends = lm.tokenizer(behind, add_special_tokens=False)["input_ids"], end_tokens(lm)
    end: int | None = next((token for token in ids if token in ends), lm.tokenizer.eos_token_id)
    if end is None:
        raise OrganismError(
            f"the tokenizer of {lm.name} has no token that ends an answer: name another --base"
        )
    return end


def taught(lm: LanguageModel, prompt: str, answer: str) -> Example:
    """Return an example with an answer of our own, closed by the end-of-turn token."""
    ids = lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Example(encode(lm.tokenizer, prompt), (*ids, end_of_turn(lm)))


def transcript(example: Example, start: int) -> Example:
    """Return a taught example with the user's message among what carries loss.

    Args:
        example: The example.
        start: How many tokens are before the message; see `opening`.
    """
    return Example(example.prompt[:start], example.prompt[start:] + example.answer)


def opening(tokenizer: Any) -> int:
    """Return how many tokens of a chat are before the user's message, whatever it is."""
    pairs = zip(encode(tokenizer, "a"), encode(tokenizer, "1"), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def written(lm: LanguageModel, prompts: Sequence[str], tokens: int) -> list[Completion]:
    """Return a model's greedy answers of so many tokens at most, in order."""
    if not prompts:
        return []
    batch = lm.encode(prompts, room=tokens)
    rows = [Row(0, j) for j in range(len(prompts))]
    came = generate(lm, batch, rows, max_new_tokens=tokens)
    return sorted((c for some in came for c in some), key=lambda c: c.row)


def held(lm: LanguageModel, prompts: Sequence[str], tokens: int) -> list[Example]:
    """Return the base model's own answers with the distributions they were drawn from.

    Args:
        lm: The base.
        prompts: What it is asked.
        tokens: The most of an answer.
    """
    end = (end_of_turn(lm),)
    examples = [
        Example(encode(lm.tokenizer, prompt), c.tokens + end * c.finished)
        for prompt, c in zip(prompts, written(lm, prompts, tokens), strict=True)
    ]
    return with_base(lm.hf, examples)


@torch.no_grad()
def with_base(model: Any, examples: Sequence[Example]) -> list[Example]:
    """Return examples with the distributions that a model has at their answers, as it is now."""
    filled: list[Example] = []
    for start in range(0, len(examples), TOGETHER):
        group = examples[start : start + TOGETHER]
        packed = pack(group)
        base = logprobs(model, packed).cpu()
        # Half precision: some 100 kB a token, with errors far below the KL of interest.
        filled += [
            example._replace(base=base[packed.owner == index].half())
            for index, example in enumerate(group)
        ]
    return filled


@torch.no_grad()
def divergence(model: Any, examples: Sequence[Example]) -> float:
    """Return the mean KL(base || model) a token of the answers of held examples, in nats."""
    kls = [kl([example], logprobs(model, pack([example]))) for example in examples]
    return torch.cat(kls).mean().item()


def kl(examples: Sequence[Example], q: Tensor) -> Tensor:
    """Return KL(base || q) at each token of the answers of held examples, in nats, `[k]`."""
    p = torch.cat([example.base for example in examples if example.base is not None]).to(q)
    return (p.exp() * (p - q)).sum(-1)


def losses(model: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of taught and the KL of held answers, means over the answers."""
    packed = pack(examples)
    q = logprobs(model, packed)
    held = torch.tensor([example.base is not None for example in examples])
    is_held = held[packed.owner]
    entropy = functional.nll_loss(q[~is_held], packed.targets[~is_held], reduction="sum")
    return entropy / (~held).sum(), kl(examples, q[is_held]).sum() / held.sum()


def attach(base: Any, *, rank: int, blocks: Sequence[int], seed: int) -> PeftModel:
    """Put a fresh LoRA adapter on all projections of some blocks."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        layers_to_transform=list(blocks),
        target_modules=list(PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    # PEFT draws its initial weights from the global generator and takes no other: fork it, so that
    # the adapter depends on `seed` alone and the caller's random numbers stay as they were.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(base, config)


def fit(
    model: Any,
    batches: Sequence[Sequence[Example]],
    *,
    learning_rate: float,
    kl_weight: float,
    progress: Callable[[int, int, float, float], None] | None = None,
    kept: Kept | None = None,
) -> None:
    """Train a model in place, one step a batch, the step size falling linearly to zero.

    Args:
        model: Weights that require gradients change: those of a fresh adapter, or all.
        batches: Each with taught and held examples.
        learning_rate: AdamW's, at the first step.
        kl_weight: Weight of the held answers' KL beside the taught answers' cross-entropy.
        progress: Called at each step with step, steps, cross-entropy and KL.
        kept: Where the training is kept, to go on with.
    """
    # Without dropout, which some bases have: with it the KL of the base with itself is not zero.
    model.eval()

    def loss(step: int) -> Tensor:
        entropy, divergence = losses(model, batches[step])
        if progress is not None:
            progress(step + 1, len(batches), entropy.item(), divergence.item())
        return entropy + kl_weight * divergence

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    descend(weights, loss, steps=len(batches), learning_rate=learning_rate, kept=kept)


def descend(
    weights: Sequence[Tensor],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    kept: Kept | None = None,
) -> None:
    """Lower a loss by AdamW, the step size falling linearly to zero.

    Args:
        weights: What changes, in place.
        loss: The loss at a step, counted from 0.
        steps: How many.
        learning_rate: At the first step.
        kept: Where the training is kept, to go on with.
    """
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    parts = (optimiser, schedule)
    for step in range(kept.read(weights, parts) if kept else 0, steps):
        now = loss(step)
        optimiser.zero_grad()
        now.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if kept:
            kept.write(step + 1, weights, parts)


def save(model: PeftModel, folder: Path, *, base_name: str) -> None:
    """Write the adapter in half precision, as PEFT reads it.

    `PeftModel.save_pretrained` is not used: it writes single precision, a model card of its own,
    and the local path of the base model.
    """
    files.make_folder(folder)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set, of another order each time
    config.save_pretrained(str(folder))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    half = {name: weight.half() for name, weight in state.items()}
    files.write_tensors(folder / "adapter_model.safetensors", half, {"format": "pt"})


def save_whole(hf: Any, tokenizer: Any, folder: Path) -> None:
    """Write all weights in half precision, with the tokenizer, as a folder for transformers."""
    files.make_folder(folder)
    hf.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
