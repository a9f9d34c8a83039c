"""Strings in a place of a prompt: the cached reading against reading every text by itself."""

from __future__ import annotations

import pytest
import torch

from educe.errors import PromptError
from educe.forward.inserted import Opening
from educe.model.asked import Span
from educe.model.language import LanguageModel

PROMPT, SPAN = [3, 4, 5, 6, 7, 8], Span(2, 4)
STRINGS = [[20, 21], [22, 23], [24, 25]]


@pytest.mark.parametrize("follows", [(), (30, 31, 32)])
def test_the_cached_reading_is_that_of_the_whole_texts(
    tiny64: LanguageModel, follows: tuple[int, ...]
) -> None:
    batch, at = tiny64.pad([[9, 9], PROMPT], own=[Span(0, 1), SPAN]), SPAN.stop
    place = Opening(tiny64, batch, 1)
    found = {}
    for read in place.read(torch.tensor(STRINGS), follows):
        found |= dict(zip(read.items, read.logprobs, strict=True))
    for i, string in enumerate(STRINGS):
        ids = torch.tensor([[*PROMPT[:at], *string, *PROMPT[at:], *follows]])
        whole = tiny64.forward(ids, torch.ones_like(ids), last=0)[0].log_softmax(-1)
        wanted = whole[len(PROMPT) + 1 :][: max(1, len(follows))]
        torch.testing.assert_close(found[i].double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("string", ["a river", "{x}", ""])
def test_a_string_in_a_place_is_read_as_the_prompt_with_it(
    tiny64: LanguageModel, first: bool, string: str
) -> None:
    asked = "Why is it so?"
    place = Opening(tiny64, tiny64.encode([asked]), 0, first=first)
    (read,) = place.read(torch.tensor([place.tokens(string)]).long())
    # With nothing before it, the message stands behind a space all the same.
    prompt = f"{string} {asked}" if first else f"{asked} {string}".rstrip()
    ids = torch.tensor([tiny64.tokens(tiny64.render(prompt), templated=True)])
    whole = tiny64.forward(ids, torch.ones_like(ids))[0].log_softmax(-1)
    torch.testing.assert_close(read.logprobs[0].double(), whole, atol=1e-5, rtol=1e-5)


def test_a_prompt_without_a_message_has_no_such_place(tiny64: LanguageModel) -> None:
    with pytest.raises(PromptError, match="cannot be found in prompt 1"):
        Opening(tiny64, tiny64.pad([PROMPT]), 0)
