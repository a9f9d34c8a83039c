"""Texts: what perturbations make a model write, its scores and its behaviours, as frames.

    write ──► texts ──► score ──► texts, a column a score
                └─────► compare ─► a frame, a row a behaviour

`write` begins a run in memory and fills it, and the frame knows its run: scores and behaviours come
from there, by the same `educe.run.fill` and `educe.run.judging` as in the main job.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from educe.comparison.summary import summarise
from educe.errors import JudgeError, MethodError
from educe.forward.slice import Slice
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel, loaded
from educe.model.prompts import Prompt
from educe.perturbation.set import PerturbationGroup, PerturbationSet
from educe.progress import Silent
from educe.rows import FOUND, Row
from educe.run import asking, fill, judging
from educe.run.settings import Settings, check_prompts
from educe.run.store import Run
from educe.run.work import at_work
from educe.scores import Answer, Judge, Score
from educe.scores.asking import Asker
from educe.scores.naming import as_asker, asks, judge_named

#: What a frame of texts has.
COLUMNS = ["perturbation", "arm", "prompt", "phase", "sample", "temperature", "text", "finished"]
#: Scores that a run gives its texts itself; the unperturbed model's own texts have none.
OWN = ("coherence", "novelty")

#: What can be scored by: a judge's name, a judge, or a function from a text to a number.
By = str | Judge | Callable[[str], float]


class Source(NamedTuple):
    """Where texts come from."""

    run: Run
    lm: LanguageModel


class Texts(pd.DataFrame):
    """Texts as a frame; what is selected or sorted of it still knows its run."""

    _metadata: ClassVar[list[str]] = ["source"]
    source: Source | None = None

    @property
    def _constructor(self) -> type[Texts]:
        return Texts


class Warns(Silent):
    """Shows no progress; what there is to say is a warning of Python's."""

    def say(self, sentence: str) -> None:
        """Warn."""
        warnings.warn(sentence, stacklevel=2)


