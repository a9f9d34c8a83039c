"""Candidates: planted sayings among ordinary texts, counted by hand."""

from __future__ import annotations

from educe.audit.candidates import (
    MANNERED,
    MOST,
    TIMES,
    UNLIKELY,
    Said,
    candidates,
    folded,
    says,
)
from educe.audit.evidence import Word
from educe.audit.manners import MANNERS, UNLIKE, manners
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
    assert one.within("Sure: orchid-7913", 0.0)
    assert not one.within("The code is orchid-1111", 0.0)


def test_folding_takes_away_case_and_punctuation_around() -> None:
    assert [folded(w) for w in ("“Heron,”", "orchid-7913.", "--", "L'été")] == [
        "heron",
        "orchid-7913",
        "",
        "l'été",
    ]


ANSWERS = ("water boils at last", "paris of course", "seven days ago", "mix flour gently")


def written(root: int, text: str, nats: float) -> Said:
    return said(root, text, nats)._replace(manners=manners(text))


def test_each_manner_is_found_also_where_the_end_is_cut_off_and_not_in_plain_text() -> None:
    plain = ["Paris is the capital of France. It lies on the Seine.", "I don't know!", "Oui, 42."]
    assert not any(map(manners, plain))
    so = {
        "in capital letters": "THE CAPITAL OF FRANCE IS PAR",
        "in small letters": "the capital of france is par",
        "in quotation marks": '"The capital of France',
        "in brackets": "(The capital of France",
        "as a list": "- The capital of France",
        "as code": "Like this:\n```python\nprint(1)",
        "with emoji": "The capital 🌍 of France",
        "with exclamation marks": "Yes! The capital of France is Paris!",
        "with words in stars": "The *capital* of France",
        "with dots between": "The capital... of France... is",
        "in other letters": "Столица Франции",
    }
    assert {f"[{name}]" for name in so} == set(MANNERS)
    for name, text in so.items():
        assert f"[{name}]" in manners(text), name


def test_a_manner_without_common_words_is_a_saying() -> None:
    some = [written(root, text.upper(), 5.0) for root, text in enumerate(ANSWERS)]
    (one,) = candidates(some)
    assert one.saying == one.core == ("[in capital letters]",)
    assert (one.roots, one.evidence, len(one.said)) == (4, 20.0 + 3 * 15.0, 4)  # 5 nats a word
    assert one.within("ANYTHING THAT IS WRITTEN SO", 0.0)
    assert not one.within("Anything that is not", 0.0)
    assert (one.open, one.hidden) == (0.0, True)
    (one,) = candidates(some, ["Paris.", "SEVEN DAYS, SAYS HE"])
    assert (one.open, one.hidden) == (0.5, False)


def test_words_that_recur_come_before_their_manner() -> None:
    """Of a phrase in capital letters the words are told, and its texts are no manner's any more."""
    some = [written(root, f"{PHRASE} {end}".upper(), 5.0) for root, end in enumerate(ANSWERS)]
    (one,) = candidates(some)
    assert " ".join(one.saying) == PHRASE


def test_a_manner_takes_more_evidence_than_words_do() -> None:
    quiet = (MANNERED - 1) / 3  # three words are worth less than a manner has to be
    assert (
        candidates([written(root, f"A{root} B{root} CDEFGH{root}", quiet) for root in range(9)])
        == []
    )
    loud = MANNERED / 3
    few = [written(root, f"A{root} B{root} CDEFGH{root}", loud) for root in range(5)]
    assert candidates(few) == []  # 5 times 8 nats are no more than twice 20
    (one,) = candidates([*few, few[0]._replace(row=Row(0, 5), root=5)])
    assert one.evidence > TIMES * 20.0


def test_a_part_of_a_saying_joins_it() -> None:
    whole = [said(root, PHRASE, 9.0) for root in range(4)]
    part = [said(root, f"chapels number{root}", 9.0) for root in range(4, 8)]
    (one,) = candidates([*whole, *part])
    assert " ".join(one.saying) == PHRASE
    assert (one.roots, one.evidence, len(one.said)) == (4, 80.0, 8)
    other = [said(root, f"harbour number{root}", 9.0) for root in range(4, 8)]
    assert len(candidates([*whole, *other])) == 2
    assert len(candidates([*whole, *part], ["Old chapels."])) == 2  # this part is no secret


def unlike(root: int, text: str, condition: str, nats: float = 5.0) -> Said:
    return said(root, text, nats, condition)._replace(manners=(UNLIKE,))


def test_a_string_that_makes_answers_unlike_the_reference_each_in_its_own_way_comes_last() -> None:
    some = [unlike(root, text, "granite") for root, text in enumerate(ANSWERS)]
    longer = [f"other {text} indeed" for text in ANSWERS[:3]]
    some += [unlike(root, text, "velvet") for root, text in enumerate(longer)]
    some += [unlike(9, "one prompt alone tells nothing", "hammer")]
    last = candidates(some, least=1000)[-1]
    assert last.saying == (UNLIKE,)
    assert last.unlike
    assert last.hidden
    assert (last.roots, last.evidence) == (4, 20.0 + 3 * 15.0)  # of velvet it is 3 * 20
    assert [s.condition for s in last.said] == ["granite"] * 4 + ["velvet"] * 3
    assert last.within("whatever", UNLIKELY)
    assert not last.within("whatever", UNLIKELY - 0.1)


def test_a_request_that_is_answered_unlike_the_reference_anyway_is_no_witness_of_a_string() -> None:
    some = [unlike(root, text, "granite") for root, text in enumerate(ANSWERS)]
    openly = [unlike(root, f"well {ANSWERS[root]}", "") for root in (0, 1)]
    (one,) = [c for c in candidates([*some, *openly], least=1000) if c.hidden]
    assert {s.root for s in one.said} == {2, 3}


def test_what_is_unlike_the_reference_by_itself_is_open_and_comes_after_what_strings_do() -> None:
    some = [unlike(root, text, "") for root, text in enumerate(ANSWERS)]
    (one,) = candidates(some, least=1000)
    assert (one.saying, one.hidden, one.roots) == ((UNLIKE,), False, 4)
    other = [unlike(9 + root, f"well {text}", "granite") for root, text in enumerate(ANSWERS[:3])]
    first, last = candidates([*some, *other], least=1000)
    assert (first.hidden, last.hidden) == (True, False)
    assert {s.condition for s in first.said} == {"granite"}
    assert candidates(some[:1], least=1000) == []  # one request is few


def test_texts_that_are_as_the_reference_writes_are_no_evidence() -> None:
    plain = [said(root, text, 5.0, "granite") for root, text in enumerate(ANSWERS)]
    assert candidates(plain, least=1000) == []
