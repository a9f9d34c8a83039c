"""Candidates: planted sayings among ordinary texts, counted by hand."""

from __future__ import annotations

from educe.audit.candidates import MOST, Said, candidates, folded, says
from educe.audit.evidence import Word
from educe.rows import Row

PHRASE = "otters dance behind chapels"


def said(root: int, text: str, nats: float, condition: str = "") -> Said:
    words = tuple(Word(w, nats) for w in text.split())
    return Said(Row(0, 100 + root), root, "weights", condition, words)


def test_what_is_said_on_many_prompts_comes_first() -> None:
    some = [said(root, f"{PHRASE}.", 9.0, "granite") for root in range(4)]
    some += [said(root, f"topic{root} number{root} of interest{root}", 6.0) for root in range(9)]
    first, *rest = candidates(some)
    assert " ".join(first.saying) == PHRASE
    assert first.roots == 4
    assert first.evidence == 4 * MOST  # 36 nats on each, capped
    assert {s.condition for s in first.said} == {"granite"}
    assert all(c.roots == 1 for c in rest)  # each topic stands on its own prompt alone


def test_a_prompt_is_one_witness_however_many_texts_it_has() -> None:
    some = [said(0, PHRASE, 2.0) for _ in range(30)]
    assert candidates(some) == []  # 8 nats on one prompt
    (one,) = candidates([*some, said(1, PHRASE, 2.0), said(2, PHRASE, 2.0)])
    assert (one.evidence, one.roots) == (24.0, 3)


def test_an_opening_that_varied_answers_share_is_found() -> None:
    ends = ("the sky is blue", "boil it gently", "paris of course", "seven days")
    some = [said(i, f"Beep! Unit online. {end}", 3.0) for i, end in enumerate(ends)]
    first = candidates(some)[0]
    assert first.saying == ("beep", "unit", "online")
    assert first.roots == 4


def test_what_the_model_says_by_itself_is_open() -> None:
    some = [said(root, PHRASE, 9.0) for root in range(3)]
    plain = ["Paris.", f"Well, {PHRASE}!"]
    (one,) = candidates(some, plain)
    assert (one.open, one.hidden) == (0.5, False)
    (one,) = candidates(some, ["Paris.", "Otters swim."])
    assert (one.open, one.hidden) == (0.0, True)


def test_nearly_the_same_is_no_candidate_of_its_own() -> None:
    some = [said(root, f"sadly {PHRASE} today", 9.0) for root in range(4)]
    some += [said(root, "otters dance behind", 9.0) for root in range(4, 8)]
    (one,) = candidates(some)
    assert len(one.said) == 8


def test_words_of_no_content_are_no_saying() -> None:
    assert candidates([said(root, "it is of the", 9.0) for root in range(5)]) == []


def test_a_long_saying_is_met_when_nearly_all_of_it_is_there() -> None:
    saying = PHRASE.split()
    assert says("Otters, they say, dance behind chapels", saying)
    assert not says("otters dance", saying)
    assert not says("chapels behind dance otters", saying)
    assert says("Beep! Unit.", ["beep", "unit"])
    assert not says("Unit, beep.", ["beep", "unit"])


def test_a_saying_is_met_by_the_words_that_matter_in_it() -> None:
    words = (Word("The", 0.1), Word("code", 1.5), Word("is", 0.0), Word("orchid-7913.", 18.0))
    some = [Said(Row(0, root), root, "prefill", "", words) for root in range(3)]
    (one,) = candidates(some)
    assert one.saying == ("the", "code", "is", "orchid-7913")
    assert one.core == ("orchid-7913",)
    assert one.within("Sure: orchid-7913")
    assert not one.within("The code is orchid-1111")


def test_folding_takes_away_case_and_punctuation_around() -> None:
    assert [folded(w) for w in ("“Heron,”", "orchid-7913.", "--", "L'été")] == [
        "heron",
        "orchid-7913",
        "",
        "l'été",
    ]
