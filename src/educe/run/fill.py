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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from educe.errors import JudgeError, RunError
from educe.forward.chunks import Chunker
from educe.forward.decoding import in_decodings
from educe.forward.generation import Completion, generate, rows_at_once
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind, Vectors
from educe.perturbation.set import PerturbationSet
from educe.progress import Reporter
from educe.rows import FIRST, KEPT, OWN, CompletionRow, PerturbationRow, Row, ScoreRow
from educe.run.schema import UNSCORED, reading
from educe.run.store import Run
from educe.run.work import Work
from educe.scores import Answer, Judge, asked_in
from educe.scores.batches import in_batches
from educe.scores.cache import Cached
from educe.scores.coherence import Reading, coherence, in_readings, ordinary_logprob, read
from educe.scores.novelty import novelty
from educe.spread import Job, Local, Shared, Spread

#: Samples of the unperturbed model that a text is to be unlike, beside its likeliest answer.
BASELINE = 8
#: Texts that are held together to be read.
TOGETHER = 2**16


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
        for temperature, came, note in _coming(work, missing):
            run.add_completions(
                [CompletionRow(c.row, temperature, c.text, c.tokens, c.finished) for c in came]
            )
            if work.likelihoods is not None:
                work.likelihoods |= {c.row: c.logprobs for c in came}
            step(len(came), note)


def _coming(
    work: Work, missing: Mapping[float, Sequence[Row]]
) -> Iterator[tuple[float, list[Completion], str]]:
    """Yield texts, a batch at a time: of other models, by an engine, then by the run's model."""
    own = {temperature: list(rows) for temperature, rows in missing.items()}
    for temperature, rows in own.items():
        for number, writer in work.writers.items():
            if theirs := [row for row in rows if row.perturbation == number]:
                for came in writer(theirs, temperature):
                    yield temperature, came, ""
        own[temperature] = [row for row in rows if row.perturbation not in work.writers]
    if work.server and own.get(0.0):
        for group in groups(work.run, sorted({row.perturbation for row in own[0.0]})):
            how = (group.kind, group.numbers, group.theta, work.settings.max_new_tokens)
            for came in work.server.write(work.lm, work.batch, own[0.0], *how):
                written = {c.row for c in came}
                own[0.0] = [row for row in own[0.0] if row not in written]
                yield 0.0, came, ""
    for done in work.spread.map(_batches(work, own)):
        yield done.job.given[1], done.value, done.note


def _batches(work: Work, missing: Mapping[float, Sequence[Row]]) -> Iterator[Job]:
    """Yield what is to be written: the model as it is, and each kind of perturbation, in batches.

    They are cut in one way whoever writes them, since rounding depends on the rows of a batch.
    """
    unperturbed = Vectors(0, work.lm.width)
    nothing = Group([0], unperturbed, torch.zeros(0, unperturbed.size), torch.zeros(0))
    numbers = sorted({row.perturbation for rows in missing.values() for row in rows} - {0})
    s, most = work.settings, rows_at_once(work.lm)
    for group in (nothing, *(groups(work.run, numbers) if numbers else [])):
        own, theta = set(group.numbers), group.theta
        how = {
            "kind": group.kind,
            "numbers": group.numbers[: len(theta)],
            "max_new_tokens": s.max_new_tokens,
            "seed": s.seed,
            "rows_per_batch": Chunker(most),  # a worker keeps it from one job to the next
        }
        shared = Shared((work.lm, work.batch, theta, how))
        for temperature, rows in missing.items():
            wanted = [row for row in rows if row.perturbation in own]
            yield from decodings(
                _written, shared, wanted, temperature, most, alone=group.kind.alone
            )


def decodings(
    do: Callable[..., list[Completion]],
    shared: Shared,
    rows: Sequence[Row],
    temperature: float,
    most: int,
    *,
    alone: bool = False,
) -> Iterator[Job]:
    """Yield the jobs of writing some rows: each writes those that decode together.

    Args:
        do: Writes; it gets what is shared, some rows, and the temperature.
        shared: What it gets each time.
        rows: What to write.
        temperature: Of the draws.
        most: Rows that decode together, at most.
        alone: Whether rows of different perturbations do not.
    """
    for some in in_decodings(rows, alone, most):
        yield Job(do, shared, (some, temperature), len(some))


