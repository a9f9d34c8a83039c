"""What layers read: a linear network, planted reads, dense decompositions and brute force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from educe.activations import corpus, reading
from educe.activations.balanced import Components, orthogonal
from educe.activations.gradients import Swept, sweep
from educe.activations.reading import Piece
from educe.errors import ModelError, PromptError
from educe.model.language import LanguageModel
from educe.reads import single
from educe.reads.backwards import carried_back, of_rows
from educe.reads.parts import Heads, last_norm, parts_of
from educe.reads.single import ARMS, used
from educe.reads.survey import survey
from educe.reads.thinning import Curve, Texts, components_of, thinned
from educe.reads.ways import groups, shown, ways
from linear_lm import DEPTH, RANK, WIDTH, linear, onwards
from toy_slice import normal

LAYERS = range(DEPTH)


@pytest.fixture(scope="module")
def line() -> LanguageModel:
    return linear()


@pytest.fixture(scope="module")
def known(line: LanguageModel) -> Swept:
    return sweep(line, corpus.documents(), LAYERS, limit=3000)


def span(rows: Tensor) -> Tensor:
    """Return the projector onto the span of some rows."""
    return torch.linalg.pinv(rows) @ rows


# -- a linear network ------------------------------------------------------------------------------


def test_gradients_span_what_the_output_reads(line: LanguageModel, known: Swept) -> None:
    for layer in LAYERS:
        value, vectors = torch.linalg.eigh(known.layers[layer].importance)
        assert float(value[-RANK - 1]) < 1e-9 * float(value[-1])
        reads = torch.linalg.svd(onwards(line, layer)).Vh[:RANK]
        torch.testing.assert_close(span(vectors[:, -RANK:].T), span(reads))


@pytest.mark.parametrize("form", ["gradients", "balanced", "components"])
def test_the_dimensions_that_are_read_are_the_model(
    line: LanguageModel, known: Swept, form: str
) -> None:
    """As many as the unembedding has do, where they are chosen by what is used."""
    texts = Texts(line, list(reading.pieces(line, corpus.documents(), limit=200)))
    kept = {i: components_of(known.layers[i])[form].top(RANK) for i in LAYERS}
    for some in ({1: kept[1]}, kept):
        lost = texts.under(some)
        if form == "balanced":
            assert lost.kl < 1e-6
            assert lost.same == 1
        elif form == "components":
            assert lost.kl > 0.05
        gone = texts.under(some, away=True)
        assert gone.kl > 0.05


def test_an_answer_used_as_many_components_as_the_output_reads(
    line: LanguageModel, known: Swept
) -> None:
    found = used(line, "Why?", known.layers, max_new_tokens=6)
    assert found.same == 1
    assert found.staying("used") <= RANK + 1  # of those that are tried: 1, 2, and all 3
    by = {(t.arm, t.away, t.number): t for t in found.trials}
    top = max(t.number for t in found.trials)
    assert top == RANK
    assert by["used", False, RANK].logprob == pytest.approx(found.logprob, abs=1e-6)
    assert by["used", True, RANK].logprob < found.logprob - 0.3
    assert by["components", False, RANK].logprob < found.logprob - 0.05


def test_what_one_token_does_at_a_layer_is_its_own_fisher_metric(
    line: LanguageModel, known: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "DRAWS", 800)
    found = used(line, "Why?", known.layers, max_new_tokens=3)
    ids = line.encode(["Why?"]).ids[0].tolist()
    streams = tiny_streams(line, ids)
    for layer in LAYERS:
        apart = streams[layer][-1] - known.layers[layer].activations.mean
        reads = onwards(line, layer)
        p = (reads @ streams[layer][-1]).softmax(0)
        moved = reads @ apart
        exact = float((p * moved.square()).sum() - (p @ moved) ** 2) / 2
        assert float(found.effect[layer, len(ids) - 1]) == pytest.approx(exact, rel=0.25)
        assert not found.effect[layer, : len(ids) - 1].any()  # tokens are for themselves


def tiny_streams(lm: LanguageModel, ids: list[int]) -> list[Tensor]:
    h, found = lm.hf.words.weight[ids], []
    for block in lm.hf.blocks:
        h = h + h @ block.write.weight.T
        found.append(h)
    return found


def test_snapshots_are_the_components_of_the_dense_matrices() -> None:
    apart, gradients = normal(5, 9), normal(20, 9, seed=1)
    mean, free = torch.zeros(9, dtype=torch.float64), torch.ones(9, dtype=torch.bool)
    found = single.snapshots(apart, gradients, mean, free)
    torch.testing.assert_close(found.read @ found.write.T, torch.eye(5, dtype=torch.float64))
    square = apart.T @ apart @ (gradients.T @ gradients)
    value = np.sort(np.linalg.eigvals(square.numpy()).real)[::-1][:5]
    np.testing.assert_allclose(found.value.square(), value, rtol=1e-8)
    torch.testing.assert_close(found.only(apart), apart)


# -- thinning --------------------------------------------------------------------------------------


def test_a_model_with_all_dimensions_is_the_model(tiny64: LanguageModel) -> None:
    found = sweep(tiny64, corpus.documents(), range(4), limit=600)
    ids = torch.tensor([tiny.ragged([9])[0]])
    plain = tiny64.forward(ids, torch.ones_like(ids), last=0)
    for form in components_of(found.layers[0]):
        whole = {i: components_of(known)[form] for i, known in found.layers.items()}
        with thinned(tiny64, whole):
            thin = tiny64.forward(ids, torch.ones_like(ids), last=0)
        torch.testing.assert_close(thin, plain)


def test_the_divergence_is_that_of_the_model_run_by_hand(tiny64: LanguageModel) -> None:
    ids = tiny.ragged([7])[0]
    square = (lambda w: w @ w.T)(normal(32, 32))
    kept = orthogonal(normal(32, seed=1), square, massive=[3]).top(5)

    def hook(module: nn.Module, args: object, stream: Tensor) -> Tensor:
        apart = stream - kept.mean
        only = kept.mean + (apart @ kept.read.T) @ kept.write
        only[..., 3] = stream[..., 3]
        only[:, 0] = stream[:, 0]  # the first token
        return only

    plain = tiny.run(tiny64.hf, ids)[0].log_softmax(-1)
    handle = tiny64.blocks[1].register_forward_hook(hook)
    thin = tiny.run(tiny64.hf, ids)[0].log_softmax(-1)
    handle.remove()
    kl = (plain.exp() * (plain - thin)).sum(1)[2:].mean()
    other = tiny.ragged([5], seed=1)[0]  # of another length
    alone = Texts(tiny64, [Piece(0, ids, 2)]).under({1: kept})
    assert alone.kl == pytest.approx(float(kl), rel=1e-4)
    one = Texts(tiny64, [Piece(1, other, 1)]).under({1: kept}).kl
    both = Texts(tiny64, [Piece(0, ids, 2), Piece(1, other, 1)]).under({1: kept}).kl
    assert both == pytest.approx((5 * float(kl) + 4 * one) / 9, rel=1e-4)


def test_the_dimensions_needed_lie_between_those_tried() -> None:
    curve = Curve("balanced", None, (10, 100, 1000), (1.0, 0.01, 0.0001), (0, 0, 0))
    assert curve.needed(0.1) == pytest.approx(10**1.5)
    assert curve.needed(0.01) == pytest.approx(100)
    assert curve.needed(2) == 10
    assert curve.needed(1e-5) is None


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "phi3", "falcon", "olmo2"])
def test_folded_weights_read_the_stream_as_the_model_does(architecture: str) -> None:
    hf = tiny.hf_model(architecture, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    for name, weight in hf.named_parameters():
        if (weight.ndim == 1 and "norm" in name) or "ln_" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    lm = LanguageModel(hf, tiny.tokenizer(), name=architecture)
    ids = torch.tensor([tiny.ragged([9], seed=5)[0]])
    for part in parts_of(lm, 2):
        if part.norm.module is None and part.name == "mlp":
            continue  # what attention added is in between
        with lm.watching([1]) as streams:
            given, _ = watched(lm, [part.norm.module] if part.norm.module else [], ids)
            _, came = watched(lm, list(part.matrices.values()), ids)
        h = given[0] if given else streams[1]
        read = h @ torch.cat(part.rows).T / part.norm.scale(h)[..., None]
        constant = (torch.cat(came, -1) - read).flatten(0, -2)  # of a bias
        spread = (constant - constant.mean(0)).abs().max()
        assert float(spread) < 1e-2 * float(read.abs().max())


def watched(lm: LanguageModel, modules: list[nn.Module], ids: Tensor) -> tuple[list, list]:
    """Return what modules take and give while a model reads."""
    given, came = [], []

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        given.append(args[0])
        came.append(output)

    handles = [module.register_forward_hook(note) for module in modules]
    lm.forward(ids, torch.ones_like(ids), last=0)
    for handle in handles:
        handle.remove()
    return given, came


def test_experts_are_said_to_be_no_matrices(lm_of: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ModelError, match="does not read and write the stream by a matrix"):
        parts_of(lm_of("mixtral"), 1)


# -- ways ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [4, 30])
def test_ways_are_singular_vectors_of_what_is_read(rows: int) -> None:
    h, weight = normal(200, 9) @ normal(9, 9, seed=1), normal(rows, 9, seed=2)
    apart = h - h.mean(0)
    value, read = ways(apart.T @ apart / 200, weight)
    size = np.linalg.svd((apart @ weight.T / 200**0.5).numpy(), compute_uv=False)[: min(rows, 9)]
    np.testing.assert_allclose(value.sqrt(), size, rtol=1e-9)
    coefficients = apart @ read.T
    eye = torch.eye(len(value), dtype=torch.float64)
    torch.testing.assert_close(coefficients.T @ coefficients / 200, eye)
    # What is read is nothing but them.
    torch.testing.assert_close(span(read), span(weight))


def test_a_planted_read_is_the_first_way() -> None:
    planted = nn.functional.normalize(normal(9, seed=3), dim=0)
    weight = normal(20, 1, seed=4) * planted + 0.01 * normal(20, 9, seed=5)
    value, read = ways(torch.eye(9, dtype=torch.float64), weight)
    assert abs(float(nn.functional.normalize(read[0], dim=0) @ planted)) > 0.999
    assert float(value[0] / value.sum()) > 0.99


def test_a_way_is_shown_where_it_is_largest(tiny_lm: LanguageModel) -> None:
    known = sweep(tiny_lm, corpus.documents(), range(4), limit=1500).layers
    blocks = [parts_of(tiny_lm, block) for block in range(4)]
    every = groups(tiny_lm, known, blocks)
    assert {g.reader for g in every} == {"attention", "mlp", *(f"head {h}" for h in range(4))}
    found = shown(tiny_lm, corpus.documents(), known, every, limit=1500)
    for group in (found[0], found[-1]):
        values = []
        for piece in reading.pieces(tiny_lm, corpus.documents(), limit=1500):
            stream = tiny.run(tiny_lm.hf, piece.ids)[1][group.layer][piece.skip :]
            mean = known[group.layer].activations.mean
            values.append((stream.double() - mean) @ group.read[0].double())
        largest = max(float(v) for v in torch.cat(values).abs())
        assert abs(group.shown[0][0].coefficient) == pytest.approx(largest, rel=1e-3)
        sizes = [abs(c.coefficient) for c in group.shown[0]]
        assert sizes == sorted(sizes, reverse=True)
    head = parts_of(tiny_lm, 1)[0]
    q, k, v = (head.norm.folded(m.weight) for m in head.matrices.values())
    for h, of in ((1, slice(0, 8)), (3, slice(8, 16))):  # two heads share keys and values
        read = torch.cat([q[8 * h : 8 * h + 8], k[of], v[of]])
        value, _ = ways(known[0].activations.covariance, read, known[0].massive)
        torch.testing.assert_close(next(g.value for g in every if g.reader == f"head {h}"), value)


# -- backwards from the output ---------------------------------------------------------------------


def test_what_a_unit_writes_is_shared_by_its_rows() -> None:
    mattering = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    alone = of_rows(mattering, torch.tensor([2.0, 2.0, 1.0, 8.0]).double(), 1)
    assert alone.tolist() == [0.5, 1, 3, 0.5]
    heads = of_rows(mattering, torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), 2)
    assert heads.tolist() == [1, 1, 1, 1]
    grouped = of_rows(mattering, torch.tensor([2.0, 3.0]).double(), 2)  # one serves both heads
    assert grouped.tolist() == [2, 2]
    two = of_rows(mattering, torch.ones(8).double(), 1)  # gate and up in one matrix
    assert two.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    whole = of_rows(mattering, torch.ones(5).double(), 2)
    assert whole.tolist() == [2] * 5


@pytest.fixture(scope="module")
def planted() -> LanguageModel:
    """A Llama in which block 2 reads coordinate 5 and writes 1; the output reads 1 and 2."""
    hf = tiny.hf_model("llama", dtype=torch.float64)
    for name, weight in hf.named_parameters():
        if "layers" in name and weight.ndim == 2:
            weight.data.zero_()
    mlp = hf.model.layers[2].mlp
    mlp.gate_proj.weight.data[:, 5] = 1
    mlp.up_proj.weight.data[:, 5] = 1
    mlp.down_proj.weight.data[1] = 0.5
    head = hf.lm_head.weight.data
    head[:, [i for i in range(32) if i not in (1, 2)]] = 0
    return LanguageModel(hf, tiny.tokenizer(), name="planted")


def test_a_planted_read_matters_below_the_block_that_reads_it(planted: LanguageModel) -> None:
    found = carried_back(planted, corpus.documents(), limit=300)
    assert sorted(found) == [0, 1, 2, 3]
    for layer, importance in found.items():
        wanted = {1, 2} if layer >= 2 else {1, 2, 5}
        size = importance.diagonal()
        assert set((size > 1e-9 * size.max()).nonzero()[:, 0].tolist()) == wanted
    grown = found[1] - found[2]
    assert float(grown[5, 5]) > 0
    grown[5, 5] = 0
    torch.testing.assert_close(grown, torch.zeros_like(grown))  # and the rest is carried along


def test_the_importance_at_the_end_is_the_metric_of_the_logits(planted: LanguageModel) -> None:
    pieces = list(reading.pieces(planted, corpus.documents(), limit=100))
    head, gain = planted.hf.lm_head.weight, planted.hf.model.norm.weight
    squares = []
    for piece in pieces:
        assert piece.skip == 1  # a first token, which is massive here
        logits, streams = tiny.run(planted.hf, piece.ids)
        massive = reading.is_massive(torch.stack(streams)).any(0)
        for p, h in zip(logits.softmax(-1)[~massive], streams[-1][~massive], strict=True):
            folded = head * gain / h.square().mean().sqrt()
            squares.append(folded.T @ (p.diag() - torch.outer(p, p)) @ folded)
    found = carried_back(planted, corpus.documents(), limit=100)[3]
    torch.testing.assert_close(found, torch.stack(squares).mean(0), rtol=1e-2, atol=1e-9)
    assert last_norm(planted).module is planted.hf.model.norm
    assert Heads.of(planted) == (4, 8)


# -- the whole job ---------------------------------------------------------------------------------


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A survey on little."""
    for name, value in {"TEXTS": 2, "ALONE": 2, "LOOKED": 300}.items():
        monkeypatch.setattr(f"educe.reads.survey.{name}", value)
    monkeypatch.setattr("educe.reads.thinning.GRID", (1 / 4, 1))


