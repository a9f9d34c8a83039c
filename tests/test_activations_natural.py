"""Activations of a corpus: against one text at a time by hand, and what is left out of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from educe.activations import corpus, natural, reading
from educe.activations.natural import Sample, gather
from educe.activations.reading import Place, Read, pieces, read, read_prompts
from educe.activations.subspace import Moments
from educe.errors import ModelError, PromptError
from educe.model.language import LanguageModel

TEXTS = [
    "The ferry left.",
    "A long day ended well.",
    "Two",
    "They met again under the clock at noon.",
]


def by_hand(lm: LanguageModel, ids: list[int], place: Place) -> Tensor:
    """Return the activations of one text, all tokens, from hooks on modules known by name."""
    if place.part == "stream":
        return tiny.run(lm.hf, ids)[1][place.layer]
    block = lm.hf.get_submodule(tiny.path(lm.hf))[place.layer]
    module = block.self_attn.q_proj if place.part == "attention" else block.mlp.gate_proj
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))
    try:
        lm.hf(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def all_rows(batches: Iterator[Read], place: Place) -> tuple[Tensor, Tensor]:
    """Return the rows of all batches in the order of their documents."""
    some = list(batches)
    documents = torch.cat([batch.document for batch in some])
    order = documents.argsort(stable=True)
    return torch.cat([batch.rows[place] for batch in some])[order], documents[order]


@pytest.mark.parametrize("place", [Place(1), Place(3), Place(2, "attention"), Place(2, "mlp")])
def test_streamed_activations_are_those_of_each_text_alone(
    tiny_lm: LanguageModel, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TOKENS_PER_BATCH", {"cpu": 30})
    found, documents = all_rows(read(tiny_lm, pieces(tiny_lm, TEXTS), [Place(0), place]), place)
    wanted = []
    for text in TEXTS:
        ids = list(tiny_lm.tokenizer(text)["input_ids"])
        wanted.append(by_hand(tiny_lm, ids, place)[1:])
    for number, rows in enumerate(wanted):  # none begins as the one before it does
        torch.testing.assert_close(found[documents == number], rows, rtol=1e-4, atol=1e-4)


def test_reads_of_other_architectures_are_as_wide_as_the_stream(any_lm: LanguageModel) -> None:
    places = [Place(1, "attention"), Place(1, "mlp")]
    try:
        batches = list(read(any_lm, pieces(any_lm, TEXTS[:2]), places))
    except ModelError:
        assert any_lm.name == "bamba", "its feed-forward part is the only one outside the mixer"
        return
    plain = list(read(any_lm, pieces(any_lm, TEXTS[:2]), [Place(1)]))
    for place in places:
        assert sum(len(b.rows[place]) for b in batches) == sum(len(b.document) for b in plain)
        assert batches[0].rows[place].shape[1] == any_lm.width


def test_what_a_text_shares_with_the_one_before_is_counted_once(tiny_lm: LanguageModel) -> None:
    def chat(text: str) -> list[dict[str, str]]:
        system = {"role": "system", "content": "Be kind."}
        return [system, {"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]

    documents = [chat("Hello"), "Plain text between.", chat("World"), chat("World, too")]
    _, found = all_rows(read(tiny_lm, pieces(tiny_lm, documents), [Place(1)]), Place(1))
    lengths = [len(corpus.tokens(tiny_lm, document)) for document in documents]
    opening = 1 + len("Be kind.") + 1 + 1  # tokens are bytes, and marks of roles and ends
    counts = [int((found == number).sum()) for number in range(4)]
    again = opening + len("World")
    assert counts == [lengths[0] - 1, lengths[1] - 1, lengths[2] - opening, lengths[3] - again]


def test_long_documents_are_read_in_pieces(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 10)
    found, documents = all_rows(
        read(tiny_lm, pieces(tiny_lm, ["x" * 5 + "y" * 18]), [Place(2)]), Place(2)
    )
    cut = [[ord("x")] * 5 + [ord("y")] * 5, [ord("y")] * 10, [ord("y")] * 3]
    ids = [list(tiny_lm.tokenizer("".join(map(chr, piece)))["input_ids"]) for piece in cut]
    wanted = torch.cat([by_hand(tiny_lm, piece, Place(2))[1:] for piece in ids])
    assert documents.tolist() == [0] * 20
    ordered = sorted(map(tuple, found.round(decimals=3).tolist()))
    assert ordered == sorted(map(tuple, wanted.round(decimals=3).tolist()))


def test_reading_stops_at_the_limit_and_later_blocks_do_not_run(tiny_lm: LanguageModel) -> None:
    asked: list[int] = []
    ran: list[int] = []

    def documents() -> Iterator[str]:
        for number in range(1000):
            asked.append(number)
            yield f"{number} is a number"

    handles = [
        block.register_forward_hook(lambda m, a, o, i=i: ran.append(i))
        for i, block in enumerate(tiny_lm.blocks)
    ]
    try:
        found, _ = all_rows(
            read(tiny_lm, pieces(tiny_lm, documents(), limit=100), [Place(1)]), Place(1)
        )
    finally:
        for handle in handles:
            handle.remove()
    assert 100 <= len(found) < 120
    assert len(asked) < 20
    assert set(ran) == {0, 1}


def test_tokens_with_a_massive_activation_are_left_out_and_counted(tiny_lm: LanguageModel) -> None:
    marked = "They met again! Under! the clock."
    (bang,) = tiny_lm.tokenizer("!")["input_ids"]
    seen: list[Tensor] = []
    note = tiny_lm.unwrapped.get_input_embeddings().register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )

    def louder(module: nn.Module, args: Any, output: Any) -> Any:
        loud = torch.zeros_like(output)
        loud[..., 5] = 1e6
        return output + loud * (seen[-1] == bang)[..., None]

    hook = tiny_lm.blocks[1].register_forward_hook(louder)
    try:
        (batch,) = read(tiny_lm, pieces(tiny_lm, [marked]), [Place(0), Place(1)])
        prompts = read_prompts(tiny_lm, tiny_lm.encode([marked], chat=False), Place(1))
    finally:
        hook.remove()
        note.remove()
    assert batch.massive == 2
    assert len(batch.document) == len(prompts) == len(marked) - 1 - 2
    torch.testing.assert_close(prompts, batch.rows[Place(1)])
    assert float(batch.rows[Place(1)].abs().max()) < 1e5


def test_gathered_moments_are_those_of_all_rows(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [text[:60] for text in corpus.passages()[:40]]
    found, document = all_rows(read(tiny_lm, pieces(tiny_lm, documents), [Place(1)]), Place(1))
    monkeypatch.setattr(reading, "TOKENS_PER_BATCH", {"cpu": 100})
    monkeypatch.setattr(natural, "BANK", 150)
    gathered = gather(tiny_lm, documents, [Place(1)])
    known = gathered.natural[Place(1)]
    held = document % 5 == 4
    for moments, rows in ((known.moments, found[~held]), (known.held, found[held])):
        whole = Moments.of(rows)
        assert moments.count == whole.count
        torch.testing.assert_close(moments.scatter, whole.scatter, rtol=1e-3, atol=1e-2)
    sizes = [some.count for some in known.growing]
    assert sizes == sorted(sizes)
    shares = [size / sizes[-1] for size in sizes]
    assert shares == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1], abs=0.03)
    assert len(known.bank.rows) == 150
    assert not (known.bank.document % 5 == 4).any()
    assert (known.sample.document % 5 == 4).all()
    pool = {tuple(row) for row in found.round(decimals=2).tolist()}
    assert sum(tuple(row) in pool for row in known.bank.rows.round(decimals=2).tolist()) > 140
    assert all(piece.document % 5 == 4 for piece in gathered.texts)
    assert gathered.documents == 40
    again = gather(tiny_lm, documents, [Place(1)])
    assert torch.equal(again.natural[Place(1)].bank.rows, known.bank.rows)


def test_texts_to_run_on_are_beginnings_of_documents_of_every_length(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 60)
    monkeypatch.setattr(reading, "TOKENS_PER_BATCH", {"cpu": 200})
    monkeypatch.setattr(natural, "TEXTS", 2)
    # Of 20 documents every fifth is held out: four, from 53 tokens to 143, in up to three pieces.
    documents = [f"{n:02d}" + "ab" * 10 + chr(65 + n % 26) * (5 + 6 * n) for n in range(20)]
    ids = [corpus.tokens(tiny_lm, document) for document in documents]
    counts = dict.fromkeys(range(4, 20, 5), 0)
    for seed in range(24):
        texts = gather(tiny_lm, documents, [Place(0)], seed=seed).texts
        assert len(texts) == 2
        for piece in texts:
            assert piece.ids == ids[piece.document][: piece.skip + natural.LENGTH]
            counts[piece.document] += 1
    assert min(counts.values()) > 4  # 12 are expected, 2.4 is a standard deviation
    assert max(counts.values()) < 20


def test_samples_are_uniform_over_what_went_by() -> None:
    draw = torch.Generator().manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(500):
        sample = Sample.none(1)
        for batch in torch.arange(40.0)[:, None].split([3, 30, 7]):
            key = torch.rand(len(batch), generator=draw)
            sample = sample.joined(batch, batch[:, 0].long(), key, 10)
        assert len(sample.rows.unique()) == 10
        counts[sample.document] += 1
    assert float(counts.min()) > 90  # 125 are expected, 10 is a standard deviation
    assert float(counts.max()) < 160


def test_memory_does_not_grow_with_the_corpus(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept, and what is read ahead, are as large for four times the text."""
    monkeypatch.setattr(reading, "TOKENS_PER_BATCH", {"cpu": 100})
    monkeypatch.setattr(natural, "BANK", 100)
    monkeypatch.setattr(natural, "SAMPLE", 100)
    kept: dict[int, int] = {}

    def size_of(gathered: natural.Gathered) -> int:
        known = gathered.natural[Place(1)]
        tensors = [known.held.scatter, *(part.scatter for part in known.parts)]
        tensors += [known.bank.rows, known.sample.rows]
        texts = sum(len(p.ids) - p.skip for p in gathered.texts)
        return sum(tensor.numel() for tensor in tensors) + texts

    together: list[int] = []
    plain = reading._read

    def watched(lm: LanguageModel, some: list, places: Any) -> Read:
        together.append(len(some) * max(len(piece.ids) for piece in some))
        return plain(lm, some, places)

    monkeypatch.setattr(reading, "_read", watched)
    for times in (1, 4):
        documents = (f"{n} {text[:70]}" for n in range(times) for text in corpus.passages())
        kept[times] = size_of(gather(tiny_lm, documents, [Place(1)]))
    assert kept[1] == kept[4]
    assert len(together) > 4
    assert max(together) <= reading.TOKENS_PER_BATCH["cpu"]


