"""PerturbationSet: what it says, and its file, read back by safetensors alone."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from educe.errors import FileFormatError, MethodError, ModelError, RunError
from educe.forward.slice import Slice
from educe.methods import search
from educe.model.language import LanguageModel
from educe.perturbation.kinds import TokenNoise, Vectors
from educe.perturbation.origin import Origin, digest
from educe.perturbation.set import PerturbationSet
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours

ORIGIN = Origin(
    model_id="some/model",
    model_revision="abc123",
    adapter="vault",
    d_model=32,
    n_layers=4,
    source=1,
    target=3,
    readout="last:3",
    unit=12.5,
    prompts_sha256=digest(["a prompt"]),
)


def made(n: int = 5, *, outputs: bool = True, **changes: Any) -> PerturbationSet:
    draw = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(2, n, 32, generator=draw), dim=-1)
    values: dict[str, Any] = {
        "kind": Vectors(1, 32, "last:2"),
        "directions": unit[0],
        "radius": torch.linspace(1.1, 7.7, n),
        "origin": ORIGIN,
        "method": "dct",
        "seed": 11,
        "outputs": unit[1] if outputs else None,
        "scores": {"effect": torch.rand(n, generator=draw), "alpha": torch.arange(n) / 3},
        "config": {"iterations": 10, "init": "random", "tolerance": 0.02, "orthogonal": False},
    }
    return PerturbationSet(**values | changes)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.numpy().tobytes() == second.numpy().tobytes()
    )


def assert_same(first: PerturbationSet, second: PerturbationSet) -> None:
    assert same_bits(first.directions, second.directions)
    assert same_bits(first.radius, second.radius)
    assert (first.outputs is None) == (second.outputs is None)
    if first.outputs is not None and second.outputs is not None:
        assert same_bits(first.outputs, second.outputs)
    assert first.scores.keys() == second.scores.keys()
    assert all(same_bits(first.scores[name], second.scores[name]) for name in first.scores)
    assert first.kind == second.kind
    assert first.origin == second.origin
    assert (first.method, first.seed) == (second.method, second.seed)
    assert dict(first.config) == dict(second.config)


# -- what it says --------------------------------------------------------------------------------


def test_vectors_are_the_directions_at_their_radius() -> None:
    some = made()
    for i in range(5):
        for j in range(32):
            expected = float(some.directions[i, j]) * float(some.radius[i])
            assert float(some.theta[i, j]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(some.theta.norm(dim=1), some.radius)


def test_dose_is_a_share_of_the_activations_norm() -> None:
    assert made().dose.tolist() == pytest.approx([float(r) / 12.5 for r in made().radius])


def test_select_gives_items_in_the_order_asked_for() -> None:
    some = made()
    items = [3, 0, 3]
    picked = some.select(items)
    assert len(picked) == 3
    assert some.outputs is not None
    assert picked.outputs is not None
    for place, item in enumerate(items):
        assert torch.equal(picked.directions[place], some.directions[item])
        assert torch.equal(picked.outputs[place], some.outputs[item])
        assert float(picked.radius[place]) == float(some.radius[item])
        for name, values in some.scores.items():
            assert float(picked.scores[name][place]) == float(values[item])
    assert (picked.origin, picked.method, picked.seed) == (some.origin, "dct", 11)
    assert len(some) == 5
    assert made(outputs=False).select([1]).outputs is None
    assert len(some.select([])) == 0


def test_a_set_is_a_sequence() -> None:
    some = made()
    assert_same(some[1], some.select([1]))
    assert_same(some[-1], some.select([4]))
    assert_same(some[1:4], some.select([1, 2, 3]))
    assert_same(some[::-2], some.select([4, 2, 0]))
    assert [float(one.radius) for one in some] == some.radius.tolist()
    for wrong in (5, -6):
        with pytest.raises(IndexError, match=f"number {wrong} of 5 perturbations"):
            some[wrong]
    with pytest.raises(TypeError):
        some["effect"]  # type: ignore[call-overload]


def test_noise_keeps_its_seeds_in_a_sequence() -> None:
    noise = made(kind=TokenNoise(1, 32, (5, 6, 7, 8, 9)), directions=torch.ones(5, 1))
    assert noise[1:3].kind == TokenNoise(1, 32, (6, 7))


def test_top_gives_the_highest_scores_first() -> None:
    scores = torch.tensor([0.5, math.nan, 2.0, math.inf, 2.0])
    some = made(scores={"effect": scores, "alpha": -torch.arange(5.0)})
    assert_same(some.top(4), some.select([3, 2, 4, 0]))
    assert_same(some.top(9), some.select([3, 2, 4, 0, 1]))
    assert_same(some.top(2, "alpha"), some[:2])
    with pytest.raises(MethodError, match="no score 'beta'; their scores: effect, alpha"):
        some.top(1, by="beta")
    with pytest.raises(MethodError, match="n is 0"):
        some.top(0)


def test_a_frame_has_a_row_for_each() -> None:
    some = made()
    frame = some.frame()
    assert list(frame) == ["number", "method", "kind", "radius", "dose", "effect", "alpha"]
    assert frame["number"].tolist() == [0, 1, 2, 3, 4]
    assert set(frame["kind"]) == {"vectors"}
    for name, values in {"radius": some.radius, "dose": some.dose, **some.scores}.items():
        assert frame[name].tolist() == values.tolist()
    assert len(some[:0].frame()) == 0


def test_repr_says_what_a_set_is() -> None:
    assert repr(made()) == (
        "PerturbationSet(5 vectors by dct; layers 1 to 3 of some/model; positions last:2; "
        "radius 1.1 to 7.7 (dose 0.088 to 0.616); scores effect, alpha)"
    )
    assert "radius 1.1 (dose 0.088)" in repr(made()[0])
    assert repr(made(scores={})[:0]) == (
        "PerturbationSet(0 vectors by dct; layers 1 to 3 of some/model; positions last:2)"
    )
    assert made()._repr_html_().count("<tr") == 6


def test_sets_together_are_counted_through() -> None:
    found, noise = made(), made(2, kind=Vectors(2, 32), method="random", scores={})
    group = found + noise + found[:1]
    assert [len(part) for part in group.parts] == [5, 2, 1]
    assert len(group) == 8
    assert_same(group[4], found[4])
    assert_same(group[5], noise[0])
    assert_same(group[-1], found[0])
    assert [(len(part), part.kind.before) for part in group[3:7].parts] == [(2, 1), (2, 2)]
    assert_same(group[3:7].parts[0], found[3:])
    assert [len(part) for part in group[::-1].parts] == [1, 2, 5]
    assert [one.method for one in group] == [*["dct"] * 5, *["random"] * 2, "dct"]
    frame = group.frame()
    assert frame["number"].tolist() == list(range(8))
    assert frame["effect"].isna().tolist() == [*[False] * 5, True, True, False]
    assert repr(group).startswith("PerturbationGroup(PerturbationSet(5 vectors by dct")
    assert len(group[8:]) == len(group[8:].frame()) == 0
    with pytest.raises(IndexError, match="number 8 of 8"):
        group[8]
    with pytest.raises(TypeError):
        found + 1  # type: ignore[operator]


def test_digest_is_the_sha256_of_the_prompts_one_by_one() -> None:
    assert digest(["ü", "b"]) == hashlib.sha256("ü\0b".encode()).hexdigest()
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_a_set_belongs_to_models_of_its_width_and_depth(tiny_lm: LanguageModel) -> None:
    made().check(tiny_lm)
    for changes in ({"d_model": 64}, {"n_layers": 5}):
        other = made(origin=dataclasses.replace(ORIGIN, **changes))
        with pytest.raises(ModelError, match="belong to some/model") as error:
            other.check(tiny_lm)
        theirs = ORIGIN.d_model, ORIGIN.n_layers
        width, depth = changes.get("d_model", theirs[0]), changes.get("n_layers", theirs[1])
        assert f"(width {width}, {depth} blocks)" in str(error.value)
        assert "not to llama (width 32, 4 blocks)" in str(error.value)


# -- its file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_comes_back_bit_for_bit(tmp_path: Path, outputs: bool, dtype: torch.dtype) -> None:
    some = made(outputs=outputs)
    some = dataclasses.replace(some, directions=some.directions.to(dtype) / 3)
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.3])
    some = dataclasses.replace(some, scores={**some.scores, "odd.name": odd})
    some.save(tmp_path / "set.safetensors")
    assert_same(PerturbationSet.load(tmp_path / "set.safetensors"), some)
    some.select([4, 1]).save(str(tmp_path / "set.safetensors"))
    assert_same(PerturbationSet.load(str(tmp_path / "set.safetensors")), some.select([4, 1]))


def test_the_header_says_what_is_inside(tmp_path: Path) -> None:
    made().save(tmp_path / "set.safetensors")
    with safe_open(str(tmp_path / "set.safetensors"), framework="np") as file:
        header = file.metadata()
        names = set(file.keys())
        vectors = file.get_tensor("vectors")
    assert header["format"] == "educe.perturbations"
    assert header["format_version"] == "3"
    assert (header["kind"], header["units"]) == ("vectors", "absolute")
    assert json.loads(header["kind_json"]) == {"layer": 1, "width": 32, "positions": "last:2"}
    assert header["point"] == "resid_post.1"
    assert (header["method"], header["seed"]) == ("dct", "11")
    assert json.loads(header["config_json"]) == made().config
    assert json.loads(header["origin_json"]) == dataclasses.asdict(ORIGIN)
    assert names == {"vectors", "radius", "outputs", "score.effect", "score.alpha"}
    assert (vectors == made().directions.numpy()).all()


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    made().save(path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"cannot read .*set\.safetensors"):
            PerturbationSet.load(path)
    path.write_bytes(whole)
    PerturbationSet.load(path)


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for header in (None, {"format": "pt"}, {"format": "other.perturbations"}):
        save_file({"vectors": torch.zeros(2, 3), "radius": torch.ones(2)}, path, header)
        with pytest.raises(FileFormatError, match="is no set of perturbations of educe"):
            PerturbationSet.load(path)
    path.write_text("a text, and a long enough one not to be mistaken for a header")
    with pytest.raises(FileFormatError, match="cannot read"):
        PerturbationSet.load(path)
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileFormatError, match="cannot read"):
            PerturbationSet.load(missing)


def test_a_file_of_a_newer_version_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    made().save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    save_file(tensors, path, header | {"format_version": "4"})
    with pytest.raises(FileFormatError, match="format version 4, this educe reads 1, 2, 3: use"):
        PerturbationSet.load(path)
    header.pop("format_version")
    save_file(tensors, path, header)
    with pytest.raises(FileFormatError, match="format version None"):
        PerturbationSet.load(path)


def test_a_file_of_the_first_version_keeps_its_unit(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    made().save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    place = json.loads(header["origin_json"]) | {"mean_resid_norm": 12.5, "unit": 12.5}
    save_file(tensors, path, header | {"format_version": "1", "origin_json": json.dumps(place)})
    read = PerturbationSet.load(path)
    assert read.origin == dataclasses.replace(ORIGIN, unit=12.5)
    torch.testing.assert_close(read.dose, made().radius / 12.5)


@pytest.mark.parametrize("lost", ["vectors", "radius", "origin_json", "config_json", "seed"])
def test_a_file_that_lacks_a_part_is_an_error(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "set.safetensors"
    made().save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    tensors.pop(lost, None)
    header.pop(lost, None)
    save_file(tensors, path, header)
    with pytest.raises(FileFormatError, match=rf"set\.safetensors is damaged: KeyError: .{lost}"):
        PerturbationSet.load(path)


def test_saving_where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        made().save(tmp_path / "nowhere" / "set.safetensors")


def test_a_set_knows_the_model_that_it_was_found_on(
    tiny_lm: LanguageModel, tokenizer: Any, tmp_path: Path
) -> None:
    part = Slice(tiny_lm, tiny_lm.encode(["a"]), source=1, target=3)
    search(part, "random", n=2, radius=1.0).save(tmp_path / "set.safetensors")
    found = PerturbationSet.load(tmp_path / "set.safetensors")
    assert found.origin.model_parts == tiny_lm.parts
    assert found.check(tiny_lm) == []
    rounded = dataclasses.replace(
        found.origin, model_parts=found.origin.model_parts | {"dtype": "bfloat16"}
    )
    assert dataclasses.replace(found, origin=rounded).check(tiny_lm) == []
    hf = tiny.hf_model("llama")
    hf.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    sibling = LanguageModel(hf, tokenizer, name="sibling")
    (told,) = found.check(sibling)
    assert told.startswith("the perturbations were found on another model (llama) than sibling")
    assert "whose weights differ:" in told
    (told,) = dataclasses.replace(found, origin=ORIGIN).check(tiny_lm)
    assert "some/model with vault were kept without a digest" in told


def test_a_run_says_that_what_it_was_given_is_of_another_model(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    part = Slice(tiny_lm, tiny_lm.encode(["a"]), source=1, target=3)
    made = search(part, "random", n=2, radius=1.0)
    theirs = dict(made.origin.model_parts) | {"weights": "others"}
    other = dataclasses.replace(made.origin, model_parts=theirs)
    made.save(tmp_path / "own.safetensors")
    dataclasses.replace(made, origin=other).save(tmp_path / "other.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("own", "other")]
    for i, (given, control) in enumerate(itertools.product(files, files)):
        settings = Settings(
            ("a",), given=given, control=control, target=3, baseline=4, max_new_tokens=2
        )
        with begin(tmp_path / f"run-{i}", settings) as run:
            remarks = discover_behaviours(run, lm=tiny_lm).facts["remarks"]
        said = [remark for remark in remarks if "found on another model" in remark]
        assert len(said) == (given == files[1] or control == files[1])
