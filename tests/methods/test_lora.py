"""MELBO's adapters, against PyTorch's own optimiser, a dense SVD, and whole models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny
from educe import methods
from educe.errors import MethodError, ModelError
from educe.forward.slice import Slice
from educe.methods import lora, melbo
from educe.methods.lora import LoraConfig
from educe.methods.state import State
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Adapters
from peft_oracle import adapted
from toy_slice import ToySlice, added, inputs_of, linear, normal, through

WIDTH = 6
KIND = Adapters(2, ("x",), (9,), WIDTH, 3)
READ = [[0, 0, 1], [1, 1, 1]]  # of the first prompt, the last token; of the second, all


def toy() -> Any:
    """Two prompts of up to three positions, each with a curved map of its own."""
    maps = normal(2, 3, WIDTH, KIND.size, seed=1)

    def move(theta: Tensor) -> Tensor:
        return torch.einsum("pkde,ne->npkd", maps, theta).tanh() + added(KIND, theta)[:, None, None]

    part = ToySlice(move, WIDTH, read=READ)
    part.kind = KIND
    return part


def start(part: Any, n: int, config: LoraConfig, *, radius: float = 1.0) -> State:
    return lora.start(part, n, radius, config, torch.Generator().manual_seed(0))


def run(part: Any, n: int, config: LoraConfig, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state after each step."""
    found, states = through(lora, part, n, config, **{"radius": 1.0} | how)
    return found, states[1:]


@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (4.0, 4.0)])
def test_steps_are_those_of_adamw_column_by_column(p: float, q: float) -> None:
    part, radius, steps = toy(), 1.7, 12
    config = LoraConfig(power=p, root=q, step=0.1, steps=steps, tolerance=-math.inf)
    _, states = run(part, 2, config, radius=radius)
    for line, row in enumerate(start(part, 2, config)["directions"]):
        a, b = (nn.Parameter(column.clone()) for column in (row[:27], row[27:]))
        groups = [{"params": [a], "lr": 0.1 / 9**0.5}, {"params": [b], "lr": 0.1 / 6**0.5}]
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0, amsgrad=True)
        for state in states:
            optimiser.zero_grad()
            shift = part.shift(torch.cat([a, radius * b])[None])
            (-melbo.objective(shift, p, q).sum()).backward()
            for factor in (a, b):
                for column in range(3):
                    at = slice(column * len(factor) // 3, (column + 1) * len(factor) // 3)
                    along = factor.detach()[at]
                    factor.grad[at] -= (factor.grad[at] @ along) * along
            optimiser.step()
            with torch.no_grad():
                for factor in (a, b):
                    lines = factor.view(3, -1)
                    lines /= lines.norm(dim=1, keepdim=True)
            expected = torch.cat([a, b]).detach()
            torch.testing.assert_close(state["directions"][line], expected, rtol=0, atol=1e-6)


def test_columns_stay_on_their_spheres() -> None:
    _, states = run(toy(), 3, LoraConfig(step=0.5, steps=15), radius=2.0)
    for state in states:
        for a, b in KIND.split(state["directions"]):
            torch.testing.assert_close(a.norm(dim=2), torch.ones(3, 3).double())
            torch.testing.assert_close(b.norm(dim=2), torch.ones(3, 3).double())


def test_the_optimum_on_a_linear_map_has_all_columns_on_one_input_and_one_output() -> None:
    matrix = normal(WIDTH, WIDTH, seed=5)
    part = linear(matrix).on(KIND)
    config = LoraConfig(step=0.05, steps=600, tolerance=-math.inf)
    found, _ = run(part, 3, config, radius=2.0)
    _, values, right = torch.linalg.svd(matrix)
    (x,) = inputs_of(KIND)
    ((a, b),) = KIND.split(found["directions"])
    along, out = a @ x / x.norm(), b @ right[0]
    assert float(along.abs().min()) > 1 - 1e-4
    assert float(out.abs().min()) > 1 - 1e-4
    assert bool(((along * out).sign().sum(1).abs() == 3).all())  # none against another
    best = (2.0 * 3 * float(x.norm() * values[0])) ** 2
    torch.testing.assert_close(
        found["score.objective"], torch.full((3,), best).double(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("at", [1, 4, 6])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, at: int) -> None:
    config = LoraConfig(step=0.2, steps=6, tolerance=-math.inf)
    whole, states = run(toy(), 4, config)
    save_file(states[at - 1], tmp_path / "state")
    resumed, _ = run(toy(), 4, config, state=State(load_file(tmp_path / "state")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# -- on models -------------------------------------------------------------------------------------

ROWS = tiny.ragged([6, 11, 2])


@torch.no_grad()
def test_what_is_found_does_in_peft_what_it_is_said_to_do(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.pad(ROWS), source=1, target=3)
    config = LoraConfig(steps=4, rank=2)
    found = methods.search(part, "lora", n=3, radius=1.5, seed=2, config=config)
    assert found.kind == Adapters(2, ("model.layers.2.mlp.down_proj",), (48,), 32, 2)
    assert set(found.scores) == {"objective", "effect"}
    ((a, b),) = found.kind.split(found.directions)
    for line in range(3):
        other = adapted(tiny64.hf, list(found.kind.paths), [a[line]], [b[line]], 1.5)
        effect, objective = torch.zeros(tiny64.width).double(), 0.0
        for ids in ROWS:
            moved = tiny.run(other.get_base_model(), ids)[1][3]
            change = (moved - tiny.run(tiny64.hf, ids)[1][3])[-3:]
            effect += change.mean(0) / len(ROWS)
            objective += float(change.square().sum())
        assert float(found.scores["effect"][line]) == pytest.approx(float(effect.norm()), rel=1e-4)
        assert float(found.scores["objective"][line]) == pytest.approx(objective, rel=1e-4)
    control = methods.control(part, found, seed=3)
    assert control.kind == found.kind
    assert float(found.scores["effect"].mean()) > 1.5 * float(control.scores["effect"].mean())


def test_a_mixture_of_experts_has_no_such_matrix(lm_of: Any) -> None:
    lm = lm_of("mixtral")
    part = Slice(lm, lm.pad(ROWS), source=1, target=3)
    with pytest.raises(ModelError, match="block 2 of mixtral has no single matrix"):
        methods.search(part, "lora", n=1, radius=1.0)


def test_adapters_are_not_kept_orthogonal() -> None:
    with pytest.raises(MethodError, match="lora has no setting 'orthogonal'"):
        methods.configured("lora", {"orthogonal": True})
    assert methods.configured("melbo", {"orthogonal": True}).orthogonal
