"""The layer map, against dense singular value decompositions of every pair, and planted choices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from educe import files
from educe.errors import FileFormatError, LayerError, RunError
from educe.forward.slice import Slice
from educe.layer_map import LayerMap, LayerMapConfig, Pair, grid
from educe.layer_map.choice import CHEAP, choose, promising, thinned
from educe.layer_map.survey import _octaves, cost, survey
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel

ROWS = tiny.ragged([6, 11, 2])
READ = 3 + 3 + 2
COMPLETE = LayerMapConfig(top=4, padding=4, products=4)  # as many columns as the stream is wide
ALL = [Pair(0, 1), Pair(0, 2), Pair(0, 3), Pair(1, 2), Pair(1, 3), Pair(2, 3)]


@pytest.fixture(scope="module")
def lm(lm_of: Callable[..., LanguageModel]) -> LanguageModel:
    return lm_of("gpt2", torch.float64)


@pytest.fixture(scope="module")
def jacobians(lm: LanguageModel) -> dict[Pair, Tensor]:
    """The dense Jacobian of every pair, all read-out positions one under the other."""
    found: dict[Pair, list[Tensor]] = {pair: [] for pair in ALL}
    zero = torch.zeros(32, dtype=torch.float64)
    for source in range(3):
        for ids in ROWS:
            at = tiny.chosen("all", len(ids))

            def read(vector: Tensor, at: Tensor = at, ids: Any = ids, source: int = source) -> Any:
                streams = tiny.run(lm.hf, ids, source=source, vector=vector, at=at)[1]
                return tuple(stream[-3:].flatten() for stream in streams[source + 1 :])

            each = torch.autograd.functional.jacobian(read, zero)
            for target, own in enumerate(each, source + 1):
                found[Pair(source, target)].append(own)
    return {pair: torch.cat(own) for pair, own in found.items()}


def whole(
    lm: LanguageModel,
    config: LayerMapConfig | None = None,
    pairs: Sequence[Pair] = ALL,
    **options: Any,
) -> LayerMap:
    *_, last = survey(lm, lm.pad(ROWS), pairs, config, **options)
    return last


def alike(first: LayerMap, second: LayerMap) -> bool:
    """Whether two layer maps are the same, bit for bit."""
    tensors = ("norms", "sigma", "vectors")
    return (
        replace(first, **dict.fromkeys(tensors)) == replace(second, **dict.fromkeys(tensors))
    ) and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


# -- singular values -------------------------------------------------------------------------------


def test_pairs_are_those_of_the_dense_decompositions(
    lm: LanguageModel, jacobians: dict[Pair, Tensor]
) -> None:
    found = whole(lm, COMPLETE)
    assert list(found.pairs) == ALL
    for pair, sigma, vector in zip(found.pairs, found.sigma, found.vectors, strict=True):
        _, sizes, right = torch.linalg.svd(jacobians[pair])
        torch.testing.assert_close(sigma, sizes[:4].float())
        assert float((right[0] @ vector.double()).abs()) == pytest.approx(1, abs=1e-6)


def test_few_products_come_near_and_never_above(
    lm: LanguageModel, jacobians: dict[Pair, Tensor]
) -> None:
    for config, near in ((LayerMapConfig(), 0.02), (CHEAP, 0.1)):
        found = whole(lm, config)
        for pair, sigma in zip(found.pairs, found.sigma, strict=True):
            sizes = torch.linalg.svdvals(jacobians[pair])[: config.top].float()
            assert bool((sigma <= sizes * (1 + 1e-6)).all())
            assert float(sigma[0] / sizes[0]) > 1 - near


def test_targets_that_share_a_space_count_alike_however_long_their_streams(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, pairs = LayerMapConfig(top=2, padding=1), [Pair(0, 2), Pair(0, 3)]
    plain = whole(lm, config, pairs)
    push, pull = Slice.push, Slice.pull
    scale = torch.tensor([1.0, 1000.0], dtype=torch.float64)[:, None, None, None, None]
    monkeypatch.setattr(Slice, "push", lambda self, v, t: push(self, v, t) * scale)
    monkeypatch.setattr(Slice, "pull", lambda self, c, t: pull(self, c * scale, t))
    scaled = whole(lm, config, pairs)
    torch.testing.assert_close(scaled.sigma, plain.sigma * scale[:, 0, 0, 0].float())
    torch.testing.assert_close(scaled.vectors, plain.vectors)


def test_gap_and_gain_are_what_they_say(lm: LanguageModel, jacobians: dict[Pair, Tensor]) -> None:
    found = whole(lm, COMPLETE)
    streams = [tiny.run(lm.hf, ids)[1] for ids in ROWS]
    norms = [float(np.median(torch.cat([s[i][1:].norm(dim=1) for s in streams]))) for i in range(4)]
    assert found.norms.tolist() == pytest.approx(norms, rel=1e-5)
    for i, (source, target) in enumerate(found.pairs):
        jacobian = jacobians[Pair(source, target)]
        _, sizes, right = torch.linalg.svd(jacobian)
        assert float(found.gap[i]) == pytest.approx(1 - float(sizes[1] / sizes[0]), abs=1e-5)
        # A small dose of the top vector, and how large its change is at the read-out.
        moved = (jacobian @ (right[0] * 1e-3 * norms[source])).reshape(READ, 32)
        arrived = float(moved.square().sum(1).mean().sqrt()) / norms[target]
        assert float(found.gain[i]) == pytest.approx(arrived / 1e-3, rel=1e-5)


def test_steadiness_is_the_likeness_to_other_targets_of_the_source(lm: LanguageModel) -> None:
    found = whole(lm)
    v = torch.nn.functional.normalize(found.vectors, dim=1)
    expected = [
        ((v[0] @ v[1]).abs() + (v[0] @ v[2]).abs()) / 2,
        ((v[1] @ v[0]).abs() + (v[1] @ v[2]).abs()) / 2,
        ((v[2] @ v[0]).abs() + (v[2] @ v[1]).abs()) / 2,
        *[(v[3] @ v[4]).abs()] * 2,
        1.0,
    ]
    assert found.steadiness.tolist() == pytest.approx([float(e) for e in expected])


def test_positions_and_readout_are_those_asked_for(lm: LanguageModel) -> None:
    config = replace(COMPLETE, positions="last:2", readout="last:1")
    found = whole(lm, config, [Pair(1, 3)])
    assert found.readouts == 3
    zero, blocks = torch.zeros(32, dtype=torch.float64), []
    for ids in ROWS:
        at = tiny.chosen("last:2", len(ids))
        blocks.append(
            torch.autograd.functional.jacobian(
                lambda v, ids=ids, at=at: tiny.run(lm.hf, ids, source=1, vector=v, at=at)[1][3][-1],
                zero,
            )
        )
    sizes = torch.linalg.svdvals(torch.cat(blocks))[:4].float()
    torch.testing.assert_close(found.sigma[0], sizes)


# -- going on --------------------------------------------------------------------------------------


def test_each_source_comes_whole_and_resumed_is_uninterrupted(
    lm: LanguageModel, tmp_path: Path
) -> None:
    grown = list(survey(lm, lm.pad(ROWS), ALL))
    assert [len(layer_map.pairs) for layer_map in grown] == [3, 5, 6]
    for layer_map in grown:
        layer_map.save(tmp_path / "layers")
        begun = LayerMap.load(tmp_path / "layers")
        assert alike(begun, layer_map)
        rest = list(survey(lm, lm.pad(ROWS), ALL, begun=begun))
        assert len(rest) == 3 - [3, 5, 6].index(len(layer_map.pairs)) - 1
        assert alike(rest[-1] if rest else begun, grown[-1])


def test_what_is_known_is_not_computed_again(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = whole(lm, pairs=[Pair(1, 2), Pair(1, 3)])
    sources = []
    kept = Slice.push
    monkeypatch.setattr(
        Slice, "push", lambda self, *a: (sources.append(self.source), kept(self, *a))[1]
    )
    found = whole(lm, begun=begun)
    assert set(sources) == {0, 2}
    assert set(found.pairs) == set(ALL)


def test_the_seed_decides(lm: LanguageModel) -> None:
    first, again, other = (whole(lm, LayerMapConfig(products=2, seed=s)) for s in (1, 1, 2))
    assert alike(first, again)
    assert not torch.equal(first.sigma, other.sigma)


@pytest.mark.parametrize("what", ["prompts", "settings"])
def test_a_layer_map_of_something_else_is_not_gone_on_with(lm: LanguageModel, what: str) -> None:
    begun = whole(lm, LayerMapConfig(products=1), [Pair(2, 3)])
    batch, config = lm.pad(ROWS), begun.config
    if what == "prompts":
        batch = lm.pad(tiny.ragged([4]))
    if what == "settings":
        config = LayerMapConfig(products=2)
    with pytest.raises(RunError, match="other prompts or settings: begin anew"):
        next(survey(lm, batch, ALL, config, begun=begun))


def test_a_layer_map_of_another_model_is_not_gone_on_with(
    lm: LanguageModel, tokenizer: Any, tmp_path: Path
) -> None:
    """Its name does not tell, one number among its weights does."""
    begun = whole(lm, LayerMapConfig(products=1), [Pair(2, 3)])
    begun.save(tmp_path / "layers")
    other = LanguageModel(tiny.hf_model("gpt2", dtype=torch.float64), tokenizer, name=lm.name)
    begun = LayerMap.load(tmp_path / "layers")
    assert next(survey(other, other.pad(ROWS), [Pair(1, 2)], begun.config, begun=begun))
    other = LanguageModel(tiny.hf_model("gpt2", dtype=torch.float64), tokenizer, name=lm.name)
    other.hf.lm_head.weight.data[3, 0] += 1e-9
    with pytest.raises(RunError, match=r"another model \(gpt2\) than gpt2 is now: weights differ"):
        next(survey(other, other.pad(ROWS), ALL, begun.config, begun=begun))


def test_a_layer_map_of_version_1_is_read_and_not_gone_on_with(
    lm: LanguageModel, tmp_path: Path
) -> None:
    begun = whole(lm, LayerMapConfig(products=1), [Pair(2, 3)])
    begun.save(tmp_path / "layers")
    tensors, header = files.read_tensors(tmp_path / "layers")
    del header["model_parts_json"]
    files.write_tensors(tmp_path / "layers", tensors, header | {"format_version": "1"})
    old = LayerMap.load(tmp_path / "layers")
    assert alike(old, replace(begun, model_parts={}))
    with pytest.raises(RunError, match="no digest of its model gpt2: begin anew"):
        next(survey(lm, lm.pad(ROWS), ALL, old.config, begun=old))


def test_no_pair_is_an_error(lm: LanguageModel) -> None:
    with pytest.raises(LayerError, match="a target lies above its source"):
        next(survey(lm, lm.pad(ROWS), []))


def test_a_file_that_is_no_layer_map_is_an_error(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "layers"
    with pytest.raises(FileFormatError, match="cannot read"):
        LayerMap.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FileFormatError, match="no layer map that this educe reads"):
        LayerMap.load(path)
    whole(lm, LayerMapConfig(products=1), [Pair(2, 3)]).save(path)
    path.write_bytes(path.read_bytes().replace(b'"sigma"', b'"omega"'))
    with pytest.raises(FileFormatError, match="damaged: KeyError: 'sigma'"):
        LayerMap.load(path)


# -- what it will take -----------------------------------------------------------------------------


def test_cost_counts_the_passes_that_are_made(
    lm: LanguageModel, request: pytest.FixtureRequest
) -> None:
    made = [0]

    def count(module: Any, args: Any, kwargs: Any) -> None:
        rows = len(args[0] if args else kwargs["hidden_states"])
        # Neither the unperturbed model nor the recorder, which computes nothing.
        made[0] += rows > 1 and "forward" not in vars(module)

    batch = lm.pad([ROWS[0]])
    config = LayerMapConfig(products=3)
    expected = cost(lm, batch, ALL, config)
    for block in lm.blocks:
        handle = block.register_forward_pre_hook(count, with_kwargs=True)
        request.addfinalizer(handle.remove)
    for _ in survey(lm, batch, ALL, config):
        pass
    assert made[0] == expected.passes == (2 * 3 - 1) * (1 + 3 + 1 + 2 + 1)


def test_cost_is_what_a_small_product_took_for_each_pass(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Setting a source up takes 5; products with two blocks, 1 to 3, take 9 and 7 at first, because
    # of what is done only then, and 4 and 2 later.
    clock = iter([0, 5, 10, 19, 26, 30, 34, 36])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = cost(lm, lm.pad([ROWS[0]]), ALL, LayerMapConfig(products=3))
    assert found.seconds == pytest.approx(3 * 5 + (3 * 4 / 2 + 2 * 2 / 2) * (1 + 3 + 1 + 2 + 1))


def test_targets_share_passes_by_octaves_of_their_distance() -> None:
    near = _octaves(2, [3, 4, 5, 6, 9, 10, 17, 18, 29])
    assert near == [[3], [4, 5], [6, 9], [10, 17], [18, 29]]


def test_grid_is_every_pair_in_which_the_target_is_above() -> None:
    assert grid(4) == ALL
    assert grid(4, sources=[1], targets=[0, 3]) == [Pair(1, 3)]


# -- choosing --------------------------------------------------------------------------------------


def planted(
    gaps: Callable[[Pair], float], shared: Callable[[Pair], float], depth: int = 30
) -> LayerMap:
    """Return a layer map of given gaps, whose top vectors share a part of given size."""
    pairs = grid(depth)
    draw = torch.Generator().manual_seed(0)
    drift = torch.linalg.qr(torch.randn(500, 500, generator=draw)).Q
    axis = drift[:, 0]
    vectors = []
    for i, pair in enumerate(pairs):
        part = shared(pair)
        vectors.append(part * axis + (1 - part**2) ** 0.5 * drift[:, 1 + i % 499])
    return LayerMap(
        model="planted",
        model_parts={},
        prompts_sha256="",
        config=LayerMapConfig(),
        readouts=4,
        norms=torch.arange(1.0, depth + 1),
        pairs=tuple(pairs),
        sigma=torch.tensor([[6, 6 * (1 - gaps(pair)), 1, 1] for pair in pairs]),
        vectors=torch.stack(vectors),
    )


def test_the_choice_is_the_direction_that_stands_out_most_steadily() -> None:
    gaps = {
        Pair(10, 20): 0.5,  # steady
        Pair(12, 20): 0.6,  # larger, but no other target sees it
        Pair(10, 29): 0.9,  # in the last blocks
        Pair(10, 12): 0.9,  # too near
        Pair(2, 20): 0.9,  # in the first blocks
    }
    found = planted(lambda pair: gaps.get(pair, 0.1), lambda pair: 0.1 if pair[0] == 12 else 0.9)
    chosen = choose(found)
    assert (chosen.source, chosen.target) == (10, 20)
    assert "of 98 pairs looked at, 10 to 20 has" in chosen.why
    assert "the next singular value is 50% lower" in chosen.why
    assert "mean cosine with what other targets see is 0.81" in chosen.why
    # σ is 6, over the root of 4 positions 3, and the stream grows from 11 to 21.
    assert f"arrives {3 * 11 / 21:.1f} times as large" in chosen.why


def test_of_targets_that_are_nearly_as_good_it_is_the_nearest() -> None:
    gaps = {
        Pair(10, 24): 0.5,
        Pair(10, 21): 0.49,
        Pair(10, 18): 0.45,  # not nearly
        Pair(12, 19): 0.49,  # of another source
    }
    found = planted(lambda pair: gaps.get(pair, 0.1), lambda pair: 0.9)
    assert choose(found)[:2] == (10, 21)
    assert choose(found, target=24)[:2] == (10, 24)


def test_a_layer_that_is_given_is_kept() -> None:
    gaps = {Pair(10, 20): 0.5, Pair(7, 22): 0.4, Pair(12, 18): 0.3, Pair(3, 25): 0.3}
    found = planted(lambda pair: gaps.get(pair, 0.1), lambda pair: 0.9)
    assert choose(found, source=7)[:2] == (7, 22)
    assert choose(found, source=3)[:2] == (3, 25)
    assert choose(found, target=18)[:2] == (12, 18)
    assert "of 8 pairs looked at" in choose(found, target=18).why
    assert choose(found, target=29)[1] == 29
    assert choose(found, source=12, target=14)[:2] == (12, 14)


def test_promising_pairs_are_in_the_middle() -> None:
    pairs = promising(30)
    assert {pair.source for pair in pairs} == set(range(6, 15))
    assert {pair.target for pair in pairs} == set(range(15, 27))
    assert min(pair.target - pair.source for pair in pairs) == 5
    assert {pair.source for pair in promising(30, source=3)} == {3}
    assert {pair.target for pair in promising(30, target=28)} == {*range(15, 27), 28}
    assert promising(4) == [Pair(1, 2), Pair(1, 3)]


def test_thinned_pairs_have_few_sources_and_all_their_targets() -> None:
    few = thinned(promising(30))
    assert {pair.source for pair in few} == {6, 8, 10, 12, 14}
    assert few == [pair for pair in promising(30) if pair.source % 2 == 0]
    assert len({pair.source for pair in thinned(grid(120))}) == 8
    assert thinned(promising(30, source=7)) == promising(30, source=7)


@pytest.mark.parametrize(("source", "target"), [(None, 4), (29, None), (25, None), (20, 12)])
def test_where_no_pair_can_be_chosen_it_is_an_error(source: int, target: int) -> None:
    with pytest.raises(LayerError, match="give both layers"):
        promising(30, source, target)


def test_a_layer_map_without_promising_pairs_is_an_error() -> None:
    found = planted(lambda pair: 0.1, lambda pair: 0.9)
    with pytest.raises(LayerError, match="no pair of layers to choose from"):
        choose(found.select([Pair(0, 29)]))


def test_a_choice_needs_the_promising_pairs_alone(lm: LanguageModel) -> None:
    batch: PromptBatch = lm.pad(ROWS)
    *_, found = survey(lm, batch, thinned(promising(lm.depth)), CHEAP)
    assert tuple(choose(found)[:2]) in promising(lm.depth)
