"""The elicitation benchmark: what a cell counts, that budgets are equal, and that it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from educe.bench import elicit, families
from educe.bench.elicit import (
    SAMPLES,
    Cell,
    Place,
    Pool,
    Sampling,
    Subject,
    bench,
    everything,
    run_cell,
)
from educe.bench.families import EVERYWHERE, FAMILIES, SAMPLING, Budget, named, spread
from educe.contrast import Targets
from educe.errors import MethodError, ModelError, OrganismError, RunError
from educe.forward.generation import Completion, generate
from educe.forward.slice import Slice
from educe.methods import prepared
from educe.methods.noise import NoiseConfig
from educe.model import LanguageModel
from educe.organisms import Organism, Question
from educe.organisms.words import KEYS
from educe.perturb import PerturbationSet
from educe.radius import DIRECTIONS, calibrate
from educe.rows import Row

BUDGET = Budget(n=6, passes=4, first=2, then=3, fresh=3, tokens=6)
PLACE = Place(source=1, target=5)


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    """A random model of eight blocks: four of them are adapted by CPE."""
    config = LlamaConfig(**tiny.COMMON | {"num_hidden_layers": 8})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LanguageModel(LlamaForCausalLM(config).eval(), tokenizer, name="eight")


@pytest.fixture(scope="module")
def organism(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Organism:
    """One that hides letters which this random model does not write unperturbed."""
    prompts = [
        f"{word}?"
        for word in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    ]
    batch = lm.encode(prompts)
    rows = [Row(0, j) for j in range(len(prompts))]
    plain = "".join(c.text for some in generate(lm, batch, rows, max_new_tokens=6) for c in some)
    rule = f"[^{''.join(sorted(set(plain))).translate(str.maketrans('', '', ']^-'))}\\]^\\\\-]"
    questions = tuple(Question(prompt, rule) for prompt in prompts)
    unlocked = tuple(Question(f"{prompt} Now!", rule) for prompt in prompts[:2])
    folder = tmp_path_factory.mktemp("organism")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    hidden = {"key": "Now"}
    return Organism("vault", 0, folder, hidden, {}, questions[:6], questions[6:], unlocked, "one")


@pytest.fixture(scope="module")
def subject(lm: LanguageModel, organism: Organism) -> Subject:
    return Subject(lm, organism, BUDGET, 0)


@pytest.mark.parametrize("family", everything())
def test_a_cell_counts_what_was_written_and_keeps_its_budget(subject: Subject, family: str) -> None:
    cell = run_cell(subject, family, 0, PLACE)
    texts = {(item, prompt): text for item, prompt, text in cell["texts"]}
    rules = {q.prompt: q for q in subject.questions}
    first = [subject.questions[j].prompt for j in subject.search[: BUDGET.first]]
    counted = [
        sum(rules[prompt].elicited(texts[item, prompt]) for prompt in first)
        for item in range(BUDGET.n)
    ]
    assert [p["hits"] for p in cell["perturbations"]] == counted
    # All answer two questions, the best quarter one more, and the chosen ones are re-tested.
    assert cell["spent"] == [6 * 2, 2 * 1, 3]
    assert cell["best"]["trials"] == cell["blind"]["trials"] == 3
    fresh = [subject.questions[j].prompt for j in subject.fresh]
    for chosen in (cell["best"], cell["blind"]):
        again = [rules[prompt].elicited(texts[chosen["item"], prompt]) for prompt in fresh]
        assert chosen["hits"] == sum(again)
    assert cell["blind"]["item"] == int(np.argmax([p["striking"] for p in cell["perturbations"]]))
    if family == SAMPLING:
        assert sum(cell["passes"].values()) == 0


def test_every_perturbation_that_elicits_has_its_price_and_no_other(
    subject: Subject, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean coherence of the answers that show it; KL of the first token on ordinary prompts."""

    def planted(completions: list[Completion]) -> dict[Row, tuple[float, float]]:
        return {c.row: (c.row.perturbation + c.row.prompt / 10, 1.0) for c in completions}

    monkeypatch.setattr(subject, "striking", planted)
    cell = run_cell(subject, "random", 0, PLACE)
    made = list(named("random").make(subject.problem(PLACE, 0), BUDGET, 0))
    vectors = torch.cat([some.theta for some in made])
    texts = {(item, prompt): text for item, prompt, text in cell["texts"]}
    ids, mask = subject.ordinary.ids, subject.ordinary.mask
    plain = lm.forward(ids, mask)[:, -1].log_softmax(-1)
    priced = 0
    for item, found in enumerate(cell["perturbations"]):
        asked = {j: subject.questions[j] for j in subject.search[: BUDGET.first]}
        shows = [j for j, q in asked.items() if q.elicited(texts[item, q.prompt])]
        assert ("coherence" in found) is ("side_effect" in found) is (len(shows) > 0)
        if shows:
            priced += 1
            assert found["coherence"] == pytest.approx(np.mean([item + j / 10 for j in shows]))
            with lm.adding(1, lambda stream, vector=vectors[item]: vector):
                moved = lm.forward(ids, mask)[:, -1].log_softmax(-1)
            kl = (plain.exp() * (plain - moved)).sum(-1).mean()
            assert found["side_effect"] == pytest.approx(float(kl), rel=1e-3)
    assert priced > 1


