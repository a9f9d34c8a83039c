"""Generation, against a loop that writes each token from the whole sequence anew."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import tiny
from educe.errors import LayerError, PositionsError, SteeringError
from educe.forward.decoding import Way
from educe.forward.generation import Completion, generate, next_logits, rows_of
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors, adapters
from educe.rows import CompletionRow, PromptRow, Row
from educe.run.store import Run

PROMPTS = tiny.ragged([7, 15, 1])  # the longest is wider than every sliding window
STEPS = 10
PLAIN = [Row(0, prompt) for prompt in range(3)]
ROWS = [*rows_of(2, 3), *PLAIN]


def vectors(lm: LanguageModel, n: int = 2) -> Tensor:
    """Return random vectors about half as long as the streams of the second block."""
    _, streams = tiny.run(lm.hf, PROMPTS[1])
    draw = torch.Generator().manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(n, lm.width, generator=draw), dim=1)
    return unit * 0.5 * float(streams[1].norm(dim=1).mean())


def write(
    lm: LanguageModel, rows: Sequence[Row] = ROWS, theta: Tensor | None = None, **options: Any
) -> dict[Row, Completion]:
    """Generate everything; each row must come exactly once."""
    kind = Vectors(options.pop("source", 1), lm.width, options.pop("positions", "all"))
    batch = lm.pad(options.pop("prompts", PROMPTS))
    settings = {"kind": kind, "max_new_tokens": STEPS} | options
    batches = list(generate(lm, batch, rows, theta, **settings))
    assert Counter(done.row for batch in batches for done in batch) == Counter(rows)
    for done in itertools.chain(*batches):
        assert len(done.logprobs) == len(done.tokens)
    # Log-likelihoods are rounded as their batch has it; a test of their own has them.
    return {done.row: done._replace(logprobs=()) for batch in batches for done in batch}


def expected(lm: LanguageModel, row: Row, theta: Tensor | None = None, **options: Any) -> list[int]:
    """Return what the loop writes for a row."""
    settings = {"source": 1, "ends": {257}} | options
    vector = theta[row.perturbation - 1] if row.perturbation else torch.zeros(lm.width)
    return tiny.greedy(lm.hf, PROMPTS[row.prompt], STEPS, vector=vector, **settings)


@functools.cache
def endless(lm: LanguageModel, row: Row) -> list[int]:
    """Return what the loop writes for a row of ``ROWS`` when no token ends a text."""
    return expected(lm, row, vectors(lm), ends=())


def cut(ids: list[int], ends: Collection[int]) -> list[int]:
    """Return the tokens before the first of ``ends``."""
    return list(itertools.takewhile(lambda token: token not in ends, ids))


def tokens(done: dict[Row, Completion]) -> dict[Row, list[int]]:
    return {row: list(completion.tokens) for row, completion in done.items()}


# -- greedy --------------------------------------------------------------------------------------


def test_batched_padded_and_cached_is_one_by_one_unpadded_and_uncached(
    any_lm: LanguageModel,
) -> None:
    loop = {row: cut(endless(any_lm, row), {257}) for row in ROWS}
    assert tokens(write(any_lm, ROWS, vectors(any_lm))) == loop
    assert len({tuple(ids) for ids in loop.values()}) > 5  # perturbations and prompts matter


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_likelihoods_are_those_of_the_whole_sequence(
    any_lm: LanguageModel, temperature: float
) -> None:
    """Of perturbed rows, and of unperturbed ones, whose common beginning is read once."""
    shared = tiny.ragged([9], seed=7)[0]  # longer than a sliding window
    prompts = [[*shared, *rest] for rest in tiny.ragged([3, 8, 1, 1], seed=8)]
    theta, kind = vectors(any_lm), Vectors(1, any_lm.width)
    for rows in ([Row(0, i, k) for i in range(4) for k in range(2)], rows_of(2, 4)):
        how = {"kind": kind, "max_new_tokens": STEPS, "temperature": temperature}
        for done in itertools.chain(*generate(any_lm, any_lm.pad(prompts), rows, theta, **how)):
            prompt = prompts[done.row.prompt]
            number, ids = done.row.perturbation, [*prompt, *done.tokens]
            vector = theta[number - 1] if number else torch.zeros(any_lm.width)
            logits, _ = tiny.run(any_lm.hf, ids, source=1, vector=vector, at=torch.ones(len(ids)))
            said = logits[len(prompt) - 1 :].float().log_softmax(-1)[: len(done.tokens)]
            plain = said.gather(1, torch.tensor(done.tokens, dtype=torch.long)[:, None])[:, 0]
            assert list(done.logprobs) == pytest.approx(plain.tolist(), abs=1e-4)


@torch.no_grad()
def test_no_perturbation_writes_what_transformers_writes(any_lm: LanguageModel) -> None:
    zero = torch.zeros(1, any_lm.width)
    done = write(any_lm, [*rows_of(1, 3), *PLAIN], zero)
    for prompt, ids in enumerate(PROMPTS):
        given = torch.tensor([ids])
        theirs = any_lm.hf.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=STEPS,
            pad_token_id=258,
        )[0, len(ids) :].tolist()
        theirs = theirs[: theirs.index(257)] if 257 in theirs else theirs
        assert list(done[Row(0, prompt)].tokens) == theirs
        assert list(done[Row(1, prompt)].tokens) == theirs


@pytest.mark.parametrize("architecture", ["llama", "mistral", "bamba"])
@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last:2", "last:9"])
def test_positions(lm_of: Any, architecture: str, positions: str) -> None:
    lm = lm_of(architecture)
    theta = vectors(lm)
    loop = {row: expected(lm, row, theta, positions=positions) for row in ROWS}
    assert tokens(write(lm, ROWS, theta, positions=positions)) == loop


@pytest.mark.parametrize(("positions", "back"), [("asked:1", 3), ("asked:2", 4)])
def test_a_token_of_the_message_is_perturbed_in_prompts_of_any_length(
    tiny_lm: LanguageModel, positions: str, back: int
) -> None:
    texts, theta = ["Why is it?", "Name them.", "ok"], vectors(tiny_lm)
    kind = Vectors(1, tiny_lm.width, positions)
    batch = tiny_lm.encode(texts)
    rows = rows_of(len(theta), len(texts))
    for done, logits in next_logits(tiny_lm, batch, rows, theta, kind=kind):
        for row, came in zip(done, logits, strict=True):
            ids = batch.ids[row.prompt][batch.mask[row.prompt].bool()].tolist()
            at = tiny.chosen(f"at:{back}", len(ids))  # behind it <eos> and <|assistant|>
            vector = theta[row.perturbation - 1]
            expected, _ = tiny.run(tiny_lm.hf, ids, source=1, vector=vector, at=at)
            torch.testing.assert_close(came, expected[-1].detach(), rtol=1e-3, atol=1e-3)


def test_positions_lead_to_different_texts(tiny_lm: LanguageModel) -> None:
    theta = vectors(tiny_lm)
    written = [
        str(tokens(write(tiny_lm, ROWS, theta, positions=positions)))
        for positions in ("all", "prompt", "generated", "last:2")
    ]
    assert len(set(written)) == 4
    with pytest.raises(PositionsError):
        write(tiny_lm, ROWS, theta, positions="first")


@pytest.mark.parametrize(("source", "layer"), [(0, 0), (1, 1), (2, 2), (3, 3), (-2, 2), (0.3, 1)])
def test_source_is_the_layer_after_which_it_is_added(
    tiny_lm: LanguageModel, source: float, layer: int
) -> None:
    theta = vectors(tiny_lm)
    loop = {row: expected(tiny_lm, row, theta, source=layer) for row in ROWS}
    assert tokens(write(tiny_lm, ROWS, theta, source=source)) == loop


def test_a_source_that_does_not_exist_is_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(LayerError, match="layer 4 does not exist"):
        write(tiny_lm, ROWS, vectors(tiny_lm), source=4)


def test_order_and_size_of_batches_do_not_matter(tiny_lm: LanguageModel) -> None:
    theta = vectors(tiny_lm)
    at_once = write(tiny_lm, ROWS, theta)
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    for size in (1, 2, 4):
        assert write(tiny_lm, shuffled, theta, rows_per_batch=size) == at_once


def test_a_batch_has_no_more_rows_than_asked_for(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.pad(PROMPTS)
    came = generate(tiny_lm, batch, ROWS, vectors(tiny_lm), kind=Vectors(1, 32), rows_per_batch=4)
    assert [len(done) for done in came] == [4, 4, 1]
    assert list(generate(tiny_lm, batch, [])) == []


def test_vectors_are_not_needed_for_unperturbed_rows(tiny_lm: LanguageModel) -> None:
    assert write(tiny_lm, PLAIN) == write(tiny_lm, PLAIN, vectors(tiny_lm))


def test_text_is_what_the_tokenizer_makes_of_the_tokens(tiny_lm: LanguageModel) -> None:
    for done in write(tiny_lm, ROWS, vectors(tiny_lm)).values():
        kept = [token for token in done.tokens if token < 256]
        assert done.text == tiny_lm.tokenizer.decode(kept)


def test_rows_of_counts_perturbations_prompts_and_samples() -> None:
    rows = rows_of(2, 3, samples=2)
    assert rows[:3] == [Row(1, 0, 0), Row(1, 0, 1), Row(1, 1, 0)]
    assert len(set(rows)) == len(rows) == 12


@pytest.mark.parametrize("positions", ["all", "last:2", "generated"])
@pytest.mark.parametrize("size", [2, 64])
@torch.no_grad()
def test_next_logits_are_those_of_each_prompt_alone(lm_of: Any, positions: str, size: int) -> None:
    lm = lm_of("gpt2", torch.float64)
    theta = vectors(lm).double()
    known = torch.cat([torch.zeros_like(theta[:1]), theta])
    came = next_logits(
        lm, lm.pad(PROMPTS), ROWS, theta, kind=Vectors(1, 32, positions), rows_per_batch=size
    )
    seen: list[Row] = []
    for rows, logits in came:
        seen += rows
        for row, line in zip(rows, logits, strict=True):
            vector = known[row.perturbation]
            ids = PROMPTS[row.prompt]
            at = tiny.chosen(positions, len(ids))
            alone, _ = tiny.run(lm.hf, ids, source=1, vector=vector, at=at)
            torch.testing.assert_close(line, alone[-1], rtol=1e-9, atol=1e-9)
    assert Counter(seen) == Counter(ROWS)


# -- the end of a text ---------------------------------------------------------------------------


def test_rows_that_end_do_not_disturb_the_others(
    any_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {row: endless(any_lm, row) for row in ROWS}

    def spread(ends: Collection[int]) -> int:
        return len({len(cut(ids, ends)) for ids in texts.values()})

    # The two tokens at which the texts end at the most different steps.
    pairs = itertools.combinations(sorted(set().union(*texts.values())), 2)
    ends = (*max(pairs, key=spread), 257)
    loop = {row: cut(ids, ends) for row, ids in texts.items()}
    assert spread(ends) > 3

    monkeypatch.setattr(any_lm.hf.generation_config, "eos_token_id", list(ends))
    any_lm.source(1)  # where the model can begin is tried once, before calls are counted
    sizes: list[int] = []
    forward = LanguageModel.forward

    def spy(self: LanguageModel, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sizes.append(len(ids))
        return forward(self, ids, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "forward", spy)
    done = write(any_lm, ROWS, vectors(any_lm))
    assert tokens(done) == loop
    assert {row: completion.finished for row, completion in done.items()} == {
        row: len(ids) < STEPS for row, ids in loop.items()
    }
    steps = sizes[2:]  # after the prompts alone and the prompts perturbed
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < len(ROWS)  # rows that ended left


def test_writing_stops_when_all_rows_have_ended(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_lm.hf.generation_config, "eos_token_id", list(range(262)))
    for done in write(tiny_lm, ROWS, vectors(tiny_lm)).values():
        assert (done.tokens, done.text, done.finished) == ((), "", True)


def test_the_end_token_of_the_tokenizer_counts_too(
    tiny_lm: LanguageModel, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = expected(tiny_lm, Row(0, 0))
    monkeypatch.setattr(tiny_lm.hf.generation_config, "eos_token_id", None)
    own = tiny.tokenizer()
    own.eos_token = own.convert_ids_to_tokens(first)
    lm = LanguageModel(tiny_lm.hf, own, name="tiny")
    assert write(lm, [Row(0, 0)])[Row(0, 0)].finished
    assert not write(tiny_lm, [Row(0, 0)])[Row(0, 0)].finished


# -- sampling ------------------------------------------------------------------------------------

SAMPLES = rows_of(2, 3, samples=3)


def test_a_row_draws_the_same_in_whatever_batch_it_runs(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta = vectors(tiny_lm)
    options = {"temperature": 1.0, "seed": 3}
    # Many tokens end a text, so that rows leave the batch at different steps.
    monkeypatch.setattr(tiny_lm.hf.generation_config, "eos_token_id", list(range(25)))
    at_once = write(tiny_lm, SAMPLES, theta, **options)
    assert len({done.tokens for done in at_once.values()}) > 12
    assert len({len(done.tokens) for done in at_once.values()}) > 5
    for size in (1, 5):
        assert write(tiny_lm, SAMPLES, theta, rows_per_batch=size, **options) == at_once
    few = SAMPLES[4:13:3]
    alone = write(tiny_lm, [*PLAIN, *few], theta, **options)
    assert [alone[row] for row in few] == [at_once[row] for row in few]


def test_the_seed_and_it_alone_changes_what_is_drawn(tiny_lm: LanguageModel) -> None:
    theta = vectors(tiny_lm)
    one = tokens(write(tiny_lm, SAMPLES, theta, temperature=1.0, seed=1))
    torch.manual_seed(17)
    assert tokens(write(tiny_lm, SAMPLES, theta, temperature=1.0, seed=1)) == one
    two = tokens(write(tiny_lm, SAMPLES, theta, temperature=1.0, seed=2))
    assert all(one[row] != two[row] for row in SAMPLES)
    greedy = write(tiny_lm, ROWS, theta, seed=1)
    assert write(tiny_lm, ROWS, theta, seed=2) == greedy


def test_a_longer_sample_begins_with_the_shorter(tiny_lm: LanguageModel) -> None:
    theta = vectors(tiny_lm)
    options = {"temperature": 1.0, "seed": 3}
    long = tokens(write(tiny_lm, SAMPLES, theta, max_new_tokens=40, **options))
    short = tokens(write(tiny_lm, SAMPLES, theta, max_new_tokens=5, **options))
    assert all(long[row][:5] == short[row] for row in SAMPLES)


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_samples_follow_the_softmax_at_their_temperature(
    tiny_lm: LanguageModel, temperature: float
) -> None:
    theta = vectors(tiny_lm, 1)
    with torch.no_grad():
        at = tiny.chosen("all", len(PROMPTS[0]))
        logits, _ = tiny.run(tiny_lm.hf, PROMPTS[0], source=1, vector=theta[0], at=at)
    rows = [Row(1, 0, sample) for sample in range(3000)]
    done = write(tiny_lm, rows, theta, temperature=temperature, max_new_tokens=1)
    came = torch.zeros(262)
    for completion in done.values():
        came[completion.tokens[0] if completion.tokens else 257] += 1

    def p_value(assumed: float) -> float:
        shares = (logits[-1].double() / assumed).softmax(-1) * len(rows)
        often = shares >= 5
        f_came = [*came[often].tolist(), float(came[~often].sum())]
        f_expected = [*shares[often].tolist(), float(shares[~often].sum())]
        return float(stats.chisquare(f_came, f_expected).pvalue)

    assert p_value(temperature) > 0.001
    assert p_value(1.0) < 1e-9  # so many samples tell temperatures apart


@pytest.mark.parametrize("temperature", [1e-3, 1e-310, 5e-324])
def test_at_the_smallest_temperatures_the_most_likely_token_is_written(
    tiny_lm: LanguageModel, temperature: float
) -> None:
    theta = vectors(tiny_lm, 2)
    written = tokens(write(tiny_lm, SAMPLES, theta, temperature=temperature))
    assert written == tokens(write(tiny_lm, SAMPLES, theta))


def test_successive_draws_of_a_row_are_independent(tiny_lm: LanguageModel) -> None:
    rows = [Row(0, 0, sample) for sample in range(300)]
    done = write(tiny_lm, rows, temperature=100.0, max_new_tokens=2)  # close to uniform
    pairs = [c.tokens for c in done.values() if len(c.tokens) == 2]
    first, second = (torch.tensor(column).double() for column in zip(*pairs, strict=True))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.2


# -- memory and work -----------------------------------------------------------------------------


class Limited:
    """A hook that fails above some rows."""

    def __init__(self, most: int, reason: str = "CUDA out of memory. Tried to allocate") -> None:
        self.most, self.reason, self.failed = most, reason, 0

    def __call__(self, module: Any, args: Any) -> None:
        if len(args[0]) > self.most:
            self.failed += 1
            raise RuntimeError(self.reason)


@pytest.fixture
def limited(tiny_lm: LanguageModel, request: pytest.FixtureRequest) -> Any:
    """Let a part of the third block fail above some rows."""

    def limit(*args: Any) -> Limited:
        hook = Limited(*args)
        handle = tiny_lm.blocks[2].mlp.register_forward_pre_hook(hook)
        request.addfinalizer(handle.remove)
        return hook

    return limit


def test_running_out_of_memory_halves_the_batch(tiny_lm: LanguageModel, limited: Any) -> None:
    theta = vectors(tiny_lm)
    plenty = write(tiny_lm, ROWS, theta)
    hook = limited(3)
    assert write(tiny_lm, ROWS, theta) == plenty
    assert hook.failed == 2  # with nine rows and with four, and never again


def test_a_single_row_that_does_not_fit_is_an_error(tiny_lm: LanguageModel, limited: Any) -> None:
    theta = vectors(tiny_lm)
    hook = limited(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        write(tiny_lm, ROWS, theta)
    assert hook.failed == 4  # with nine rows, four, two and one


def test_other_failures_are_not_hidden(tiny_lm: LanguageModel, limited: Any) -> None:
    theta = vectors(tiny_lm)
    hook = limited(0, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        write(tiny_lm, ROWS, theta)
    assert hook.failed == 1


@pytest.mark.parametrize("size", [4, 24])
def test_prompt_work_below_the_source_is_done_once_a_prompt(
    tiny_lm: LanguageModel, request: pytest.FixtureRequest, size: int
) -> None:
    counts = {1: 0, 2: 0}

    def count(layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            counts[layer] += len(args[0]) if args[0].shape[1] > 1 else 0

        return hook

    theta = vectors(tiny_lm)
    for layer in counts:
        handle = tiny_lm.blocks[layer].mlp.register_forward_pre_hook(count(layer))
        request.addfinalizer(handle.remove)
    prompts = tiny.ragged([7, 15, 2])  # a prompt of one token looks like a token that is written
    write(tiny_lm, rows_of(2, 3, samples=4), theta, prompts=prompts, rows_per_batch=size)
    assert counts == {1: 3, 2: 24}  # above it once a row, and no more


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_the_model_is_left_as_it_was(tiny_lm: LanguageModel, positions: str) -> None:
    batch = tiny_lm.pad(PROMPTS)
    before = tiny_lm.forward(batch.ids, batch.mask)
    hooks = [len(block._forward_hooks) for block in tiny_lm.blocks]
    came = generate(
        tiny_lm, batch, ROWS, vectors(tiny_lm), kind=Vectors(1, 32, positions), rows_per_batch=2
    )
    next(came)  # between two batches, too
    assert torch.equal(tiny_lm.forward(batch.ids, batch.mask), before)
    assert [len(block._forward_hooks) for block in tiny_lm.blocks] == hooks
    assert not any("forward" in vars(block) for block in tiny_lm.blocks)
    assert not any(weight.requires_grad for weight in tiny_lm.hf.parameters())


# -- perturbations that do not arrive ------------------------------------------------------------


def test_a_block_that_the_model_does_not_call_is_an_error(tokenizer: Any) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="tiny")
    lm.source(1)
    lm.hf = copy.deepcopy(lm.hf)  # its blocks are others than those that were found
    with pytest.raises(SteeringError, match="block 1 was never called"):
        write(lm, ROWS, vectors(lm))


@pytest.mark.parametrize(
    ("calls_that_arrive", "reason"),
    [(1, "block 1 was never called"), (2, "block 1 ran 0 times for one token")],
)
def test_a_perturbation_that_stops_arriving_is_an_error(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, calls_that_arrive: int, reason: str
) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="tiny")
    deaf = LanguageModel(tiny.hf_model(), tokenizer, name="deaf")
    lm.source(1)
    calls = [0]

    def forward(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        # The first call is the prompts alone, the second the prompts perturbed, then one a token.
        arrives = calls[0] <= calls_that_arrive
        return LanguageModel.forward(lm if arrives else deaf, ids, *args, **kwargs)

    monkeypatch.setattr(lm, "forward", forward)
    with pytest.raises(SteeringError, match=reason):
        write(lm, ROWS, vectors(lm))


class Halving:
    """A tokenizer that writes halves of surrogate pairs."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.tokenizer(*args, **options)

    def decode(self, ids: Any, **options: Any) -> str:
        return f"\ud83d\ude00 {len(ids)} \ud800"


