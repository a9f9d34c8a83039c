"""CPE, against the published formulas in loops, a dense SVD, planted adapters, and whole models."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

import tiny
from educe import cli, methods
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import cpe
from educe.methods.cpe import CpeConfig
from educe.methods.state import State
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Adapters
from educe.perturbation.set import PerturbationSet
from educe.rows import FIRST, Row
from educe.run.store import Run
from peft_oracle import adapted
from toy_slice import ToySlice, curved, inputs_of, linear, normal, through

RADIUS, WIDTH = 1.3, 6
BAND = Adapters(2, ("x", "y"), (5, 4), WIDTH)


def toy() -> Any:
    part = curved(WIDTH, BAND.size, prompts_at_once=1)
    part.kind = BAND
    return part


def start(part: Any, n: int, config: CpeConfig, *, radius: float = RADIUS, seed: int = 0) -> State:
    return cpe.start(part, n, radius, config, torch.Generator().manual_seed(seed))


def run(part: Any, n: int, config: CpeConfig, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state after each step."""
    found, states = through(cpe, part, n, config, **{"radius": RADIUS} | how)
    return found, states[1:]


def by_columns(row: list[float]) -> list[float]:
    """Scale every ``a`` and ``b`` of the band to norm one."""
    scaled, at = [], 0
    for width in (5, WIDTH, 4, WIDTH):
        part = row[at : at + width]
        length = math.sqrt(sum(x * x for x in part))
        scaled += [x / length for x in part]
        at += width
    return scaled


