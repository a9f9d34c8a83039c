"""Runs in a notebook: the main job in one call, and what one does with the run that comes of it."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from educe import files
from educe.comparison.summary import Summary, counted, summarise
from educe.comparison.verdict import Verdict
from educe.errors import MethodError, RunError
from educe.inversion.in_run import invert_run
from educe.inversion.report import Reachability
from educe.inversion.report import Settings as Inversion
from educe.model.language import LanguageModel, loaded
from educe.model.prompts import Prompt
from educe.notebook.texts import Texts, Warns, behaviours, effects, parts_of, texts_of
from educe.perturbation.set import PerturbationGroup, PerturbationSet
from educe.progress import Reporter
from educe.rows import CONTROL, FOUND
from educe.run import asking, fill, store
from educe.run.settings import Settings, begin, check_prompts
from educe.run.stages import discover_behaviours
from educe.run.work import Work, at_work

#: How perturbations came into a run that were not found in it.
DERIVED, ADDED = "derived", "added"

#: Settings that are said by arguments of their own, or by the model that is given.
SAID = {"prompts", "fresh", "model", "adapter", "revision"}


class Run(store.Run):
    """A run on disk: its tables as frames, its perturbations as sets, and what more is done in it.

    Open one by its folder, or use `educe.methods`, which makes it.

    Attributes:
        folder: Where it is.
        lm: Its model, where it is loaded.

    Example:
        >>> made = educe.discover(folder / "one", lm, prompts, n=2, radius=2.0, max_new_tokens=4)
        >>> made.close()
        >>> run = educe.Run.open(folder / "one")
        >>> len(run.found), len(run.control), run.found.scores["number"].tolist()
        (2, 2, [1.0, 2.0])
        >>> run.lm = lm  # or it is loaded when it is needed
        >>> half, twice = run.add(educe.derive.scaled(run.found[:1], [0.5, 2]))
        >>> run.perturbations.loc[[half, twice], ["parent", "radius"]].values.tolist()
        [[1.0, 1.0], [1.0, 4.0]]
        >>> texts = run.fill().texts
        >>> texts.query("perturbation == @half")["prompt"].tolist()
        [0, 1]
        >>> run.report(folder / "report.html").name
        'report.html'
    """

    lm: LanguageModel | None = None

    @property
    def found(self) -> PerturbationSet | PerturbationGroup:
        """What was found; its score ``number`` is the perturbation's number in the run."""
        return self.set(FOUND)

    @property
    def control(self) -> PerturbationSet | PerturbationGroup:
        """The control, in the same way."""
        return self.set(CONTROL)

    def set(self, arm: str) -> PerturbationSet | PerturbationGroup:
        """Return the perturbations of an arm; several sets where they are of several kinds.

        Raises:
            RunError: There are none.
        """
        parts = []
        for file, rows in groupby(self.perturbation_rows(arm), key=lambda p: p.file):
            own = list(rows)
            whole = PerturbationSet.load(self.tensors / file).select([p.item for p in own])
            number = torch.tensor([float(p.id) for p in own])
            parts.append(
                replace(
                    whole,
                    radius=torch.tensor([p.radius for p in own]),
                    scores={**whole.scores, "number": number},
                    config={**whole.config, "arm": arm},
                )
            )
        if not parts:
            raise RunError(f"the run in {self.folder} has no perturbations that are {arm}")
        return _joined(parts)

    @property
    def texts(self) -> Texts:
        """All texts of the run, for `educe.score` and `educe.compare`."""
        with self._working() as work:
            return texts_of(self, work.lm)

    @property
    def behaviours(self) -> pd.DataFrame:
        """The behaviours, as `educe.compare` has them."""
        return behaviours(self)

    def add(self, made: PerturbationSet | PerturbationGroup) -> list[int]:
        """Add perturbations, and ask for their answers, which `fill` writes.

        Those derived from perturbations of this run have them as parents. They count for no arm of
        the run, whose search did not find them. What was added before is not added again.

        Args:
            made: The perturbations, such as ``educe.derive.scaled(run.found.top(4), [0.5, 2])``.

        Returns:
            Their numbers.

        Raises:
            ModelError: They belong to a model of another size.
            RunError: Their parents are no perturbations of this run, or they are in it already.
        """
        with self._working() as work:
            numbers = [n for part in parts_of(made) for n in self._added(work, part)]
            asking.answers(work, numbers)
        return numbers

    def _added(self, work: Work, part: PerturbationSet) -> list[int]:
        for remark in part.check(work.lm):
            work.reporter.say(remark)
        arms = {p.id: p.arm for p in self.perturbation_rows(derived=None)}
        own, how, parents = [part.config.get("arm", FOUND)] * len(part), ADDED, None
        if "number" in part.scores:
            parents = [int(number) for number in part.scores["number"]]
            if unknown := [number for number in parents if number not in arms]:
                raise RunError(
                    f"the run has no perturbation {unknown[0]}: take sets from run.found"
                )
            if "parent" not in part.scores:
                raise RunError(
                    f"perturbation {parents[0]} is in the run already: derive one from it"
                )
            own, how = [arms[number] for number in parents], DERIVED
        file = _kept(part, self.tensors)
        if before := [p.id for p in self.perturbation_rows(derived=None) if p.file == file]:
            return before
        sizes = effects(work.lm, work.asked, part)
        return fill.add_set(self, own, file, part, sizes, parents=parents, how=how)

    def fill(self) -> Run:
        """Write and score what was asked for and is missing."""
        with self._working() as work:
            fill.fill(work)
        return self

    def invert(self, *numbers: int, settings: Inversion | None = None) -> list[Reachability]:
        """Search for texts that do what perturbations do, beside controls; keep what comes of it.

        Args:
            numbers: The perturbations.
            settings: How (see `educe.inversion.report.Settings`).

        Raises:
            RunError: There is no such perturbation, or the model is not the run's.

        Example:
            >>> from educe.inversion.report import Settings
            >>> made = educe.discover(folder / "i", lm, prompts, n=2, radius=2.0, max_new_tokens=4)
            >>> quick = Settings(tokens=2, budget=20, answer=1, searched=1, fresh=2, controls=1)
            >>> (report,) = made.invert(1, settings=quick)
            >>> [test.aim for test in report.tests]
            ['source', 'output']
        """
        fill.check_known(self, numbers, derived=None)
        return invert_run(self, numbers, lm=self.lm, settings=settings)

    def report(self, path: str | Path) -> Path:
        """Write the page of the run, one HTML file, and return where it is.

        Raises:
            RunError: The file cannot be written.
        """
        from educe.report import page  # its charts are loaded when they are drawn

        return page.write(self, Path(path))

    def summary(self) -> Summary:
        """Return every number that the page shows."""
        return summarise(self)

    def __repr__(self) -> str:
        return f"Run({self.folder}: {_headline(self.summary())})"

    def _repr_html_(self) -> str:
        table = self.behaviours.to_html(index=False, float_format="{:.3g}".format)
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @contextmanager
    def _working(self) -> Iterator[Work]:
        with at_work(self, self.lm, Warns()) as work:
            self.lm = work.lm
            yield work


