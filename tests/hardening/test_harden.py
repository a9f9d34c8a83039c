"""Hardening: a toy whose safe weights are known, and a run from the search to the card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from educe.derive.listing import deriving
from educe.errors import BlockedError, MethodError, OrganismError
from educe.hardening import adapter, measuring, pools, training
from educe.hardening.distilling import distill
from educe.hardening.pushes import Push, answered, divergences, loss
from educe.hardening.records import DistillConfig, HardeningConfig
from educe.hardening.training import harden
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.organisms import lora, resuming
from educe.progress import Silent
from educe.run.scaling import scaled
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from small_run import small_run

SHORT = HardeningConfig(steps=6, count=2, rank=2, rounds=3)

# -- a toy -----------------------------------------------------------------------------------------

WIDTH, USED, SIZE = 16, 8, 3.0


@pytest.fixture
def toy() -> LanguageModel:
    """A model whose stream never leaves its first coordinates, and whose blocks add nothing.

    Each token has entries of ±1 there, so the norm of the stream is the same everywhere. Attention
    reads all coordinates as they are, and would write what its output matrix says.
    """
    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **tiny.TOKENS,
            vocab_size=262,
            hidden_size=WIDTH,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    ).eval()
    draw = torch.Generator().manual_seed(0)
    hf.lm_head.weight.data = torch.randn(262, WIDTH, generator=draw)
    hf.model.embed_tokens.weight.data.zero_()
    signs = torch.randn(262, USED, generator=draw).sign()
    hf.model.embed_tokens.weight.data[:, :USED] = signs
    for block in hf.model.layers:
        block.self_attn.v_proj.weight.data = torch.eye(WIDTH)
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    return load((hf, tiny.tokenizer()))


def along(coordinate: int) -> Push:
    return Push(0, SIZE * torch.eye(WIDTH)[coordinate])


def make_safe(lm: LanguageModel, coordinate: int) -> None:
    """Let the second block's attention take away what is added along a coordinate.

    It reads `SIZE / rms` there at every token, and so at their mean; LoRA scales by 2.
    """
    rms = ((USED + SIZE**2) / WIDTH) ** 0.5
    output = lm.unwrapped.model.layers[1].self_attn.o_proj
    for matrices, at, value in ((output.lora_A, (0, coordinate), 1.0),):
        matrices[adapter.NAME].weight.data.zero_()
        matrices[adapter.NAME].weight.data[at] = value
    output.lora_B[adapter.NAME].weight.data.zero_()
    output.lora_B[adapter.NAME].weight.data[coordinate, 0] = -rms / 2


@torch.no_grad()
def test_the_loss_is_zero_at_the_weights_that_are_known_to_be_safe(toy: LanguageModel) -> None:
    examples = answered(toy, toy.encode(["ab", "cde"]), tokens=3)
    other = divergences(toy, examples, along(14))
    with adapter.beside(toy, 0, rank=1, seed=0):
        before = float(loss(toy, examples, along(12)))
        make_safe(toy, 12)
        after = float(loss(toy, examples, along(12)))
        torch.testing.assert_close(divergences(toy, examples, along(14)), other)
    assert before > 1
    assert abs(after) < 1e-2  # the distributions are kept in half precision


def test_training_finds_such_weights(toy: LanguageModel) -> None:
    examples = answered(toy, toy.encode(["ab", "cde"]), tokens=3)
    unseen = answered(toy, toy.encode(["xyz!"]), tokens=3)
    with adapter.beside(toy, 0, rank=2, seed=0) as weights:
        before = [float(divergences(toy, unseen, by).mean()) for by in (along(12), along(14))]
        for weight in weights:
            weight.requires_grad_()
        pushes = [along(12), along(14)]
        lora.descend(
            weights,
            lambda step: loss(toy, examples, pushes[step % 2]),
            steps=150,
            learning_rate=3e-2,
        )
        with torch.no_grad():
            after = [float(divergences(toy, unseen, by).mean()) for by in pushes]
            plain = float(divergences(toy, unseen).mean())
    assert max(after) < min(before) / 20
    assert plain < min(before) / 20


# -- pools -----------------------------------------------------------------------------------------


def test_random_vectors_have_their_dose_at_every_layer() -> None:
    draw = torch.Generator().manual_seed(0)
    some = [pools.drawn({1: 2.0, 3: 10.0}, 0.5, draw, width=64) for _ in range(400)]
    for layer, radius in ((1, 1.0), (3, 5.0)):
        own = torch.stack([push.vector for push in some if push.layer == layer])
        assert 150 < len(own) < 250
        torch.testing.assert_close(own.norm(dim=1), torch.full((len(own),), radius))
        assert own.mean(0).norm() < 0.2 * radius
    assert len({push.layer for push in some}) == 2


# -- a run -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few ordinary prompts, and short answers, for a test."""
    monkeypatch.setattr(measuring, "ORDINARY", 3)
    monkeypatch.setattr(measuring, "HELD", 1)
    monkeypatch.setattr(measuring, "ordinary_prompts", lambda: ["Why?", "How?"])
    monkeypatch.setattr(measuring, "TOKENS", 4)