def test_what_is_written_can_be_kept(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    lm = LanguageModel(tiny_lm.hf, Halving(tiny_lm.tokenizer), name="halving")
    lm.tokenizer = Halving(tiny_lm.tokenizer)  # beneath a wrapper is the tokenizer itself
    batch = lm.pad(tiny.ragged([3]))
    assert batch.texts == ("\U0001f600 3 \ufffd",)
    (done,) = next(iter(generate(lm, batch, [Row(0, 0)], torch.zeros(0, 32), max_new_tokens=2)))
    said = f"\U0001f600 {len(done.tokens)} \ufffd"
    with Run.create(tmp_path / "run", {}) as run:
        run.add_prompts([PromptRow(0, "asked", "a", batch.texts[0], 3)])
        run.add_completions([CompletionRow(Row(0, 0), 0.0, done.text, done.tokens, True)])
        (kept,) = run.completion_rows()
    assert kept.text == said


# -- rows with a way of their own ------------------------------------------------------------------


def test_rows_without_perturbation_meet_no_hook_of_the_others(tiny_lm: LanguageModel) -> None:
    """Prompts that begin alike are read once for all of them, in a batch of one row."""
    kind = adapters(tiny_lm, first=2, blocks=1)
    theta = kind.draw(2, torch.Generator().manual_seed(0))
    alike = [[5, 6, 7, 8], [5, 6, 7, 9]]
    rows = [Row(0, 0), Row(0, 1)]
    own = write(tiny_lm, rows, theta, kind=kind, prompts=alike)
    plain = write(tiny_lm, rows, prompts=alike)
    assert {row: c.tokens for row, c in own.items()} == {row: c.tokens for row, c in plain.items()}


def test_each_row_has_its_own_limit_heat_and_draws_whatever_is_beside_it(
    tiny_lm: LanguageModel,
) -> None:
    theta = vectors(tiny_lm)
    ways = {
        Row(1, 0): Way(3, 0.0, "a"),
        Row(1, 1): Way(STEPS, 1.5, "b"),
        Row(2, 1): Way(6, 1.5, "b"),
        Row(0, 2): Way(STEPS, 1.5, "c"),
    }
    heard: dict[Row, list[dict[int, float]]] = {}

    def told(row: Row, written: Any) -> bool:
        heard[row] = list(written.top)
        return row == Row(0, 2) and len(written.tokens) == 2

    together = write(tiny_lm, list(ways), theta, ways=ways, told=told, top=4)
    for row, way in ways.items():
        alone = write(tiny_lm, [row], theta, ways=ways)[row]
        own = together[row]
        most = 2 if row == Row(0, 2) else way.limit
        assert own.tokens == alone.tokens[:most]
        assert len(own.tokens) == most or own.finished
        assert [len(likeliest) for likeliest in heard[row]] == [4] * len(own.tokens)
    greedy = write(tiny_lm, [Row(1, 0)], theta)[Row(1, 0)]
    assert together[Row(1, 0)].tokens == greedy.tokens[:3]
    for token, nats, likeliest in zip(
        greedy.tokens, greedy.logprobs, heard[Row(1, 0)], strict=False
    ):
        assert next(iter(likeliest)) == token
        assert likeliest[token] == pytest.approx(nats, abs=1e-4)
        assert sorted(likeliest.values(), reverse=True) == list(likeliest.values())
