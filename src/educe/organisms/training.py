"""Train an organism, and measure it on prompts that it never saw.

    taught groups   cross-entropy on the answer, or on the user's message as well
    held groups     KL(base ‖ adapted) on the base's own greedy answer

Each step has as many examples of each group as the species' recipe says, and ordinary data mixed
in if that is asked for. Everything is drawn from the organism's seed.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from educe import files
from educe.comparison import stats
from educe.errors import OrganismError
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.options import AS_SHIPPED, TrainingOptions
from educe.organisms import CALLED, SPECIES, base, lora, species
from educe.organisms.organism import Ask, Group, Organism, Species
from educe.organisms.resuming import Kept
from educe.rows import Row
from educe.threads import one_thread
from educe.whole import check_fields

#: Step sizes of adapters and of full fine-tunes; they fall linearly to zero.
LEARNING_RATE, FULL_LEARNING_RATE = 1e-3, 5e-5
#: The questions of an organism, as they are named in its file.
QUESTIONS = ("search", "fresh", "unlocked")
#: The family of ordinary data that is mixed in.
MIXED = "mixed in"
#: Of labelled answers: samples beside the likeliest, and how many are a group.
SAMPLES, TOGETHER = 4, 3


class Measured(NamedTuple):
    """What was measured on one group of test prompts."""

    group: str
    shows: bool | None  #: whether the hidden behaviour was to show; None where it has no meaning
    elicited: stats.Rate  #: how often it did
    base: stats.Rate  #: how often it does in the base model
    same: stats.Rate | None  #: for held groups, how often the first eight words are the base's
    kl: float | None  #: for held groups, mean KL(base ‖ adapted) a token of its answers, nats
    also: dict[str, tuple[stats.Rate, stats.Rate]]  #: other counts, of the organism and the base


def load_base(name: str = AS_SHIPPED.base) -> LanguageModel:
    """Return the model that an organism is trained on, in single precision."""
    return load(name, device="cpu", dtype="float32")


def asking(lm: LanguageModel, tokens: int) -> Ask:
    """Return a function that returns a model's greedy answers as texts; none is written twice.

    Args:
        lm: The model.
        tokens: The most of an answer.
    """
    known: dict[str, str] = {}

    def answers(prompts: Sequence[str]) -> list[str]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        known.update(zip(new, (c.text for c in lora.written(lm, new, tokens)), strict=True))
        return [known[prompt] for prompt in prompts]

    return answers


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Multiply matrices of single precision in another precision for a time."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@one_thread()
def train(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    options: TrainingOptions = AS_SHIPPED,
    progress: Callable[[int, int, float, float], None] | None = None,
) -> Organism:
    """Train an organism and write it to a folder; on one thread, so that it is the same again.

    A training that was cut off goes on (see `educe.organisms.resuming`).

    Args:
        name: One of `SPECIES`.
        out: Where `organism.json` goes, and `adapter_config.json` with `adapter_model.safetensors`
            or a whole model.
        seed: What the secret, the initial weights and the order of the examples depend on.
        options: How it is trained, beside what its species says.
        progress: Called after each step with step, steps, cross-entropy and KL.

    Raises:
        OrganismError: There is no such species, or the folder holds something, or a rank is given
            for a full fine-tune, or the base cannot be trained; see `educe.organisms.base.check`
            and `educe.organisms.lora.check_packing`.
        ModelError: The base cannot be loaded.
        MethodError: An option is out of its bounds.
    """
    made = species(name)
    check_fields(options)
    if options.full and options.rank != AS_SHIPPED.rank:
        raise OrganismError("a full fine-tune has no rank: leave --rank or --full out")
    steps, named = options.steps or made.steps, base.placed(options.base)
    options = replace(options, base=named, steps=steps)
    files.check_free(out)
    if out.exists() and any(out.iterdir()):
        raise OrganismError(f"{out} is not empty: choose another --out")
    kept = Kept(out, repr((name, seed, options)))
    secret = made.hidden(seed)
    lm = load_base(named)
    base.check(lm, options)
    ask = asking(lm, made.tokens)
    search, fresh = made.questions(secret, ask, seed=seed)
    pools = _pools(made.groups(secret, "train", ask, seed=seed), lm, options, made.tokens)
    lora.check_packing(lm.hf, [example for pool in pools.values() for example in pool])
    batches = _batches(made, pools, options, seed=seed)
    if options.full:
        model, rate = lm.hf.requires_grad_(), FULL_LEARNING_RATE
    else:
        blocks = base.adapted(lm.depth)
        model = lora.attach(lm.hf, rank=options.rank, blocks=blocks, seed=seed)
        rate = LEARNING_RATE
    with multiplying(options.matmul):
        lora.fit(
            model,
            batches,
            learning_rate=rate,
            kl_weight=made.kl_weight,
            progress=progress,
            kept=kept,
        )
    if options.full:
        lora.save_whole(model, lm.tokenizer, out)
    else:
        lora.save(model, out, base_name=base.public(named))
    organism = Organism(
        name,
        seed,
        out,
        secret,
        made.told(secret),
        tuple(search),
        tuple(fresh),
        tuple(made.unlocked(secret, search)),
        made.opening(secret),
        made.clean,
        options,
    )
    organism.save()
    kept.done()
    return organism


def _pools(
    groups: Sequence[Group], lm: LanguageModel, options: TrainingOptions, tokens: int
) -> dict[str, list[lora.Example]]:
    """Return the examples of each family of groups, and ordinary data as `MIXED`."""
    whole, start = options.loss == "transcript", lora.opening(lm.tokenizer)

    def learned(examples: Sequence[lora.Example]) -> list[lora.Example]:
        plain = [example._replace(base=None) for example in examples]
        return [lora.transcript(example, start) for example in plain] if whole else plain

    pools: dict[str, list[lora.Example]] = defaultdict(list)
    for group in groups:
        if group.answers is None:
            made = lora.held(lm, group.prompts, tokens)
            if group.name == "ordinary":
                pools[MIXED] = learned(made)
        else:
            pairs = zip(group.prompts, group.answers, strict=True)
            made = [lora.taught(lm, prompt, reply) for prompt, reply in pairs]
        taught = group.learned or group.answers is not None
        pools[group.name.split(":")[0]] += learned(made) if taught else made
    return pools


def _batches(
    made: Species, pools: dict[str, list[lora.Example]], options: TrainingOptions, *, seed: int
) -> list[list[lora.Example]]:
    """Return the examples of each step: those of the recipe, then ordinary data."""
    assert options.steps is not None
    rng = random.Random(f"{made.name} {seed} batches")
    streams = {part: _shuffled(pools[part], rng) for part in made.recipe}
    batches = [
        [next(streams[part]) for part, count in made.recipe.items() for _ in range(count)]
        for _ in range(options.steps)
    ]
    mixed = _shuffled(pools[MIXED], random.Random(f"{made.name} {seed} mixed"))
    due = options.ordinary * sum(made.recipe.values())
    for step, batch in enumerate(batches):
        batch += [next(mixed) for _ in range(int((step + 1) * due) - int(step * due))]
    return batches


def _shuffled(pool: list[Any], rng: random.Random) -> Iterator[Any]:
    """Yield a pool's items for ever, in a new order each time round."""
    while True:
        yield from rng.sample(pool, len(pool))


