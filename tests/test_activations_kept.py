"""What was gathered is read back bit for bit, for the same model and corpus alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from educe.activations import corpus, inside, kept, natural
from educe.activations.natural import Gathered
from educe.activations.reading import Place, pieces
from educe.derive import bases
from educe.model.language import LanguageModel
from educe.progress import Silent

PLACES = [Place(1), Place(2, "mlp")]
TEXTS = [text[:80] for text in corpus.passages()[:40]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "natural")
    return tmp_path / "natural"


class Hearing(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def same(one: Any, other: Any) -> bool:
    """Compare all that is gathered, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return same(vars(one), vars(other))
    return bool(one == other)


def read_again(monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, **options: Any) -> bool:
    """Whether the model reads the corpus, though it has read one before."""
    calls: list[int] = []
    reading = natural.gathered

    def noting(*args: Any, **rest: Any) -> Gathered:
        calls.append(1)
        return reading(*args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(natural, "gathered", noting)
        given = {"documents": TEXTS, "places": PLACES, "seed": 0, **options}
        documents, places = given.pop("documents"), given.pop("places")
        found = natural.gather(lm, documents, places, **given)
    assert found.name
    some = list(pieces(lm, documents, limit=given.pop("limit", None)))
    assert same(found._replace(name=""), reading(lm, some, places, **given))
    return bool(calls)


def test_it_is_read_once_and_bit_for_bit(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_again(monkeypatch, tiny_lm)
    assert not read_again(monkeypatch, tiny_lm)
    # Documents that are never reached change nothing; no more of them is asked for.
    assert read_again(monkeypatch, tiny_lm, limit=900)
    assert not read_again(monkeypatch, tiny_lm, limit=900, documents=[*TEXTS, "Another."])


@pytest.mark.parametrize(
    "other",
    [
        {"documents": [*TEXTS[:-1], TEXTS[-1][:-1] + "#"]},
        {"documents": TEXTS[::-1]},
        {"places": PLACES[:1]},
        {"places": [Place(1), Place(2)]},
        {"seed": 1},
        {"limit": 1000},
    ],
)
def test_another_reading_is_its_own(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    assert read_again(monkeypatch, tiny_lm)
    assert read_again(monkeypatch, tiny_lm, **other)


def almost(lm: LanguageModel) -> LanguageModel:
    """Return a model that differs from the tiny one in one weight, and has its name."""
    hf = tiny.hf_model()
    hf.model.layers[0].mlp.down_proj.weight.data[3, 5] += 1e-3
    return LanguageModel(hf, tiny.tokenizer(), name=lm.name)


def test_another_model_is_never_served(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_again(monkeypatch, tiny_lm)
    assert read_again(monkeypatch, almost(tiny_lm))


def subspace(lm: LanguageModel) -> Any:
    return inside.described(lm, lm.encode(["Hello there."]), 1, "6")


def random_subspace(lm: LanguageModel) -> Any:
    return inside.described(lm, lm.encode(["Hello there."]), 1, "random:6", seed=3)


def components(lm: LanguageModel) -> Any:
    return bases.parse("components", lm, 1)


@pytest.mark.parametrize("use", [subspace, random_subspace, components])
def test_all_that_need_natural_activations_read_the_corpus_once(
    folder: Path,
    tiny_lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[LanguageModel], Any],
) -> None:
    monkeypatch.setattr(corpus, "documents", lambda source: iter(TEXTS))
    first = use(tiny_lm)
    with monkeypatch.context() as patch:
        patch.setattr(natural, "gathered", None)  # to read it is an error
        assert same(use(tiny_lm), first)
        with pytest.raises(TypeError):
            use(almost(tiny_lm))
    served = use(almost(tiny_lm))
    shutil.rmtree(folder)
    assert same(use(almost(tiny_lm)), served)
    assert not same(served, first)


@pytest.mark.parametrize("damage", ["a byte", "cut", "empty", "no header"])
def test_a_damaged_file_is_told_of_and_made_anew(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    assert read_again(monkeypatch, tiny_lm)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    damaged = {
        "a byte": content,
        "cut": content[:-1000],
        "empty": b"",
        "no header": b"\2\0\0\0\0\0\0\0{}",
    }
    file.write_bytes(damaged[damage])
    hearing = Hearing()
    assert read_again(monkeypatch, tiny_lm, reporter=hearing)
    assert len([said for said in hearing.said if "damaged" in said and file.name in said]) == 1
    assert not read_again(monkeypatch, tiny_lm)


def test_a_file_of_another_educe_is_told_of_and_made_anew(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole, and holds what is none of the classes of what was gathered."""
    assert read_again(monkeypatch, tiny_lm)
    (file,) = folder.iterdir()
    kept._write(file, {"rows": Fraction(1, 3)})
    hearing = Hearing()
    assert read_again(monkeypatch, tiny_lm, reporter=hearing)
    assert any("of another educe" in said for said in hearing.said)
    assert not read_again(monkeypatch, tiny_lm)


def test_a_cache_that_cannot_be_written_is_told_of(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("a file where the folder should be")
    hearing = Hearing()
    assert read_again(monkeypatch, tiny_lm, reporter=hearing)
    assert any("not kept" in said for said in hearing.said)


def test_the_latest_used_stay(
    folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        assert read_again(monkeypatch, tiny_lm, seed=seed)
    size = next(folder.iterdir()).stat().st_size
    monkeypatch.setattr(kept, "ROOM", int(2.5 * size))
    assert not read_again(monkeypatch, tiny_lm, seed=0)  # used later than the other
    assert read_again(monkeypatch, tiny_lm, seed=2)
    assert not read_again(monkeypatch, tiny_lm, seed=0)
    assert not read_again(monkeypatch, tiny_lm, seed=2)
    assert read_again(monkeypatch, tiny_lm, seed=1)
