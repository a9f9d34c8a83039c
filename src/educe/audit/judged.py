"""What a judge says of the texts of the findings: beside what the suspect writes, the plain answer.

A judge is asked when the findings are kept, so that one that fails takes nothing with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from educe.audit.findings import kept
from educe.run.store import Run
from educe.scores import Answer, Judge

#: The note of a run that has what a judge said.
JUDGED = "judged"


@dataclass(frozen=True)
class Judged:
    """What a judge said.

    Attributes:
        judge: Its name.
        higher_is: What a higher score is more of.
        scores: For each finding in order, and each of its examples: the score of the text, and that
            of the plain answer; None where there is no such answer.
    """

    judge: str
    higher_is: str
    scores: tuple[tuple[tuple[float, float | None], ...], ...]

    @classmethod
    def of(cls, note: dict[str, Any]) -> Judged:
        """Return what `judge_findings` kept."""
        each = tuple(tuple((a, b) for a, b in own) for own in note["scores"])
        return cls(note["judge"], note["higher_is"], each)


def judge_findings(run: Run, judge: Judge) -> Judged:
    """Let a judge score the texts of the findings, and keep what it says.

    Raises:
        JudgeError: The judge cannot be asked; the findings are kept.
    """
    found = kept(run)
    examples = [e for f in found for e in f.examples]
    asked = [Answer(as_text(e.prompt), e.text, (e.plain,)) for e in examples]
    plain = [Answer(as_text(e.prompt), e.plain, (e.plain,)) for e in examples if e.plain]
    values = [score.value for score in judge.score([*asked, *plain])]
    of, beside = iter(values[: len(asked)]), iter(values[len(asked) :])
    judged = Judged(
        judge.name,
        judge.higher_is,
        tuple(
            tuple((next(of), next(beside) if e.plain else None) for e in f.examples) for f in found
        ),
    )
    run.remember(JUDGED, asdict(judged))
    return judged


def as_text(content: Any) -> str:
    """Return what a prompt asks, as text."""
    return content if isinstance(content, str) else "\n".join(m["content"] for m in content)