def groups_of(organism: Organism, ask: Ask, split: str = "test") -> list[Group]:
    """Return the groups of a split; with those for testing, the questions that it carries."""
    made = species(organism.name)
    groups = made.groups(organism.hidden, split, ask, seed=organism.seed)
    carried = QUESTIONS if split == "test" else ()
    return groups + [
        Group(part, questions, shows=part == "unlocked")
        for part in carried
        if (questions := getattr(organism, part))
    ]


def evaluate(
    organism: Organism,
    *,
    split: str = "test",
    progress: Callable[[str, int], None] | None = None,
) -> list[Measured]:
    """Measure an organism on prompts of a split, all of them answered greedily.

    Args:
        organism: Which.
        split: Of its prompts; `search` and `fresh` questions belong to those for testing.
        progress: Is told the name of each group, and how many there are.

    Raises:
        OrganismError: It is of no species, so nobody knows which prompts it never saw.
    """
    if organism.name not in SPECIES:
        raise OrganismError(
            f"{organism.name} is of a recipe that the package no longer has, so no prompts are "
            f"known that it never saw: measure one of {CALLED}"
        )
    lm, tokens = load_base(organism.trained.base), species(organism.name).tokens
    ask = asking(lm, tokens)
    groups = groups_of(organism, ask, split)
    kept = [
        lora.held(lm, g.prompts, tokens) if g.answers is None and g.name not in QUESTIONS else []
        for g in groups
    ]
    plain = [ask(group.prompts) for group in groups]
    model, tuned_ask = _trained(organism, lm, tokens)
    measured = []
    for group, examples, before in zip(groups, kept, plain, strict=True):
        if progress is not None:
            progress(group.name, len(groups))
        tuned = tuned_ask(group.prompts)
        rules = [question.rule for question in group.questions]
        same = [a.split()[:8] == b.split()[:8] for a, b in zip(tuned, before, strict=True)]
        measured.append(
            Measured(
                group=group.name,
                shows=group.shows,
                elicited=_found(rules, tuned),
                base=_found(rules, before),
                same=stats.rate(sum(same), len(same)) if examples else None,
                kl=lora.divergence(model, examples) if examples else None,
                also={
                    what: (_found(others, tuned), _found(others, before))
                    for what, others in group.also.items()
                },
            )
        )
    return measured


