"""Fill: what was asked of a run and is missing is written, read and scored, batch by batch.

    write     rows that were asked for and have no text
    score     texts without log-likelihood, coherence and novelty, but for the baseline

A process that was killed asks the run again, and pays for what is missing: that is all there is to
resuming. A score depends on its own text and on what the unperturbed model writes for that prompt,
on nothing that is scored beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from educe.errors import JudgeError, RunError
from educe.forward.generation import Completion, generate
from educe.perturbation.kinds import Kind, Vectors
from educe.perturbation.set import PerturbationSet
from educe.progress import Reporter
from educe.rows import FIRST, KEPT, OWN, CompletionRow, PerturbationRow, Row, ScoreRow
from educe.run.store import Run
from educe.run.work import Work, Writer
from educe.scores import Answer, Judge, asked_in
from educe.scores.coherence import coherence, ordinary_logprob, read
from educe.scores.novelty import novelty

#: Samples of the unperturbed model that a text is to be unlike, beside its likeliest answer.
BASELINE = 8
#: Texts that a judge is given at once; after each such batch the scores are kept.
AT_ONCE = 64


class Group(NamedTuple):
    """Perturbations of one kind, which can share a batch."""

    numbers: list[int]
    kind: Kind
    directions: Tensor
    radius: Tensor

    @property
    def theta(self) -> Tensor:
        """The directions at their radius."""
        return self.kind.scaled(self.directions, self.radius[:, None])


def add_set(
    run: Run,
    arm: str | Sequence[str],
    file: str,
    made: PerturbationSet,
    effect: Sequence[float],
    *,
    parents: Sequence[int | None] | None = None,
    how: str | Sequence[str] = "",
) -> list[int]:
    """List what a file holds, of one arm or an arm each, with its effects; return its numbers."""
    first = run.perturbations_kept + 1
    numbers = list(range(first, first + len(made)))
    arms, ways = ([one] * len(made) if isinstance(one, str) else one for one in (arm, how))
    run.add_perturbations(
        [
            PerturbationRow(number, parent, way, own, made.method, file, i, radius, dose, size)
            for i, (number, own, way, parent, radius, dose, size) in enumerate(
                zip(
                    numbers,
                    arms,
                    ways,
                    parents or [None] * len(made),
                    made.radius.tolist(),
                    made.dose.tolist(),
                    effect,
                    strict=True,
                )
            )
        ]
    )
    return numbers


def groups(run: Run, numbers: Sequence[int] | None = None) -> list[Group]:
    """Return the perturbations of a run that were found, or those of some numbers, by kind."""
    members: dict[Kind, list[PerturbationRow]] = {}
    sets: dict[str, PerturbationSet] = {}
    wanted = None if numbers is None else set(numbers)
    for p in run.perturbation_rows(derived=False if wanted is None else None, of=wanted):
        if p.file not in sets:
            sets[p.file] = PerturbationSet.load(run.tensors / p.file)
        members.setdefault(sets[p.file].kind, []).append(p)
    return [
        Group(
            [p.id for p in some],
            kind.select(torch.tensor([p.item for p in some])),
            torch.stack([sets[p.file].directions[p.item] for p in some]),
            torch.tensor([p.radius for p in some]),
        )
        for kind, some in members.items()
    ]


def check_known(run: Run, numbers: Sequence[int], *, derived: bool | None = False) -> None:
    """Make sure that a run has some perturbations; with ``derived`` None, derived ones count too.

    Raises:
        RunError: It has not.
    """
    known = {p.id for p in run.perturbation_rows(derived=derived)}
    if unknown := [number for number in numbers if number not in known]:
        raise RunError(f"the run has no perturbation {unknown[0]}: see educe show for its numbers")


def fill(work: Work, what: str = "texts") -> None:
    """Write and score what was asked for and is missing.

    Args:
        work: The run at work.
        what: These texts, for a person.
    """
    with work.timed("generate"):
        write(work, what)
    with work.timed("judge"):
        score(work)


def write(work: Work, what: str = "texts") -> None:
    """Write what was asked for and has no text."""
    run, missing = work.run, work.run.missing()
    total = sum(map(len, missing.values()))
    if not total:
        return
    with work.reporter.stage(f"writing: {what}", total, "texts") as step:
        for temperature, wanted in missing.items():
            for rows, writer in _writers(work, wanted):
                for came in writer(rows, temperature):
                    run.add_completions(
                        [
                            CompletionRow(c.row, temperature, c.text, c.tokens, c.finished)
                            for c in came
                        ]
                    )
                    if work.likelihoods is not None:
                        work.likelihoods |= {c.row: c.logprobs for c in came}
                    step(len(came))


def _writers(work: Work, wanted: Sequence[Row]) -> Iterator[tuple[list[Row], Writer]]:
    """Yield who writes, and what: the model as it is, each kind of perturbation, other models."""
    unperturbed = Vectors(0, work.lm.width)
    nothing = Group([0], unperturbed, torch.zeros(0, unperturbed.size), torch.zeros(0))
    numbers = sorted({row.perturbation for row in wanted} - {0, *work.writers})
    members: list[tuple[Sequence[int], Writer]] = [
        (group.numbers, partial(_perturbed, work, group))
        for group in (nothing, *(groups(work.run, numbers) if numbers else []))
    ]
    members += [([number], writer) for number, writer in work.writers.items()]
    for own, writer in members:
        if rows := [row for row in wanted if row.perturbation in set(own)]:
            yield rows, writer


def _perturbed(
    work: Work, group: Group, rows: Sequence[Row], temperature: float
) -> Iterator[list[Completion]]:
    """Let the model write under perturbations of one kind."""
    return generate(
        work.lm,
        work.batch,
        rows,
        group.theta,
        kind=group.kind,
        numbers=group.numbers[: len(group.theta)],
        temperature=temperature,
        max_new_tokens=work.settings.max_new_tokens,
        seed=work.settings.seed,
    )


def score(work: Work) -> None:
    """Score texts that have no log-likelihood, coherence and novelty, but for the baseline."""
    run = work.run
    missing = [c for c in run.completion_rows(unscored="novelty") if not _is_baseline(c)]
    if not missing:
        return
    plain = unperturbed(run)
    if not run.has("ordinary_logprob"):
        value = ordinary_logprob(work.lm, max_new_tokens=work.settings.max_new_tokens)
        run.remember("ordinary_logprob", value)
    ordinary = run.note("ordinary_logprob")
    written = [Completion(c.row, c.text, c.tokens, c.finished) for c in missing]
    with work.reporter.stage("reading what was written", len(missing), "texts") as step:
        for batch in read(work.lm, work.batch, written):
            rows = []
            for r in batch:
                row, text = r.completion.row, r.completion.text
                rows.append(ScoreRow(row, "logprob", r.logprob, "nats a token", ""))
                for s in (
                    coherence(text, r.logprob, ordinary),
                    novelty(text, plain[row.prompt]),
                ):
                    rows.append(ScoreRow(row, s.judge, s.value, s.higher_is, s.why))
            run.add_scores(rows)
            step(len(batch))


def judge(
    work: Work, by: Judge, rows: Sequence[Row], what: str = "texts", *, anew: bool = False
) -> list[float]:
    """Return what a judge says of completions of a run at work: see `judged`."""
    return judged(work.run, by, rows, what, reporter=work.reporter, anew=anew)


def judged(
    run: Run,
    by: Judge,
    rows: Sequence[Row],
    what: str = "texts",
    *,
    reporter: Reporter,
    anew: bool = False,
) -> list[float]:
    """Return what a judge says of completions, in order; what is missing is judged and kept.

    Scores are kept under the judge's identity, so another rubric or model is another judge. Where
    an identity does not say everything, as a function's name does not, judge ``anew``.

    Raises:
        JudgeError: A score is no number. It is not kept, so a judge that is mended goes on there.
    """
    of = {row.perturbation for row in rows}
    known = {} if anew else {s.of: s.value for s in run.score_rows(by.identity, of=of)}
    missing = set(rows) - known.keys()
    if missing:
        texts = [c for c in run.completion_rows(of=of) if c.row in missing]
        whole = answers(run, texts)
        with reporter.stage(f"judging: {what}", len(texts), "texts") as step:
            for first in range(0, len(texts), AT_ONCE):
                some = texts[first : first + AT_ONCE]
                each = list(zip(some, by.score(whole[first : first + AT_ONCE]), strict=True))
                fine = [(c.row, s) for c, s in each if math.isfinite(s.value)]
                run.add_scores(
                    ScoreRow(row, by.identity, s.value, s.higher_is, s.why) for row, s in fine
                )
                if broken := [c.text for c, s in each if not math.isfinite(s.value)]:
                    raise JudgeError(
                        f"the judge {by.name} gives {len(broken)} of {len(each)} texts a score "
                        f"that is NaN or infinite, as {broken[0][:60]!r}; all other scores are kept"
                    )
                known |= {row: s.value for row, s in fine}
                step(len(some))
    return [known[row] for row in rows]


def answers(run: Run, texts: Sequence[CompletionRow]) -> list[Answer]:
    """Return completions as answers, each with the unperturbed model's to its prompt."""
    prompts = (*run.prompt_rows(), *run.prompt_rows(OWN))
    asked = {p.id: asked_in(p.content) for p in prompts}
    plain = unperturbed(run)
    return [Answer(asked[c.prompt], c.text, tuple(plain[c.prompt])) for c in texts]


def unperturbed(run: Run) -> dict[int, list[str]]:
    """Return the baseline by prompt: the unperturbed model's likeliest answer, then a few samples.

    Of more samples more would be said, and what the model says once in a while is no less of a
    finding when a perturbation makes it usual.
    """
    plain: dict[int, list[str]] = defaultdict(list)
    kept = (c for c in run.completion_rows(KEPT, of=[0]) if c.prompt < 0)  # a person's own prompts
    for c in (*run.completion_rows(FIRST, of=[0]), *kept):
        if c.sample <= BASELINE:
            plain[c.prompt].append(c.text)
    return plain


def _is_baseline(c: CompletionRow) -> bool:
    return c.perturbation == 0 and c.phase == FIRST


def interestingness(run: Run, rows: Sequence[Row]) -> list[float]:
    """Return coherence times novelty of completions, in order."""
    of = {row.perturbation for row in rows}
    each = {
        name: {s.of: s.value for s in run.score_rows(name, of=of)}
        for name in ("coherence", "novelty")
    }
    return [each["coherence"][row] * each["novelty"][row] for row in rows]
