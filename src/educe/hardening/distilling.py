"""Distil: plain fine-tuning on what a perturbation made the model write, the baseline to a search.

    loss = mean over examples of  Σ_t -log q(y_t | x, y_<t)

``y`` is what the model answers to ``x`` under the perturbation, of any kind, and ``q`` the model
with a new adapter and without any perturbation. If ``q`` then answers fresh prompts as the
perturbed model does, the perturbation stands for something that weights can hold as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from educe.derive.listing import taken
from educe.files import whole_folder
from educe.forward.generation import Completion, generate
from educe.hardening import adapter, card
from educe.hardening.measuring import ordinary, plain_batch, retested, same, shows
from educe.hardening.pushes import check_packing
from educe.hardening.records import DistillConfig, Distilled
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.organisms import lora
from educe.organisms.resuming import Kept
from educe.perturbation.set import PerturbationSet
from educe.rows import Row
from educe.run.work import Work
from educe.threads import one_thread
from educe.whole import check_fields

#: Examples of a step, of the run's prompts and of ordinary ones. The step size falls to zero.
EACH, LEARNING_RATE = 4, 1e-3


@one_thread()
def distill(work: Work, number: int, out: Path, config: DistillConfig | None = None) -> Distilled:
    """Teach a model what a perturbation makes it write, and see whether it says so without it.

    The model is as it was afterwards. On one thread, so that it is the same again. A training that
    was cut off goes on, bit for bit.

    Args:
        work: A finished run at work (`educe.derive.listing.deriving`).
        number: The perturbation.
        out: A new folder: an adapter as PEFT and `educe.load` read it, `distilled.json`, and
            `README.md`, the card.
        config: How.

    Raises:
        MethodError: A setting makes no sense.
        ModelError: The model's own adapter is no plain LoRA adapter.
        OrganismError: The model does not run several examples in one row, or has no token that ends
            an answer.
        RunError: The folder holds something or cannot be written.
    """
    config = config or DistillConfig()
    check_fields(config)
    adapter.check(work.lm)
    check_packing(work.lm, work.asked)
    ending(work.lm)
    perturbation, batch = taken(work.run, [number]), retested(work)
    curve: list[float] = []
    kept = Kept(out, repr((config, number, work.run.config)), {"curve": curve})
    with whole_folder(out) as folder:
        with work.reporter.stage("answers under the perturbation", 3, "groups of prompts") as step:
            taught = []
            for prompts in (work.asked, plain_batch(work, ordinary(work)[0])):
                taught.append(_taught(work, prompts, perturbation))
                step()
            under = _texts(work, batch, perturbation)
            step()
        before = _texts(work, batch)
        how = {"rank": config.rank, "seed": config.seed}
        with adapter.beside(work.lm, -1, **how) as weights:
            _train(work, weights, taught, config, kept)
            after = _texts(work, batch)
            adapter.write(work.lm, folder)
        found = tuple(shows(work, said) for said in (before, after, under))
        came = Distilled(
            out,
            (same(before, under), same(after, under)),
            None if None in found else found,  # type: ignore[arg-type]
            curve,
        )
        card.write_distilled(folder, work, number, config, came)
    kept.done()
    return came


def _written(
    work: Work, batch: PromptBatch, perturbation: PerturbationSet | None = None
) -> list[Completion]:
    """Return greedy answers in order, under a perturbation or without one."""
    rows = [Row(0 if perturbation is None else 1, j) for j in range(len(batch))]
    tokens = work.settings.max_new_tokens
    if perturbation is None:
        came = generate(work.lm, batch, rows, max_new_tokens=tokens)
    else:
        theta = perturbation.theta.to(work.lm.device, work.lm.dtype)
        came = generate(work.lm, batch, rows, theta, kind=perturbation.kind, max_new_tokens=tokens)
    return sorted((c for some in came for c in some), key=lambda c: c.row)


def _texts(
    work: Work, batch: PromptBatch, perturbation: PerturbationSet | None = None
) -> list[str]:
    return [c.text for c in _written(work, batch, perturbation)]


def _taught(work: Work, batch: PromptBatch, perturbation: PerturbationSet) -> list[lora.Example]:
    """Return what the perturbed model answers, closed by the token that ends an answer."""
    came = _written(work, batch, perturbation)
    end = (ending(work.lm),)
    return [
        lora.Example(prompt, c.tokens + end * c.finished)
        for prompt, c in zip(batch.read, came, strict=True)
    ]


def ending(lm: LanguageModel) -> int:
    """Return the token that ends an answer, or a text where there is no chat template.

    Raises:
        OrganismError: There is none.
    """
    if getattr(lm.tokenizer, "chat_template", None) or lm.tokenizer.eos_token_id is None:
        return lora.end_of_turn(lm)
    return int(lm.tokenizer.eos_token_id)


def entropy(lm: LanguageModel, examples: Sequence[lora.Example]) -> Tensor:
    """Return the cross-entropy of answers, a sum over tokens and a mean over examples, in nats."""
    packed = lora.pack(examples)
    q = lora.logprobs(lm.hf, packed)
    return -q.gather(1, packed.targets.to(q.device)[:, None]).sum() / len(examples)


def _train(
    work: Work,
    weights: list[Tensor],
    taught: Sequence[Sequence[lora.Example]],
    config: DistillConfig,
    kept: Kept,
) -> None:
    rng, curve = random.Random(f"distilling {config.seed}"), kept.lists["curve"]
    batches = [
        [e for part in taught for e in rng.sample(list(part), min(EACH, len(part)))]
        for _ in range(config.steps)
    ]
    for weight in weights:
        weight.requires_grad_()
    with work.reporter.stage("distilling", config.steps, "steps") as advance:

        def now(step: int) -> Tensor:
            value = entropy(work.lm, batches[step])
            curve.append(value.item())
            advance(note=f"cross-entropy {curve[-1]:.3f} nats")
            return value

        lora.descend(weights, now, steps=config.steps, learning_rate=LEARNING_RATE, kept=kept)
