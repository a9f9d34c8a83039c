"""Token directions, against every word run by hand, one sequence at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import MethodError, PositionsError
from educe.forward.slice import Slice
from educe.methods import search, token_directions
from educe.methods.token_directions import TokensConfig
from educe.model.language import LanguageModel

PROMPTS = ["tell me", "why is it so?"]
TOKENS = torch.arange(10, 70)
SOURCE, TARGET, RADIUS, LOUDER = 1, 3, 0.7, 1.5


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_directions, "vocabulary", lambda part: TOKENS)


@pytest.fixture
def part(tiny64: LanguageModel) -> Slice:
    batch = tiny64.encode(PROMPTS)
    return Slice(tiny64, batch, source=SOURCE, target=TARGET, positions="prompt", readout="last:2")


def by_hand(part: Slice, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return words in order, their directions, and what each does at the last token but one."""
    hf: Any = part.lm.hf
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(part.batch.ids, part.batch.mask, strict=True)
    ]
    order = TOKENS[torch.randperm(len(TOKENS), generator=torch.Generator().manual_seed(seed))]
    with torch.no_grad():
        head = rows[0][:-2]  # what stands before the last token but one
        h = torch.stack([tiny.run(hf, [*head, w])[1][SOURCE][-1] for w in order.tolist()])
        v = torch.nn.functional.normalize(h - h.mean(0), dim=1)
        plain = [tiny.run(hf, row)[1][TARGET][-2:] for row in rows]
        sizes = []
        for one in v:
            moved = [
                tiny.run(
                    hf,
                    row,
                    source=SOURCE,
                    vector=LOUDER * RADIUS * one,
                    at=tiny.chosen("at:2", len(row)),
                )[1][TARGET][-2:]
                for row in rows
            ]
            shift = torch.stack([m - p for m, p in zip(moved, plain, strict=True)])
            sizes.append(shift.mean((0, 1)).norm())
    return order, v, torch.stack(sizes)


def test_the_best_of_all_words_are_found(part: Slice) -> None:
    order, v, size = by_hand(part, seed=3)
    config = TokensConfig(screen="at:2", louder=LOUDER, steps=4)
    found = search(part, "tokens", n=5, radius=RADIUS, seed=3, config=config)
    best = size.argsort(descending=True)[:5]
    assert found.scores["token"].tolist() == order[best].tolist()
    torch.testing.assert_close(found.scores["screened"], size[best].float())
    torch.testing.assert_close(found.directions, v[best].float())
    assert found.kind.positions == "prompt"
    effect = part.effect(RADIUS * v[best])
    torch.testing.assert_close(found.scores["effect"], effect.norm(dim=1).float())


def test_some_of_the_words_are_drawn_by_lot(part: Slice) -> None:
    config = TokensConfig(words=20, screen="at:2", louder=LOUDER, steps=3)
    order, _, size = by_hand(part, seed=1)
    found = search(part, "tokens", n=3, radius=RADIUS, seed=1, config=config)
    best = size[:20].argsort(descending=True)[:3]
    assert found.scores["token"].tolist() == order[best].tolist()


def test_the_split_into_steps_makes_no_difference(part: Slice) -> None:
    order, v, size = by_hand(part, seed=3)
    for tried, steps in [(0, 1), (0, 60), (5, 5), (1, 1), (1, 9)]:
        n = min(tried or 3, 3)
        best = size[: tried or None].argsort(descending=True)[:n]
        config = TokensConfig(words=tried, screen="at:2", louder=LOUDER, steps=steps)
        found = search(part, "tokens", n=n, radius=RADIUS, seed=3, config=config)
        assert found.scores["token"].tolist() == order[best].tolist()
        torch.testing.assert_close(found.directions, v[best].float())


def test_the_mean_is_over_a_part_of_a_large_vocabulary(
    part: Slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_directions, "AVERAGED", 8)
    order, _, _ = by_hand(part, seed=3)
    h = token_directions.streams(part, order, "at:2")
    v = torch.nn.functional.normalize(h - h[:8].mean(0), dim=1)
    for steps in (2, 20):
        config = TokensConfig(words=20, screen="at:2", steps=steps)
        found = search(part, "tokens", n=20, radius=RADIUS, seed=3, config=config)
        place = [order.tolist().index(token) for token in found.scores["token"].tolist()]
        assert sorted(place) == list(range(20))
        torch.testing.assert_close(found.directions, v[place].float())


def test_by_default_words_stand_for_the_last_token_of_the_question(part: Slice) -> None:
    # Behind it the template writes two tokens.
    there = search(part, "tokens", n=4, radius=RADIUS, config=TokensConfig(screen="at:3", steps=4))
    found = search(part, "tokens", n=4, radius=RADIUS, config=TokensConfig(steps=4))
    assert torch.equal(found.directions, there.directions)
    other = search(part, "tokens", n=4, radius=RADIUS, config=TokensConfig(screen="at:2", steps=4))
    assert not torch.equal(found.directions, other.directions)


def test_a_saved_state_goes_on_to_the_same(part: Slice) -> None:
    config = TokensConfig(screen="at:2", steps=4)
    saved: list[dict[str, Tensor]] = []
    whole = search(
        part,
        "tokens",
        n=4,
        radius=RADIUS,
        config=config,
        on_step=lambda state, progress: saved.append({k: x.clone() for k, x in state.items()}),
    )
    assert len(saved) == 4
    for state in saved:
        again: Any = state
        went = search(part, "tokens", n=4, radius=RADIUS, config=config, state=again)
        assert torch.equal(went.directions, whole.directions)


def test_a_word_needs_something_before_it(part: Slice) -> None:
    for screen in ("all", "generated"):
        with pytest.raises(MethodError, match=f"'{screen}' is no token after the prompt's first"):
            search(part, "tokens", n=3, radius=RADIUS, config=TokensConfig(screen=screen))
    with pytest.raises(PositionsError, match="'middle': use all"):
        TokensConfig(screen="middle")


def test_more_perturbations_than_words_are_an_error(part: Slice) -> None:
    with pytest.raises(MethodError, match="3 perturbations of 2 words"):
        search(part, "tokens", n=3, radius=RADIUS, config=TokensConfig(words=2))


def test_words_are_tokens_that_are_a_space_and_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    known = {"Ġcat": 9, "▁dog": 2, "cat": 7, "Ġ": 1, "Ġc4": 3, "Ġété": 4, "Ġ-": 5, "<eos>": 0}

    def of(tokenizer: Any) -> Any:
        return SimpleNamespace(tokenizer=tokenizer, name="toy")

    assert token_directions.vocabulary(of(SimpleNamespace(get_vocab=lambda: known))).tolist() == [
        2,
        4,
        9,
    ]
    for none in (None, SimpleNamespace(get_vocab=lambda: {"cat": 0})):
        with pytest.raises(MethodError, match="the vocabulary of toy has no words"):
            token_directions.vocabulary(of(none))
    with pytest.raises(MethodError, match="the vocabulary of toy has 1 words"):
        token_directions.vocabulary(of(SimpleNamespace(get_vocab=lambda: {"Ġcat": 0, "cat": 1})))