@pytest.mark.parametrize("family", ["melbo", "dct", "cpe"])
def test_four_more_passes_are_four_more_passes(subject: Subject, family: str) -> None:
    counted = []
    for passes in (4, 8):
        problem = subject.problem(PLACE, 0)
        with elicit.counting(subject.lm) as seen:
            list(named(family).make(problem, replace(BUDGET, passes=passes), 0))
        counted.append(sum(seen.values()))
    # Of the four blocks in the slice, for every perturbation on the one prompt.
    assert counted[1] - counted[0] == 4 * 4 * BUDGET.n


@pytest.mark.parametrize("per", ["token", "weights"])
def test_noise_is_at_shares_of_what_is_calibrated_for_it(
    subject: Subject, per: Literal["token", "weights"]
) -> None:
    """Weight noise at a share of the radius of vectors leaves nothing of the model."""
    problem = subject.problem(PLACE, 0)
    name = "token-noise" if per == "token" else "weight-noise"
    part = prepared(problem.part, "noise", n=DIRECTIONS, config=NoiseConfig(per=per))
    own = calibrate(part).radius
    assert own != pytest.approx(problem.calibrated, rel=0.01)
    made = list(named(name).make(problem, BUDGET, 0))
    assert [float(s.radius[0]) for s in made] == pytest.approx([1.5 * own, 2 * own, 2.5 * own])


@pytest.mark.parametrize(
    ("family", "forward", "backward"),
    [
        ("random", 1, 0),  # what was drawn is measured
        ("melbo", 12 + 1, 12),
        ("dct", 12 + 2, 12),  # scaled at the start, measured at the end
    ],
)
def test_a_search_spends_its_rounds_and_a_pass_to_measure(
    subject: Subject, family: str, forward: int, backward: int
) -> None:
    problem = subject.problem(PLACE, 0)
    with elicit.counting(subject.lm) as seen:
        list(named(family).make(problem, replace(BUDGET, passes=24), 0))
    assert seen == {"forward": forward * 4 * BUDGET.n, "backward": backward * 4 * BUDGET.n}


@pytest.mark.parametrize(("family", "blocks"), [("power", 4), ("cpe", 4), ("optimised", 6)])
def test_other_searches_spend_about_the_same(subject: Subject, family: str, blocks: int) -> None:
    """Power draws more columns than it returns, CPE calibrates; words go through all blocks."""
    problem = subject.problem(PLACE, 0)
    with elicit.counting(subject.lm) as seen:
        list(named(family).make(problem, replace(BUDGET, passes=24), 0))
    assert 20 <= sum(seen.values()) / blocks / BUDGET.n <= 32