@pytest.mark.usefixtures("brief")
def test_a_survey_goes_on_where_it_was_cut_off(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutError(Exception):
        pass

    def cut(*args: object) -> None:
        raise CutError

    seed = 11  # nothing is kept of it yet
    with monkeypatch.context() as patch:
        patch.setattr("educe.reads.thinning.curves", cut)
        with pytest.raises(CutError):
            survey(tiny_lm, tokens=500, seed=seed)
    with monkeypatch.context() as patch:
        patch.setattr("educe.activations.gradients.pulled", cut)
        patch.setattr("educe.reads.ways.shown", cut)
        found = survey(tiny_lm, tokens=500, seed=seed)
    assert len(found.curves) == 5 * (2 + 1)
    for curve in found.curves:
        assert curve.kept == (8, 32)
        assert curve.kl[1] < 1e-5 < curve.kl[0]
    again = survey(tiny_lm, tokens=500, seed=seed)
    assert json.dumps(again.data()) == json.dumps(found.data())


@pytest.mark.usefixtures("brief")
def test_experts_are_thinned_by_what_needs_no_weights(lm_of: Callable[..., LanguageModel]) -> None:
    found = survey(lm_of("mixtral"), tokens=500)
    assert found.groups == ()
    assert found.forms == ("gradients", "balanced", "components", "random")


def test_what_cannot_be_surveyed(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("One line that is not held out, since it is the first.")
    with pytest.raises(PromptError, match="no text to measure on"):
        survey(tiny_lm, str(short))
    with pytest.raises(PromptError, match="answer is empty"):
        used(tiny_lm, "Why?", {}, answer="")


def test_arms_of_one_answer_have_what_they_say(line: LanguageModel, known: Swept) -> None:
    found = used(line, "Why is it so?", known.layers, answer="It is.")
    assert found.answer == "It is."
    assert {t.arm for t in found.trials} == set(ARMS)
    for trial in found.trials:
        assert 0 <= trial.energy <= 1 + 1e-6 or trial.arm == "used"
    own = {t.number: t.energy for t in found.trials if t.arm == "used" and not t.away}
    alike = {t.number: t.energy for t in found.trials if t.arm == "random, as much" and not t.away}
    for number, energy in own.items():
        assert alike[number] >= min(energy, 1) - 1e-6
    assert isinstance(known.layers[0].balanced, Components)
    assert found.data()["components"]["used"]["stays"] == found.staying("used")
    assert WIDTH == 16
