"""The main job: prompts in, behaviours out, every step kept in a run.

    prompts → slice → radii → discover, and as many random directions at each radius
            → what each makes the model write → judge → group → re-test → responses

Each stage asks the run what is missing and does that, so running it again goes on where it stopped.
The matched control goes through every stage, the selection for the re-test among them.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from educe import beside, discover, embedded, files, radius
from educe.atlas import ATLAS, CHEAP, choose, promising, surveyed, thinned
from educe.cluster import assign, clusters, plane
from educe.discover.state import Progress, State
from educe.errors import MethodError, PromptError, RunError
from educe.judge.coherence import coherence, ordinary_logprob
from educe.judge.constancy import constancy
from educe.judge.novelty import novelty
from educe.judge.reading import read
from educe.judge.side_effect import side_effects
from educe.kinds import Row, Within
from educe.manifold import inside
from educe.model import LanguageModel, Prompt, PromptBatch, load
from educe.ordinary import ordinary_prompts
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.runs import CompletionRow, PerturbationRow, PromptRow, Run, ScoreRow
from educe.slice import Slice
from educe.summary import RETEST, Summary, summarise
from educe.writing import as_completion, groups, write

#: Perturbations of each arm that are re-tested and whose side effect is measured.
CHOSEN = 8
#: Temperature of the unperturbed model's samples, and of fresh samples in the re-test.
BASELINE_TEMPERATURE, RETEST_TEMPERATURE = 1.0, 0.7
#: Samples a prompt: of the unperturbed model, and of the re-test where no fresh prompt is given.
BASELINE_SAMPLES, RETEST_SAMPLES = 8, 4
#: Response curves: how many of each arm, and the radii as shares of the largest searched.
CURVES, CURVE_SHARES = 6, (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
#: The subspace of a search inside one.
WITHIN = "within.safetensors"
#: Seconds between two saves of a method that is still searching.
SAVE_EVERY = 5.0


@dataclass(frozen=True)
class Settings:
    """What is asked for. Layers are an index, a negative index or a fraction of the depth.

    Attributes:
        prompts: What the model is asked, as texts or lists of messages.
        model: See `educe.load`.
        adapter: See `educe.load`.
        revision: See `educe.load`.
        dtype: See `educe.load`.
        device: See `educe.load`.
        device_map: See `educe.load`.
        method: One of `educe.discover.METHODS`.
        method_settings: Settings of the method by name, where they are not its defaults.
        given: A file of perturbations to put through the job instead of searching; it says source,
            positions and radii.
        control: A file of perturbations that are the control; by default, matched random ones.
        within: The subspace that vectors are searched in, as ``[SOURCE:]RANK`` (see
            `educe.manifold.inside`); by default the whole stream.
        ball: What their coefficients are measured by there: plain, or whitened.
        quiet: Weight of other prompts, on which the search keeps the model as it is (see
            `educe.beside`).
        quiet_by: What is kept small on them.
        ordinary: The other prompts: ``bundled``, or a file.
        n: Perturbations at each radius.
        source: Layer after which they are added; ``auto`` chooses it from an atlas.
        target: Layer at which their effect is read; ``auto`` likewise.
        positions: Tokens they are added to.
        readout: Prompt tokens over which the effect is averaged.
        radius: ``auto``, numbers, or shares of the calibrated radius (``0.3x``).
        samples: Completions a perturbation and prompt; more than one needs a temperature.
        temperature: 0 for the most likely token.
        max_new_tokens: The most tokens a completion has.
        seed: Of everything that is drawn.
        fresh: Prompts for the re-test that the search has not seen.
        look_for: A regular expression that is counted in the end; it takes no part in the search.
        prefill: First words of every answer.
        chat: Whether texts go through the chat template; by default, when there is one.
        enable_thinking: For chat templates that know it.
    """

    prompts: tuple[Prompt, ...]
    model: str = "embedded"
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    method: str = "dct"
    method_settings: dict[str, Any] = field(default_factory=dict)
    given: str | None = None
    control: str | None = None
    within: str | None = None
    ball: Literal["plain", "whitened"] = "plain"
    quiet: float = 0.0
    quiet_by: beside.By = "effect"
    ordinary: str = beside.BUNDLED
    n: int = 64
    source: int | float | Literal["auto"] = 0.33
    target: int | float | Literal["auto"] = 0.6
    positions: str = "all"
    readout: str = "last:3"
    radius: str = "auto"
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 32
    seed: int = 0
    fresh: tuple[Prompt, ...] = ()
    look_for: str | None = None
    prefill: str = ""
    chat: bool | None = None
    enable_thinking: bool | None = None

    def check(self) -> None:
        """Find what cannot work before anything slow begins.

        Raises:
            PromptError: There is no prompt.
            MethodError: The method or a setting of it is unknown, or numbers make no sense.
            FileFormatError: The perturbations given cannot be read.
        """
        if not self.prompts:
            raise PromptError("no prompt: give at least one, or a file with --prompts")
        discover.configured(self.method, self.method_settings)
        if self.control and not self.given:
            raise MethodError("a control is given for perturbations that are given, not searched")
        if self.within:
            inside.parse(self.within)
            if self.given:
                raise MethodError("perturbations that are given are not searched: leave within out")
        elif self.ball != "plain":
            raise MethodError("a whitened ball needs a subspace: say within which")
        needed = discover.quietly(self.method, self.quiet)
        if needed and self.given:
            raise MethodError("perturbations that are given are not searched: leave quiet out")
        if needed:
            beside.other_prompts(self.ordinary)
        elif self.ordinary != beside.BUNDLED:
            raise MethodError("ordinary prompts have no weight here: say how much with quiet")
        for file in filter(None, (self.given, self.control)):
            PerturbationSet.load(file)
        if min(self.n, self.samples, self.max_new_tokens) < 1:
            raise MethodError("n, samples and max-new-tokens must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise MethodError(f"temperature {self.temperature}: give 0 or a number above it")
        if self.samples > 1 and self.temperature == 0:
            raise MethodError(
                "several samples at temperature 0 are all the same: give a temperature"
            )
        try:
            re.compile(self.look_for or "")
        except re.error as error:
            raise MethodError(
                f"look-for {self.look_for!r} is no regular expression: {error}"
            ) from error


def begin(folder: str | Path, settings: Settings, *, resume: bool = False) -> Run:
    """Open the run for these settings, a new one or one to go on with.

    Raises:
        RunError: The folder holds another run.
    """
    settings.check()
    folder = Path(folder)
    if not (resume and (folder / "run.sqlite").exists()):
        return Run.create(folder, asdict(settings))
    run = Run.open(folder)
    if stored(run) != settings:
        run.close()
        raise RunError(
            f"{folder} holds a run with other settings: resume it without any, or choose another "
            "--out"
        )
    return run


def stored(run: Run) -> Settings:
    """Return the settings of a run."""
    config = run.config
    for name in ("prompts", "fresh"):
        config[name] = tuple(config[name])
    return Settings(**config)


def loaded(s: Settings, say: Callable[[str], None]) -> LanguageModel:
    """Load the model of some settings."""
    return load(
        s.model,
        adapter=s.adapter,
        revision=s.revision,
        dtype=s.dtype,
        device=s.device,
        device_map=s.device_map,
        progress=say,
    )


def encoded(lm: LanguageModel, s: Settings, prompts: Sequence[Prompt]) -> PromptBatch:
    """Turn prompts into what the model reads, as some settings have it."""
    return lm.encode(
        prompts,
        prefill=s.prefill,
        chat=s.chat,
        enable_thinking=s.enable_thinking,
        room=s.max_new_tokens,
    )


def discover_behaviours(
    run: Run, *, lm: LanguageModel | None = None, reporter: Any = None
) -> Summary:
    """Do what is missing in a run.

    Args:
        run: The run, from `begin`.
        lm: The model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        RunError: Another process is at work on the run.
    """
    try:
        with FileLock(run.folder / ".lock", timeout=0):
            own = (run.folder.glob(f".{file}.*") for file in (ATLAS, WITHIN))
            left = (*run.tensors.glob(".*"), *chain.from_iterable(own))
            for scratch in left:  # by a process that was killed while it wrote
                scratch.unlink()
            _Job(run, lm, reporter or Silent()).all()
    except Timeout:
        raise RunError(f"another process is at work on {run.folder}: wait for it") from None
    return summarise(run)


class _Job:
    """The stages, in order; each leaves what it did in the run."""

    def __init__(self, run: Run, lm: LanguageModel | None, reporter: Any) -> None:
        self.run, self.reporter = run, reporter
        self.settings = stored(run)
        given = self.settings.given
        self.given = PerturbationSet.load(given) if given else None
        self.seconds: dict[str, float] = run.note("seconds") if run.has("seconds") else {}
        with self._timed("load"):
            self.lm = lm or loaded(self.settings, self.reporter.say)
        self.asked = encoded(self.lm, self.settings, self.settings.prompts)
        everything = (*self.settings.prompts, *self.settings.fresh)
        self.batch = encoded(self.lm, self.settings, everything)
        run.add_prompts(
            [
                PromptRow(i, "asked" if i < len(self.asked) else "fresh", prompt, text, length)
                for i, (prompt, text, length) in enumerate(
                    zip(everything, self.batch.texts, self.batch.lengths, strict=True)
                )
            ]
        )

    def all(self) -> None:
        """Run every stage."""
        self.run.event("begun")
        with self._timed("slice"):
            positions = self.settings.positions
            if self.given is not None:
                self.given.check(self.lm)
                positions = self.given.kind.positions
            source, target = self._layers(positions)
            self.part = Slice(
                self.lm,
                self.asked,
                source=source,
                target=target,
                positions=positions,
                readout=self.settings.readout,
            )
            self._inside()
            self._beside()
        self._facts()
        with self._timed("discover"):
            self._discover()
        self._write("baseline", self._baseline_rows())
        self._write("completions", self._main_rows())
        if not self.run.has("chosen"):
            self._judge()
        chosen = self._chosen()
        self._write("re-test", self._retest_rows(chosen))
        self._judge()
        self._side_effects(chosen)
        self._responses()
        self.run.remember("seconds", self.seconds)
        self.run.remember("facts", {**self.run.note("facts"), "seconds": self.seconds})
        self.run.event("done")

    # -- before the search -------------------------------------------------------------------

    def _layers(self, positions: str) -> tuple[float, float]:
        """Return source and target; those that are ``auto`` are chosen from an atlas."""
        s = self.settings
        source = s.source if self.given is None else self.given.kind.before
        known = {
            end: self.lm.layer(layer)
            for end, layer in (("source", source), ("target", s.target))
            if not isinstance(layer, str)
        }
        if len(known) == 2:
            return known["source"], known["target"]
        if not self.run.has("layers"):
            pairs = thinned(promising(self.lm.depth, **known))
            config = replace(CHEAP, positions=positions, readout=s.readout, seed=s.seed)
            path = self.run.folder / ATLAS
            atlas = surveyed(self.lm, self.asked, pairs, config, path, self.reporter)
            self.run.remember("layers", choose(atlas, **known)._asdict())
        layers = self.run.note("layers")
        return layers["source"], layers["target"]

    def _inside(self) -> None:
        """Restrict the search to the subspace that was asked for; computed once, and kept."""
        s = self.settings
        if not s.within:
            return
        path = self.run.folder / WITHIN
        if not path.exists():
            subspace = inside.described(
                self.lm, self.asked, self.part.source, s.within, seed=s.seed, reporter=self.reporter
            )
            kind = inside.within(subspace, self.part.source, ball=s.ball)
            files.write_tensors(path, {"rows": kind.rows}, {})
        rows = files.read_tensors(path)[0]["rows"]
        self.part = self.part.on(Within(self.part.source, rows, self.part.positions))

    def _beside(self) -> None:
        """Put the other prompts beside the slice that the search is to keep as they are."""
        s = self.settings
        if discover.quietly(s.method, s.quiet):
            if not self.run.has("beside"):  # a file can change
                self.run.remember("beside", list(beside.other_prompts(s.ordinary, seed=s.seed)))
            others = encoded(self.lm, s, self.run.note("beside"))
            self.part = beside.with_others(self.part, others, weight=s.quiet, by=s.quiet_by)

    def _facts(self) -> None:
        if self.run.has("facts"):
            return
        s, found = self.settings, None
        if self.given is not None:
            part, radii = self.part.on(self.given.kind), sorted(set(self.given.radius.tolist()))
        else:
            n, config = radius.DIRECTIONS, self._config()
            part = discover.prepared(self.part, s.method, n=n, config=config)
            with self._timed("calibrate"), self.reporter.stage("calibrating", 1, "") as step:
                asked = discover.named(s.method).radii if s.radius == "auto" else s.radius
                radii, found = radius.parse(asked, part, seed=s.seed)
                step()
        self.run.remember(
            "facts",
            {
                "model": embedded.NAME if self.lm.name == "embedded" else self.lm.name,
                "adapter": self.lm.adapter,
                "revision": self.lm.revision,
                "dtype": str(self.lm.dtype).removeprefix("torch."),
                "device": str(self.lm.device),
                "threads": torch.get_num_threads(),
                "depth": self.lm.depth,
                "width": self.lm.width,
                "source": self.part.source,
                "target": self.part.target,
                "mean_norm": self.part.mean_norm,
                "method": s.method if self.given is None else self.given.method,
                "positions": self.part.positions,
                "kind": part.kind.name,
                "why": self.run.note("layers")["why"] if self.run.has("layers") else None,
                "unit": part.unit,
                "calibrated_radius": found.radius if found else None,
                "calibrated_dose": found.dose if found else None,
                "radii": radii,
                "seconds": {},
                **{name: version(name) for name in ("educe", "torch", "transformers")},
            },
        )

    # -- the search --------------------------------------------------------------------------

    def _config(self) -> Any:
        return discover.configured(self.settings.method, self.settings.method_settings)

    def _discover(self) -> None:
        listed = {p.file for p in self.run.perturbations()}
        for k, size in enumerate(self.run.note("facts")["radii"]):
            for arm in ("found", "control"):
                name = f"{arm}-{k}.safetensors"
                if name not in listed:
                    path = self.run.tensors / name
                    if not path.exists():
                        # The control draws from its own seed; each radius as well.
                        seed = 2 * (1000 * self.settings.seed + k) + (arm == "control")
                        made = (
                            self._found(path, size, seed)
                            if arm == "found"
                            else self._control(self.run.tensors / f"found-{k}.safetensors", seed)
                        )
                        made.save(path)
                    path.with_suffix(".state").unlink(missing_ok=True)
                    self._list(arm, name, PerturbationSet.load(path))

    def _control(self, found: Path, seed: int) -> PerturbationSet:
        if self.settings.control:
            radii = PerturbationSet.load(found).radius
            return self._measured(PerturbationSet.load(self.settings.control), float(radii[0]))
        with self.reporter.stage("random", 1, "") as step:
            made = discover.control(self.part, PerturbationSet.load(found), seed=seed)
            step()
        return made

    def _measured(self, given: PerturbationSet, size: float) -> PerturbationSet:
        """Return those of some given perturbations that have a radius, and their effect."""
        given.check(self.lm)
        some = given.select([i for i, r in enumerate(given.radius.tolist()) if r == size])
        if not len(some):
            raise MethodError(f"the control has no perturbation of radius {size:g}")
        effect = self.part.on(some.kind).effect(some.theta.to(self.part.start.device))
        return replace(some, scores={**some.scores, "effect": effect.norm(dim=1).float().cpu()})

    def _found(self, path: Path, size: float, seed: int) -> PerturbationSet:
        if self.given is not None:
            return self._measured(self.given, size)
        partial = path.with_suffix(".state")
        s, config = self.settings, self._config()
        steps = getattr(config, "iterations", getattr(config, "steps", 1))
        state = State(load_file(partial)) if partial.exists() else None
        dose = size / self.run.note("facts")["unit"]
        with self.reporter.stage(f"{s.method} at dose {dose:.2f}", steps, "") as step:
            step(len(state.get("curve", ())) if state is not None else 0)
            saved = time.monotonic()

            def on_step(now: State, progress: Progress) -> None:
                nonlocal saved
                reached = progress.objective
                step(note=f"objective {reached:.4g}" if reached is not None else "")
                # Not the last one: going on from it would be a step too many.
                due = not progress.done and time.monotonic() - saved > SAVE_EVERY
                if due:
                    files.write_tensors(partial, now, {})
                    saved = time.monotonic()

            return discover.search(
                self.part,
                s.method,
                n=s.n,
                radius=size,
                seed=seed,
                config=config,
                state=None
                if state is None
                else State({n: t.to(self.part.device) for n, t in state.items()}),
                on_step=on_step,
            )

    def _list(self, arm: str, name: str, made: PerturbationSet) -> None:
        first = len(self.run.perturbations()) + 1
        self.run.add_perturbations(
            [
                PerturbationRow(
                    first + i,
                    arm,
                    name,
                    i,
                    made.method,
                    float(made.radius[i]),
                    float(made.dose[i]),
                    float(made.scores["effect"][i]),
                )
                for i in range(len(made))
            ]
        )

    # -- what the model writes ---------------------------------------------------------------

    def _baseline_rows(self) -> dict[float, list[Row]]:
        prompts = range(len(self.batch))
        return {
            0.0: [Row(-1, j, 0) for j in prompts],
            BASELINE_TEMPERATURE: [
                Row(-1, j, k) for j in prompts for k in range(1, BASELINE_SAMPLES + 1)
            ],
        }

    def _main_rows(self) -> dict[float, list[Row]]:
        return {
            self.settings.temperature: [
                Row(p.id - 1, j, k)
                for p in self.run.perturbations()
                for j in range(len(self.asked))
                for k in range(self.settings.samples)
            ]
        }

    def _retest_rows(self, chosen: Iterable[int]) -> dict[float, list[Row]]:
        heat, samples = self.settings.temperature, 1
        prompts = range(len(self.asked), len(self.batch))
        if not prompts:  # no fresh prompts: fresh samples
            heat, samples = heat or RETEST_TEMPERATURE, RETEST_SAMPLES
            prompts = range(len(self.asked))
        return {
            heat: [
                Row(number - 1, j, RETEST + k)
                for number in chosen
                for j in prompts
                for k in range(samples)
            ]
        }

    def _write(self, what: str, rows: dict[float, list[Row]]) -> None:
        with self._timed("generate"):
            write(
                self.lm,
                self.batch,
                rows,
                of=self.run,
                into=self.run,
                before=self.part.source,
                max_new_tokens=self.settings.max_new_tokens,
                seed=self.settings.seed,
                reporter=self.reporter,
                what=what,
            )

    # -- judging -----------------------------------------------------------------------------

    def _judge(self) -> None:
        with self._timed("judge"):
            self._read()
            self._score()
            self._group()

    def _read(self) -> None:
        done = self.run.readings()
        missing = [as_completion(c) for c in self.run.completions() if c.key not in done]
        if not missing:
            return
        with self.reporter.stage("reading what was written", len(missing), "texts") as step:
            for batch in read(self.lm, self.batch, missing, layer=self.part.target):
                self.run.add_readings(
                    [(_key(r.completion.row), r.logprob, r.embedding) for r in batch]
                )
                step(len(batch))

    def _ordinary(self) -> float:
        if not self.run.has("ordinary_logprob"):
            value = ordinary_logprob(
                self.lm, max_new_tokens=self.settings.max_new_tokens, layer=self.part.target
            )
            self.run.remember("ordinary_logprob", value)
        return self.run.note("ordinary_logprob")

    def _score(self) -> None:
        ordinary = self._ordinary()
        readings, scores = self.run.readings(), []
        everything = self.run.completions()
        for prompt in range(len(self.batch)):
            texts = [c for c in everything if c.prompt == prompt]
            base = [c for c in texts if c.perturbation == 0]
            written = [c for c in texts if c.perturbation > 0]
            if not written:
                continue
            # Apart, so that the re-test cannot change what it was chosen by.
            for some in (
                [c for c in written if c.sample < RETEST],
                [c for c in written if c.sample >= RETEST],
            ):
                new = novelty([c.text for c in some], [c.text for c in base])
                for completion, novel in zip(some, new, strict=True):
                    fluent = coherence(completion.text, readings[completion.key][0], ordinary)
                    scores += [
                        ScoreRow(*completion.key, s.judge, s.value, s.why) for s in (fluent, novel)
                    ]
        if len(self.asked) > 1:
            scores += self._constancies(everything)
        self.run.add_scores(scores)

    def _constancies(self, everything: Sequence[CompletionRow]) -> list[ScoreRow]:
        """Score how alike the answers of each perturbation to the prompts asked are."""
        written: dict[int, list[CompletionRow]] = defaultdict(list)
        for c in everything:
            if c.perturbation > 0 and c.prompt < len(self.asked) and c.sample < RETEST:
                written[c.perturbation].append(c)
        each = {
            n: constancy([c.text for c in own], [c.prompt for c in own])
            for n, own in written.items()
        }
        return [ScoreRow(n, -1, -1, s.judge, s.value, s.why) for n, s in each.items()]

    def _group(self) -> None:
        readings = self.run.readings()
        everything = self.run.completions()
        asked = [c for c in everything if c.prompt < len(self.asked) and c.sample < RETEST]
        labels = clusters([c.text for c in asked])
        places = plane(np.stack([readings[c.key][1] for c in asked]))
        rows = [
            (c.key, int(label), float(x), float(y))
            for c, label, (x, y) in zip(asked, labels, places, strict=True)
        ]
        # The re-test joins the groups as they are.
        again = [c for c in everything if c.sample >= RETEST]
        nearest = assign([c.text for c in again], [c.text for c in asked])
        rows += [
            (c.key, rows[near][1] if near >= 0 else -1, *rows[near][2:])
            for c, near in zip(again, nearest.tolist(), strict=True)
        ]
        self.run.set_behaviours(rows)

    # -- the chosen --------------------------------------------------------------------------

    def _chosen(self) -> list[int]:
        """Return the most striking of each arm; fixed once made, so that a resumed run agrees.

        Where several prompts were asked, half of them are those that are striking and say the same
        whatever is asked: what is hidden behind a trigger need not be the most striking.
        """
        if not self.run.has("chosen"):
            seen = summarise(self.run)
            numbers: list[int] = []
            for arm in (seen.found, seen.control):
                first = arm[: CHOSEN // 2 if len(self.asked) > 1 else CHOSEN]
                others = sorted(arm[len(first) :], key=lambda i: -i.striking * (i.constancy or 0))
                numbers += [i.row.id for i in (*first, *others[: CHOSEN - len(first)])]
            self.run.remember("chosen", numbers)
        return self.run.note("chosen")

    def _side_effects(self, chosen: list[int]) -> None:
        done = {s.perturbation for s in self.run.scores("side_effect")}
        missing = [number for number in chosen if number not in done]
        if not missing or self.settings.positions == "generated":
            return
        batch = self.lm.encode(ordinary_prompts())
        with (
            self._timed("side effects"),
            self.reporter.stage("side effects", len(missing), "perturbations") as step,
        ):
            for group in groups(self.run, missing):
                each = side_effects(self.lm, batch, group.theta, kind=group.kind)
                for number, s in zip(group.numbers, each, strict=True):
                    self.run.add_scores([ScoreRow(number, -1, -1, s.judge, s.value, s.why)])
                    step()

    def _responses(self) -> None:
        if self.run.responses():
            return
        seen = summarise(self.run)
        wanted = [i.row.id for arm in (seen.found, seen.control) for i in arm[:CURVES]]
        arms = {p.id: p.arm for p in self.run.perturbations()}
        largest = {
            arm: max(p.radius for p in self.run.perturbations(arm)) for arm in ("found", "control")
        }
        points = []
        with self._timed("responses"), self.reporter.stage("response to radius", 1, "") as step:
            for group in groups(self.run, wanted):
                directions = group.directions.to(self.part.device, self.part.work_dtype)
                radii = [share * largest[arms[group.numbers[0]]] for share in CURVE_SHARES]
                sizes = radius.response(self.part.on(group.kind), directions, radii)
                points += [
                    (number, r, float(size))
                    for number, line in zip(group.numbers, sizes, strict=True)
                    for r, size in zip(radii, line, strict=True)
                    if torch.isfinite(size)
                ]
            step()
        self.run.add_responses(points)

    @contextmanager
    def _timed(self, what: str) -> Any:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - began


def _key(row: Row) -> tuple[int, int, int]:
    return row.perturbation + 1, row.prompt, row.sample