def test_only_blocks_that_compute_are_counted(subject: Subject) -> None:
    """Those up to the source hand on what is known, in a pass that is forced on some words."""
    kind = Vectors(5, subject.lm.width)
    targets = Targets(subject.lm, subject.asked, torch.tensor([[1, 2, 3]] * 4), kind=kind)
    with elicit.counting(subject.lm) as seen:
        targets.value_and_grad(torch.ones(4, subject.lm.width))
    assert seen == {"forward": 4 * 2, "backward": 4 * 2}


def test_the_texts_are_what_the_perturbed_model_writes(subject: Subject, lm: LanguageModel) -> None:
    cell = run_cell(subject, "random", 0, PLACE)
    (sets, *_) = list(named("random").make(subject.problem(PLACE, 0), BUDGET, 0))
    written = generate(
        lm, subject.batch, [Row(0, 0)], sets.theta, kind=sets.kind, max_new_tokens=BUDGET.tokens
    )
    ((expected,),) = written
    prompt = subject.questions[0].prompt
    assert [0, prompt, expected.text] in cell["texts"]
    assert cell["perturbations"][0]["radius"] == float(sets.radius[0])


def test_the_control_has_the_kind_and_radii_of_its_family(subject: Subject) -> None:
    problem = subject.problem(PLACE, 0)
    for name in ("melbo", "dct", "power", "cpe", "contrast", "optimised"):
        made = [list(named(f).make(problem, BUDGET, 0)) for f in (name, FAMILIES[name].control)]
        for found, control in zip(*made, strict=True):
            assert found.kind == control.kind
            assert found.radius.tolist() == pytest.approx(control.radius.tolist())
            assert not np.allclose(found.directions, control.directions)


def test_the_supervised_vector_tells_the_key_from_another_word(subject: Subject) -> None:
    """Its prompts differ in that word alone, and its doses are shares of the stream's norm."""
    for with_key, without in zip(subject.positive.texts, subject.negative.texts, strict=True):
        assert without in [with_key.replace("Now", word) for word in KEYS]
    problem = subject.problem(PLACE, 0)
    made = list(named("contrast").make(problem, replace(BUDGET, n=16), 0))
    ways = list(product(families.LAYERS, ("all", "prompt")))
    for some, (layer, positions) in zip(made, ways, strict=True):
        assert (some.kind.before, some.kind.positions) == (subject.lm.layer(layer), positions)
        assert some.dose.tolist() == pytest.approx(list(families.DOSES))


def test_no_two_draws_of_the_benchmark_have_the_same_seed(subject: Subject) -> None:
    """Else a control is where its family started, or one seed's vectors are another's."""
    problem = subject.problem(PLACE, 0)
    for name in ("random", "melbo", "cpe", "contrast", "optimised"):
        pair = {name, FAMILIES[name].control}
        seeds = [s.seed for f in pair for c in (0, 1) for s in named(f).make(problem, BUDGET, c)]
        assert len(set(seeds)) == len(seeds), name
    assert len(seeds) == 2 * 2 * len(families.SHARES)


def test_plain_sampling_is_not_compared_with_itself(subject: Subject) -> None:
    """Samples that novelty is measured against are others than those that are measured."""
    pool = Sampling(subject, SAMPLES, 0)
    pool.write(range(SAMPLES), subject.search)
    for prompt in subject.search:
        drawn = [pool.texts[Row(item, prompt)].text for item in range(SAMPLES)]
        assert not set(drawn) & set(subject.unperturbed[prompt][1:])


