"""Settings of the main job: what is asked for, kept in a run; the model and prompts it means.

What can be asked for is known without torch, so that the command line starts at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from educe.errors import MethodError, PromptError, RunError
from educe.model.prompts import Prompt, checked, well_formed
from educe.options import Count, LayerOrAuto, ModelOptions, N, Natural, NonNegative, Seed
from educe.run.schema import unreadable
from educe.run.store import Run
from educe.whole import check_fields

if TYPE_CHECKING:
    from educe.model.batch import PromptBatch
    from educe.model.language import LanguageModel

#: The note of a run that says which of its prompts count.
DISTINCT = "distinct"
#: About so many other requests are made, to see what is said whatever is asked.
ELSEWHERE_PROMPTS = 6
#: The retain prompts that come with the package (see `educe.methods.retain`).
BUNDLED = "bundled"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How to search, what to write, and how prompts are rendered.

    Attributes:
        method: how to search; educe methods lists them
        given: a file of perturbations to put through the job instead of searching, ours or another
            tool's (gguf, safetensors, pt, a PEFT folder, a sparse autoencoder; some rows as in
            FILE:3,17); it says source, positions and radii as far as it knows them
        control: a file of perturbations as the control of those given; by default random
        within: search inside a subspace: its rank, as in 64, of the activations on ordinary text;
            or prompts:16 of those on the prompts alone, FILE:64 on another text, balanced:64 of
            what is both present and used by later layers, random:64 for a control
        ball: what vectors of a subspace are measured by: plain, or whitened by how activations
            spread
        retain: keep the model as it is on retain prompts, with this weight; 1 weighs both alike at
            the start
        retain_by: what is kept small there: the effect, or kl of what the model says
        retain_prompts: a file of these prompts: ordinary ones as in Alpaca, or some that match
            those asked but have nothing to hide; by default bundled ordinary ones
        over: what the search makes large where there are several prompts: the mean effect; that on
            each, with an equal share of the perturbations; or the least
        n: perturbations at each radius, so that 16 with three radii are 48 in all; as many random
            ones are the control
        source: layer after which they are added: an index, a fraction of the depth, or auto
        target: layer at which their effect is read; auto chooses it from a layer map
        positions: tokens they are added to: all, prompt, asked, asked:k, last:k, at:k
        readout: prompt tokens at which the effect is read: last:k, asked, asked:k, all
        scout: choose source, positions and radius by so many random vectors at each of several,
            where they change answers without breaking them; 0 takes those that are given
        radius: auto (for vectors 0.3, 0.5 and 0.75 of the calibrated one), or 8.5, 0.3x of the
            calibrated one, 0.6d of the activations' norm; several with commas
        baseline: samples of the unperturbed model for each prompt, beside its likeliest answer
        samples: completions for each perturbation and prompt; several need a temperature
        temperature: 0 writes the most likely token
        max_new_tokens: the most tokens of a completion
        seed: of everything that is drawn, from 0 to 4294967295
        look_for: a regular expression to count in the end; it takes no part in the search
        prefill: the first words of every answer
        chat: put texts through the chat template; by default, when there is one
        enable_thinking: for chat templates that know it
    """

    method: str = "dct"
    given: str | None = None
    control: str | None = None
    within: str | None = None
    ball: Literal["plain", "whitened"] = "plain"
    retain: NonNegative = 0.0
    retain_by: Literal["effect", "kl"] = "effect"
    retain_prompts: str = BUNDLED
    over: Literal["mean", "each", "least"] = "mean"
    n: N = 64
    source: LayerOrAuto = 0.33
    target: LayerOrAuto = 0.6
    positions: str = "all"
    readout: str = "last:3"
    radius: str = "auto"
    scout: Natural = 0
    baseline: Count = 64
    samples: Count = 1
    temperature: NonNegative = 0.0
    max_new_tokens: Count = 32
    seed: Seed = 0
    look_for: str | None = None
    prefill: str = ""
    chat: bool | None = None
    enable_thinking: bool | None = None


@dataclass(frozen=True)
class Settings(JobOptions, ModelOptions):
    """What is asked for: the prompts, and `JobOptions` and `educe.options.ModelOptions`.

    Layers are an index, a negative index or a fraction of the depth.

    Example:
        ``Settings(("What is the code?",), model="Qwen/Qwen3-0.6B", method="melbo", n=16)``

    Attributes:
        prompts: What the model is asked, as texts or lists of messages.
        method_settings: Settings of the method by name, where they are not its defaults.
        fresh: Prompts for the re-test that the search has not seen.
    """

    prompts: tuple[Prompt, ...]
    method_settings: dict[str, Any] = field(default_factory=dict)
    fresh: tuple[Prompt, ...] = ()

    def check(self) -> None:
        """Find what cannot work before anything slow begins.

        Raises:
            PromptError: There is no prompt, or one is none (see `educe.model.prompts.checked`).
            MethodError: The method or a setting of it is unknown, or values make no sense.
            FileFormatError: The perturbations given cannot be read.
            RadiusError: The radius cannot be read.
        """
        from educe import methods
        from educe.activations import inside
        from educe.methods import radius, retain
        from educe.perturbation import foreign

        if not self.prompts:
            raise PromptError("no prompt: give at least one, or a file with --prompts")
        check_prompts(prompt=self.prompts, fresh_prompt=self.fresh)
        check_fields(self)
        well_formed(self.prefill, "the prefill")
        methods.configured(self.method, self.method_settings)
        if self.control and not self.given:
            raise MethodError("a control is given for perturbations that are given, not searched")
        if self.within:
            inside.parse(self.within)
            if self.given:
                raise MethodError("perturbations that are given are not searched: leave within out")
        elif self.ball != "plain":
            raise MethodError("a whitened ball needs a subspace: say within which")
        if self.scout:
            self._check_scouting()
        needed = methods.retains(self.method, self.retain)
        if needed and self.given:
            raise MethodError("perturbations that are given are not searched: leave retain out")
        if needed:
            retain.retain_prompts(self.retain_prompts)
        elif self.retain_prompts != BUNDLED:
            raise MethodError("retain prompts have no weight here: say how much with retain")
        for file in filter(None, (self.given, self.control)):
            foreign.check(file)
        radius.read(self.radius)
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

    def _check_scouting(self) -> None:
        if self.given:
            raise MethodError("perturbations that are given say where they act: leave scout out")
        if self.within:
            raise MethodError("a subspace belongs to one layer: leave scout or within out")
        chosen = {f.name: f.default for f in fields(JobOptions)}
        for name in ("source", "positions", "radius"):
            if getattr(self, name) != chosen[name]:
                raise MethodError(f"scouting chooses the {name} itself: leave scout or {name} out")
        if self.target == "auto":
            raise MethodError("scouting chooses the source alone: give a target, or leave it out")
        if self.method in ("cpe", "lora", "noise"):
            raise MethodError(
                f"scouting is with vectors, and {self.method} searches for others: leave scout out"
            )


