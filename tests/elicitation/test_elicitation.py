"""The elicitation benchmark: what a cell counts, that budgets are equal, and that it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from benchmarks.measuring import counting
from educe.errors import MethodError, OrganismError, RunError
from educe.forward.benign import ordinary_prompts
from educe.forward.generation import generate
from educe.forward.slice import Slice
from educe.methods import prepared
from educe.methods.contrast import Targets
from educe.methods.noise import NoiseConfig
from educe.methods.radius import DIRECTIONS, calibrate
from educe.model.language import LanguageModel
from educe.organisms import Organism, Question
from educe.organisms.words import KEYS
from educe.perturbation.kinds import Vectors
from educe.perturbation.set import PerturbationSet
from educe.rows import RETEST, RUNG, CompletionRow, Row
from educe.run.store import Run
from educe.run.work import at_work
from studies.elicitation import families
from studies.elicitation.cell import Cell, kept, members, outcome
from studies.elicitation.families import EVERYWHERE, FAMILIES, SAMPLING, Budget, named, spread
from studies.elicitation.subject import SAMPLES, Subject, averages, opened
from studies.elicitation.table import read_cells

BUDGET = Budget(n=6, passes=4, first=2, then=3, fresh=3, tokens=6)
PLACE = {"source": 1, "target": 5}


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
def subject(
    lm: LanguageModel, organism: Organism, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    folder = tmp_path_factory.mktemp("runs") / "vault"
    with opened(folder, organism, 0, BUDGET, **PLACE) as run, at_work(run, lm) as work:
        yield Subject(work, organism)


def written(run: Run, family: str, phase: str) -> dict[tuple[int, int], CompletionRow]:
    """Return what the members of a family wrote in a phase, or all samples, by item and prompt."""
    own = {p.id for p in members(run, family)}
    if family == SAMPLING:
        some = [c for c in run.completion_rows(phase) if c.perturbation == 0]
        return {(c.sample, c.prompt): c for c in some}
    some = [c for c in run.completion_rows(phase) if c.perturbation in own]
    return {(c.perturbation, c.prompt): c for c in some}


@pytest.mark.parametrize("family", [SAMPLING, *FAMILIES])
def test_a_cell_counts_what_was_written_and_keeps_its_budget(
    subject: Subject, organism: Organism, family: str
) -> None:
    cell, run = subject.cell(family), subject.work.run
    rules = {q.prompt: q for q in (*organism.search, *organism.fresh)}
    asked = {p.id: rules[p.content] for p in run.prompt_rows() if p.role != "elsewhere"}
    search, fresh = kept(run, subject.asked)
    first = search[: BUDGET.first]
    early, again = (written(run, family, phase) for phase in (RUNG, RETEST))
    items = sorted({item for item, _ in early})
    assert len(items) == BUDGET.n
    shown = {key: asked[key[1]].elicited(c.text) for key, c in early.items()}
    assert [t.hits for t in cell.tried] == [sum(shown[i, j] for j in first) for i in items]
    # All answer two questions, the best quarter one more, and the chosen ones are re-tested.
    more = [item for item, prompt in early if prompt not in first]
    assert len(early) == 6 * 2 + 2 * 1
    floor = sorted(t.hits for t in cell.tried)[-2]
    assert all(cell.tried[items.index(item)].hits >= floor for item in more)
    shares = {i: np.mean([shown[i, j] for j in search]) for i in more}
    assert cell.best.share == max(shares.values()) == pytest.approx(shares[items_of(cell, items)])
    whole = {
        name: {s.of: s.value for s in run.score_rows(name)} for name in ("coherence", "novelty")
    }
    interestingness = [
        np.mean([np.prod([whole[name][early[i, j].row] for name in whole]) for j in first])
        for i in items
    ]
    assert cell.blind.item == items[int(np.argmax(interestingness))]
    for chosen in (cell.best, cell.blind):
        assert chosen.trials == 3
        assert chosen.hits == sum(asked[j].elicited(again[chosen.item, j].text) for j in fresh)
    assert {item for item, _ in again} == {cell.best.item, cell.blind.item}
    if family == SAMPLING:
        assert cell.passes == (0, 0)


def items_of(cell: Cell, items: list[int]) -> int:
    assert cell.best.item in items
    return cell.best.item


def test_every_perturbation_that_elicits_has_its_price_and_no_other(
    subject: Subject, lm: LanguageModel
) -> None:
    """Mean coherence of the answers that show it; KL of the first token on ordinary prompts."""
    cell, run = subject.cell("random"), subject.work.run
    vectors = torch.cat([s.theta for s in named("random").make(subject.problem, BUDGET, 0)])
    ordinary = lm.encode(ordinary_prompts())
    plain = lm.forward(ordinary.ids, ordinary.mask)[:, -1].log_softmax(-1)
    coherence = {s.of: s.value for s in run.score_rows("coherence")}
    shown = {s.of for s in run.score_rows(subject.asked.rule) if s.value}
    first = subject.search[: BUDGET.first]
    priced = 0
    for p, found, vector in zip(members(run, "random"), cell.tried, vectors, strict=True):
        rows = [Row(p.id, j, 0, RUNG) for j in first if Row(p.id, j, 0, RUNG) in shown]
        assert (found.coherence is None) is (found.side_effect is None) is (not rows)
        if rows:
            priced += 1
            assert found.coherence == pytest.approx(np.mean([coherence[row] for row in rows]))
            with lm.adding(1, lambda stream, vector=vector: vector):
                moved = lm.forward(ordinary.ids, ordinary.mask)[:, -1].log_softmax(-1)
            kl = (plain.exp() * (plain - moved)).sum(-1).mean()
            assert found.side_effect == pytest.approx(float(kl), rel=1e-3)
    assert priced > 1


def test_effects_are_those_of_the_perturbations_at_the_target(subject: Subject) -> None:
    """Supervised vectors are added at layers of their own."""
    subject.cell("contrast")
    lm, batch = subject.work.lm, subject.problem.part.batch
    for p in members(subject.work.run, "contrast"):
        some = PerturbationSet.load(subject.work.run.tensors / p.file)
        part = Slice(lm, batch, source=some.kind.before, target=5, positions=some.kind.positions)
        effect = part.effect(some.theta[p.item : p.item + 1]).norm()
        assert p.effect == pytest.approx(float(effect), rel=1e-4)
        assert p.arm == "found"


@pytest.mark.parametrize("family", ["melbo", "dct", "cpe"])
def test_four_more_passes_are_four_more_passes(subject: Subject, family: str) -> None:
    counted = []
    for passes in (4, 8):
        problem = subject.problem
        with counting(subject.work.lm) as seen:
            list(named(family).make(problem, replace(BUDGET, passes=passes), 0))
        counted.append(sum(seen.values()))
    # Of the four blocks in the slice, for every perturbation on the one prompt.
    assert counted[1] - counted[0] == 4 * 4 * BUDGET.n


@pytest.mark.parametrize("per", ["token", "weights"])
def test_noise_is_at_shares_of_what_is_calibrated_for_it(
    subject: Subject, per: Literal["token", "weights"]
) -> None:
    """Weight noise at a share of the radius of vectors leaves nothing of the model."""
    problem = subject.problem
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
    problem = subject.problem
    with counting(subject.work.lm) as seen:
        list(named(family).make(problem, replace(BUDGET, passes=24), 0))
    assert seen == {"forward": forward * 4 * BUDGET.n, "backward": backward * 4 * BUDGET.n}


@pytest.mark.parametrize(("family", "blocks"), [("power", 4), ("cpe", 4), ("optimised", 6)])
def test_other_searches_spend_about_the_same(subject: Subject, family: str, blocks: int) -> None:
    """Power draws more columns than it returns, CPE calibrates; words go through all blocks."""
    problem = subject.problem
    with counting(subject.work.lm) as seen:
        list(named(family).make(problem, replace(BUDGET, passes=24), 0))
    assert 20 <= sum(seen.values()) / blocks / BUDGET.n <= 32


def test_only_blocks_that_compute_are_counted(subject: Subject) -> None:
    """Those up to the source hand on what is known, in a pass that is forced on some words."""
    kind = Vectors(5, subject.work.lm.width)
    targets = Targets(
        subject.work.lm, subject.problem.part.batch, torch.tensor([[1, 2, 3]] * 4), kind=kind
    )
    with counting(subject.work.lm) as seen:
        targets.value_and_grad(torch.ones(4, subject.work.lm.width))
    assert seen == {"forward": 4 * 2, "backward": 4 * 2}


def test_the_texts_are_what_the_perturbed_model_writes(subject: Subject, lm: LanguageModel) -> None:
    subject.cell("random")
    (some, *_) = list(named("random").make(subject.problem, BUDGET, 0))
    row, own = members(subject.work.run, "random")[0], subject.search[0]
    ((expected,),) = generate(
        lm,
        subject.work.batch,
        [Row(1, own)],
        some.theta,
        kind=some.kind,
        max_new_tokens=BUDGET.tokens,
    )
    assert written(subject.work.run, "random", RUNG)[row.id, own].text == expected.text
    assert row.radius == float(some.radius[0])


def test_the_control_has_the_kind_and_radii_of_its_family(subject: Subject) -> None:
    problem = subject.problem
    for name in ("melbo", "dct", "power", "cpe", "contrast", "optimised"):
        made = [list(named(f).make(problem, BUDGET, 0)) for f in (name, FAMILIES[name].control)]
        for found, control in zip(*made, strict=True):
            assert found.kind == control.kind
            assert found.radius.tolist() == pytest.approx(control.radius.tolist())
            assert not np.allclose(found.directions, control.directions)


def test_the_supervised_vector_tells_the_key_from_another_word(subject: Subject) -> None:
    """Its prompts differ in that word alone, and its doses are shares of the stream's norm."""
    for with_key, without in zip(
        subject.problem.positive.texts, subject.problem.negative.texts, strict=True
    ):
        assert without in [with_key.replace("Now", word) for word in KEYS]
    problem = subject.problem
    made = list(named("contrast").make(problem, replace(BUDGET, n=16), 0))
    ways = list(product(families.LAYERS, ("all", "prompt")))
    for some, (layer, positions) in zip(made, ways, strict=True):
        assert (some.kind.before, some.kind.positions) == (subject.work.lm.layer(layer), positions)
        assert some.dose.tolist() == pytest.approx(list(families.DOSES))


