"""Bases: Parseval, exact reconstruction, and what heads and neurons write, from the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

import tiny
from educe.derive import bases
from educe.errors import FileFormatError, ModelError
from educe.model.language import LanguageModel
from toy_slice import normal

WIDTH, HEAD, LAYER = 32, 8, 1
Make = Callable[..., LanguageModel]

# Where the output projections are, and whether the matrix maps rows (Conv1D) or columns.
WRITERS = {
    "llama": ("self_attn.o_proj", "mlp.down_proj", False),
    "gpt2": ("attn.c_proj", "mlp.c_proj", True),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", False),
    "opt": ("self_attn.out_proj", "fc2", False),
}


def text(i: int) -> str:
    return f"{7**i % 1009} {i * i} words of which there are {i + 3}"


def corpus(folder: Path) -> str:
    file = folder / "corpus.jsonl"
    file.write_text("".join(f'{{"text": "{text(i)}"}}\n' for i in range(30)))
    return str(file)


def weights(lm: LanguageModel, architecture: str, which: int) -> Tensor:
    """Return an output projection as ``[inputs, width]``, by a path that is written down here."""
    *names, rows = WRITERS[architecture]
    block = lm.hf.get_submodule(tiny.path(lm.hf))[LAYER]
    weight = block.get_submodule(names[which]).weight.detach().double()
    return weight if rows else weight.T


# -- orthonormal bases -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "random", "components"])
def test_orthonormal_bases_keep_lengths(name: str, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    basis = bases.parse(name, tiny_lm, LAYER, documents=corpus(tmp_path))
    theta = normal(5, WIDTH)
    read = basis.along(theta)
    assert basis.orthonormal
    assert len(basis.names) == WIDTH
    torch.testing.assert_close(read.square().sum(1), theta.square().sum(1))
    torch.testing.assert_close(read @ basis.atoms, theta)
    torch.testing.assert_close(basis.sizes(theta), read.abs())


def test_the_coordinates_of_the_stream_are_as_they_are(tiny_lm: LanguageModel) -> None:
    theta = normal(3, WIDTH)
    read = bases.parse("residual", tiny_lm, LAYER).along(theta)
    torch.testing.assert_close(read, theta, rtol=0, atol=1e-12)


def test_random_directions_mix_the_stream() -> None:
    atoms = bases.rotation(WIDTH).atoms
    assert not torch.equal(atoms, bases.rotation(WIDTH, seed=1).atoms)
    assert atoms.abs().max() < 0.8


def test_components_are_uncorrelated_over_the_corpus_and_in_order(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    basis = bases.components(tiny_lm, LAYER, documents=corpus(tmp_path))
    streams = []
    for i in range(30):
        if i % 5 == 4:  # held out
            continue
        ids = tiny_lm.tokenizer(text(i))["input_ids"]
        streams.append(tiny.run(tiny_lm.hf, ids)[1][LAYER][1:])
    spread = torch.cov(basis.along(torch.cat(streams).detach()).T)
    off = spread - torch.diag(spread.diagonal())
    assert off.norm() < 1e-4 * spread.norm()
    assert (spread.diagonal().diff() < 1e-6 * spread[0, 0]).all()


# -- what the block writes -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", list(WRITERS))
def test_head_sizes_are_projections_onto_what_a_head_can_write(
    architecture: str, lm_of: Make
) -> None:
    lm = lm_of(architecture)
    basis = bases.heads(lm, LAYER)
    theta = normal(5, WIDTH)
    for head, rows in enumerate(weights(lm, architecture, 0).split(HEAD)):
        onto = torch.linalg.pinv(rows) @ rows
        torch.testing.assert_close(
            basis.sizes(theta)[:, head], (theta @ onto).norm(dim=1), rtol=1e-3, atol=1e-4
        )
    assert basis.names == tuple(f"head {i}" for i in range(WIDTH // HEAD))
    own = basis.atoms[basis.group == 2]
    torch.testing.assert_close(own @ own.T, torch.eye(HEAD, dtype=torch.float64))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_neurons_are_the_columns_of_the_down_projection(architecture: str, lm_of: Make) -> None:
    lm = lm_of(architecture)
    basis = bases.neurons(lm, LAYER)
    rows = weights(lm, architecture, 1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(basis.atoms, rows, rtol=1e-3, atol=1e-4)
    assert len(basis.names) == len(rows) > WIDTH


@pytest.mark.parametrize("name", ["heads", "neurons"])
def test_what_some_groups_write_together_is_the_nearest_that_their_atoms_reach(
    name: str, tiny_lm: LanguageModel
) -> None:
    basis = bases.parse(name, tiny_lm, LAYER)
    theta = normal(3, WIDTH)
    assert not basis.orthonormal
    groups = torch.stack([torch.randperm(len(basis.names)) for _ in theta])
    for some in (groups[:, :1], groups[:, :3], groups):
        written = basis.onto(theta, some)
        for vector, own, found in zip(theta, some, written, strict=True):
            rows = basis.atoms[torch.isin(basis.group, own)]
            onto = torch.linalg.pinv(rows) @ rows
            torch.testing.assert_close(found, vector @ onto, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(basis.onto(theta, groups), theta)  # all of them span the stream
    one = basis.onto(theta, groups[:, :1]).norm(dim=1)
    torch.testing.assert_close(basis.sizes(theta).gather(1, groups[:, :1])[:, 0], one)


def test_atoms_that_nearly_depend_on_one_another_write_no_long_vector() -> None:
    """The shortest coefficients of the vector would be ten thousand times as long as it is."""
    near = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-4, 0.0], [0.0, 0.0, 1.0]])
    basis = bases.Basis.of("near", near, "direction")
    theta = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    assert (theta @ torch.linalg.pinv(basis.atoms)).abs().max() > 9e3
    torch.testing.assert_close(basis.onto(theta, torch.tensor([[0, 1]]))[0, 1].item(), 1.0)
    assert basis.onto(theta, torch.tensor([[0]])).norm() < 1e-12
    assert basis.onto(theta, torch.tensor([[1, 2]])).norm() <= theta.norm()


def test_the_basis_inside_a_head_makes_no_difference(tokenizer: object) -> None:
    """The values turned one way and the output back: the same model."""
    turn = normal(HEAD, HEAD).float()
    models = []
    for mix in (torch.eye(HEAD), turn):
        hf = tiny.hf_model()
        attention = hf.model.layers[LAYER].self_attn
        columns = attention.o_proj.weight.data[:, HEAD : 2 * HEAD]
        attention.o_proj.weight.data[:, HEAD : 2 * HEAD] = columns @ mix
        models.append(LanguageModel(hf, tokenizer, name="turned"))
    one, other = (bases.heads(lm, LAYER) for lm in models)
    theta = normal(3, WIDTH)
    torch.testing.assert_close(one.sizes(theta), other.sizes(theta), rtol=1e-3, atol=1e-4)
    first, second = (basis.onto(theta, torch.tensor([[0, 1]] * 3)) for basis in (one, other))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_an_adapter_beside_the_weights_writes_too(tokenizer: object) -> None:
    hf = tiny.hf_model()
    plain = hf.model.layers[LAYER].mlp.down_proj.weight.detach().clone()
    tuned = get_peft_model(
        hf, LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False)
    )
    lm = LanguageModel(tuned, tokenizer, name="tuned")
    layer = tuned.get_base_model().model.layers[LAYER].mlp.down_proj
    rows = (plain + layer.get_delta_weight("default")).T.detach().double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(bases.neurons(lm, LAYER).atoms, rows, rtol=1e-3, atol=1e-4)
    assert (rows - plain.T / plain.T.norm(dim=1, keepdim=True)).norm() > 0.1


def test_blocks_without_heads_or_neurons_say_so(lm_of: Make) -> None:
    with pytest.raises(ModelError, match="single matrix"):
        bases.neurons(lm_of("mixtral"), LAYER)
    with pytest.raises(ModelError, match="told apart"):
        bases.heads(lm_of("qwen3_next"), 0)
    assert [b.name for b in bases.usual(lm_of("mixtral"), LAYER)] == ["residual", "heads", "random"]
    assert [b.name for b in bases.usual(lm_of("qwen3_next"), 0)] == ["residual", "random"]


# -- files -----------------------------------------------------------------------------------------


def test_directions_come_from_files_in_either_shape(tmp_path: Path) -> None:
    rows = normal(50, WIDTH)
    unit = rows / rows.norm(dim=1, keepdim=True)
    files = {
        "sae": {"W_dec": rows, "W_enc": rows.T, "b_dec": normal(WIDTH)},
        "torch": {"decoder.weight": rows.T, "encoder.weight": rows},
        "nameless": {"directions": rows.T},
    }
    for name, tensors in files.items():
        file = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        basis = bases.from_file(file, WIDTH)
        torch.testing.assert_close(basis.atoms, unit)
        assert basis.name == name
        whole = torch.arange(len(basis.names)).expand(len(unit), -1)
        torch.testing.assert_close(basis.onto(unit, whole), unit)


def test_a_square_matrix_has_its_directions_in_rows_unless_its_name_says_columns(
    tmp_path: Path,
) -> None:
    turn = torch.linalg.qr(normal(WIDTH, WIDTH)).Q
    for name, rows in {"rotation": turn, "decoder.weight": turn.T}.items():
        save_file({name: turn.contiguous()}, tmp_path / "turn.safetensors")
        basis = bases.from_file(tmp_path / "turn.safetensors", WIDTH)
        torch.testing.assert_close(basis.atoms, rows)
        assert basis.orthonormal


def test_fewer_atoms_than_dimensions_leave_the_rest_out(tmp_path: Path) -> None:
    rows = torch.linalg.qr(normal(WIDTH, 5)).Q.T
    save_file({"basis": rows.contiguous()}, tmp_path / "few.safetensors")
    basis = bases.from_file(tmp_path / "few.safetensors", WIDTH)
    theta = normal(3, WIDTH)
    assert basis.orthonormal
    whole = torch.arange(len(basis.names)).expand(len(theta), -1)
    torch.testing.assert_close(basis.onto(theta, whole), theta @ rows.T @ rows)


def test_files_without_directions_say_so(tmp_path: Path) -> None:
    file = tmp_path / "no.safetensors"
    save_file({"a": normal(4, WIDTH), "b": normal(4, WIDTH)}, file)
    with pytest.raises(FileFormatError, match="W_dec"):
        bases.from_file(file, WIDTH)
    save_file({"W_dec": normal(4, WIDTH)}, file)
    with pytest.raises(FileFormatError, match="width 16"):
        bases.from_file(file, 16)