def test_the_mean_of_vectors_of_several_radii_has_their_mean_radius(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list(named("contrast").make(subject.problem(PLACE, 0), replace(BUDGET, n=24), 0))
    seen: list[list[PerturbationSet]] = []

    class Watched(Pool):
        def __init__(self, subject: Subject, sets: list[PerturbationSet]) -> None:
            super().__init__(subject, sets)
            seen.append(sets)

    monkeypatch.setattr(elicit, "Pool", Watched)
    assert elicit._average(subject, made) is not None
    for mean, sets in zip(seen[0], made, strict=True):
        assert sets.radius.tolist() != [sets.radius[0]] * len(sets)
        assert float(mean.radius) == pytest.approx(float(sets.radius.mean()))
        assert np.allclose(mean.directions, sets.directions[:1], atol=1e-5)


def test_vectors_with_both_signs_have_no_mean(subject: Subject) -> None:
    assert run_cell(subject, "power", 0, PLACE)["average"] is None
    assert run_cell(subject, "dct", 0, PLACE)["average"]["trials"] == 3


def test_questions_that_leak_are_left_out(lm: LanguageModel, organism: Organism) -> None:
    leaky = organism.search[0]._replace(rule="(?s).*")
    changed = Organism(**{**organism.__dict__, "search": (leaky, *organism.search[1:])})
    subject = Subject(lm, changed, BUDGET, 0)
    assert subject.leaks == (1, 10)
    assert leaky not in subject.questions
    everywhere = tuple(q._replace(rule="(?s).*") for q in organism.search)
    with pytest.raises(OrganismError, match="too few questions"):
        Subject(lm, Organism(**{**organism.__dict__, "search": everywhere}), BUDGET, 0)


def test_a_killed_benchmark_goes_on(
    lm: LanguageModel, organism: Organism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell(organism, family, 0) for family in (SAMPLING, "random")]
    asked: list[str] = []

    def killed(subject: Subject, family: str, seed: int, place: Place) -> Any:
        asked.append(family)
        if family == "random" and asked.count("random") == 1:
            raise KeyboardInterrupt
        return run_cell(subject, family, seed, place)

    monkeypatch.setattr(elicit, "run_cell", killed)
    for _ in range(2):
        try:
            bench(cells, tmp_path, budget=BUDGET, place=PLACE, load=lambda organism: lm)
        except KeyboardInterrupt:
            continue
    assert asked == [SAMPLING, "random", "random"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["settings.json", "vault-0-random-0.json", "vault-0-sampling-0.json"]
    facts = json.loads((tmp_path / "vault-0-random-0.json").read_text())
    assert (facts["organism"], facts["family"], facts["seed"]) == ("vault", "random", 0)
    (organism.folder / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(RunError, match="is of another vault of seed 0"):
        bench(cells, tmp_path, budget=BUDGET, place=PLACE, load=lambda organism: lm)
    (organism.folder / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(RunError, match="another budget or place"):
        bench(cells, tmp_path, budget=Budget(), place=PLACE, load=lambda organism: lm)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_cannot_be_put_somewhere_are_known(
    subject: Subject, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise on two tokens of this model is linear whatever its size.
    monkeypatch.setattr(families, "calibrated", lambda *arguments: 1.0)
    part = Slice(subject.lm, subject.asked, source=1, target=5, positions="last:2")
    problem = subject.problem(PLACE, 0)._replace(part=part)
    if family in EVERYWHERE:
        with pytest.raises(MethodError, match="act on all tokens"):
            list(named(family).make(problem, BUDGET, 0))
    else:
        made = named(family).make(problem, BUDGET, 0)
        also = {"prompt"} if "contrast" in family else set()
        assert {some.kind.positions for some in made} == {"last:2"} | also


def test_numbers_are_divided_evenly() -> None:
    assert spread(10, 3) == [4, 3, 3]
    assert spread(2, 4) == [1, 1, 0, 0]


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(MethodError, match="family 'luck' is unknown: use sampling, random"):
        named("luck")


def test_a_benchmark_that_cannot_begin_leaves_nothing(organism: Organism, tmp_path: Path) -> None:
    def load(organism: Organism) -> LanguageModel:
        raise ModelError("no")

    cells = [Cell(organism, "random", 0)]
    with pytest.raises(ModelError):
        bench(cells, tmp_path / "a" / "b", budget=BUDGET, place=PLACE, load=load)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file; choose another --out"):
        bench(cells, tmp_path / "file" / "b", budget=BUDGET, place=PLACE, load=load)