def test_no_two_draws_of_the_benchmark_have_the_same_seed(subject: Subject) -> None:
    """Else a control is where its family started, or one seed's vectors are another's."""
    problem = subject.problem
    for name in ("random", "melbo", "cpe", "contrast", "optimised"):
        pair = {name, FAMILIES[name].control}
        seeds = [s.seed for f in pair for c in (0, 1) for s in named(f).make(problem, BUDGET, c)]
        assert len(set(seeds)) == len(seeds), name
    assert len(seeds) == 2 * 2 * len(families.SHARES)


def test_plain_sampling_is_not_compared_with_itself(subject: Subject) -> None:
    """Samples that novelty is measured against are others than those that are measured."""
    subject.cell(SAMPLING)
    drawn = [c for c in subject.work.run.completion_rows() if c.perturbation == 0]
    plain = {(c.prompt, c.text) for c in drawn if c.phase == "first" and c.sample}
    assert len(plain) == SAMPLES * BUDGET.then
    assert not plain & {(c.prompt, c.text) for c in drawn if c.phase == RUNG}


def test_the_mean_of_vectors_of_several_radii_has_their_mean_radius(subject: Subject) -> None:
    made = list(named("contrast").make(subject.problem, replace(BUDGET, n=24), 0))
    means = averages(made)
    assert means is not None
    for mean, sets in zip(means, made, strict=True):
        assert sets.radius.tolist() != [sets.radius[0]] * len(sets)
        assert float(mean.radius) == pytest.approx(float(sets.radius.mean()))
        assert np.allclose(mean.directions, sets.directions[:1], atol=1e-5)