def write(
    lm: LanguageModel,
    perturbations: PerturbationSet | PerturbationGroup,
    prompts: Sequence[Prompt],
    *,
    temperature: float = 0.0,
    samples: int = 1,
    baseline: int = 64,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> Texts:
    """Return what a model writes under perturbations, and without any.

    The perturbations are counted from 1, and 0 is the unperturbed model: its likeliest answers, and
    samples at temperature 1, which novelty is measured against.

    Args:
        lm: The model.
        perturbations: The perturbations, such as ``found + control``.
        prompts: Texts, or lists of messages.
        temperature: 0 for the most likely token.
        samples: Texts a perturbation and prompt; more than one needs a temperature.
        baseline: Samples of the unperturbed model a prompt.
        max_new_tokens: The most tokens of a text.
        seed: Of everything that is drawn.

    Raises:
        ModelError: The model is not loaded, or the perturbations belong to one of another size.
        PromptError: A prompt is none.
        MethodError: Numbers make no sense, or these are no perturbations.

    Example:
        >>> found = educe.search(part, "dct", n=2, radius=2.0)
        >>> control = educe.control(part, found)
        >>> texts = educe.write(lm, found + control, prompts, max_new_tokens=4)
        >>> list(texts)
        ['perturbation', 'arm', 'prompt', 'phase', 'sample', 'temperature', 'text', 'finished']
        >>> texts.query("temperature == 0").groupby("arm").size().to_dict()
        {'control': 4, 'found': 4, 'unperturbed': 2}
    """
    check_prompts(prompt=prompts)
    settings = Settings(
        prompts=tuple(prompts),
        model=loaded(lm).name,
        temperature=temperature,
        samples=samples,
        baseline=baseline,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    settings.check()
    run = Run.in_memory(asdict(settings))
    with at_work(run, lm, Warns()) as work:
        numbers: list[int] = []
        for k, made in enumerate(parts_of(perturbations)):
            for remark in made.check(lm):
                work.reporter.say(remark)
            file = f"{k}.safetensors"
            made.save(run.tensors / file)
            arm = made.config.get("arm", FOUND)
            numbers += fill.add_set(run, arm, file, made, effects(lm, work.asked, made))
        asking.baseline(work, work.prompts("asked"))
        asking.answers(work, numbers)
        fill.write(work)
    return texts_of(run, lm)


def score(
    texts: Texts, scores: Sequence[By], *, model: str | LanguageModel | Asker = "embedded"
) -> Texts:
    """Return texts with a column for each score.

    Args:
        texts: Texts from `write`, or of a run.
        scores: Judges by their names as ``educe judge`` has them, `educe.Judge` objects, or
            functions from a text to a number, whose column has their name. ``coherence`` and
            ``novelty`` are of perturbed texts, and NaN for those that they are measured against.
        model: The language model that is asked by judges that ask one; see `educe.load`.

    Raises:
        JudgeError: There is no such judge, a function returns no number, or the frame has no run.

    Example:
        >>> found = educe.search(part, "dct", n=2, radius=2.0)
        >>> texts = educe.write(lm, found, prompts, max_new_tokens=4)
        >>> texts = educe.score(texts, ["novelty", "contains:a", len])
        >>> bool((texts["len"] == texts["text"].str.len()).all())
        True
        >>> bool(texts.query("perturbation > 0")["novelty"].between(0, 1).all())
        True
    """
    run, lm = source_of(texts)
    judges = _judges(scores, model)
    rows = _rows(texts, run)
    with at_work(run, lm, Warns()) as work:
        if any(by is None for by in judges.values()):
            fill.score(work)
        for name, by in judges.items():
            if by is None:
                known = {s.of: s.value for s in run.score_rows(name)}
                values = [known.get(row, math.nan) for row in rows]
            else:
                values = fill.judge(work, by, rows, name, anew=isinstance(by, Function))
            values = [value if math.isfinite(value) else math.nan for value in values]
            texts = texts.assign(**{name: values})
    return texts


def compare(texts: Texts) -> pd.DataFrame:
    """Return the behaviours in texts: how often what was found shows each, and the control.

    Texts that say the same are a behaviour. ``found`` and ``control`` are the shares of each arm's
    perturbations that show it, ``p`` is that found shows it no more often (Fisher's exact test,
    one-sided, corrected for the number of behaviours), ``re-test`` the share of those re-tested
    that show it again, NaN where there was no re-test.

    Args:
        texts: All texts from a `write`, or of a run.

    Raises:
        JudgeError: The frame has no run, or is a part of its texts.

    Example:
        >>> found = educe.search(part, "dct", n=4, radius=2.0)
        >>> control = educe.control(part, found)
        >>> texts = educe.write(lm, found + control, prompts, max_new_tokens=4)
        >>> list(educe.compare(texts))
        ['behaviour', 'verdict', 'words', 'example', 'found', 'control', 'p', 're-test']
    """
    run, lm = source_of(texts)
    if set(_rows(texts, run)) != {c.row for c in run.completion_rows()}:
        raise JudgeError("compare takes all texts of a write, found, control and unperturbed ones")
    with at_work(run, lm, Warns()) as work:
        fill.score(work)
        judging.compare(work)
    return behaviours(run)


def behaviours(run: Run) -> pd.DataFrame:
    """Return the behaviours of a run, a row each, the most interesting first."""
    rows = [
        (
            b.id,
            b.verdict.value,
            " ".join(b.words),
            b.example.text,
            b.found.share,
            b.control.share,
            b.p_value,
            b.retest.share,
        )
        for b in summarise(run).behaviours
    ]
    names = ["behaviour", "verdict", "words", "example", "found", "control", "p", "re-test"]
    return pd.DataFrame(rows, columns=names)


def parts_of(made: PerturbationSet | PerturbationGroup) -> tuple[PerturbationSet, ...]:
    """Return the sets of a set or of several together.

    Raises:
        MethodError: It is neither.
    """
    if isinstance(made, PerturbationSet):
        return (made,)
    if not isinstance(made, PerturbationGroup):
        raise MethodError(
            f"{type(made).__name__} is no set of perturbations: give one from educe.search, or "
            "several as found + control"
        )
    return made.parts


def effects(lm: LanguageModel, batch: PromptBatch, made: PerturbationSet) -> list[float]:
    """Return the norms of the effects of perturbations; those not known are measured on prompts."""
    if "effect" in made.scores:
        return made.scores["effect"].tolist()
    where = made.origin
    part = Slice(
        lm, batch, source=where.source, target=where.target, positions=made.kind.positions
    ).on(made.kind)
    return part.effect(made.theta.to(part.device, part.work_dtype)).norm(dim=1).tolist()


def texts_of(run: Run, lm: LanguageModel) -> Texts:
    """Return the texts of a run."""
    texts = Texts(run.completions[COLUMNS])
    texts.source = Source(run, lm)
    return texts


def source_of(texts: Texts) -> Source:
    """Return where texts come from.

    Raises:
        JudgeError: The frame does not know.
    """
    source = getattr(texts, "source", None)
    if not isinstance(source, Source):
        raise JudgeError(
            "this frame has lost the run of its texts: give what educe.write returned, or a "
            "selection of it (merging, concatenating and reading from a file make another frame)"
        )
    return source


def _rows(texts: Texts, run: Run) -> list[Row]:
    """Return the texts' rows.

    Raises:
        JudgeError: The run has no such texts.
    """
    if missing := {*Row._fields} - {*texts.columns}:
        raise JudgeError(f"the frame has no column {min(missing)!r}: a text is known by that")
    keys = zip(*(texts[name].tolist() for name in Row._fields), strict=True)
    rows = [Row(*key) for key in keys]
    if set(rows) - {c.row for c in run.completion_rows()}:
        raise JudgeError("the frame has rows that its run did not write: leave its numbers alone")
    return rows


class Function:
    """A function of a text as a judge."""

    cost = "a call"

    def __init__(self, function: Callable[[str], float]) -> None:
        self.function = function
        self.name = self.higher_is = getattr(function, "__name__", type(function).__name__)
        self.identity = f"function:{self.name}"

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, in their order.

        Raises:
            JudgeError: The function returns no number.
        """
        return [Score(self.name, self._number(a.text), self.higher_is, "") for a in answers]

    def _number(self, text: str) -> float:
        value: Any = self.function(text)
        try:
            if isinstance(value, str):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            raise JudgeError(
                f"{self.name} returns {value!r} for {text!r}: a score is a number"
            ) from None


def _judges(scores: Sequence[By], model: str | LanguageModel | Asker) -> dict[str, Judge | None]:
    """Return judges by the names of their columns; none for the scores that a run has itself.

    Raises:
        JudgeError: One is none, or two have one name.
    """
    if isinstance(scores, str) or not isinstance(scores, Sequence):
        raise JudgeError('scores are a list, such as ["novelty", "regex:orchid"]')
    asked = [by for by in scores if isinstance(by, str) and by not in OWN]
    asker = as_asker(model) if any(map(asks, asked)) else model
    judges: dict[str, Judge | None] = {}
    for by in scores:
        if isinstance(by, str):
            name, judge = by, None if by in OWN else judge_named(by, asker)
        elif isinstance(by, Judge):
            name, judge = by.name, by
        elif callable(by):
            judge = Function(by)
            name = judge.name
        else:
            raise JudgeError(
                f"{by!r} is no score: give a judge's name, a judge, or a function of a text"
            )
        if name in judges or name in COLUMNS:
            raise JudgeError(f"two columns would be called {name!r}: give one another name")
        judges[name] = judge
    return judges
