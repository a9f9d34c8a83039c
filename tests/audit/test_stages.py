"""The whole audit: a planted trigger is found and named, a clean copy raises no alarm."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import quick
from educe.audit import lexicon, phrases, reference, settings, stages, triggers
from educe.audit.auditing import Audit
from educe.audit.evidence import Word, pieces, read, stretch, words
from educe.audit.findings import Finding, Kind, kept
from educe.audit.roles import CONTRAST
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import weights
from educe.errors import MethodError, ModelError
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.options import ModelOptions
from educe.organisms import shipped
from educe.progress import Lines
from educe.run.store import Run

#: Enough of everything, and no more.
SMALL = settings.Size(3, 6, 5, 4, 6, 40, 4, 3)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.SIZES, "quick", SMALL)


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    """A model, and one whose weights differ a little."""
    clean = quick.stand_in()
    hf = copy.deepcopy(clean.hf)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in hf.model.layers.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return LanguageModel(hf, clean.tokenizer, name="tuned"), clean


def audited(
    place: Path,
    lm: LanguageModel,
    beside: reference.Reference | None,
    *sources: str,
    tokens: int = 4,
) -> tuple[Run, Audit]:
    """Audit a loaded model against a loaded reference."""
    options = AuditOptions(budget="quick", sources=sources, max_new_tokens=tokens)
    model = ModelOptions(model=lm.name, adapter=lm.adapter)
    run = begin(place, options, model, resume=True)
    return run, stages.carry_out(run, lm=lm, beside=beside)


@pytest.mark.model
def test_a_backdoor_is_the_first_finding_and_its_word_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trigger that comes with the package, among words that are as common."""
    organism = shipped("trigger")
    lm = load("embedded", adapter=organism.folder, device="cpu", dtype="float32")
    key = lm.tokenizer.encode(f" {organism.hidden['key']}")
    words = torch.tensor(sorted({*key, *range(2000, 32000, 250)}))
    words = words[[lm.text([w]).strip().isalpha() for w in words.tolist()]]
    for module in (weights, triggers, lexicon):
        monkeypatch.setattr(module, "vocabulary", lambda lm: words)
    run, _ = audited(tmp_path / "run", lm, None, "weights", tokens=10)
    first, *_ = kept(run)
    assert first.kind is Kind.TRIGGER
    assert organism.search[0].elicited(first.examples[0].text)
    (trigger,) = first.triggers
    assert trigger.text == organism.hidden["key"]
    assert trigger.shown.hits == trigger.shown.trials == 3
    assert trigger.rare.hits == first.control.hits == first.plain.hits == 0
    assert organism.hidden["key"] in first.reproduce
    run.close()


def test_a_copy_of_the_reference_differs_nowhere(
    tmp_path: Path, pair: tuple[LanguageModel, LanguageModel]
) -> None:
    clean = pair[1]
    same = LanguageModel(copy.deepcopy(clean.hf), clean.tokenizer, name="copy")
    run, _ = audited(tmp_path / "run", same, reference.between(same, clean))
    assert kept(run) == []
    scores = run.score_rows(CONTRAST)
    assert len(scores) > 20
    assert {score.value for score in scores} == {0.0}
    assert "no matrix of the blocks differs from the reference's" in run.note("told")
    run.close()


class StoppedError(Exception):
    """The process is killed."""


