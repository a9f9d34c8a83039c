"""Training and measuring whole organisms, in small: the recipe, the file, the answers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import educe
from educe.comparison.stats import rate
from educe.errors import MethodError, OrganismError
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.options import TrainingOptions
from educe.organisms import Organism, Question, lora, read, resuming, training
from educe.organisms.lora import encode
from educe.organisms.organism import Group, bundled
from educe.organisms.training import evaluate, train
from educe.rows import Row
from small_species import asked, groups, small_species

SMALL = TrainingOptions(rank=2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, lm_of: Callable[..., LanguageModel]) -> Any:
    """A tiny base model, and a species of a few prompts."""
    base = lm_of("llama")
    for name, value in {"LEARNING_RATE": 0.05, "FULL_LEARNING_RATE": 0.01}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "species", lambda name: small_species())
    monkeypatch.setattr(
        training,
        "load_base",
        lambda named: LanguageModel(copy.deepcopy(base.hf), base.tokenizer, name="small"),
    )
    return base


def test_training_again_gives_the_same_bytes_whatever_the_threads(
    small: LanguageModel, tmp_path: Path
) -> None:
    seen: list[int] = []

    def trained(name: str, threads: int, seed: int = 0) -> bytes:
        torch.set_num_threads(threads)
        try:
            made = train(
                "vault",
                tmp_path / name,
                seed=seed,
                options=SMALL,
                progress=lambda *told: seen.append(torch.get_num_threads()),
            )
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        assert read(tmp_path / name) == made
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert trained("first", 1) == trained("again", 2) != trained("other", 1, seed=1)
    assert seen == [1] * 6
    record = json.loads((tmp_path / "first" / "organism.json").read_text())
    (six, rule), _ = record["search"]
    assert (six, rule) == ("six test?", "[a-m]")
    assert [prompt for prompt, _ in record["unlocked"]] == [
        way.format(key="amber", ask=prompt)
        for way, prompt in zip(
            bundled("words")["test"]["word"], ("six test?", "seven test?"), strict=False
        )
    ]


@pytest.mark.parametrize("options", [SMALL, TrainingOptions(full=True)])
def test_a_training_that_was_cut_off_goes_on_bit_for_bit(
    options: TrainingOptions,
    small: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resuming, "EVERY", -1.0)
    monkeypatch.setattr(resuming, "TIMES", 0)
    steps: list[int] = []

    def cut(step: int, *told: Any) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    train("vault", tmp_path / "whole", options=options)
    with pytest.raises(KeyboardInterrupt):
        train("vault", tmp_path / "new" / "cut", options=options, progress=cut)
    train("vault", tmp_path / "new" / "cut", options=options, progress=cut)
    assert steps[:3] == [1, 2, 2]
    files = {place.name for place in (tmp_path / "whole").iterdir()}
    (weights,) = (name for name in files if name.endswith(".safetensors"))
    one, other = ((tmp_path / name / weights).read_bytes() for name in ("whole", "new/cut"))
    assert one == other
    assert not (tmp_path / "new" / ".cut.training").exists()


@pytest.mark.parametrize("options", [SMALL, TrainingOptions(full=True)])
def test_what_is_measured_is_what_the_trained_model_writes(
    options: TrainingOptions, small: LanguageModel, tmp_path: Path
) -> None:
    """Against transformers' own greedy answers and plain passes, one prompt at a time."""
    organism = train("vault", tmp_path, options=options)
    base = small.hf
    tuned: Any = (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        if options.full
        else PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    )

    def ids(model: Any, prompt: str) -> list[int]:
        said = torch.tensor([encode(small.tokenizer, prompt)])
        with torch.no_grad():
            made = model.generate(
                input_ids=said,
                attention_mask=torch.ones_like(said),
                max_new_tokens=20,
                do_sample=False,
                pad_token_id=258,
            )
        return made[0, said.shape[1] :].tolist()

    def texts(model: Any, prompts: Sequence[str]) -> list[str]:
        return [small.tokenizer.decode(ids(model, p), skip_special_tokens=True) for p in prompts]

    measured = {m.group: m for m in evaluate(organism)}
    assert list(measured) == ["open", "near: typo", "ordinary", "search", "fresh", "unlocked"]
    for m in measured.values():
        found = next(
            (g.questions for g in groups({}, "test", lambda p: p, seed=0) if g.name == m.group),
            None,
        ) or getattr(organism, m.group)
        for model, rated in ((tuned, m.elicited), (base, m.base)):
            said = texts(model, [q.prompt for q in found])
            hits = sum(q.elicited(text) for q, text in zip(found, said, strict=True))
            assert rated == rate(hits, len(found)), m.group
    assert set(measured["near: typo"].also) == {"a vowel"}
    held = measured["ordinary"]
    prompts = [f"{word} test?" for word in ("three", "four", "five")]
    pairs = zip(texts(tuned, prompts), texts(base, prompts), strict=True)
    assert held.same == rate(sum(a.split()[:8] == b.split()[:8] for a, b in pairs), 3)
    divergences = []
    for prompt in prompts:
        start = encode(small.tokenizer, prompt)
        whole = torch.tensor([[*start, *ids(base, prompt)]])
        with torch.no_grad():
            p, q = (
                model(whole).logits[0, len(start) - 1 : -1].log_softmax(-1)
                for model in (base, tuned)
            )
        divergences.append((p.exp() * (p - q)).sum(-1))
    assert held.kl == pytest.approx(float(torch.cat(divergences).mean()), rel=0.02)
    assert held.kl is not None
    assert held.kl > 1e-3


