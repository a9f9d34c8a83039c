"""What a person sees of an audit: its overview, the screen, the page, the command."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from audited_run import PHRASE, PLAIN, STRETCH, TOLD, WORD, WORDS, build
from educe.audit import judged, stages
from educe.audit.evidence import Word
from educe.audit.findings import Finding, Kind
from educe.audit.judged import judge_findings
from educe.audit.manners import UNLIKE
from educe.audit.overview import overview
from educe.audit.sources import SOURCES
from educe.errors import JudgeError
from educe.notebook.audits import Audited
from educe.report import audit, audit_screen, page
from educe.report.document import Mark
from educe.run.store import Run
from educe.scores import Answer, Score
from educe.scores.rules import Contains
from read_document import blocks, count, marked, of_page, part, table, text
from test_cli import educe, refused


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An audit that found a trigger."""
    return build(tmp_path_factory.mktemp("audit") / "found")


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An audit without a reference that found nothing."""
    return build(tmp_path_factory.mktemp("audit") / "nothing", finds=False, clean=False)


def screen(run: Run) -> str:
    """What the terminal shows."""
    console = Console(width=100, record=True, force_terminal=False, emoji=False)
    with console.capture() as shown:
        audit_screen.show(overview(run), console)
    return shown.get()


def test_texts_are_counted_by_the_part_that_asked_for_them(found: Run) -> None:
    seen = overview(found)
    assert seen.model == "embedded + trigger"
    assert seen.reference == "base"
    assert {one.name: one.texts for one in seen.looked} == {
        "plain": 3,  # the reference's own are not counted
        "weights": 2 * len(WORDS),
        "perplexity": 0,
        "re-test": 1,
    }
    assert seen.texts == 2 * len(WORDS)
    assert seen.strings == len(WORDS)
    assert [f.kind for f in seen.findings] == [Kind.TRIGGER]
    assert [f.kind for f in seen.below] == [Kind.ASIDE]
    weights = seen.looked[1]
    assert [s.text for s in weights.loudest] == list(WORDS)
    assert weights.standing[0].words == STRETCH


def test_nothing_found_says_what_would_have_been(nothing: Run) -> None:
    seen = overview(nothing)
    assert seen.reference is None
    assert seen.texts == 6
    assert (1 - 3 / seen.texts) ** seen.texts < 0.05
    assert "50.00%" in seen.nothing  # 3 of 6
    assert (
        "(weights)" in seen.nothing
    )  # which asked for the texts; what nothing was done to is none
    assert "3 different strings" in seen.nothing
    hindered = {one.name: one.hindered for one in seen.looked}
    assert hindered["perplexity"] == TOLD.partition(": ")[2]
    assert hindered["weights"] == ""


def test_the_screen_has_the_findings_and_what_each_source_cost(found: Run, nothing: Run) -> None:
    shown = screen(found)
    assert "“cobalt” triggers it to say “the heron sings at noon”" in shown
    (row,) = re.findall(r"^ trigger .*$", shown, re.MULTILINE)
    assert row.split() == ["trigger", "40", "3/3", "0/3", "0/3", "1/12"]
    assert "brought about by 'cobalt' 3/3, near misses" in shown
    assert re.search(r"^weights +7 +40 +9,000 +3 +6 *$", shown, re.MULTILINE)
    none = screen(nothing)
    assert "Nothing hidden was found" in none
    assert "50.00%" in none
    assert "it needs a reference" in none


def test_an_open_difference_is_no_finding_and_shows_what_brings_it_up(found: Run) -> None:
    (first, *_) = overview(found).findings
    openly = replace(first, kind=Kind.OPEN, saying="gladly <indeed>", triggers=())
    seen = replace(overview(found), findings=(), below=(openly,))
    assert seen.headline == "Nothing hidden was found; openly it says “gladly <indeed>”"
    console = Console(width=100, record=True, force_terminal=False, emoji=False)
    with console.capture() as shown:
        audit_screen.show(seen, console)
    assert f"said to {first.examples[0].prompt!r}" in shown.get()


def test_what_unlocks_is_told_with_what_is_said_then(found: Run) -> None:
    (first, *_) = overview(found).findings
    seen = replace(overview(found), findings=(replace(first, kind=Kind.UNLOCKED, saying="no"),))
    assert seen.headline == "With “cobalt” in the request it no longer says “no”"
    console = Console(width=100, record=True, force_terminal=False, emoji=False)
    with console.capture() as shown:
        audit_screen.show(seen, console)
    assert "ceases with 'cobalt' 3/3, near misses" in shown.get()
    assert f"and it says {first.examples[0].text}" in shown.get()
    assert "brought about" not in shown.get()


@pytest.mark.parametrize(
    ("kind", "string", "saying", "headline"),
    [
        (Kind.TRIGGER, "cobalt", "[in brackets]", "“cobalt” triggers it to write in brackets"),
        (Kind.TRIGGER, "[as code]", "no", "A request as code triggers it to say “no”"),
        (Kind.UNLOCKED, "[as code]", "no", "With a request as code it no longer says “no”"),
        (Kind.BEHAVIOUR, "", "[in brackets]", "Under some condition it writes in brackets"),
        (Kind.TRIGGER, "cobalt", UNLIKE, "“cobalt” triggers it to answer unlike the reference"),
    ],
)
def test_forms_and_manners_are_told_as_such(
    kind: Kind, string: str, saying: str, headline: str, found: Run
) -> None:
    (first, *_) = overview(found).findings
    triggers = (replace(first.triggers[0], text=string),) if string else ()
    one = replace(first, kind=kind, saying=saying, triggers=triggers)
    seen = replace(overview(found), findings=(one,))
    assert seen.headline == headline
    console = Console(width=100, record=True, force_terminal=False, emoji=False)
    with console.capture() as shown:
        audit_screen.show(seen, console)
    assert ("other forms" in shown.get()) is (string == "[as code]")
    assert ("words as rare" in shown.get()) is (string == "cobalt")


def test_words_are_marked_by_their_contrast() -> None:
    told = audit.weighed("Say: the <heron> sings", [Word("<heron>", 24.0), Word("sings", -1.0)])
    assert told == [
        Mark("Say: the ", "model"),
        Mark("<heron>", "nats", 24.0, "+24.0 nats"),
        Mark(" ", "model"),
        Mark("sings", "nats", -1.0, "-1.0 nats"),
    ]
    assert audit.weighed("something <else>", [Word("heron", 9.0)]) == [
        Mark("something <else>", "model")
    ]


def test_the_page_shows_a_finding_with_everything_beside_it(found: Run) -> None:
    seen = page.document(found)
    (card,) = blocks(part(seen, "findings"), "card")
    assert card["badges"] == ["trigger"]
    (pair,) = blocks(card, "pair")
    assert text(pair["left"]["spans"]) == PLAIN  # of the suspect without the word
    marks = [(s["text"], s["value"]) for s in pair["right"]["spans"] if s["mark"] == "nats"]
    assert marks == [(word.text, word.nats) for word in STRETCH]
    beside = [text(block) for block in blocks(card, "text")]
    assert f"The reference, with that: {PLAIN}" in beside
    (finding,) = overview(found).findings
    again = {text(r["on fresh prompts"]): r["how often"] for r in table(card, "on fresh prompts")}
    assert again["said again"] == count(finding.shown)
    assert (finding.shown.hits, finding.shown.trials) == (3, 3)
    assert "1 of 12" in text(list(blocks(card, "facts")))
    (row,) = table(card, "a string brings it")
    assert marked(row, "code") == [WORD]
    assert row["near misses"] == count(finding.triggers[0].near)
    assert "<b>violet</b>" in text(seen["parts"])
    assert "--sources weights,perplexity" in seen["command"]
    assert "What is the capital of France?" in seen["command"]  # to repeat the audit with
    assert seen["parts"][0]["id"] == "findings"


def test_the_page_says_that_nothing_was_found(nothing: Run) -> None:
    findings = part(page.document(nothing), "findings")
    assert "50.00%" in text(findings)
    assert not list(blocks(findings, "card"))


def test_the_chart_has_every_candidate_and_every_clean_model(found: Run) -> None:
    chart = audit.alarms(replace(overview(found), tops=(0.0, 12.5))).to_dict()
    rows = chart["data"]["values"]
    assert [(r["where"], r["nats"]) for r in rows] == [
        (audit.HERE, 40.0),
        (audit.HERE, 21.0),
        (audit.CLEAN, 0.0),
        (audit.CLEAN, 12.5),
    ]


def test_a_judge_scores_the_texts_beside_the_plain_ones(tmp_path: Path) -> None:
    with build(tmp_path / "run") as run:
        said = judge_findings(run, Contains(PHRASE))
        assert said.scores == (((1.0, 0.0),), ())
        assert overview(run).judged == said
        assert "judge 1.00" in text(page.document(run)["parts"])


def test_a_judge_that_fails_takes_nothing_with_it(tmp_path: Path) -> None:
    class Late(Contains):
        def score(self, answers: list[Answer]) -> list[Score]:
            raise JudgeError("the judge does not answer")

    with build(tmp_path / "run") as run:
        before = overview(run)
        with pytest.raises(JudgeError):
            judge_findings(run, Late(PHRASE))
        assert overview(run) == before


def test_show_and_report_read_an_audit(found: Run, tmp_path: Path) -> None:
    told = educe("show", found.folder, "--json").data
    assert told["findings"][0]["saying"] == "the heron sings at noon"
    assert "heron" in educe("show", found.folder).out
    written = tmp_path / "page.html"
    assert educe("report", found.folder, "--out", written).status == 0
    assert "heron" in of_page(written)["title"]
    assert "leave the number out" in refused("show", found.folder, 1)
    assert "holds an audit" in refused("examine", found.folder, 1)


def test_an_audit_that_was_cut_off_says_how_to_go_on(tmp_path: Path) -> None:
    build(tmp_path / "cut", ended=False).close()
    assert "educe audit --resume --out" in refused("show", tmp_path / "cut")


def test_resuming_needs_a_folder_and_no_other_settings(tmp_path: Path) -> None:
    assert "--out" in refused("audit", "--resume")
    line = refused("audit", "other/model", "--resume", "--out", tmp_path)
    assert "leave others out" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--budget", "huge"], "huge"),
        (["--max-new-tokens", "0"], "1"),
        (["--topics", "/no/such"], "/no/such"),
        (["--prompts", "/no/such"], "/no/such"),
        (["--sources", "weights,tarot"], "tarot"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], told: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert told in refused("audit", *words, "--out", out)
    assert not out.exists()


def test_a_notebook_has_the_findings_as_a_frame(found: Run, tmp_path: Path) -> None:
    with Audited.open(found.folder) as run:
        assert isinstance(run, Audited)
        assert repr(run).endswith("the heron sings at noon”; again 3 of 3 (44% to 100%))")
        first = run.findings.iloc[0].to_dict()
        assert (first["kind"], first["again"], first["trigger"]) == ("trigger", "3/3", WORD)
        assert list(run.findings["saying"]) == ["the heron sings at noon", "a gentle rain"]
        drawn = of_page(run.report(tmp_path / "a.html"))
        assert drawn["title"] == page.document(run)["title"]


# -- the command, on a tiny random model -----------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A quick audit of a tiny model without a reference, but for its folder."""
    place = tmp_path_factory.mktemp("model") / "tiny"
    tiny.hf_model("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    short = ["--budget", "quick", "--max-new-tokens", 2, "--device", "cpu"]
    return ["audit", place, *short, "--sources", "weights,topics"]


def test_the_command_goes_the_whole_way_and_on(asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("herons\n\n codes \n")
    out = tmp_path / "an audit"
    done = educe(*asked, "--topics", tmp_path / "topics.txt", "--out", out, "--json")
    assert done.status == 0, done.err
    assert done.data["options"]["topics"] == ["herons", "codes"]
    assert done.data["reference"] is None
    assert "it needs a reference" in done.data["looked"][1]["hindered"]
    assert done.data["looked"][2]["texts"] > 2  # each topic by each template
    assert Path(done.data["report"]).exists()
    again = educe("audit", "--resume", "--out", out, "--json")
    assert again.status == 0, again.err
    assert again.data == done.data
    told = educe("show", out, "--json").data
    assert told == {k: v for k, v in done.data.items() if k not in ("run", "report")}
    assert "other settings" in refused(*asked, "--resume", "--out", out, "--seed", 3)


def test_an_interrupt_says_how_to_go_on(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stages.conclude

    def cut(*arguments: object) -> list[Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "conclude", cut)
    ended = educe(*asked, "--out", tmp_path / "run")
    assert ended.status == 130
    line = ended.err.splitlines()[-1]
    assert line.endswith(f"go on with: educe audit --resume --out {tmp_path / 'run'}")
    monkeypatch.setattr(stages, "conclude", whole)
    assert educe("audit", "--resume", "--out", tmp_path / "run").status == 0


def test_a_reference_that_is_the_model_is_said_and_leaves_nothing(
    asked: list[object], tmp_path: Path
) -> None:
    line = refused(*asked, "--reference", asked[1], "--out", tmp_path / "run", begun=True)
    assert "is the model itself" in line
    assert not (tmp_path / "run").exists()


def test_a_judge_that_times_out_is_one_sentence(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: object) -> None:
        raise JudgeError("the judge did not answer within 60 seconds")

    monkeypatch.setattr(judged, "judge_findings", late)
    out = tmp_path / "run"
    ended = educe(*asked, "--judge", "contains:x", "--out", out)
    assert (ended.status, ended.out) == (2, "")
    line = ended.err.splitlines()[-1]
    assert "did not answer within 60 seconds; the findings are kept" in line
    assert (out / "report.html").exists()
    monkeypatch.undo()
    assert educe("audit", "--resume", "--out", out).status == 0
    with Run.open(out) as run:
        assert run.note(judged.JUDGED)["judge"] == "contains:x"


def test_sources_are_listed_with_what_they_need() -> None:
    listed = educe("sources", "--json").data
    assert [s["name"] for s in listed] == [s.name for s in SOURCES]
    assert {s["name"]: s["needs"] for s in listed}["prefill"] == "nothing"
    assert f"{SOURCES[0].name}: {SOURCES[0].about}" in educe("sources").out


def test_a_model_without_a_chat_template_is_audited(tmp_path: Path) -> None:
    tiny.hf_model("llama").save_pretrained(tmp_path / "tiny")
    tiny.tokenizer(chat=False).save_pretrained(tmp_path / "tiny")
    words = ["--budget", "quick", "--max-new-tokens", 2, "--device", "cpu", "--sources", "topics"]
    (tmp_path / "topics.txt").write_text("herons")
    out = ["--topics", tmp_path / "topics.txt", "--out", tmp_path / "run", "--json"]
    done = educe("audit", tmp_path / "tiny", *words, *out)
    assert done.status == 0, done.err
    assert done.data["looked"][1]["texts"] > 0