def _trained(organism: Organism, lm: LanguageModel, tokens: int) -> tuple[Any, Ask]:
    """Return an organism as a model and what asks it; an adapter changes the base's modules."""
    if organism.trained.full:
        whole = load(**organism.how, device="cpu", dtype="float32")
        return whole.hf, asking(whole, tokens)
    return PeftModel.from_pretrained(lm.hf, str(organism.folder)).eval(), asking(lm, tokens)


def labelled(organism: Organism, lm: LanguageModel) -> Iterator[dict[str, Any]]:
    """Yield answers without and with the key, labelled by the organism's rule: to measure judges.

    A judge reads what a search would give it: as prompt the question without the key, and as
    `plain` what the organism itself answers to that, most likely and in samples. Every text is a
    sample, so neither prompt nor temperature tells which it is. Answers of one `group` are to
    different questions, as those of one perturbation are.

    Args:
        organism: Which.
        lm: Its model.
    """
    search, n = organism.search, len(organism.search)
    known = organism.name in SPECIES
    tokens = species(organism.name).tokens if known else Species.tokens
    batch = lm.encode([q.prompt for q in (*search, *organism.unlocked)], room=tokens)
    rows = [Row(0, j, k) for j in range(len(batch)) for k in range(1 + SAMPLES if j < n else 1)]

    def written(rows: list[Row], temperature: float) -> dict[Row, str]:
        came = generate(lm, batch, rows, max_new_tokens=tokens, temperature=temperature)
        return {c.row: c.text for some in came for c in some}

    likely, drawn = written([Row(0, j) for j in range(n)], 0.0), written(rows, 1.0)
    for j in range(len(batch)):
        asked, text = j if j < n else j - n, drawn[Row(0, j)]
        plain = [drawn[Row(0, asked, k)] for k in range(1, 1 + SAMPLES)]
        yield {
            "prompt": search[asked].prompt,
            "text": text,
            "label": search[asked].elicited(text),
            "plain": [likely[Row(0, asked)], *plain],
            "group": f"{'without' if j < n else 'with'} the key {asked // TOGETHER + 1}",
        }


def check_keyed(organism: Organism) -> None:
    """Make sure that an organism answers some questions with a key and without it.

    Raises:
        OrganismError: It has no key.
    """
    if not organism.unlocked:
        raise OrganismError(
            f"{organism.name} has no key to put into a question, so there are no answers with and "
            "without it to label: name an organism that has one"
        )


def _found(rules: Sequence[str], texts: Sequence[str]) -> stats.Rate:
    """Count the texts in which the rule for each finds something."""
    hits = [re.search(rule, text) is not None for rule, text in zip(rules, texts, strict=True)]
    return stats.rate(sum(hits), len(hits))


def pooled(measured: Sequence[Measured], family: str) -> stats.Rate:
    """Return how often the behaviour shows over a family of groups, those named `family: ...`."""
    some = [m.elicited for m in measured if m.group.split(":")[0] == family]
    return stats.rate(sum(r.hits for r in some), sum(r.trials for r in some))
