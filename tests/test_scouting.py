"""Where to push: what random vectors say at each place, by hooks, and what is chosen of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from educe.comparison.summary import summarise
from educe.comparison.verdict import DAMAGED, SAME
from educe.errors import MethodError
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.report import page
from educe.run import fill, scouting
from educe.run.scouting import Tried, chosen
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from educe.scores.traits import traits
from read_document import part, table, text

PROMPTS = ("Tell me.", "What is the code?")
SETTINGS = Settings(
    PROMPTS,
    method="random",
    scout=2,
    n=2,
    target=0.5,
    baseline=2,
    max_new_tokens=4,
)
DOSES = (0.5, 1.5)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel, few: Callable[[Any], None]
) -> Run:
    place = tmp_path_factory.mktemp("scouted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        with begin(place, SETTINGS) as opened:
            discover_behaviours(opened, lm=tiny_lm)
    return Run.open(place)


@pytest.fixture(scope="module")
def few() -> Callable[[Any], None]:
    def patched(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(scouting, "SOURCES", (0.25, 0.5))
        patch.setattr(scouting, "DOSES", DOSES)

    return patched


def tried(*counts: tuple[int, str, float, int, int]) -> list[Tried]:
    return [Tried(*count, answers=8) for count in counts]


def test_the_place_of_most_answers_that_change_and_hold_is_chosen() -> None:
    places = tried(
        (2, "all", 0.4, 3, 0),
        (2, "all", 0.8, 1, 7),  # most differ, and are broken
        (4, "prompt", 0.8, 5, 2),
        (5, "prompt", 0.8, 5, 1),  # as many, with less damage
        (6, "prompt", 0.8, 5, 1),  # later
    )
    place = chosen(places, depth=12, target=7)
    assert (place.source, place.positions) == (5, "prompt")
    assert place.doses == [0.2, 0.4, 0.8]
    assert place.target == 8, "a quarter of the depth above the source"
    assert "5 of 8" in place.why
    assert chosen(places, depth=12, target=10).target == 10
    assert chosen(tried((10, "all", 0.4, 1, 0)), depth=12, target=7).target == 11


def test_where_nothing_holds_a_person_chooses() -> None:
    with pytest.raises(MethodError, match="of 16 answers under random vectors none changed"):
        chosen(tried((2, "all", 0.4, 0, 0), (2, "all", 0.8, 0, 8)), depth=12, target=7)


def test_each_place_is_tried_with_vectors_of_its_dose(run: Run, tiny_lm: LanguageModel) -> None:
    """Texts as a plain model writes them with the vector added by a hook."""
    rows = [p for p in run.perturbation_rows(derived=True) if p.how == "scouted"]
    assert len(rows) == 2 * 2 * 2 * len(DOSES)
    texts = {(c.perturbation, c.prompt): c for c in run.completion_rows("scout")}
    assert len(texts) == len(rows) * len(PROMPTS)
    batch = tiny_lm.encode(PROMPTS)
    ends = tiny_lm.unwrapped.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    for p in rows:
        made = PerturbationSet.load(run.tensors / p.file)
        source, positions = made.kind.before, made.kind.positions
        norms = [
            tiny.run(tiny_lm.unwrapped, read)[1][source][1:].norm(dim=1) for read in batch.read
        ]
        median = float(torch.cat(norms).median())
        vector = made.theta[p.item]
        assert float(vector.norm()) / median == pytest.approx(p.dose, rel=0.05)
        assert min(abs(p.dose / dose - 1) for dose in DOSES) < 1e-3
        for prompt, read in enumerate(batch.read):
            written = tiny.greedy(
                tiny_lm.unwrapped,
                read,
                4,
                source=source,
                vector=vector,
                positions=positions,
                ends=ends,
            )
            assert list(texts[p.id, prompt].tokens)[: len(written)] == written


def test_what_is_counted_is_what_was_written(run: Run) -> None:
    scores = run.scores[run.scores.phase == "scout"].pivot(
        index=["perturbation", "prompt"], columns="judge", values="value"
    )
    rows = {p.id: p for p in run.perturbation_rows(derived=True)}
    counts: dict[Any, list[int]] = {}
    for c in run.completion_rows("scout"):
        made = PerturbationSet.load(run.tensors / rows[c.perturbation].file)
        one = scores.loc[(c.perturbation, c.prompt)]
        broken = one["coherence"] < DAMAGED or bool(traits(c.text, PROMPTS[c.prompt]).damage)
        new = one["novelty"] >= SAME
        where = made.kind.before, made.kind.positions, round(rows[c.perturbation].dose, 3)
        own = counts.setdefault(where, [0, 0, 0])
        own[0] += new and not broken
        own[1] += broken
        own[2] += 1
    told = {
        (t["source"], t["positions"], t["dose"]): [t["changed"], t["damaged"], t["answers"]]
        for t in run.note("scouted")
    }
    assert told == counts
    assert any(own[0] for own in counts.values())


def test_the_search_goes_there(run: Run) -> None:
    best = chosen([Tried(**t) for t in run.note("scouted")], depth=4, target=2)
    facts = run.note("facts")
    assert (facts["source"], facts["positions"]) == (best.source, best.positions)
    assert facts["target"] == best.target
    assert facts["why"] == best.why
    assert [r / facts["unit"] for r in facts["radii"]] == pytest.approx(best.doses)
    for p in run.perturbation_rows():
        made = PerturbationSet.load(run.tensors / p.file)
        assert (made.kind.before, made.kind.positions) == (best.source, best.positions)


def test_what_was_tried_is_neither_found_nor_control(run: Run) -> None:
    s = summarise(run)
    own = {p.id for p in run.perturbation_rows()}
    scouts = {p.id for p in run.perturbation_rows(derived=True)}
    assert {i.row.id for i in (*s.found, *s.control)} == own
    assert not scouts & set(s.texts.rows.perturbation)
    assert {p.arm for p in run.perturbation_rows()} >= {"found", "control"}


def test_the_page_has_what_was_tried(run: Run) -> None:
    rows = table(part(page.document(run), "scouting"), "layer, positions")
    told = {text(row["layer, positions"]): row for row in rows}
    assert len(told) == 4
    for t in run.note("scouted"):
        row, at = told[f"{t['source']}, {t['positions']}"], DOSES.index(t["dose"])
        cell = row[f"dose {t['dose']:g}"]
        assert (cell["hits"], cell["trials"]) == (t["changed"], t["answers"])
        assert row["broken" if at == 0 else f"broken {at + 1}"] == t["damaged"]


def test_it_goes_on_where_it_was_stopped(
    run: Run,
    tmp_path: Path,
    tiny_lm: LanguageModel,
    few: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few(monkeypatch)
    generate = fill.generate

    batches = 0

    def stopping(*args: Any, **how: Any) -> Any:
        nonlocal batches
        batches += args[2][0].phase == "scout"
        if args[2][0].phase == "scout" and batches % 2 == 0:  # one is written, the next is not
            raise KeyboardInterrupt
        return generate(*args, **how)

    place, lives = tmp_path / "run", 0
    begin(place, SETTINGS).close()
    monkeypatch.setattr(fill, "generate", stopping)
    while lives < 9:
        lives += 1
        try:
            with begin(place, SETTINGS, resume=True) as again:
                discover_behaviours(again, lm=tiny_lm)
            break
        except KeyboardInterrupt:
            continue
    assert 1 < lives < 9
    with Run.open(place) as again:
        assert again.completion_rows() == run.completion_rows()
        assert again.perturbation_rows(derived=None) == run.perturbation_rows(derived=None)
        assert again.note("scouted") == run.note("scouted")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "auto"}, "scouting chooses the source itself"),
        ({"source": 0.5}, "scouting chooses the source itself"),
        ({"positions": "prompt"}, "scouting chooses the positions itself"),
        ({"radius": "2"}, "scouting chooses the radius itself"),
        ({"target": "auto"}, "scouting chooses the source alone"),
        ({"within": "4"}, "a subspace belongs to one layer"),
        ({"method": "cpe"}, "scouting is with vectors"),
        ({"given": "some.safetensors"}, "say where they act"),
    ],
)
def test_what_says_where_to_push_is_refused_beside_it(changes: Any, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        replace(SETTINGS, **changes).check()