def check_prompts(**sets: Sequence[Prompt]) -> None:
    """Find what is no prompt, without a model.

    Raises:
        PromptError: One is none (see `educe.model.prompts.checked`).
    """
    for what, prompts in sets.items():
        if isinstance(prompts, str):
            raise PromptError(f"{what}s are one text: give a list".replace("_", " "))
        for i, prompt in enumerate(prompts, 1):
            checked(prompt, f"{what.replace('_', ' ')} {i}")


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
    if _as_given(run) != settings:
        run.close()
        raise RunError(
            f"{folder} holds a run with other settings: resume it without any, or choose another "
            "--out"
        )
    return run


def stored(run: Run) -> Settings:
    """Return the settings of a run; of prompts that the model reads alike, one (`told_apart`)."""
    settings = _as_given(run)
    if not run.has(DISTINCT):
        return settings
    kept = run.note(DISTINCT)
    with _damage_told(run):
        return replace(
            settings,
            prompts=tuple(settings.prompts[i] for i in kept["asked"]),
            fresh=tuple(settings.fresh[i] for i in kept["fresh"]),
        )


def _as_given(run: Run) -> Settings:
    config = run.config
    with _damage_told(run):
        for name in ("prompts", "fresh"):
            config[name] = tuple(config[name])
        return Settings(**config)


@contextmanager
def _damage_told(run: Run) -> Iterator[None]:
    """Say in one sentence that settings are not what a run keeps."""
    try:
        yield
    except (LookupError, TypeError) as error:
        raise unreadable(run.folder / "run.sqlite", error) from error


def loaded(
    run: Run, s: Settings, say: Callable[[str], None], lm: LanguageModel | None = None
) -> LanguageModel:
    """Load the model of a run, or take one that is loaded, and make sure that it is the same.

    Raises:
        RunError: It is not the model that the run began with.
    """
    from educe.forward.generation import left_out
    from educe.model.loading import load
    from educe.run import same_model

    lm = lm or load(**s.how, progress=say)
    same_model.check(run, lm, say)
    for remark in (*left_out(lm), *lm.remarks):
        say(remark)
    return lm


class ToldApart(NamedTuple):
    """Prompts that differ as the model reads them, by their places, and what is said of others."""

    asked: list[int]
    fresh: list[int]  #: that are none of those asked, either
    said: list[str]


def told_apart(
    lm: LanguageModel,
    s: Settings,
    asked: Sequence[Prompt],
    fresh: Sequence[Prompt] = (),
    *,
    seen: Sequence[Prompt] = (),
) -> ToldApart:
    """Find the prompts that count: each once, and fresh ones if they are fresh to the model.

    Args:
        lm: The model.
        s: How prompts are rendered.
        asked: Prompts to search or choose on.
        fresh: Prompts to test on again.
        seen: Others that fresh ones are to differ from.

    Raises:
        PromptError: No fresh prompt is left.
    """
    from educe.model.once import distinct

    places, said = distinct("prompts", encoded(lm, s, asked))
    if not fresh:
        return ToldApart(places, [], said)
    others, more = distinct("fresh prompts", encoded(lm, s, fresh), encoded(lm, s, (*asked, *seen)))
    return ToldApart(places, others, said + more)


def other_requests(lm: LanguageModel, s: Settings) -> list[Prompt]:
    """Return bundled prompts that ask for something else than the run does."""
    from educe.forward.benign import ordinary_prompts
    from educe.model.once import distinct

    others = ordinary_prompts()
    places, _ = distinct("other requests", encoded(lm, s, others), encoded(lm, s, s.prompts))
    return [others[i] for i in places][:: len(others) // ELSEWHERE_PROMPTS]


def encoded(lm: LanguageModel, s: Settings, prompts: Sequence[Prompt]) -> PromptBatch:
    """Turn prompts into what the model reads, as some settings have it."""
    return lm.encode(
        prompts,
        prefill=s.prefill,
        chat=s.chat,
        enable_thinking=s.enable_thinking,
        room=s.max_new_tokens,
    )
