"""Where the person's message is in a prompt, against decoding what comes before and up to it."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tiny
from educe.errors import PositionsError, PromptError
from educe.model.language import LanguageModel

# As chat models have them: what stands behind the message is of 0 to some 20 bytes.
TEMPLATES = {
    "chatml": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        "You are a user's assistant.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}"
        "{{ eos_token }}{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
    "bare": "{% for m in messages %}{{ m.content.rstrip('\n') }}{% endfor %}",
    "twice": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "(once more: {{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }})!"
    ),
}
CONTENTS = [
    "Name three countries in Asia.",
    "user",
    "assistant",
    "s",
    "]",
    "  two\n lines \n\n",
    "Was heißt „Straße“",
    "so it ends 🙂",
    "🙂",
    "日本語",
    "e\u0301",  # a letter and its accent
    "{{ messages }}",
    "\ue000\ue001",  # what a mark might be
]


def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer of pieces: spaces are letters, bytes stand for what it does not know."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for piece in ("<bos>", "<eos>", "<pad>", "▁", "a", "s", "t", ".", "▁a", "s.", "is", "]"):
        vocabulary[piece] = len(vocabulary)
    merges = [("▁", "a"), ("s", ".")]
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # type: ignore[arg-type]
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # type: ignore[arg-type]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def merging() -> PreTrainedTokenizerFast:
    """Return a tokenizer that joins the end of a message with what a template writes behind it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(".", "<"), ("r", "<"), ("t", "Ġ"), ("s", "Ġ"), ("]", "Ġ"), ("Ċ", "s"), (".", "Ċ")]
    vocabulary = {token: i for i, token in enumerate([*letters, *map("".join, pairs)])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<", eos_token=">")


TOKENIZERS = {
    "bytes": tiny.tokenizer,
    "pieces": sentencepiece,
    "merging": merging,
    "slow": ByT5Tokenizer,
}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def reader(request: pytest.FixtureRequest) -> LanguageModel:
    """A model with each tokenizer in turn; it reads prompts, and runs none."""
    hf = tiny.hf_model("bloom")
    hf.resize_token_embeddings(512)  # for the tokenizer with most tokens
    return LanguageModel(hf, TOKENIZERS[request.param](), name=request.param)


def check(lm: LanguageModel, prompt: Any, before: str, content: str, **options: Any) -> None:
    """Compare with the bytes of what comes before a message, and before its last character."""
    batch = lm.encode([prompt, "another, of another length"], **options)
    ids = batch.ids[0][batch.mask[0].bool()].tolist()
    own = batch.asked[0][batch.mask[0].bool()].nonzero()[:, 0].tolist()

    each = [_bytes(lm.name, token) for token in lm.tokenizer.convert_ids_to_tokens(ids)]
    whole = b"".join(each)
    start, stop = len(before.encode()), len((before + content).encode())
    skipped = len(whole) - len(batch.texts[0].encode())  # a space that the tokenizer puts first
    start, stop = start + skipped, stop + skipped
    assert whole[start:stop] == content.encode()
    start = start if before else 0  # that space belongs to the first character
    ends = list(accumulate(map(len, each)))
    begins = [0, *ends[:-1]]
    over = [i for i, (a, b) in enumerate(zip(begins, ends, strict=True)) if a < stop and b > start]
    assert own == over
    last = int(batch.at("asked:1")[0].nonzero()) - (len(batch.mask[0]) - len(ids))
    assert last == over[-1]


def _bytes(how: str, token: str) -> bytes:
    if how == "slow":
        return token.encode("latin-1") if len(token) == 1 else token.encode()
    if how == "pieces":
        known = token.startswith("<0x")
        return bytes([int(token[3:5], 16)]) if known else token.replace("▁", " ").encode()
    letters = _alphabet()
    known = set(token) <= set(letters)
    return bytes(letters[letter] for letter in token) if known else token.encode()


@cache
def _alphabet() -> dict[str, int]:
    """Return the letters that stand for bytes, as GPT-2 has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_message_is_what_stands_between_what_the_template_writes(
    reader: LanguageModel, name: str, content: str
) -> None:
    reader.tokenizer.chat_template = TEMPLATES[name]
    said = [
        {"role": "system", "content": f"You hear {content} and user"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": content.strip()},
    ]
    ways: list[tuple[list[Any], list[Any], str]] = [
        ([], [], ""),
        (said[:1], [], content),
        (said, [{"role": "assistant", "content": "So it"}], ""),
    ]
    for earlier, behind, prefill in ways:
        prompt = [*earlier, {"role": "user", "content": content}, *behind]
        if not content.strip():
            if not reader.render(prompt, prefill=prefill):
                continue  # no prompt at all
            with pytest.raises(PositionsError, match="in prompt 0"):
                reader.encode([prompt], prefill=prefill).at("asked:1")
            continue
        text = reader.render(prompt, prefill=prefill)
        # The template once more, with a word that nothing else has in the message's place.
        word = [*earlier, {"role": "user", "content": "QQQ"}, *behind]
        before, _, _ = reader.render(word, prefill=prefill).rpartition("QQQ")
        before = before.replace("QQQ", content)
        lead = content[: len(content) - len(content.lstrip())]
        before += lead if text.startswith(before + lead + content.strip()) else ""
        check(reader, prompt, before, content.strip(), prefill=prefill)


@pytest.mark.parametrize("bos", [False, True])
def test_plain_text_is_all_the_persons_but_what_the_tokenizer_adds(bos: bool) -> None:
    lm = LanguageModel(tiny.hf_model(), tiny.tokenizer(chat=False, bos=bos), name="plain")
    batch = lm.encode([" ab ", "no more"], prefill="xyz")
    own = [ids[at].tolist() for ids, at in zip(batch.ids, batch.asked, strict=True)]
    assert [lm.tokenizer.decode(ids) for ids in own] == ["ab", "no more"]
    assert batch.spans == [(1 + bos, 3 + bos), (bos, 7 + bos)]


def test_a_message_that_is_not_there_is_refused_only_where_it_is_needed() -> None:
    lm = LanguageModel(tiny.hf_model(), tiny.tokenizer(), name="tiny")
    lm.tokenizer.chat_template = tiny.TEMPLATE
    batch = lm.encode([[{"role": "system", "content": "Be kind."}]])
    assert batch.at("last:1").sum() == 1
    with pytest.raises(PositionsError, match="'asked:1' are tokens of a person's message"):
        batch.at("asked:1")


@pytest.mark.parametrize("made", ["m.content[:1]", "m.content | length"])
def test_a_message_that_a_template_makes_something_else_of_is_refused(made: str) -> None:
    lm = LanguageModel(tiny.hf_model(), tiny.tokenizer(), name="tiny")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ " + made + " }}{% endfor %}..."
    with pytest.raises(PromptError, match="leaves out or changes message 1"):
        lm.encode(["abc"])


def test_tokens_that_do_not_decode_to_the_prompt_say_nothing() -> None:
    hf = tiny.hf_model("bloom")
    hf.resize_token_embeddings(512)
    lm = LanguageModel(hf, ByT5Tokenizer(), name="slow")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} </s>{% endfor %}"
    batch = lm.encode(["abc"])  # this tokenizer drops the space before an end
    assert lm.tokenizer.decode(batch.ids[0]) != batch.texts[0]
    with pytest.raises(PositionsError, match="cannot be found in prompt 0"):
        batch.at("asked")