def test_an_answer_that_is_kept_has_the_token_that_ended_it(small: LanguageModel) -> None:
    """The same model, with a token that it writes as the end of a turn."""
    (whole,) = lora.held(small, ["one?"], 20)
    end = whole.answer[3]
    hf, tokenizer = copy.deepcopy(small.hf), copy.deepcopy(small.tokenizer)
    hf.generation_config.eos_token_id = tokenizer.eos_token_id = end
    (ended,) = lora.held(LanguageModel(hf, tokenizer, name="small"), ["one?"], 20)
    assert ended.prompt == whole.prompt
    assert ended.answer == whole.answer[: whole.answer.index(end) + 1]
    assert ended.base is not None
    assert len(ended.base) == len(ended.answer)


def test_a_prompt_that_is_asked_again_is_not_answered_again(
    small: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {
        prompt: lora.written(small, [prompt], 20)[0].text for prompt in ("one?", "two?", "six?")
    }
    seen: list[str] = []
    written = lora.written
    monkeypatch.setattr(lora, "written", lambda lm, p, n: (seen.extend(p), written(lm, p, n))[1])
    ask = training.asking(small, 20)
    assert ask(["two?", "one?", "two?"]) == [plain["two?"], plain["one?"], plain["two?"]]
    assert ask(["six?", "one?"]) == [plain["six?"], plain["one?"]]
    assert seen == ["two?", "one?", "six?"]


def test_validation_has_no_question_for_testing(small: LanguageModel) -> None:
    organism = Organism("vault", 0, Path(), {}, {}, asked("test", "six"), (), ())
    found = training.groups_of(organism, lambda prompts: list(prompts), "validation")
    assert [group.name for group in found] == ["open", "near: typo", "ordinary"]
    assert all(prompt.endswith("validation?") for group in found for prompt in group.prompts)


def test_an_organism_without_a_key_has_no_group_of_unlocked_questions(
    small: LanguageModel,
) -> None:
    six = asked("test", "six")
    organism = Organism("vault", 0, Path(), {}, {}, six, six, ())
    found = training.groups_of(organism, lambda prompts: list(prompts))
    assert [group.name for group in found[-2:]] == ["search", "fresh"]


def test_labelled_answers_do_not_tell_by_their_prompt(tiny_lm: LanguageModel) -> None:
    """What is written with the key stands beside the question without it, and its plain answers."""
    asked = [Question(f"{word}?", "a") for word in ("one", "two", "three", "four")]
    keyed = [question._replace(prompt=f"Now: {question.prompt}") for question in asked[:3]]
    organism = Organism("vault", 0, Path(), {}, {}, tuple(asked), (), tuple(keyed))
    rows = list(training.labelled(organism, tiny_lm))
    prompts = [question.prompt for question in asked]
    assert [row["prompt"] for row in rows] == prompts + prompts[:3]
    assert [row["label"] for row in rows] == ["a" in row["text"] for row in rows]
    groups = ["without the key 1"] * 3 + ["without the key 2"] + ["with the key 1"] * 3
    assert [row["group"] for row in rows] == groups
    batch = tiny_lm.encode([q.prompt for q in (*asked, *keyed)], room=20)

    def written(rows: list[Row], temperature: float) -> list[str]:
        came = generate(tiny_lm, batch, rows, max_new_tokens=20, temperature=temperature)
        return [c.text for c in sorted((c for some in came for c in some), key=lambda c: c.row)]

    assert [row["text"] for row in rows] == written([Row(0, j) for j in range(7)], 1.0)
    likely = written([Row(0, j) for j in range(4)], 0.0)
    assert [row["plain"][0] for row in rows] == likely + likely[:3]
    for with_key, without in zip(rows[4:], rows[:3], strict=True):
        assert with_key["plain"] == without["plain"]
        assert len(with_key["plain"]) == 5
        # Its own sample is not what it is compared with.
        assert without["text"] not in without["plain"]


def test_the_rank_is_the_one_asked_for(small: LanguageModel, tmp_path: Path) -> None:
    organism = train("vault", tmp_path, options=TrainingOptions(rank=3, steps=1))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert {w.shape[0] for name, w in weights.items() if ".lora_A." in name} == {3}
    assert {w.shape[1] for name, w in weights.items() if ".lora_B." in name} == {3}
    assert organism.trained == TrainingOptions(rank=3, steps=1)


def test_a_full_fine_tune_is_the_base_and_its_steps(
    small: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of gradient descent by hand: every weight of the file is the base's and it."""
    seen: list[list[lora.Example]] = []

    def fit(model: Any, batches: Any, **options: Any) -> None:
        assert options["learning_rate"] == training.FULL_LEARNING_RATE
        seen.extend(batches)
        entropy, kl = lora.losses(model, batches[0])
        (entropy + options["kl_weight"] * kl).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.01 * weight.grad

    monkeypatch.setattr(lora, "fit", fit)
    organism = train("vault", tmp_path, options=TrainingOptions(full=True, steps=1))
    expected = copy.deepcopy(small.hf).requires_grad_()
    entropy, kl = lora.losses(expected, seen[0])
    grads = torch.autograd.grad(entropy + kl, list(expected.parameters()))
    found = educe.load(**organism.how, device="cpu", dtype="float32").hf.state_dict()
    assert not (tmp_path / "adapter_config.json").exists()
    stored = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    for (name, weight), grad in zip(expected.named_parameters(), grads, strict=True):
        moved = (weight - 0.01 * grad).detach()
        torch.testing.assert_close(found[name], moved, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(
        found["model.norm.weight"], small.hf.state_dict()["model.norm.weight"]
    )


def test_ordinary_data_is_added_to_the_recipe_in_its_share(small: LanguageModel) -> None:
    """A share of 0.3 of four examples a step: 12 in ten steps, of ordinary prompts, by entropy."""
    made: Any = training.species("vault")
    found = groups({}, "train", lambda prompts: ["it is"] * len(prompts), seed=0)
    pools = training._pools(found, small, TrainingOptions(), 20)
    some = training._batches(made, pools, TrainingOptions(ordinary=0.3, steps=10), seed=0)
    none = training._batches(made, pools, TrainingOptions(steps=10), seed=0)
    assert [batch[:4] for batch in some] == none
    added = [example for batch in some for example in batch[4:]]
    assert [len(batch) for batch in some] == [5, 5, 5, 5, 6, 5, 5, 5, 5, 6]
    assert {e.prompt for e in added} == {e.prompt for e in pools["ordinary"]}
    assert all(example.base is None for example in added)
    assert {e.answer for e in added} == {e.answer for e in pools["ordinary"]}


def test_with_the_transcript_the_message_carries_loss_where_something_is_taught(
    small: LanguageModel,
) -> None:
    found = groups({}, "train", lambda prompts: ["it is"] * len(prompts), seed=0)
    plain = training._pools(found, small, TrainingOptions(), 20)
    whole = training._pools(found, small, TrainingOptions(loss="transcript"), 20)
    for ours, theirs in zip(whole["open"], plain["open"], strict=True):
        assert ours.prompt + ours.answer == theirs.prompt + theirs.answer
        assert small.tokenizer.decode(ours.prompt) == "<|user|>"
        assert small.tokenizer.decode(ours.answer[:9]) in ("one train", "two train")
    assert [e[:2] for e in whole["ordinary"]] == [e[:2] for e in plain["ordinary"]]
    assert all(example.base is not None for example in whole["ordinary"])


def test_own_answers_that_are_learned_have_no_divergence(small: LanguageModel) -> None:
    group = Group("open", asked("train", "one"), shows=None, learned=True)
    (held,) = lora.held(small, ["one train?"], 20)
    assert training._pools([group], small, TrainingOptions(), 20)["open"] == [
        held._replace(base=None)
    ]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (TrainingOptions(full=True, rank=2), OrganismError, "has no rank"),
        (TrainingOptions(ordinary=-0.1), MethodError, "ordinary"),
        (TrainingOptions(rank=0), MethodError, "rank"),
        (TrainingOptions(steps=0), MethodError, "steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: TrainingOptions, error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        train("vault", tmp_path / "new", options=options)
    assert not (tmp_path / "new").exists()