def discover(
    folder: str | Path,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    fresh: Sequence[Prompt] = (),
    reporter: Reporter | None = None,
    **options: Any,
) -> Run:
    """Search, write, compare, re-test: the whole job, kept in a folder; return the finished run.

    Called again with the same arguments, it goes on where it stopped.

    Args:
        folder: Of the run.
        lm: The model.
        prompts: What it is asked: texts, or lists of messages.
        fresh: Prompts for the re-test, which the search has not seen.
        reporter: Is told of the progress (see `educe.progress`).
        options: What else can be asked for, by the names of `educe.run.settings.Settings`:
            ``method``, ``n``, ``radius``, ``source``, ``target``, ``seed`` and so on.

    Raises:
        ModelError: The model is not loaded.
        PromptError: A prompt is none.
        MethodError: An option is unknown, or a value makes no sense.
        RadiusError: The radius cannot be read.
        RunError: The folder holds another run, or something else.

    Example:
        >>> asked = {"method": "dct", "n": 2, "radius": 2.0, "max_new_tokens": 4}
        >>> run = educe.discover(folder / "one", lm, prompts, **asked)
        >>> run
        Run(...one: 2 perturbations at one radius, and as many in the control; ...)
        >>> run.close()
    """
    check_prompts(prompt=prompts, fresh_prompt=fresh)
    known = [f.name for f in fields(Settings) if f.name not in SAID]
    if unknown := [name for name in options if name not in known]:
        raise MethodError(f"discover has no option {unknown[0]!r}; its options: {', '.join(known)}")
    if "radius" in options:
        options["radius"] = str(options["radius"])
    settings = Settings(
        prompts=tuple(prompts),
        fresh=tuple(fresh),
        model=loaded(lm).name,
        adapter=lm.adapter,
        revision=lm.revision,
        **options,
    )
    with begin(folder, settings, resume=True) as begun:
        discover_behaviours(begun, lm=lm, reporter=reporter or Warns())
    run = Run.open(folder)
    run.lm = lm
    return run


def _headline(s: Summary) -> str:
    """Say what a run found, against its control."""
    if not s.found:
        return "no perturbations yet"
    clear = [b for b in s.behaviours if b.verdict in list(Verdict)[:2]]
    said = [counted(s.found, s.control)]
    if not clear:
        said.append(f"none of {len(s.behaviours)} behaviours stands out from the control")
    else:
        best = clear[0]
        said.append(f"{len(clear)} of {len(s.behaviours)} behaviours stand out from the control")
        told = " ".join(best.words) or best.example.text
        said.append(f"first {told!r}: found {best.found}, control {best.control}")
        if best.retest.trials:
            said.append(f"re-test: found {best.retest}, control {best.retest_control} answers")
    return "; ".join(said)


def _kept(made: PerturbationSet, folder: Path) -> str:
    """Keep a set in a folder; return the name of its file, which is that of its content."""
    scratch = folder / ".added.safetensors"
    made.save(scratch)
    tensors, header = files.read_tensors(scratch)
    content = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        content.update(name.encode() + values.numpy().tobytes())
    return scratch.rename(folder / f"added-{content.hexdigest()[:10]}.safetensors").name


def _joined(parts: Sequence[PerturbationSet]) -> PerturbationSet | PerturbationGroup:
    """Return sets as one, where they are of one kind."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any((p.kind, p.method) != (first.kind, first.method) for p in parts):
        return PerturbationGroup(tuple(parts))
    names = [name for name in first.scores if all(name in p.scores for p in parts)]
    outputs = [p.outputs for p in parts if p.outputs is not None]
    return replace(
        first,
        directions=torch.cat([p.directions for p in parts]),
        radius=torch.cat([p.radius for p in parts]),
        outputs=torch.cat(outputs) if len(outputs) == len(parts) else None,
        scores={name: torch.cat([p.scores[name] for p in parts]) for name in names},
    )