def test_a_corpus_that_is_too_small_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(PromptError, match="can be held out"):
        gather(tiny_lm, TEXTS, [Place(1)])
    with pytest.raises(PromptError, match="empty"):
        gather(tiny_lm, [], [Place(1)])


def test_massive_coordinates_are_few_and_far_above_the_others() -> None:
    def known(square: list[float]) -> list[int]:
        scatter = torch.diag(torch.tensor(square, dtype=torch.float64))
        moments = Moments(1, torch.zeros(len(square), dtype=torch.float64), scatter)
        empty = Sample.none(len(square))
        return natural.Natural(Place(0), (moments,), moments, empty, empty, 0.0).massive

    assert known([1.0] * 10) == []
    assert known([1.0] * 9 + [99.0]) == []
    assert known([1.0] * 9 + [101.0]) == [9]
    assert known([1.0] * 6 + [1e4] * 4) == []  # a subspace, and no exceptions
    assert known([1.0] * 300 + [1e4] * 3) == [300, 301, 302]


def test_prompts_alone_are_read_without_first_tokens(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.encode(["Hello", "A longer prompt"])
    found = read_prompts(tiny_lm, batch, Place(2))
    wanted = torch.cat(
        [
            by_hand(tiny_lm, ids[mask.bool()].tolist(), Place(2))[1:]
            for ids, mask in zip(batch.ids, batch.mask, strict=True)
        ]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# -- where text comes from -------------------------------------------------------------------------


def test_the_bundled_corpus_is_text_and_chat_by_turns() -> None:
    found = list(corpus.documents())
    texts = [document for document in found if isinstance(document, str)]
    assert len(texts) == len(corpus.passages()) + len(corpus.varied())
    assert len(found) - len(texts) == len(corpus.questions()) >= 150
    assert len(set(texts)) == len(texts)
    assert isinstance(found[0], str)
    assert found[2] == corpus.varied()[0]
    assert not isinstance(found[1], str)
    assert found[1][0]["content"] == corpus.questions()[0]
    assert all(message["content"].strip() for chat in found[1::3][:90] for message in chat)


def test_varied_documents_keep_their_lines_and_are_apart() -> None:
    found = corpus.varied()
    assert len(found) == 100
    (code,) = [text for text in found if text.startswith("def merge(left, right):")]
    assert "        return list(items)\n    middle" in code
    assert "    return merged\n\n\ndef sort(items):" in code
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["sort"]([3, 1, 2]) == [1, 2, 3]
    assert all(text.strip() and "%" not in text.splitlines() for text in found)


def test_files_of_text_and_of_records_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("one\ntwo\n\n\n  \nthree\n")
    assert list(corpus.documents(text)) == ["one\ntwo", "three"]
    records = tmp_path / "records.jsonl"
    chat = [{"role": "user", "content": "Hi"}]
    lines = ["plain", {"text": "in a record"}, chat, {"messages": chat}, 5]
    records.write_text("\n".join(map(json.dumps, lines)))
    found = corpus.documents(records)
    assert [next(found) for _ in range(4)] == ["plain", "in a record", chat, chat]
    with pytest.raises(PromptError, match=r"records.jsonl, line 5: give text"):
        next(found)
    with pytest.raises(PromptError, match="cannot read the corpus"):
        next(corpus.documents(tmp_path / "absent.txt"))
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(PromptError, match="line 1 is no JSON"):
        next(corpus.documents(tmp_path / "broken.jsonl"))
    (tmp_path / "shouted.NDJSON").write_text('{"text": "a"}\n')
    assert list(corpus.documents(tmp_path / "shouted.NDJSON")) == ["a"]
    for name in ("a.csv", "a.json", "a.parquet"):
        with pytest.raises(PromptError, match=f"cannot read the corpus .*{name}"):
            corpus.documents(tmp_path / name)


@pytest.mark.parametrize("record", ["\ud800", [{"role": "user", "content": "\ud800"}]])
def test_half_a_character_in_a_corpus_is_named_with_its_line(tmp_path: Path, record: Any) -> None:
    (tmp_path / "records.jsonl").write_text('"a"\n' + json.dumps(record))
    with pytest.raises(PromptError, match=r"line 2.* has '\\ud800' at character 1"):
        list(corpus.documents(tmp_path / "records.jsonl"))


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    fake = ModuleType("datasets")

    def load_dataset(name: str, **options: Any) -> list[dict[str, str]]:
        asked.update(options, name=name)
        return [{"text": "a"}, {"text": "b"}]

    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert list(corpus.documents("hub:some/name")) == ["a", "b"]
    assert asked == {"name": "some/name", "split": "train", "streaming": True}
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match="pip install datasets"):
        list(corpus.documents("hub:some/name"))


def test_a_chat_is_plain_text_for_a_model_without_a_template(
    lm_of: Callable[..., LanguageModel],
) -> None:
    lm = LanguageModel(tiny.hf_model(), tiny.tokenizer(chat=False), name="base")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert lm.tokenizer.decode(corpus.tokens(lm, chat)) == "Hi\n\nYes"