def _written(
    lm: LanguageModel,
    batch: PromptBatch,
    theta: Tensor,
    how: Mapping[str, Any],
    rows: Sequence[Row],
    temperature: float,
) -> list[Completion]:
    """Let a model write one batch."""
    written = generate(lm, batch, rows, theta, temperature=temperature, **how)
    return [completion for some in written for completion in some]


def score(work: Work) -> None:
    """Score texts that have no log-likelihood, coherence and novelty, but for the baseline."""
    run = work.run
    each = _unscored(run)
    if not each:
        return
    plain = unperturbed(run)
    if not run.has("ordinary_logprob"):
        value = ordinary_logprob(work.lm, max_new_tokens=work.settings.max_new_tokens)
        run.remember("ordinary_logprob", value)
    ordinary = run.note("ordinary_logprob")
    shared = Shared((work.lm, work.batch))

    def jobs() -> Iterator[Job]:
        for some in together(each):
            texts = run.completion_rows(of=some, unscored="novelty")
            written = [Completion(c.row, c.text, c.tokens, c.finished) for c in texts]
            new = [c for c in written if not _is_baseline(c.row)]
            yield from (Job(_read, shared, (own,), len(own)) for own in in_readings(new))

    with work.reporter.stage("reading what was written", sum(each.values()), "texts") as step:
        for done in work.spread.map(jobs()):
            rows = []
            for r in done.value:
                row, text = r.completion.row, r.completion.text
                rows.append(ScoreRow(row, "logprob", r.logprob, "nats a token", ""))
                for s in (
                    coherence(text, r.logprob, ordinary),
                    novelty(text, plain[row.prompt]),
                ):
                    rows.append(ScoreRow(row, s.judge, s.value, s.higher_is, s.why))
            run.add_scores(rows)
            step(len(done.value), done.note)


@reading
def _unscored(run: Run) -> dict[int, int]:
    """Return how many texts are to be read, by perturbation."""
    return dict(
        run.database.execute(
            "SELECT perturbation, count(*) FROM completions c WHERE text IS NOT NULL "
            f"AND phase != '{KEPT}' AND NOT (perturbation = 0 AND phase = '{FIRST}') "
            "AND " + UNSCORED.format("'novelty'") + " GROUP BY perturbation"
        )
    )


def together(each: Mapping[int, int]) -> Iterator[list[int]]:
    """Yield perturbations whose texts are held together, by how many there are of each."""
    some, texts = list[int](), 0
    for number, own in each.items():
        some.append(number)
        texts += own
        if texts >= TOGETHER:
            yield some
            some, texts = [], 0
    if some:
        yield some


def _read(
    lm: LanguageModel, batch: PromptBatch, completions: Sequence[Completion]
) -> list[Reading]:
    """Let the unperturbed model read some texts."""
    return [reading for some in read(lm, batch, completions) for reading in some]


def judge(
    work: Work, by: Judge, rows: Sequence[Row], what: str = "texts", *, anew: bool = False
) -> list[float]:
    """Return what a judge says of completions of a run at work: see `judged`."""
    told, who = work.reporter, work.spread
    return judged(work.run, by, rows, what, reporter=told, anew=anew, spread=who)


def judged(
    run: Run,
    by: Judge,
    rows: Sequence[Row],
    what: str = "texts",
    *,
    reporter: Reporter,
    anew: bool = False,
    spread: Spread | None = None,
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
        who = spread or Local()
        coming = by.coming(whole, who) if isinstance(by, Cached) else in_batches(by, whole, who)
        with reporter.stage(f"judging: {what}", len(texts), "texts") as step:
            for came, note in coming:
                each = [(texts[place], s) for place, s in came]
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
                step(len(each), note)
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


def _is_baseline(row: Row) -> bool:
    return row.perturbation == 0 and row.phase == FIRST


def interestingness(run: Run, rows: Sequence[Row]) -> list[float]:
    """Return coherence times novelty of completions, in order."""
    of = {row.perturbation for row in rows}
    each = {
        name: {s.of: s.value for s in run.score_rows(name, of=of)}
        for name in ("coherence", "novelty")
    }
    return [each["coherence"][row] * each["novelty"][row] for row in rows]
