"""What the model reads is what the person wrote: templates of many minds, and bare prompts.

The templates are in the manner of model families: what each writes is written down beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import processors

import tiny
from educe.errors import PromptError
from educe.model.language import LanguageModel
from educe.run.settings import Settings

#: Takes user and model by turns, and no system message, as Gemma does.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must take turns') }}{% endif %}"
    "[{{ 'model' if m.role == 'assistant' else m.role }}]{{ m.content | trim }}[/turn]\n"
    "{% endfor %}{% if add_generation_prompt %}[model]{% endif %}"
)
#: Writes contents as text or the text of their parts, as Llama's later ones do.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}({{ m.role }})\n\n"
    "{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}(end)"
    "{% endfor %}{% if add_generation_prompt %}(assistant)\n\n{% endif %}"
)
#: Puts the system message before the last question, as Mistral does.
MISTRAL = (
    "{% set said = messages[0].content if messages[0].role == 'system' else none %}"
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {% if loop.last and said %}{{ said }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% elif m.role != 'system' %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
    "{% endfor %}"
)
#: Writes contents as the text of their parts alone.
PARTS = (
    "{{ bos_token }}{% for m in messages %}({{ m.role }})\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}(end)"
    "{% endfor %}{% if add_generation_prompt %}(assistant)\n{% endif %}"
)
#: The same, and refuses other contents.
STRICT = "{% if messages[0].content is string %}{{ raise_exception('Parts') }}{% endif %}" + PARTS
USER, SYSTEM = {"role": "user", "content": " Hi\n"}, {"role": "system", "content": "Be kind."}
WELL = {"role": "assistant", "content": "Well,"}


@pytest.fixture
def lm_with(tiny_lm: LanguageModel) -> Callable[..., LanguageModel]:
    """Return a model that has a chat template."""

    def make(template: str, **options: Any) -> LanguageModel:
        tokenizer = tiny.tokenizer(**options)
        tokenizer.chat_template = template
        return LanguageModel(tiny_lm.hf, tokenizer, name="mine")

    return make


def test_a_template_that_writes_the_date_writes_the_same_on_every_day(
    lm_with: Callable[..., LanguageModel],
) -> None:
    """As later templates of Llama do; said, since a person would expect today."""
    dated = lm_with(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert dated.render("Hi") == "01 Jan 2026Hi"
    assert ["asks for the date" in remark for remark in dated.remarks] == [True]
    assert lm_with(LLAMA).remarks == []


def in_parts(message: dict[str, str]) -> dict[str, Any]:
    """Write the same message with its content as two parts."""
    text = message["content"]
    parts = [{"type": "text", "text": part} for part in (text[:2], text[2:])]
    return message | {"content": parts}


@pytest.mark.parametrize(
    ("template", "prompt", "text"),
    [
        (GEMMA, [USER], "<bos>[user]Hi[/turn]\n[model]"),
        (GEMMA, [USER, WELL], "<bos>[user]Hi[/turn]\n[model]Well,"),
        (LLAMA, [SYSTEM, USER], "<bos>(system)\n\nBe kind.(end)(user)\n\nHi(end)(assistant)\n\n"),
        (PARTS, [SYSTEM, USER], "<bos>(system)\nBe kind.(end)(user)\n Hi\n(end)(assistant)\n"),
        (STRICT, [USER], "<bos>(user)\n Hi\n(end)(assistant)\n"),
        (MISTRAL, [SYSTEM, USER], "<bos>[INST] Be kind.\n\n Hi\n [/INST]"),
        (MISTRAL, [USER, WELL, USER], "<bos>[INST]  Hi\n [/INST] Well,<eos>[INST]  Hi\n [/INST]"),
    ],
)
def test_text_parts_are_read_as_the_text(
    lm_with: Any, template: str, prompt: Any, text: str
) -> None:
    lm = lm_with(template)
    assert lm.render(prompt) == text
    assert lm.render([in_parts(message) for message in prompt]) == text
    batch = lm.encode([[in_parts(message) for message in prompt]])
    assert batch.texts == (text,)
    own = [m["content"].strip() for m in prompt if m["role"] == "user"][-1]
    assert lm.text(batch.ids[batch.asked]) == own


@pytest.mark.parametrize(
    ("template", "prompt", "told"),
    [
        # The template's own sentence.
        (GEMMA, [SYSTEM, USER], "a prompt of system, user: TemplateError: No system role here"),
        (GEMMA, [USER, USER], "Roles must take turns"),
        (MISTRAL, [USER | {"role": "tool"}], "Only user and assistant roles"),
        (MISTRAL, [USER | {"role": "developer"}, USER], "Only user and assistant roles"),
        # A template that is none.
        ("{% for m in messages %}{{ m.content }}", [USER], "TemplateSyntaxError"),
        ("{{ messages[0].content.parts.first }}", [USER], "UndefinedError"),
        ("{{ messages[0].content + 1 }}", [USER], "TypeError"),
        ("{{ 1 / 0 }}{{ messages }}", [USER], "ZeroDivisionError"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
         [USER, WELL], "ValueError"),
        # What it does not write.
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", [SYSTEM, USER],
         r"leaves out or changes message 1 \(system\)"),
        ("{{ messages[-1].content }}", [USER, WELL, USER | {"content": "So?"}],
         r"changes message 1 \(user\)"),
        # Though its words stand there: in another message, and in the template.
        ("{{ messages[-1].content }}", [SYSTEM | {"content": "Hi"}, USER], r"message 1 \(system\)"),
        ("system: {{ messages[-1].content }}", [SYSTEM | {"content": "system"}, USER],
         r"message 1 \(system\)"),
        # What it writes otherwise.
        ("{{ messages[0].content | upper }}", [USER], r"message 1 \(user\)"),
        ("{{ messages[0].content.split('>')[-1] }}", [USER | {"content": "a > b"}],
         r"message 1 \(user\)"),
        ("{{ messages[0].content[:20] }}", [USER | {"content": "far too long for this one"}],
         r"message 1 \(user\)"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_write_a_prompt_is_one_sentence(
    lm_with: Any, template: str, prompt: Any, told: str
) -> None:
    lm = lm_with(template)
    with pytest.raises(PromptError, match=f"^the chat template of mine .*{told}") as caught:
        lm.render(prompt)
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match=f"^prompt 1 of 2: the chat template of mine .*{told}"):
        lm.encode([prompt, "Hi"])


def test_text_that_is_none_is_refused_with_and_without_a_template(tiny_lm: LanguageModel) -> None:
    for chat in (True, False):
        for options in ({}, {"prefill": "fine"}):
            with pytest.raises(PromptError, match=r"has '\\udce9' at character 4"):
                tiny_lm.encode(["caf\udce9"], chat=chat, **options)
        with pytest.raises(PromptError, match=r"^the prefill has '\\udce9'"):
            tiny_lm.encode(["fine"], chat=chat, prefill="\udce9")


def test_a_prompt_is_rendered_twice_whatever_its_messages(
    lm_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_with(GEMMA)
    calls: list[Any] = []
    render = lm.tokenizer.apply_chat_template
    monkeypatch.setattr(
        lm.tokenizer, "apply_chat_template", lambda *a, **k: calls.append(a) or render(*a, **k)
    )
    lm.encode([[USER, WELL, USER, WELL, USER]])
    assert len(calls) == 2


def test_one_text_in_the_place_of_a_list_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(PromptError, match="give a list"):
        tiny_lm.encode("Hi")
    for prompts in ({"prompts": "Hi"}, {"prompts": ("Hi",), "fresh": "Ho"}):
        with pytest.raises(PromptError, match="give a list"):
            Settings(**prompts).check()


# -- what a tokenizer puts around a bare prompt ----------------------------------------------------


@pytest.mark.parametrize(
    ("around", "before"),
    [
        ("$A", []),
        ("<bos> $A", ["<bos>"]),
        ("$A <eos>", []),
        ("<bos> $A <eos>", ["<bos>"]),
        ("<bos> <|system|> $A <eos> <pad>", ["<bos>", "<|system|>"]),
    ],
)
def test_a_bare_prompt_begins_once_and_does_not_end(
    lm_with: Any, around: str, before: list[str]
) -> None:
    lm = lm_with(None)
    special = [(name, lm.tokenizer.convert_tokens_to_ids(name)) for name in tiny.SPECIAL]
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[pair for pair in special if pair[0] in around.split()]
    )
    numbers = lm.tokenizer.convert_tokens_to_ids
    text = numbers(["H", "i"])
    assert lm.encode(["Hi"]).read == [(*numbers(before), *text)]
    begun = "".join(before) + "Hi"
    assert lm.encode([begun]).read == [(*numbers(before), *text)]
    # An end that was written is what the person wrote.
    assert lm.encode(["Hi<eos>"]).read == [(*numbers(before), *text, numbers("<eos>"))]


def test_read_leaves_padding_out(tiny_lm: LanguageModel) -> None:
    texts = ["abcd", "ef"]
    plain = [tuple(tiny_lm.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    assert tiny_lm.encode(texts, chat=False).read == plain