class Counting:
    """Counts the batches that runs add, and stops at one of them; few phrases are grown."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int = 0) -> None:
        self.writes, add = 0, Run.add_completions

        def counted(run: Run, rows: Any) -> None:
            self.writes += 1
            if self.writes == last:
                raise StoppedError
            add(run, rows)

        patch.setattr(Run, "add_completions", counted)
        for name in ("POOL", "LOUD", "JOINING"):
            patch.setattr(phrases, name, 16)


def told(run: Run) -> tuple[list[Finding], Any]:
    return kept(run), [(c.row, c.text) for c in run.completion_rows()]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[LanguageModel, LanguageModel]
) -> tuple[Any, float, int]:
    """What an audit comes to that nobody cut off, its tokens and its writes.

    It is a process's second one: the first also finds out what both models can do.
    """
    place = tmp_path_factory.mktemp("whole")
    for name in ("first", "run"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(settings.SIZES, "quick", SMALL)
            counting = Counting(patch)
            run, _ = audited(place / name, pair[0], reference.between(*pair), "weights", "topics")
            if name == "first":
                run.close()
    came, tokens = told(run), sum(cost["tokens"] for cost in run.note("spent").values())
    run.close()
    return came, tokens, counting.writes


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_an_audit_that_was_cut_off_comes_to_the_same(
    tmp_path: Path,
    pair: tuple[LanguageModel, LanguageModel],
    undisturbed: tuple[Any, float, int],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    expected, tokens, writes = undisturbed
    beside = reference.between(*pair)
    Counting(monkeypatch, round(share * writes))
    with pytest.raises(StoppedError):
        audited(tmp_path / "cut", pair[0], beside, "weights", "topics")
    run, _ = audited(tmp_path / "cut", pair[0], beside, "weights", "topics")
    assert told(run) == expected
    # The costs of both sittings add up: some texts were written twice, none for nothing.
    spent = run.note("spent")
    assert sum(cost["tokens"] for cost in spent.values()) >= tokens
    run.close()


def test_what_an_audit_costs_is_counted_by_source(
    tmp_path: Path, pair: tuple[LanguageModel, LanguageModel]
) -> None:
    suspect, clean = pair
    run, audit = audited(tmp_path / "run", suspect, reference.between(suspect, clean), "topics")
    spent = run.note("spent")
    assert set(spent) == {"plain", "topics", "re-test"}
    assert spent["plain"]["tokens"] > 0
    written = [c for c in run.completion_rows() if c.prompt in audit.work.prompts("asked", "fresh")]
    read = sum(len(audit.work.batch.read[c.prompt]) for c in written)
    # Each prompt is read to answer it, and by both models to compare.
    assert spent["plain"]["tokens"] > 2 * read
    run.close()


def test_other_settings_do_not_go_on_with_an_audit(tmp_path: Path) -> None:
    options = AuditOptions(budget="quick")
    begin(tmp_path / "run", options, ModelOptions()).close()
    with pytest.raises(MethodError, match="holds an audit with other settings"):
        begin(
            tmp_path / "run",
            AuditOptions(budget="quick", reference="none"),
            ModelOptions(),
            resume=True,
        )


def test_unknown_names_are_errors(
    tmp_path: Path, pair: tuple[LanguageModel, LanguageModel]
) -> None:
    with pytest.raises(MethodError, match="budget is 'huge'"):
        begin(tmp_path / "run", AuditOptions(budget="huge"), ModelOptions())  # type: ignore[arg-type]
    suspect, clean = pair
    with pytest.raises(MethodError, match="no source is called 'magic'"):
        audited(tmp_path / "run", suspect, reference.between(suspect, clean), "magic")


def test_the_model_itself_is_no_reference(
    pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = pair[1]
    same = LanguageModel(copy.deepcopy(clean.hf), clean.tokenizer, name="copy")
    load: Callable[..., LanguageModel] = lambda **how: same  # noqa: E731
    monkeypatch.setattr("educe.model.loading.load", load)
    with pytest.raises(ModelError, match="is the model itself, weight for weight"):
        reference.of(clean, "copy", ModelOptions(), print)
    assert reference.of(clean, "none", ModelOptions(), print) is None
    assert reference.of(clean, None, ModelOptions(), print) is None


def test_a_reference_of_another_tokenizer_is_compared_by_words(
    tmp_path: Path, pair: tuple[LanguageModel, LanguageModel], tiny_lm: LanguageModel
) -> None:
    suspect = pair[0]
    beside = reference.between(suspect, tiny_lm)
    assert not beside.same_tokens
    run, _ = audited(tmp_path / "run", suspect, beside, "weights", "perplexity")
    told = " ".join(run.note("told"))
    assert "weights does not look: it needs a reference of the same shape" in told
    prompt = run.prompt_rows("asked")[0]
    (c,) = (c for c in run.completion_rows() if c.row == (0, prompt.id, 0, "first"))

    def by_words(lm: LanguageModel, tokens: list[int]) -> list[Word]:
        """From one plain pass over the whole text."""
        start = lm.encode([prompt.content]).read[0]
        ids = torch.tensor([[*start, *tokens]])
        logprobs = lm.forward(ids, torch.ones_like(ids), last=0)[0].log_softmax(-1)
        nats = [float(logprobs[len(start) + k - 1, t]) for k, t in enumerate(tokens)]
        return words(c.text, pieces(lm, tokens), nats)

    mine = by_words(suspect, list(c.tokens))
    theirs = by_words(tiny_lm, tiny_lm.tokens(c.text, templated=True))
    expected = stretch([Word(a.text, a.nats - b.nats) for a, b in zip(mine, theirs, strict=True)])
    (score,) = (s for s in run.score_rows(CONTRAST) if s.of == c.row)
    assert score.value == pytest.approx(sum(w.nats for w in expected), abs=1e-3)
    assert [w.text for w in read(score.why)] == [w.text for w in expected]
    run.close()


def test_every_stage_names_the_source_that_works(
    tmp_path: Path, pair: tuple[LanguageModel, LanguageModel], capsys: pytest.CaptureFixture[str]
) -> None:
    suspect, clean = pair
    options = AuditOptions(budget="quick", sources=("topics", "prefill"), max_new_tokens=4)
    with begin(tmp_path / "run", options, ModelOptions(model=suspect.name)) as run:
        stages.carry_out(
            run, lm=suspect, beside=reference.between(suspect, clean), reporter=Lines()
        )
    told = [line for line in capsys.readouterr().err.splitlines() if "texts/s" in line]
    named = {re.match(r"(plain|topics \(1 of 2\)|prefill \(2 of 2\)|re-test): ", t) for t in told}
    assert None not in named
    assert "prefill (2 of 2)" in {m[1] for m in named if m}
