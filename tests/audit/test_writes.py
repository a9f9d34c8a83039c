"""What a weight difference writes and reads, on one that was planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
import tiny
from educe.audit import reference
from educe.audit.difference import changes
from educe.audit.lens import RANDOM, lens
from educe.audit.sources import writes
from educe.audit.sources.writes import driving, strongest
from educe.errors import ModelError
from educe.model.language import LanguageModel
from educe.rows import CONTROL, FOUND
from educe.run.fill import groups

WORDS = torch.arange(30, 60)


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "vocabulary", lambda lm: WORDS)
    monkeypatch.setattr(writes, "loudest", lambda audit, n: ["a", "b", "c", "d", "e"])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)))


def test_the_strongest_direction_is_the_planted_one(lm: LanguageModel) -> None:
    reads, written = planted.directions()
    (only,) = strongest(lm, changes(lm, planted.reference(lm)), 5)
    assert only.change.path == f"{planted.BLOCK}.{planted.MODULE}"
    assert only.s == pytest.approx(planted.SIZE, rel=1e-5)
    assert cosine(only.u, written) == pytest.approx(1, abs=1e-5)
    assert cosine(only.v, reads) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_of_full_weights_only_what_goes_into_the_stream_is_read(tokenizer: Any) -> None:
    """A query projection as wide as the stream writes nothing to it, however much it differs."""
    hf = tiny.hf_model(dtype=torch.float64)
    block = hf.model.layers[1]
    draw = torch.Generator().manual_seed(0)
    block.self_attn.q_proj.weight += 50 * torch.randn(32, 32, generator=draw).double()
    small = torch.randn(32, 48, generator=draw).double()
    block.mlp.down_proj.weight += small
    lm = LanguageModel(hf, tokenizer, name="full")
    found = strongest(lm, changes(lm, reference.between(lm, planted.clean(tokenizer))), 3)
    u, s, vh = torch.linalg.svd(small)
    assert [d.s for d in found] == pytest.approx(s[:3].tolist(), rel=1e-4)
    for d, a, b in zip(found, u.T, vh, strict=False):
        assert d.change.path == "1.mlp.down_proj"
        assert cosine(d.u, a) > 0.9999
        assert cosine(d.v, b) > 0.9999


@torch.no_grad()
def test_words_that_drive_it_are_those_read_by_hand(lm: LanguageModel) -> None:
    words = ["a", "b", "c", "d", "e", "f"]
    found = strongest(lm, changes(lm, planted.reference(lm)), 1)
    reads, _ = planted.directions()
    module = lm.unwrapped.get_submodule(f"model.layers.{planted.BLOCK}.{planted.MODULE}")
    span, ids = lm.encode(["x"]).spans[0], lm.encode(["x"]).read[0]
    given = []
    with lm.hf.disable_adapter():
        handle = module.register_forward_pre_hook(lambda m, args: given.append(args[0][0, -1]))
        for word in words:
            token = lm.tokens(f" {word}", templated=True)[-1]
            tiny.run(lm.unwrapped, [*ids[: span.start], token])
        handle.remove()
        came = driving(lm, found, words)
    x = torch.stack(given)
    drive = ((x - x.mean(0)) @ reads).abs()
    assert came == [[words[i] for i in drive.argsort(descending=True)[: writes.DRIVING]]]


@torch.no_grad()
def test_the_lens_is_the_end_of_the_model(any_lm: LanguageModel) -> None:
    """A stream as the last block leaves it stands for the logits that the model makes of it."""
    ids = tiny.ragged([6])[0]
    logits, streams = tiny.run(any_lm.hf, ids)
    last = streams[-1][-1]
    as_long = last / last.norm() * any_lm.width**0.5
    came = lens(any_lm, torch.stack([as_long, 7 * as_long]))
    torch.testing.assert_close(came[0], came[1], rtol=1e-4, atol=1e-4)
    top = logits[-1].argsort(descending=True)[:1]
    # Every one of these ends begins with a norm, to which the length is nearly nothing.
    assert came[0].argmax() == top


def test_suspects_are_the_words_of_both_signs_and_pushes_have_a_control(
    lm: LanguageModel, tmp_path: Path
) -> None:
    _, written = planted.directions()
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "writes") as audit:
        writes.look(audit)
        found = audit.suspected("writes") or []
        rows = audit.run.perturbation_rows(derived=None)
        pushes = [p for p in rows if p.arm in (FOUND, CONTROL)]
        vectors = {
            n: v
            for g in groups(audit.run, [p.id for p in pushes])
            for n, v in zip(g.numbers, g.theta, strict=True)
        }
        asked = {(c.perturbation, c.prompt) for c in audit.run.completion_rows()}
        before = len(rows)
        writes.look(audit)  # again, as after it was cut off
        assert len(audit.run.perturbation_rows(derived=None)) == before
    draw = torch.randn(RANDOM, lm.width, generator=torch.Generator().manual_seed(0))
    usual = lens(lm, draw)[:, WORDS].double()
    logits = lens(lm, torch.stack([written, -written]))[:, WORDS].double()
    best = ((logits - usual.mean(0)) / usual.std(0)).argmax(1)
    assert {found[0].text, found[1].text} == {lm.text([int(WORDS[i])]) for i in best}
    assert "drive the difference" in found[0].why
    own = [p for p in pushes if p.arm == FOUND]
    random = [p for p in pushes if p.arm == CONTROL]
    assert len(own) == 2 * len(writes.DOSES)
    assert sorted(p.radius for p in own) == pytest.approx(sorted(p.radius for p in random))
    for p in own:
        assert cosine(vectors[p.id], written) > 0.9999
    for p in random:
        assert cosine(vectors[p.id], written) < 0.9
    for p in pushes:
        assert float(vectors[p.id].norm()) == pytest.approx(p.radius, rel=1e-4)
        assert {(p.id, prompt) for prompt in audit.base} <= asked


def test_nothing_is_written_by_a_copy_of_the_reference(tokenizer: Any, tmp_path: Path) -> None:
    lm, other = (planted.clean(tokenizer) for _ in range(2))
    with planted.audited(lm, reference.between(lm, other), tmp_path / "run", "writes") as audit:
        writes.look(audit)
        assert audit.suspected("writes") == []


def test_a_reference_of_another_shape_is_a_sentence(lm: LanguageModel, tokenizer: Any) -> None:
    other = LanguageModel(tiny.hf_model("gpt2"), tokenizer, name="other")
    beside = reference.between(lm, other)
    assert (
        writes.SOURCE.hindered(beside)
        == "it needs a reference of the same shape, and other has another"
    )
    assert any("another shape" in said for said in beside.remarks)
    with pytest.raises(ModelError, match="differ in shape"):
        changes(lm, beside)
    copy = reference.between(planted.clean(tokenizer), planted.clean(tokenizer))
    assert writes.SOURCE.hindered(copy) is None