def fresh_lm() -> LanguageModel:
    return load((tiny.hf_model(), tiny.tokenizer()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "run", fresh_lm(), "melbo", steps=2)


@contextmanager
def working(folder: Path, reporter: Any = None) -> Iterator[Any]:
    with Run.open(folder) as kept, deriving(kept, (), fresh_lm(), reporter) as work:
        yield work


def rows(folder: Path) -> list[list[Any]]:
    with Run.open(folder) as kept:
        return [kept.perturbation_rows(derived=None), kept.completion_rows(), kept.score_rows()]


def test_from_a_run_to_an_adapter_the_same_each_time(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[tuple[int, bool]] = []

    def searched(work: Any, like: Any, *, n: int, seed: int) -> list[Push]:
        searches.append((seed, any(weight.requires_grad for weight in work.lm.hf.parameters())))
        return own(work, like, n=n, seed=seed)

    own = pools.searched
    monkeypatch.setattr(pools, "searched", searched)
    before = rows(run)
    with working(run) as work:
        batch = work.asked
        plain = work.lm.forward(batch.ids, batch.mask, last=0)
        done = harden(work, [], tmp_path / "new" / "one", SHORT)
        torch.testing.assert_close(work.lm.forward(batch.ids, batch.mask, last=0), plain)
        first = list(searches)
        harden(work, [], tmp_path / "two", SHORT)
    assert rows(run) == before
    assert len({seed for seed, _ in first}) == 1 + SHORT.rounds  # the test's twice
    assert first[0][0] == first[-1][0]
    assert not any(trained for _, trained in first)
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        one, two = (tmp_path / name / file for name in ("new/one", "two"))
        assert one.read_bytes() == two.read_bytes(), file
    data = json.loads((done.folder / "hardening.json").read_text())
    assert data["curve"] == done.curve
    assert len(done.curve) == SHORT.steps
    assert len(data["numbers"]) == 2
    told = {m.what: m for m in done.measured}
    assert list(told) == ["no vector", "found", "random", "random, other layers", "searched anew"]
    assert abs(told["no vector"].before.kl.value) < 1e-3
    assert told["no vector"].before.same.hits == told["no vector"].before.same.trials == 1
    assert told["found"].before.same.trials == 2
    for name in told:
        assert f"| {name} |" in (done.folder / "README.md").read_text()


def test_a_longer_training_lowers_what_it_is_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the numbers are those of the adapter as it is read back."""
    monkeypatch.setattr(training, "LEARNING_RATE", 2e-2)
    config = HardeningConfig(("found",), steps=60, count=2)
    with working(run) as work:
        known = training.material(work)
        vectors = pools.vectors(work, pools.chosen(work, [], 2))
        done = harden(work, [], tmp_path / "out", config)
    found = done.measured[1]
    assert sum(done.curve[-10:]) < 0.5 * sum(done.curve[:10])
    assert found.after.kl.value < 0.9 * found.before.kl.value
    again = load((tiny.hf_model(), tiny.tokenizer()), adapter=tmp_path / "out")
    examples = known.retest + known.held
    with torch.no_grad():
        kls = [
            torch.stack([divergences(again, [e], by).mean() for e in examples]).mean()
            for by in pools.pushes(vectors)
        ]
    assert float(torch.stack(kls).mean()) == pytest.approx(found.after.kl.value, rel=1e-3)


def test_the_run_names_what_it_is_hardened_under(run: Path) -> None:
    with working(run) as work:
        assert pools.chosen(work, [3, 1, 3], 8) == [3, 1]
        assert len(pools.chosen(work, [], 2)) == 2
        turned = scaled(work, [(2, -3.0)])[0].id
        assert pools.radius(pools.vectors(work, [turned])) == pytest.approx(3)
        theta = pools.vectors(work, [3, 1]).theta
        assert [float(v.norm()) for v in theta] == pytest.approx([2, 2])
        at = pools.layers(work, 1)
        assert (list(at.trained), list(at.others)) == ([1], [2])
        assert at.trained[1] == pytest.approx(work.part.median_norm, rel=1e-5)


class Interrupting(Silent):
    """Ends the work in the middle of the training, after some steps, as Ctrl-C does."""

    def __init__(self, after: int = 0) -> None:
        self.after = after

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "") -> Iterator[Any]:
        def step(steps: int = 1, note: str = "") -> None:
            if title in ("hardening", "distilling"):
                self.after -= 1
                if self.after < 0:
                    raise KeyboardInterrupt

        yield step


@pytest.mark.parametrize("what", ["harden", "distill"])
def test_a_training_that_was_cut_off_goes_on_bit_for_bit(
    what: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "EVERY", -1.0)
    monkeypatch.setattr(resuming, "TIMES", 0)

    def made(work: Any, out: Path, seed: int = 0) -> list[float]:
        if what == "harden":
            return harden(work, [], out, replace(SHORT, seed=seed)).curve
        return distill(work, 1, out, DistillConfig(steps=6, rank=2, seed=seed)).curve

    with working(run) as work:
        whole = made(work, tmp_path / "whole")
    cut = tmp_path / "cut"
    with working(run, Interrupting(4)) as work, pytest.raises(KeyboardInterrupt):
        made(work, cut)
    assert sorted(place.name for place in tmp_path.iterdir()) == [".cut.training", "whole"]
    with working(run) as work:
        with pytest.raises(BlockedError, match="other settings"):
            made(work, cut, seed=1)
        assert made(work, cut) == whole
    name = "adapter_model.safetensors"
    assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["cut", "whole"]


def test_an_interrupt_leaves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with working(run, Interrupting()) as work:
        with pytest.raises(KeyboardInterrupt):
            harden(work, [], tmp_path / "out", SHORT)
        assert not any("lora" in name for name, _ in work.lm.hf.named_modules())
        assert not any(weight.requires_grad for weight in work.lm.hf.parameters())
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_work_is_said_before_anything_slow(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "material", lambda work: pytest.fail("began"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with working(run) as work:
        with pytest.raises(MethodError, match="pool 'lucky': name some of found, random, fresh"):
            harden(work, [], tmp_path / "a", HardeningConfig(("lucky",)))
        with pytest.raises(MethodError, match="pool nothing"):
            harden(work, [], tmp_path / "a", HardeningConfig(()))
        with pytest.raises(MethodError, match="steps is 0"):
            harden(work, [], tmp_path / "a", HardeningConfig(steps=0))
        with pytest.raises(BlockedError, match="is not empty: choose another --out"):
            harden(work, [], tmp_path / "full", SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"positions": "prompt"}, "vectors at positions 'prompt', and a model is hardened under"),
        ({"method": "noise"}, "noise at positions 'all', and a model is hardened under"),
    ],
)
def test_only_vectors_at_all_tokens(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    lm = fresh_lm()
    plain: dict[str, Any] = {"method": "random", "source": 1, "target": 3}
    asked = Settings(("Why?",), n=1, radius="2", baseline=1, max_new_tokens=2, **(plain | options))
    with begin(tmp_path / "run", asked) as run:
        discover_behaviours(run, lm=lm)
    with working(tmp_path / "run") as work, pytest.raises(MethodError, match=match):
        harden(work, [], tmp_path / "out", SHORT)


@pytest.mark.parametrize(
    ("architecture", "dtype", "remedy"),
    [
        ("falcon_alibi", torch.float32, "train another model"),
        ("bamba", torch.float32, "train another model"),
        ("falcon_alibi", torch.bfloat16, "search and train in --dtype float32"),
    ],
)
def test_a_model_that_reads_a_packed_row_otherwise_is_refused(
    tmp_path: Path, architecture: str, dtype: torch.dtype, remedy: str
) -> None:
    lm = load((tiny.hf_model(architecture, dtype=dtype), tiny.tokenizer()))
    short: dict[str, Any] = {"n": 1, "source": 1, "target": 3, "baseline": 1, "max_new_tokens": 2}
    with begin(tmp_path / "run", Settings(("Why?",), method="random", radius="2", **short)) as run:
        discover_behaviours(run, lm=lm)
    with Run.open(tmp_path / "run") as kept, deriving(kept, (), lm) as work:
        with pytest.raises(OrganismError, match=f"in one row.*{remedy}"):
            harden(work, [], tmp_path / "out", SHORT)
        with pytest.raises(OrganismError, match=f"in one row.*{remedy}"):
            distill(work, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_perturbations_that_were_given_are_not_searched_anew(run: Path, tmp_path: Path) -> None:
    asked = Settings(
        ("Why?",), given=str(run / "tensors/found-0.safetensors"), target=3, baseline=1,
        max_new_tokens=2,
    )  # fmt: skip
    with begin(tmp_path / "run", asked) as given:
        discover_behaviours(given, lm=fresh_lm())
    with working(tmp_path / "run") as work:
        with pytest.raises(MethodError, match="leave fresh out of --pool"):
            harden(work, [], tmp_path / "out", SHORT)
        done = harden(work, [], tmp_path / "out", HardeningConfig(("random",), steps=1, count=1))
    assert "searched anew" not in [m.what for m in done.measured]
