"""Scores kept by content: every answer is judged once, whatever happens in between."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from educe.errors import FileFormatError, JudgeError
from educe.progress import Silent
from educe.scores import Answer, Judge, Score, Streaming
from educe.scores.batches import AT_ONCE
from educe.scores.cache import Cached
from educe.scores.language_model import Theme


class Counting:
    """The length of an answer; counts what it is paid for, and can fail in the middle."""

    name, higher_is, cost = "length", "longer", "one call"

    def __init__(self, identity: str = "length 1", *, fails_after: int | None = None) -> None:
        self.identity, self.fails_after = identity, fails_after
        self.paid: Counter[str] = Counter()

    def stream(self, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
        for line in reversed(range(len(answers))):  # in an order of no help
            if self.fails_after is not None and self.paid.total() >= self.fails_after:
                raise KeyboardInterrupt
            self.paid[answers[line].text] += 1
            text = answers[line].text
            yield [(line, Score(self.name, float(len(text)), self.higher_is, repr(text)))]

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        raise AssertionError("a judge that streams is never asked for all at once")


class Whole:
    """The same, a batch at a time."""

    name, higher_is, identity, cost = "length", "longer", "whole", "one call"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        self.batches.append(len(answers))
        return [Score("length", float(len(a.text)), "longer", "") for a in answers]


ANSWERS = [Answer("Say it.", "word " * i) for i in range(10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "judging.sqlite"


def test_scores_are_those_of_the_judge_in_order(path: Path) -> None:
    judge = Counting()
    found = Cached(judge, path).score(ANSWERS)
    assert [s.value for s in found] == [5.0 * i for i in range(10)]
    assert found[2] == Score("length", 10.0, "longer", "'word word '")
    again = Cached(judge, path)
    assert again.score(ANSWERS[::-1]) == found[::-1]
    assert set(judge.paid.values()) == {1}
    assert again.judged == 0


def test_equal_answers_are_judged_once(path: Path) -> None:
    judge = Counting()
    found = Cached(judge, path).score([ANSWERS[3], ANSWERS[4], ANSWERS[3]])
    assert [s.value for s in found] == [15, 20, 15]
    assert judge.paid.total() == 2


@pytest.mark.parametrize(
    "other",
    [
        Answer("Say that.", "word"),
        Answer("Say it.", "word "),
        Answer("Say it.", "word", ("plain",)),
        Answer("Say it.word", ""),
    ],
)
def test_anything_else_about_an_answer_makes_it_another(path: Path, other: Answer) -> None:
    judge = Counting()
    Cached(judge, path).score([Answer("Say it.", "word"), other])
    assert judge.paid.total() == 2


def test_another_identity_is_another_judge(path: Path) -> None:
    Cached(Counting("length 1"), path).score(ANSWERS)
    other = Counting("length 2")
    Cached(other, path).score(ANSWERS)
    assert other.paid.total() == 10


@pytest.mark.parametrize("after", [0, 1, 7])
def test_what_was_paid_before_a_failure_is_not_paid_again(path: Path, after: int) -> None:
    failing = Counting(fails_after=after)
    with pytest.raises(KeyboardInterrupt):
        Cached(failing, path).score(ANSWERS)
    after_it = Counting()
    found = Cached(after_it, path).score(ANSWERS)
    assert [s.value for s in found] == [5.0 * i for i in range(10)]
    assert set((failing.paid + after_it.paid).values()) == {1}
    assert after_it.paid.total() == 10 - after


def test_a_killed_process_pays_nothing_twice(path: Path) -> None:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_cache import ANSWERS, Cached, Counting

        class Killed(Counting):
            def stream(self, answers):
                for i, came in enumerate(super().stream(answers)):
                    if i == 6:
                        os.kill(os.getpid(), signal.SIGKILL)
                    print(answers[came[0][0]].text, flush=True)
                    yield came

        Cached(Killed(), {str(path)!r}).score(ANSWERS)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    paid = done.stdout.splitlines()
    assert len(paid) == 6, done.stderr
    after_it = Counting()
    Cached(after_it, path).score(ANSWERS)
    assert after_it.paid.total() == 4
    assert not set(paid) & set(after_it.paid)


def test_a_judge_that_does_not_stream_gets_batches(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.scores.batches.AT_ONCE", 4)
    judge = Whole()
    assert not isinstance(judge, Streaming)
    found = Cached(judge, path).score(ANSWERS)
    assert [s.value for s in found] == [5.0 * i for i in range(10)]
    assert judge.batches == [4, 4, 2]


def test_more_answers_than_one_query_asks_for(path: Path) -> None:
    many = [Answer("", "x" * i) for i in range(1201)]
    judge = Counting()
    for _ in range(2):
        assert [s.value for s in Cached(judge, path).score(many)] == list(map(float, range(1201)))
    assert judge.paid.total() == 1201


class Comparing:
    """Answers for a language model: how many questions it was asked."""

    identity, cost = "a model", "one call"

    def __init__(self) -> None:
        self.questions: list[str] = []

    def write(self, questions: Sequence[str], **options: object) -> Iterator[list]:
        self.questions += questions
        for i, _ in enumerate(questions):
            yield [(i, '{"theme": "keys", "in_second": 1, "in_first": 0}')]


def test_groups_are_kept_as_groups(path: Path) -> None:
    asker = Comparing()
    groups = [ANSWERS[:2], ANSWERS[2:5], ANSWERS[:2]]
    for _ in range(2):
        found = Cached(Theme(asker), path).score(groups)
        assert [s.value for s in found] == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert len(asker.questions) == 2
    Cached(Theme(asker), path).score([ANSWERS[:3]])
    assert len(asker.questions) == 3


def test_it_is_a_judge_itself(path: Path) -> None:
    judge: Judge = Cached(Counting(), path)
    assert (judge.name, judge.higher_is, judge.identity) == ("length", "longer", "length 1")


def test_progress_counts_what_is_judged(path: Path) -> None:
    stages: list[tuple[str, int]] = []

    class Recording(Silent):
        def stage(self, title: str, total: int, unit: str = ""):  # type: ignore[no-untyped-def]
            stages.append((title, total))
            return super().stage(title, total, unit)

    Cached(Counting(), path).score(ANSWERS[:4])
    Cached(Counting(), path, reporter=Recording()).score(ANSWERS)
    assert stages == [("judging: length", 6)]
    Cached(Counting(), path, reporter=Recording()).score(ANSWERS)
    assert len(stages) == 1


def test_a_file_of_something_else_is_an_error(path: Path) -> None:
    path.write_bytes(b"something else" * 100)
    with pytest.raises(FileFormatError, match="no file of scores"):
        Cached(Counting(), path).score(ANSWERS)


@pytest.mark.parametrize("name", [b"\xb2", b"two\nlines"])
def test_a_file_with_odd_names_is_an_error_in_one_line(path: Path, name: bytes) -> None:
    Cached(Counting(), path).score(ANSWERS)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")
        database.execute("PRAGMA writable_schema = ON")
        broken = "UPDATE sqlite_master SET name = CAST(? AS TEXT), sql = 'CREATE TABLE'"
        database.execute(f"{broken} WHERE name = 'other'", (name,))
        database.commit()
    with pytest.raises(FileFormatError, match="no file of scores") as told:
        Cached(Counting(), path).score(ANSWERS)
    assert "\n" not in str(told.value)


def test_a_place_that_cannot_be_written_is_an_error(path: Path) -> None:
    with pytest.raises(JudgeError, match="cannot keep scores in"):
        Cached(Counting(), path / "missing" / "x").score(ANSWERS)


class Refusing:
    """A judge that fails after some batches."""

    name, higher_is, identity, cost = "refusing", "more", "refusing", "nothing"

    def __init__(self, error: BaseException, batches: int) -> None:
        self.error, self.batches = error, batches

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        if not self.batches:
            raise self.error
        self.batches -= 1
        return [Score(self.name, 1.0, "more", "") for _ in answers]


@pytest.mark.parametrize("error", [JudgeError("no"), KeyboardInterrupt(), ValueError()], ids=repr)
def test_a_file_that_nothing_was_kept_in_is_not_left(tmp_path: Path, error: BaseException) -> None:
    answers = [Answer("a", str(i)) for i in range(AT_ONCE + 1)]
    with pytest.raises(type(error)):
        Cached(Refusing(error, 0), tmp_path / "scores").score(answers)
    assert list(tmp_path.iterdir()) == []
    for batches in (1, 0):  # what was paid for stays, and a file that was there
        with pytest.raises(type(error)):
            Cached(Refusing(error, batches), tmp_path / "scores").score(answers)
        assert (tmp_path / "scores").exists()
