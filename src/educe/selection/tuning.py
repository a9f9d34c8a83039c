"""Tuning: which settings to search with, by Thompson sampling with a budget of completions.

    settings (method, source, radius, sign) → two bandits of the same arms and the same budget:
    one pulls perturbations that the method found, the other their matched random control
    → the best setting of each, with perturbations, prompts and samples of its own, tested again

A pull is one completion: of one of a few perturbations of the setting, for one of the prompts. They
are made when the setting is first pulled and kept. Methods that hold both signs of a vector, or
have none, are not tried with the other sign.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from educe import methods
from educe.comparison.bandit import Setting, Thompson
from educe.comparison.stats import Rate, more_often, rate
from educe.errors import MethodError, RadiusError, RunError
from educe.forward.slice import Slice
from educe.methods import radius
from educe.model.language import LanguageModel
from educe.options import ALONE, Count, SpreadOptions
from educe.perturbation.set import PerturbationSet
from educe.progress import Reporter
from educe.rows import ARMS, RETEST, RUNG, Phase, Row
from educe.run.asking import RETEST_TEMPERATURE
from educe.run.fill import add_set, write
from educe.run.schema import renamed
from educe.run.settings import Settings, encoded
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.selection.proxy import Proxy, secrets
from educe.whole import check_fields

#: Methods whose perturbations come in both signs already, or as often in one as in the other.
SIGNLESS = ("dct-linear", "dct-quadratic", "power", "noise", "random")
#: Arms pulled in a round by each bandit, and written together.
ROUND = 8
#: Prompts of the proxy task, and of its re-test; and how many of them a method searches on.
SECRETS, SEARCHED = 12, 3

#: What a run keeps the settings of its tuning under, and how a vector of the other sign is derived.
NOTE, FLIPPED = "tuning", "flipped"


@dataclass(frozen=True)
class Tuning:
    """What is asked for.

    Attributes:
        job: Of this: the model, prompts and fresh prompts, target, positions, read-out, texts'
            length, pattern looked for and seed. With a proxy, prompts and pattern are the proxy's.
        proxy: How the secrets of the proxy task are written, or none for the task of the job.
        methods: Of the settings.
        sources: Layers or fractions of the depth.
        radii: As `educe.methods.radius.parse` reads them, each by itself.
        signs: Whether settings are tried with the other sign as well.
        n: Perturbations of each setting.
        pulls: Completions of each bandit, a multiple of `ROUND`.
        retest: Completions of each re-test.
    """

    job: Settings
    proxy: Literal["plain", "base64"] | None = None
    methods: tuple[str, ...] = ("dct", "power")
    sources: tuple[float, ...] = (0.2, 0.33, 0.5)
    radii: tuple[str, ...] = ("0.3x", "0.5x", "0.75x")
    signs: Literal["both", "one"] = "both"
    n: Count = 8
    pulls: Count = 240
    retest: Count = 64

    @property
    def settings(self) -> list[Setting]:
        """The arms."""
        return [
            Setting(method, source, size, sign)
            for method in self.methods
            for source in self.sources
            for size in self.radii
            for sign in ((1, -1) if self.signs == "both" and method not in SIGNLESS else (1,))
        ]

    def proxies(self) -> list[Proxy]:
        """Return the prompts of the proxy task and of its re-test, with their rules."""
        if self.proxy is None:
            return []
        seed, form = self.job.seed, self.proxy
        return [
            *secrets(SECRETS, seed=seed, form=form),
            *secrets(SECRETS, seed=seed, form=form, split="fresh"),
        ]

    @property
    def task(self) -> Settings:
        """The job with its prompts: those of the proxy task, if there is one."""
        if self.proxy is None:
            return self.job
        prompts = [one.prompt for one in self.proxies()]
        return replace(self.job, prompts=tuple(prompts[:SECRETS]), fresh=tuple(prompts[SECRETS:]))

    def check(self) -> None:
        """Find what cannot work before anything slow begins.

        Raises:
            MethodError: A method is unknown, or numbers make no sense.
            RadiusError: A radius cannot be read.
            PromptError: There is no prompt.
        """
        check_fields(self)
        check_fields(self.job)
        if self.proxy is None:
            self.job.check()
            if self.job.look_for is None:
                raise MethodError("tuning needs a reward: give --look-for, or --proxy")
        else:
            if self.job.prompts or self.job.look_for:
                raise MethodError("the proxy task has its own prompts and rule: give no others")
            secrets(0, form=self.proxy)
        for method in self.methods:
            methods.named(method)
            if method == "random":
                raise MethodError("random is the control of every tuning: leave it out")
        for word in self.radii:
            if word == "auto":
                raise RadiusError("radius 'auto' is several: name each, as 0.3x,0.5x")
            radius.read(word)
        if not self.settings:
            raise MethodError("tuning needs at least one method, one source and one radius")
        if self.pulls % ROUND:
            raise MethodError(f"pulls is {self.pulls}: give a multiple of {ROUND}")


class Tried(NamedTuple):
    """A setting, and what a bandit knows of it."""

    setting: Setting
    hits: int
    pulls: int
    mean: float  #: of the posterior
    low: float  #: 2.5% quantile
    high: float  #: 97.5% quantile


class Tuned(NamedTuple):
    """What a tuning found."""

    found: tuple[Tried, ...]  #: best first
    control: tuple[Tried, ...]
    again: tuple[Rate, Rate]  #: the best of each, on fresh perturbations and samples
    p_again: float  #: Fisher's test of these
    files: tuple[Path, Path]  #: perturbations and control of the best setting of the found arm
    texts: int  #: kept, so paid


def begin_tuning(folder: str | Path, tuning: Tuning, *, resume: bool = False) -> Run:
    """Open the run that keeps a tuning, a new one or one to go on with.

    Raises:
        RunError: The folder holds something else.
    """
    tuning.check()
    folder = Path(folder)
    if not (resume and (folder / "run.sqlite").exists()):
        run = Run.create(folder, asdict(tuning.task))
        run.remember(NOTE, asdict(tuning))
        return run
    run = Run.open(folder)
    if not run.has(NOTE) or stored_tuning(run) != tuning:
        run.close()
        raise RunError(f"{folder} holds something with other settings: choose another --out")
    return run


def stored_tuning(run: Run) -> Tuning:
    """Return the settings of a tuning."""

    def tupled(fields: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}

    config = tupled(run.note(NOTE))
    return Tuning(**config | {"job": Settings(**tupled(renamed(config["job"])))})


def tune(
    run: Run,
    *,
    lm: LanguageModel | None = None,
    reporter: Reporter | None = None,
    spread: SpreadOptions = ALONE,
) -> Tuned:
    """Do what is missing in a tuning.

    Args:
        run: From `begin_tuning`.
        lm: The model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who writes.

    Raises:
        RunError: Another process is at work on it, or its model is another now.
    """
    with at_work(run, lm, reporter, spread) as work:
        return _Tuning(work).all()


class _Tuning:
    """The rounds and the re-test. Bandits follow from what was written, and that is kept."""

    def __init__(self, work: Work) -> None:
        self.work, self.run = work, work.run
        self.tuning = stored_tuning(work.run)
        s = work.settings
        self.asked = work.prompts("asked")
        self.fresh = work.prompts("fresh") or self.asked
        known = self.tuning.proxies()
        self.rules = {
            p.id: next((one.rule for one in known if one.prompt == p.content), s.look_for or "")
            for p in work.run.prompt_rows()
        }
        few = s.prompts[:SEARCHED] if self.tuning.proxy else s.prompts
        self.searched = encoded(work.lm, s, few)
        self.parts: dict[float, Slice] = {}
        for source in self.tuning.sources:  # one that does not fit, before anything is paid
            self._part(source)

    def all(self) -> Tuned:
        """Pull, and test the best again."""
        settings, seed = self.tuning.settings, self.tuning.job.seed
        bandits = {arm: Thompson(settings, 2 * seed + i) for i, arm in enumerate(ARMS)}
        with self.work.reporter.stage("pulling", 2 * self.tuning.pulls, "texts") as step:
            for _ in range(self.tuning.pulls // ROUND):
                self._round(bandits, step)
        best = {arm: bandit.ranked()[0] for arm, bandit in bandits.items()}
        first, second = (self._again(arm, k) for arm, k in best.items())
        for arm in ARMS:  # the control of the best need not have been pulled
            self._numbers(arm, best["found"])
        files = [self._file(arm, best["found"]) for arm in ARMS]
        return Tuned(
            _tried(bandits["found"]),
            _tried(bandits["control"]),
            (first, second),
            more_often(first, second),
            (files[0], files[1]),
            self.run.texts_kept(),
        )

    def _round(self, bandits: dict[str, Thompson], step: Callable[..., None]) -> None:
        pulled: list[tuple[Thompson, int, Row]] = []
        for arm, bandit in bandits.items():
            seen = bandit.pulls.copy()
            for k in bandit.choose(ROUND):
                if not seen[k] and not self._file(arm, k).exists():
                    step(0, f"{arm}: {self.tuning.settings[k]}")
                numbers, seed = self._numbers(arm, k), [self.tuning.job.seed, k]
                pulled.append((bandit, k, _pair(numbers, self.asked, int(seen[k]), seed, RUNG)))
                seen[k] += 1
        hits = self._hits([row for _, _, row in pulled])
        for bandit, k, row in pulled:
            bandit.update(k, hits[row])
        step(len(pulled))

    def _again(self, arm: str, k: int) -> Rate:
        numbers, seed = self._numbers(arm, k, again=True), [self.tuning.job.seed, k, 1]
        rows = [_pair(numbers, self.fresh, i, seed, RETEST) for i in range(self.tuning.retest)]
        with self.work.reporter.stage(f"re-test of {arm}", len(rows), "texts") as step:
            hits = self._hits(rows)
            step(len(rows))
        return rate(sum(hits.values()), len(rows))

    def _hits(self, rows: list[Row]) -> dict[Row, bool]:
        self.run.ask(rows, self.work.settings.temperature or RETEST_TEMPERATURE)
        write(self.work)
        texts = {c.row: c.text for c in self.run.completion_rows()}
        return {row: bool(re.search(self.rules[row.prompt], texts[row])) for row in rows}

    # -- the perturbations -------------------------------------------------------------------

    def _file(self, arm: str, k: int, *, again: bool = False) -> Path:
        return self.run.tensors / f"{arm}-{k}{'-again' if again else ''}.safetensors"

    def _numbers(self, arm: str, k: int, *, again: bool = False) -> list[int]:
        """Return the numbers of a setting's perturbations; makes them when there are none."""
        file, plain = self._file(arm, k, again=again).name, self._plain(k)
        if listed := [p.id for p in self.run.perturbation_rows(derived=None) if p.file == file]:
            return listed
        made = self._made(arm, k, again=again)
        effect = made.scores["effect"].tolist()
        if k == plain:
            return add_set(self.run, arm, file, made, effect)
        parents = self._numbers(arm, plain, again=again)
        return add_set(self.run, arm, file, made, effect, parents=parents, how=FLIPPED)

    def _plain(self, k: int) -> int:
        """Return the setting with the sign that was searched for."""
        settings = self.tuning.settings
        return settings.index(settings[k]._replace(sign=1))

    def _made(self, arm: str, k: int, *, again: bool) -> PerturbationSet:
        path = self._file(arm, k, again=again)
        if not path.exists():
            self._make(arm, k, again=again).save(path)
        return PerturbationSet.load(path)

    def _make(self, arm: str, k: int, *, again: bool) -> PerturbationSet:
        setting, plain = self.tuning.settings[k], self._plain(k)
        part = self._part(setting.source)
        if k != plain:
            made = self._made(arm, plain, again=again)
            turned = replace(made, directions=made.kind.scaled(made.directions, -1.0), outputs=None)
            effect = part.on(made.kind).effect(turned.theta.to(part.start.device))
            return replace(turned, scores={"effect": effect.norm(dim=1).float().cpu()})
        # Of its own for each setting, each arm, and the re-test.
        seed = 4 * (1000 * self.tuning.job.seed + k) + 2 * again + (arm == "control")
        if arm == "control":
            return methods.control(part, self._made("found", k, again=again), seed=seed)
        config, n = methods.named(setting.method).config(), self.tuning.n
        size = self._radius(setting, part, config)
        return methods.search(part, setting.method, n=n, radius=size, seed=seed, config=config)

    def _part(self, source: float) -> Slice:
        if source not in self.parts:
            job = self.tuning.job
            self.parts[source] = Slice(
                self.work.lm,
                self.searched,
                source=source,
                target=job.target,  # type: ignore[arg-type]
                positions=job.positions,
                readout=job.readout,
            )
        return self.parts[source]

    def _radius(self, setting: Setting, part: Slice, config: Any) -> float:
        _, (share,) = radius.read(setting.radius)
        if "x" not in setting.radius:
            return share * (part.unit if "d" in setting.radius else 1.0)
        drawn = radius.DIRECTIONS  # noise has a seed for each of those that calibration draws
        own = methods.prepared(part, setting.method, n=drawn, config=config)
        key = f"calibrated {own.kind.name} {own.source}"
        if not self.run.has(key):
            self.run.remember(key, radius.calibrate(own, seed=self.tuning.job.seed).radius)
        return share * float(self.run.note(key))


def _pair(numbers: list[int], prompts: list[int], pull: int, seed: list[int], phase: Phase) -> Row:
    """Return the row of a pull: each perturbation and prompt once, shuffled, then once more."""
    again, at = divmod(pull, len(numbers) * len(prompts))
    order = np.random.default_rng([*seed, again]).permutation(len(numbers) * len(prompts))
    i, j = divmod(int(order[at]), len(prompts))
    return Row(numbers[i], prompts[j], again, phase)


def _tried(bandit: Thompson) -> tuple[Tried, ...]:
    hits, pulls, mean = bandit.hits.tolist(), bandit.pulls.tolist(), bandit.mean.tolist()
    ends = bandit.interval().tolist()
    return tuple(
        Tried(bandit.arms[k], hits[k], pulls[k], mean[k], *ends[k]) for k in bandit.ranked()
    )
