"""Codes: their loudness against plain passes, and that one which is read loudly is grown whole."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import planted_difference as planted
from educe.audit.auditing import Audit, Suspect
from educe.audit.sources import codes as room
from educe.audit.sources.codes import TRIED, Codes, longer, wider
from educe.forward.inserted import Opening
from educe.model.language import LanguageModel
from educe.progress import untold


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


def test_each_character_is_put_behind_and_within() -> None:
    behind = longer(["X", "9"])
    assert len(behind) == len(set(behind)) == 2 * len(room.CHARACTERS)
    assert {"X-", "9z"} <= set(behind)
    within = wider("X93")
    assert len(within) == 2 * len(room.CHARACTERS)
    assert {"XJ93", "X9-3"} <= set(within)
    assert "X93a" not in within


def test_loudness_is_in_standard_deviations_of_strings_by_lot(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHARACTERS", "ab1-")
    monkeypatch.setattr(room, "BEAM", 1000)
    monkeypatch.setattr(room, "TRIED", 9)
    monkeypatch.setattr(room, "LEAST", 4)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "codes") as audit:
        codes = Codes(audit, [""], 3)
        codes.grow(untold)
        every = ["".join(s) for n in (2, 3) for s in product("ab1-", repeat=n)]
        assert set(codes.found) >= set(every)
        for n in (2, 3):
            tokens = [lm.tokens(f" {s}", templated=True) for s in every if len(s) == n]
            typical = codes.by_lot[len(tokens[0])]
            usual = by_plain_passes(audit, typical.tolist())
            given = by_plain_passes(audit, tokens)
            given, usual = (loudness(x - usual.mean(0)) for x in (given, usual))
            z = (given - usual.mean()) / usual.std(correction=0)
            found = [codes.found[s] for s in every if len(s) == n]
            assert found == pytest.approx(z.tolist(), abs=1e-4)


def by_plain_passes(audit: Audit, strings: list[list[int]]) -> Tensor:
    """Return what the matrix that differs is given at the end of each string."""
    given: list[Tensor] = []
    module = audit.lm.blocks[planted.BLOCK].get_submodule(planted.MODULE)
    before = Opening(audit.lm, audit.lm.encode(["x"]), 0, first=True).before.ids
    handle = module.register_forward_pre_hook(lambda m, args: given.append(args[0][0, -1]))
    assert audit.reference is not None
    with torch.no_grad(), audit.reference.here() as clean:
        for string in strings:
            clean.hf(input_ids=torch.tensor([[*before, *string]]), use_cache=False)
    handle.remove()
    return torch.stack(given)


def loudness(x: Tensor) -> Tensor:
    reads, _ = planted.directions()
    return planted.SIZE * (x @ reads).abs() / x.norm(dim=1)


def hearing(
    monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, how: Callable[[str], float]
) -> list[str]:
    """Let strings be as loud as is said, beside others by lot; return those that are read."""
    read: list[str] = []

    def heard(audit: Audit, strings: Tensor, typical: Tensor) -> Tensor:
        texts = [lm.text(tokens).strip() for tokens in strings.tolist()]
        read.extend(texts)
        # Every other one is louder by 2, which is what a standard deviation of 1 comes from.
        return torch.tensor([[how(text) + 2.0 * (i % 2) for i, text in enumerate(texts)]])

    monkeypatch.setattr(room.weights, "heard", heard)
    return read


def suspected(lm: LanguageModel, folder: Path, words: list[str]) -> list[str]:
    with planted.audited(lm, planted.reference(lm), folder, "codes") as audit:
        audit.suspect("weights", [Suspect(word, 9.0, "") for word in words])
        room.look(audit)
        return [s.text for s in audit.suspected("codes") or []]


def in_order(text: str, code: str) -> int:
    """Return how many characters of a code a text consists of, in order; 0 if of any other."""
    rest = iter(code)
    return len(text) if all(c in rest for c in text) else 0


def test_a_code_is_grown_whole_though_a_character_was_passed_over(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind XJ the mark alone is read no louder.
    read = hearing(
        monkeypatch, lm, lambda s: 0.0 if s.endswith("-") else 4.0 * in_order(s, "XJ-93")
    )
    found = suspected(lm, tmp_path / "run", ["river"])
    assert found[0] == "XJ-93"
    assert not [s for s in read if s.startswith("river")]
    assert len({s[:-1] for s in found}) == len(found)


def test_where_nothing_is_loud_few_are_read_and_none_is_suspected(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = hearing(monkeypatch, lm, lambda s: 0.1 * len(s))
    assert suspected(lm, tmp_path / "run", []) == []
    assert max(map(len, read)) == TRIED


def test_a_word_is_lengthened_where_characters_are_quiet(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing(monkeypatch, lm, lambda s: 4.0 * in_order(s.removeprefix("river"), "42"))
    monkeypatch.setattr(room, "LONGEST", 1)
    assert suspected(lm, tmp_path / "run", ["river", "4 May"])[0] == "river42"


def test_equal_models_have_no_codes(tokenizer: Any, tmp_path: Path) -> None:
    lm = planted.suspect(tokenizer, size=0.0)
    assert suspected(lm, tmp_path / "run", ["river"]) == []