def as_whole(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def pushed_apart(
    gradient: list[list[float]], inner: int, temperature: float, project: Callable[..., Any]
) -> list[list[float]]:
    """Softly orthogonalise, number by number."""
    n = len(gradient)
    bias = [math.log(math.sqrt(sum(x * x for x in row))) for row in gradient]
    phi = [project(row) for row in gradient]
    for _ in range(inner):
        moved = []
        for i in range(n):
            others = [j for j in range(n) if j != i]
            alike = [
                sum(x * y for x, y in zip(phi[i], phi[j], strict=True)) / temperature + bias[j]
                for j in others
            ]
            total = sum(map(math.exp, alike))
            away = [
                sum(math.exp(s) / total * phi[j][k] for s, j in zip(alike, others, strict=True))
                for k in range(len(phi[i]))
            ]
            moved.append(project([x - y for x, y in zip(phi[i], away, strict=True)]))
        phi = moved
    return phi


def gradient_of(part: Any, phi: Tensor, u: Tensor, radius: float) -> Tensor:
    """Return the gradient of ``⟨u, Δ(R φ)⟩`` in one unit adapter, from the dense Jacobian."""
    b = radius
    scale = torch.tensor([1.0] * 5 + [b] * 6 + [1.0] * 4 + [b] * 6, dtype=torch.float64)
    return scale * (part.jacobian(scale * phi).T @ u)


# -- the iteration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize(("inner", "temperature", "n"), [(10, 1.0, 5), (3, 0.3, 4), (0, 1.0, 3)])
def test_soft_orthogonalisation_is_the_published_formula(
    per_block: bool, inner: int, temperature: float, n: int
) -> None:
    gradient = normal(n, BAND.size, seed=3) * torch.linspace(0.2, 3, n).double()[:, None]
    came = cpe.softly_orthogonal(
        gradient,
        inner=inner,
        temperature=temperature,
        project=BAND.normalised if per_block else normalize,
    )
    project = by_columns if per_block else as_whole
    expected = pushed_apart(gradient.tolist(), inner, temperature, project)
    torch.testing.assert_close(came, torch.tensor(expected).double())


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("radius", [1.0, 2.3])
def test_an_iteration_is_the_published_update(per_block: bool, radius: float) -> None:
    part = toy()
    config = CpeConfig(iterations=4, inner=7, temperature=0.7, per_block=per_block)
    before = start(part, 5, config, radius=radius)
    for _ in range(4):
        after, progress = cpe.step(part, radius, config, before)
        gradients, reached = [], []
        for line in range(5):
            phi, u = before["directions"][line], before["outputs"][line]
            effect = part.delta(BAND.scaled(phi[None], radius)[0])
            # Both from one pass: the gradient is taken with the u of the pass before.
            gradients.append(gradient_of(part, phi, u, radius).tolist())
            reached.append(float(effect @ u))
            torch.testing.assert_close(after["outputs"][line], effect / effect.norm())
        project = by_columns if per_block else as_whole
        apart = pushed_apart(gradients, 7, 0.7, project)
        expected = torch.tensor([by_columns(row) for row in apart]).double()
        # The loop magnifies what rounding leaves where factors nearly cancel.
        torch.testing.assert_close(after["directions"], expected, rtol=0, atol=1e-5)
        assert after["curve"][-1].tolist() == pytest.approx(reached)
        assert progress.objective == pytest.approx(sum(reached) / 5)
        before = after
    assert progress.done


def test_it_starts_at_random_or_at_the_gradient_there() -> None:
    part = toy()
    drawn = start(part, 4, CpeConfig(init="random"))
    phi, u = drawn["directions"], drawn["outputs"]
    expected = BAND.draw(4, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(phi, expected)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(4).double())
    assert float((normalize(u[1:], dim=1) @ u[0]).abs().max()) < 0.99
    back = start(part, 4, CpeConfig())
    assert torch.equal(back["outputs"], u)
    for line in range(4):
        gradient = gradient_of(part, phi[line], u[line], RADIUS)
        torch.testing.assert_close(
            back["directions"][line], torch.tensor(by_columns(gradient.tolist())).double()
        )


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_it_runs_as_many_iterations_as_asked(iterations: int) -> None:
    found, _ = run(toy(), 3, CpeConfig(iterations=iterations))
    assert found["curve"].shape == (iterations, 3)


def test_factors_are_measured_as_they_ended_and_ordered_by_their_objective() -> None:
    part, config = toy(), CpeConfig(iterations=4)
    found, states = run(part, 6, config)
    reached = found["score.objective"]
    assert bool((reached.diff() <= 0).all())
    places = []
    for line, phi in enumerate(found["directions"]):
        (place,) = (states[-1]["directions"] == phi).all(1).nonzero()[:, 0].tolist()
        places.append(place)
        effect = part.delta(BAND.scaled(phi[None], RADIUS)[0])
        assert float(found["score.effect"][line]) == pytest.approx(float(effect.norm()))
        torch.testing.assert_close(found["outputs"][line], effect / effect.norm())
        assert float(reached[line]) == pytest.approx(float(effect @ states[-1]["outputs"][place]))
    assert sorted(places) == list(range(6))
    assert torch.equal(found["curve"], states[-1]["curve"][:, places])


# -- what it finds ---------------------------------------------------------------------------------


def test_alone_on_a_linear_map_it_finds_the_inputs_and_the_top_singular_vector() -> None:
    matrix = normal(WIDTH, WIDTH, seed=5)
    _, values, right = torch.linalg.svd(matrix)
    part = linear(matrix).on(BAND)
    found, _ = run(part, 1, CpeConfig(iterations=400))
    inputs = inputs_of(BAND)
    for (a, b), x in zip(BAND.split(found["directions"]), inputs, strict=True):
        assert abs(float(a[0, 0] @ x / x.norm())) > 1 - 1e-9
        assert abs(float(b[0, 0] @ right[0])) > 1 - 1e-6
    best = RADIUS * float(values[0]) * sum(float(x.norm()) for x in inputs)
    assert float(found["score.effect"][0]) == pytest.approx(best, rel=1e-6)
    assert float(found["score.objective"][0]) == pytest.approx(best, rel=1e-6)


GATES = Adapters(2, ("x", "y"), (24, 24), 32)


def gated(m: int, *, seed: int) -> tuple[Any, Tensor]:
    """Return a slice of ``m`` planted adapters, and these.

    ``Δ(θ) = Σ_l c_l (exp(Σ_blocks ⟨a, a_l⟩⟨b, b_l⟩) - 1) u_l``, as a model sees ``b aᵀ`` alone.
    """
    planted = GATES.draw(m, torch.Generator().manual_seed(seed)).double()
    u = normalize(normal(m, GATES.width, seed=seed + 1), dim=1)
    c = torch.linspace(2, 1, m).double()
    part = ToySlice(lambda theta: (torch.expm1(alike(theta, planted)) * c) @ u, GATES.width)
    part.kind = GATES
    return part, planted


def alike(first: Tensor, second: Tensor) -> Tensor:
    """Return ``Σ_blocks ⟨a, a'⟩⟨b, b'⟩`` of every adapter of one with every one of the other."""
    pairs = zip(GATES.split(first), GATES.split(second), strict=True)
    return torch.stack(
        [(a[:, 0] @ c[:, 0].T) * (b[:, 0] @ d[:, 0].T) for (a, b), (c, d) in pairs]
    ).sum(0)


def recovered(
    n: int, *, radius: float = 1.0, seed: int = 0, control: bool = False, **settings: Any
) -> int:
    """Return how many of 8 planted adapters are among those found, of likeness 0.9 at least."""
    part, planted = gated(8, seed=10 * seed)
    if control:
        found = GATES.draw(n, torch.Generator().manual_seed(1000 + seed)).double()
    else:
        found = run(part, n, CpeConfig(**settings), radius=radius, seed=seed)[0]["directions"]
    return int(((alike(found, planted) / 2).max(0).values > 0.9).sum())


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("seed", range(2))
def test_planted_adapters_are_found_at_any_radius(radius: float, seed: int) -> None:
    assert recovered(48, radius=radius, seed=seed, iterations=20) >= 7
    assert recovered(4096, radius=radius, seed=seed, control=True) == 0


def test_more_adapters_find_more_of_the_planted() -> None:
    few, some, many = (sum(recovered(n, seed=s) for s in range(4)) for n in (8, 16, 48))
    assert few < some < many
    assert many >= 28  # of 32


def test_more_iterations_find_more_of_the_planted() -> None:
    none, few, many = (
        sum(recovered(32, seed=s, iterations=k) for s in range(4)) for k in (1, 3, 20)
    )
    assert none < few < many


def test_as_the_paper_has_it_planted_adapters_are_found_too() -> None:
    for seed in range(2):
        assert recovered(48, seed=seed, iterations=20, per_block=True, init="random") >= 6


def test_without_pushing_each_other_away_they_find_fewer() -> None:
    apart, together = (
        sum(recovered(16, seed=s, iterations=20, inner=inner) for s in range(4))
        for inner in (10, 0)
    )
    assert apart > together


def test_two_alone_push_each_other_to_the_same_adapter() -> None:
    # Each is the other's mirror image, and b aᵀ is (-b)(-a)ᵀ: the page says so.
    found, _ = run(toy(), 2, CpeConfig(iterations=3))
    first, second = found["directions"]
    torch.testing.assert_close(first, -second)


# -- on models -------------------------------------------------------------------------------------

ROWS = tiny.ragged([6, 11, 2])


@torch.no_grad()
def test_what_is_found_does_in_peft_what_it_is_said_to_do(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.pad(ROWS), source=0, target=3)
    config = CpeConfig(iterations=3, blocks=2)
    found = methods.search(part, "cpe", n=4, radius=1.5, seed=2, config=config)
    assert found.outputs is not None
    names = [f"model.layers.{block}.self_attn.o_proj" for block in (1, 2)]
    for line in range(4):
        pairs = found.kind.split(found.directions)  # type: ignore[attr-defined]
        a, b = [a[line] for a, _ in pairs], [b[line] for _, b in pairs]
        other = adapted(tiny64.hf, names, a, b, 1.5).get_base_model()
        effect = torch.zeros(tiny64.width).double()
        for ids in ROWS:
            change = tiny.run(other, ids)[1][3] - tiny.run(tiny64.hf, ids)[1][3]
            effect += change[-3:].mean(0) / len(ROWS)
        assert float(found.scores["effect"][line]) == pytest.approx(float(effect.norm()), rel=1e-4)
        assert float(found.outputs[line].double() @ effect / effect.norm()) > 1 - 1e-6
    control = methods.control(part, found, seed=3)
    assert float(found.scores["effect"].mean()) > 2 * float(control.scores["effect"].mean())


def test_it_finds_in_a_slice_what_it_finds_in_the_whole_model(
    lm_of: Callable[..., LanguageModel],
) -> None:
    lm = lm_of("gpt2", torch.float64)
    part = Slice(lm, lm.pad(ROWS), source=0, target=3, tokens_per_chunk=30)
    config = CpeConfig(iterations=2, blocks=2)
    found = methods.search(part, "cpe", n=3, radius=1.5, seed=1, config=config)

    def move(theta: Tensor) -> Tensor:
        """Run the model on one prompt with one adapter after the other, by hooks on its modules."""
        moved = torch.zeros(len(theta), len(ROWS), 3, 32, dtype=torch.float64)
        for line, row in enumerate(theta):
            for prompt, ids in enumerate(ROWS):
                handles = []
                for place, block in enumerate((1, 2)):
                    a, b = row[64 * place : 64 * place + 32], row[64 * place + 32 : 64 * place + 64]
                    handles.append(
                        lm.hf.transformer.h[block].attn.c_proj.register_forward_hook(
                            lambda module, args, out, a=a, b=b: out + (args[0] @ a)[..., None] * b
                        )
                    )
                came = tiny.run(lm.hf, ids)[1][3]
                for handle in handles:
                    handle.remove()
                read = min(3, len(ids))
                moved[line, prompt, -read:] = (came - tiny.run(lm.hf, ids)[1][3])[-read:]
        return moved

    whole = ToySlice(move, 32, read=[[1, 1, 1], [1, 1, 1], [0, 1, 1]])
    whole.kind = found.kind
    expected, _ = run(whole, 3, config, radius=1.5, seed=1)
    torch.testing.assert_close(found.directions, expected["directions"].float(), rtol=0, atol=1e-4)
    for name, values in found.scores.items():
        torch.testing.assert_close(values, expected[f"score.{name}"].float(), rtol=1e-4, atol=0)


def test_a_set_says_where_it_belongs_and_how_it_was_made(tiny_lm: LanguageModel) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3)
    config = CpeConfig(iterations=1, blocks=2)
    found = methods.search(part, "cpe", n=3, radius=2.5, seed=7, config=config)
    assert found.kind == Adapters(
        2, ("model.layers.2.self_attn.o_proj", "model.layers.3.self_attn.o_proj"), (32, 32), 32
    )
    assert (found.method, found.seed, found.config["per_block"]) == ("cpe", 7, False)
    assert set(found.scores) == {"objective", "effect"}
    assert found.origin.unit == part.on(found.kind).unit != part.unit
    for a, b in found.kind.split(found.directions):
        torch.testing.assert_close(a.norm(dim=2), torch.ones(3, 1))
        torch.testing.assert_close(b.norm(dim=2), torch.ones(3, 1))


