"""Training of adapters: the packing, the losses and the file, on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A random Llama of two blocks: the packing must hold for any weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,  # large enough that attention patterns matter
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def examples() -> list[Any]:
    from educe.organisms.lora import Example

    return [
        Example((1, 2, 3, 4, 5), (6, 7, 8)),
        Example((1, 2, 3, 9), (10, 11)),
        Example((1, 2, 3, 4, 5, 12, 13), (14,)),
    ]


def test_only_answer_tokens_are_labelled() -> None:
    from educe.organisms.lora import pack

    packed = pack(examples())
    assert packed.targets.tolist() == [6, 7, 8, 10, 11, 14]
    assert packed.owner.tolist() == [0, 0, 0, 1, 1, 2]
    # An answer token is predicted from the token before it: the prompt's last, then the answer's.
    assert packed.tokens[0, packed.keep].tolist() == [5, 6, 7, 9, 10, 13]
    assert packed.tokens[0].tolist().count(1) == 1
    assert packed.tokens.shape[1] == 3 + (2 + 2) + (1 + 1) + 4


def test_a_packed_row_equals_its_examples_one_by_one(tiny: Any) -> None:
    import torch

    from educe.organisms.lora import logprobs, pack

    together = logprobs(tiny, pack(examples()))
    for index, example in enumerate(examples()):
        alone = tiny(torch.tensor([example.prompt + example.answer])).logits[0].log_softmax(-1)
        first = len(example.prompt) - 1
        expected = alone[first : first + len(example.answer)]
        packed = together[pack(examples()).owner == index]
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


def test_identical_prompts_still_predict_their_first_answer_token(tiny: Any) -> None:
    from educe.organisms.lora import Example, logprobs, pack

    packed = pack([Example((1, 2, 3), (4,)), Example((1, 2, 3), (5,))])
    assert packed.tokens[0, packed.keep].tolist() == [3, 3]
    assert logprobs(tiny, packed).shape == (2, 64)


def test_kl_is_zero_for_the_base_and_training_changes_only_the_adapter(
    tiny: Any, tmp_path: Path
) -> None:
    import copy

    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    from educe.organisms import lora

    base = copy.deepcopy(tiny)
    before = copy.deepcopy(base.state_dict())
    plain = examples()
    distributions = lora.logprobs(base, lora.pack(plain[:1])).detach()
    batch = [plain[0]._replace(base=distributions), *plain[1:]]
    state = torch.random.get_rng_state()
    model = lora.attach(base, rank=2, blocks=[0, 1], seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)

    entropy, kl = lora.losses(model, batch)
    assert kl.item() == pytest.approx(0.0, abs=1e-5)
    lora.fit(model, [batch] * 60, learning_rate=1e-2, kl_weight=1.0)
    after, _ = lora.losses(model, batch)
    assert after < entropy / 2

    lora.save(model, tmp_path, base_name="tiny")
    for name, weight in before.items():
        module, _, parameter = name.rpartition(".")
        owner = model.get_base_model().get_submodule(module)
        tuned = getattr(owner, "base_layer", owner)
        assert torch.equal(getattr(tuned, parameter), weight), name
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float16}
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny), str(tmp_path)).eval()
    packed = lora.pack(plain)
    torch.testing.assert_close(
        lora.logprobs(loaded, packed), lora.logprobs(model, packed), atol=2e-2, rtol=2e-2
    )


def test_attach_depends_on_its_seed_alone(tiny: Any) -> None:
    import copy

    import torch

    from educe.organisms import lora

    def weights(seed: int) -> Any:
        model = lora.attach(copy.deepcopy(tiny), rank=2, blocks=[1], seed=seed)
        return torch.cat([w.flatten() for w in model.parameters() if w.requires_grad])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_only_the_blocks_asked_for_get_an_adapter(tiny: Any) -> None:
    import copy

    from educe.organisms import lora

    model = lora.attach(copy.deepcopy(tiny), rank=2, blocks=[1], seed=0)
    names = [name for name, w in model.named_parameters() if w.requires_grad]
    assert len(names) == 2 * len(lora.PROJECTIONS)
    assert all(".layers.1." in name for name in names)


def test_losses_are_those_of_whole_answers_one_by_one(tiny: Any) -> None:
    """Cross-entropy and KL by hand, from plain passes over one sequence each."""
    import copy

    import torch

    from educe.organisms import lora

    other = copy.deepcopy(tiny)
    for weight in other.parameters():
        weight.data *= 1.1

    def answered(model: Any, example: Any) -> Any:
        ids = torch.tensor([example.prompt + example.answer])
        first = len(example.prompt) - 1
        with torch.no_grad():
            return model(ids).logits[0].log_softmax(-1)[first : first + len(example.answer)]

    first, second, third = examples()
    held = [e._replace(base=answered(other, e)) for e in (first, third)]
    entropy, kl = lora.losses(tiny, [held[0], second, held[1]])
    said = answered(tiny, second)
    expected = -said[range(len(second.answer)), list(second.answer)].sum()
    apart = sum(
        (answered(other, e).exp() * (answered(other, e) - answered(tiny, e))).sum()
        for e in (first, third)
    )
    assert entropy.item() == pytest.approx(expected.item(), rel=1e-4)
    assert kl.item() == pytest.approx(apart.item() / 2, rel=1e-4)
    assert kl > 0.01


def test_the_loss_of_a_transcript_is_that_of_its_tokens_after_the_beginning(tiny: Any) -> None:
    """By hand, from a plain pass over one sequence."""
    import torch

    from educe.organisms import lora

    first, second, third = examples()
    held = third._replace(base=torch.zeros(1, 64).log_softmax(-1))
    whole = [*(lora.transcript(example, 2) for example in (first, second)), held]
    expected = 0.0
    for example in (first, second):
        ids = torch.tensor(example.prompt + example.answer)
        with torch.no_grad():
            said = tiny(ids[None]).logits[0].log_softmax(-1)
        expected -= float(said[range(1, len(ids) - 1), ids[2:]].sum())
    entropy, _ = lora.losses(tiny, whole)
    assert entropy.item() == pytest.approx(expected / 2, rel=1e-4)


@pytest.mark.parametrize("message", ["a", "1", "another", "  spaces", "12 apples?"])
def test_what_is_before_a_message_is_the_same_for_all(message: str, tokenizer: Any) -> None:
    from educe.organisms import lora

    start = lora.opening(tokenizer)
    ids = lora.encode(tokenizer, message)
    assert tokenizer.decode(ids[:start]) == "<|user|>"
    assert tokenizer.decode(ids[start:]) == f"{message}<eos><|assistant|>"