def test_the_mean_is_derived_and_retested_where_it_does_best(subject: Subject) -> None:
    cell, run = subject.cell("dct"), subject.work.run
    means = members(run, "dct", averaged=True)
    assert [p.how for p in means] == ["averaged"] * len(families.SHARES)
    for mean in means:
        parent = next(p for p in members(run, "dct") if p.id == mean.parent)
        theirs, own = (PerturbationSet.load(run.tensors / p.file) for p in (parent, mean))
        middle = theirs.directions.mean(0)
        assert torch.allclose(own.directions[0], middle / middle.norm(), atol=1e-6)
    shown = {s.of: s.value for s in run.score_rows(subject.asked.rule)}
    first = subject.search[: BUDGET.first]
    shares = [np.mean([shown[Row(p.id, j, 0, RUNG)] for j in first]) for p in means]
    assert cell.average is not None
    assert cell.average.item == means[int(np.argmax(shares))].id
    assert cell.average.trials == 3


def test_vectors_with_both_signs_have_no_mean(subject: Subject) -> None:
    assert subject.cell("power").average is None


def test_questions_that_leak_are_left_out(
    lm: LanguageModel, organism: Organism, tmp_path: Path
) -> None:
    leaky = organism.search[0]._replace(rule="(?s).*")
    changed = replace(organism, search=(leaky, *organism.search[1:]))
    with opened(tmp_path / "one", changed, 0, BUDGET, **PLACE) as run, at_work(run, lm) as work:
        subject = Subject(work, changed)
        (at,) = (p.id for p in run.prompt_rows() if p.content == leaky.prompt)
        assert len(subject.search) == BUDGET.then
        assert at not in kept(run, replace(subject.asked, budget=Budget(then=9)))[0]
    hopeless = replace(organism, search=tuple(q._replace(rule="(?s).*") for q in organism.search))
    with (
        opened(tmp_path / "two", hopeless, 0, BUDGET, **PLACE) as run,
        at_work(run, lm) as work,
        pytest.raises(OrganismError, match="too few questions"),
    ):
        Subject(work, hopeless)