def test_a_band_that_does_not_fit_is_an_error(tiny_lm: LanguageModel) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=0, target=2)
    with pytest.raises(MethodError, match=r"cpe adapts blocks 1 to 3, .* read at 2: choose"):
        methods.search(part, "cpe", n=2, radius=1.0, config=CpeConfig(blocks=3))


@pytest.mark.parametrize("init", ["random", "backward"])
@pytest.mark.parametrize("at", [0, 1, 4, 5])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, init: Any, at: int) -> None:
    part, config = toy(), CpeConfig(iterations=5, init=init)
    whole, states = run(part, 4, config)
    save_file([start(part, 4, config), *states][at], tmp_path / "state")
    resumed, _ = run(part, 4, config, state=State(load_file(tmp_path / "state")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# -- the whole job ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run by the command line on a tiny model, and what it printed."""
    place = tmp_path_factory.mktemp("cpe")
    tiny.hf_model().save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    asked = ["discover", "Tell me.", "What is the code?", "--model", str(place / "model")]
    how = ["--method", "cpe", "--set", "blocks=2", "--set", "iterations=2", "-n", "3"]
    where = ["--source", "0", "--target", "3", "--radius", "2,0.05x", "--max-new-tokens", "5"]
    rest = ["--look-for", "[a-z]", "--baseline", "4"]
    rest += ["--device", "cpu", "--out", str(place / "run"), "--json"]
    out = StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as end:
        cli.main([*asked, *how, *where, *rest])
    assert not end.value.code
    return place / "run", json.loads(out.getvalue())


def test_a_run_writes_what_the_adapters_write_alone(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, data = finished
    assert data["facts"]["kind"] == "adapters"
    arms = Counter(p["arm"] for p in data["perturbations"])
    assert arms == {"found": 6, "control": 6, "equal effect": 6}  # at two radii
    hf = tiny.hf_model()
    names = [f"model.layers.{block}.self_attn.o_proj" for block in (1, 2)]
    with Run.open(folder) as opened:
        texts = {c.row: c for c in opened.completion_rows(FIRST)}
        prompts = opened.prompt_rows()
        rows = opened.perturbation_rows()
    tokenizer = tiny.tokenizer()
    for row in rows:
        some = PerturbationSet.load(folder / "tensors" / row.file)
        assert some.method == ("cpe" if row.arm == "found" else "random")
        pairs = some.kind.split(some.directions)  # type: ignore[attr-defined]
        a, b = [a[row.item] for a, _ in pairs], [b[row.item] for _, b in pairs]
        model = adapted(hf, names, a, b, row.radius).get_base_model()
        for prompt in (p for p in prompts if p.role == "asked"):
            ids = tokenizer(prompt.rendered, add_special_tokens=False)["input_ids"]
            loop = tiny.greedy(model, ids, 5, ends={257})
            assert list(texts[Row(row.id, prompt.id)].tokens) == loop


def test_a_run_is_shown_and_reported(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    for arguments in (["show", str(folder)], ["show", str(folder), "1"], ["report", str(folder)]):
        out = StringIO()
        with redirect_stdout(out), pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert not end.value.code
        assert out.getvalue()
    assert "adapters acting from" in (folder / "report.html").read_text()