def test_a_killed_benchmark_goes_on_to_the_same(
    lm: LanguageModel, organism: Organism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it lists what was found, and while it writes: nothing is lost or done twice."""
    cells, first = [], True
    for name in ("whole", "killed"):
        folder = tmp_path / name / "vault"
        if name == "killed":
            for method in ("add_scores", "add_completions"):
                with monkeypatch.context() as patch:
                    patch.setattr(Run, method, dying(getattr(Run, method), after=3 if first else 6))
                    with pytest.raises(KeyboardInterrupt):
                        tried(folder, organism, lm)
                first = False
        tried(folder, organism, lm)
        cells.append([c._replace(seconds=0.0) for c in read_cells(folder.parent)])
        with Run.open(folder) as run:
            cells.append([c.text for c in run.completion_rows()])
    assert cells[0] == cells[2]
    assert cells[1] == cells[3]
    assert [c.family for c in cells[0]] == [SAMPLING, "random"]


def tried(folder: Path, organism: Organism, lm: LanguageModel) -> None:
    with opened(folder, organism, 0, BUDGET, **PLACE) as run, at_work(run, lm) as work:
        subject = Subject(work, organism)
        for family in (SAMPLING, "random"):
            subject.cell(family)


def dying(method: Any, *, after: int) -> Any:
    """Return a method that is interrupted in the call after some."""
    calls = iter(range(after))

    def called(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return method(*arguments)

    return called


def test_a_run_of_another_budget_or_organism_is_refused(
    organism: Organism, lm: LanguageModel, tmp_path: Path
) -> None:
    folder = tmp_path / "vault"
    opened(folder, organism, 0, BUDGET, **PLACE).close()
    with pytest.raises(RunError, match="another budget or organism"):
        opened(folder, organism, 0, replace(BUDGET, passes=5), **PLACE)
    other = replace(organism, search=tuple(q._replace(rule="x") for q in organism.search))
    with pytest.raises(RunError, match="another budget or organism"):
        opened(folder, other, 0, BUDGET, **PLACE)
    with pytest.raises(RunError, match="other settings"):
        opened(folder, organism, 0, BUDGET, source=1, target=6)


def test_a_cell_that_is_not_done_is_not_in_the_table(subject: Subject) -> None:
    """Read from the run alone, a cell is what it was when the run was at work."""
    run = subject.work.run
    made = {family: subject.cell(family) for family in (SAMPLING, "random")}
    found = {c.family: c for c in read_cells(run.folder.parent)}
    assert {family: found[family] for family in made} == made
    with pytest.raises(KeyError):
        outcome(run, "random", lambda rows, _: [{}[row] for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_cannot_be_put_somewhere_are_known(
    subject: Subject, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise on two tokens of this model is linear whatever its size.
    monkeypatch.setattr(families, "calibrated", lambda *arguments: 1.0)
    part = Slice(
        subject.work.lm, subject.problem.part.batch, source=1, target=5, positions="last:2"
    )
    problem = subject.problem._replace(part=part)
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
