"""Settings of the main job: what is asked for, kept in a run; the model and prompts it means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from educe import beside, methods, radius
from educe.errors import MethodError, PromptError, RunError
from educe.forward.generation import left_out
from educe.loading import load
from educe.manifold import inside
from educe.model import LanguageModel
from educe.once import distinct
from educe.perturb import PerturbationSet
from educe.prompts import checked, well_formed
from educe.rendering import Prompt, PromptBatch
from educe.run import same_model
from educe.run.store import Run
from educe.whole import check_seed, check_whole

#: The note of a run that says which of its prompts count.
DISTINCT = "distinct"


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
        method: One of `educe.methods.METHODS`.
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
        n: Perturbations at each radius, not in all.
        source: Layer after which they are added; ``auto`` chooses it from an atlas.
        target: Layer at which their effect is read; ``auto`` likewise.
        positions: Tokens they are added to.
        readout: Prompt tokens over which the effect is averaged.
        radius: ``auto``, numbers, or shares of the calibrated radius (``0.3x``).
        samples: Completions a perturbation and prompt; more than one needs a temperature.
        temperature: 0 for the most likely token.
        max_new_tokens: The most tokens a completion has.
        seed: Of everything that is drawn, from 0 to 2³² − 1.
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
            PromptError: There is no prompt, or one is none (see `educe.prompts.checked`).
            MethodError: The method or a setting of it is unknown, or numbers make no sense.
            FileFormatError: The perturbations given cannot be read.
            RadiusError: The radius cannot be read.
        """
        if not self.prompts:
            raise PromptError("no prompt: give at least one, or a file with --prompts")
        check_prompts(prompt=self.prompts, fresh_prompt=self.fresh)
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
        needed = methods.quietly(self.method, self.quiet)
        if needed and self.given:
            raise MethodError("perturbations that are given are not searched: leave quiet out")
        if needed:
            beside.other_prompts(self.ordinary)
        elif self.ordinary != beside.BUNDLED:
            raise MethodError("ordinary prompts have no weight here: say how much with quiet")
        for file in filter(None, (self.given, self.control)):
            PerturbationSet.load(file)
        for name in ("n", "samples", "max_new_tokens"):
            check_whole(name.replace("_", "-"), getattr(self, name))
        check_seed(self.seed)
        radius.read(self.radius)
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


def check_prompts(**sets: Sequence[Prompt]) -> None:
    """Find what is no prompt, without a model.

    Raises:
        PromptError: One is none (see `educe.prompts.checked`).
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
    return replace(
        settings,
        prompts=tuple(settings.prompts[i] for i in kept["asked"]),
        fresh=tuple(settings.fresh[i] for i in kept["fresh"]),
    )


def _as_given(run: Run) -> Settings:
    config = run.config
    for name in ("prompts", "fresh"):
        config[name] = tuple(config[name])
    return Settings(**config)


def loaded(
    run: Run, s: Settings, say: Callable[[str], None], lm: LanguageModel | None = None
) -> LanguageModel:
    """Load the model of a run, or take one that is loaded, and make sure that it is the same.

    Raises:
        RunError: It is not the model that the run began with.
    """
    lm = lm or load(
        s.model,
        adapter=s.adapter,
        revision=s.revision,
        dtype=s.dtype,
        device=s.device,
        device_map=s.device_map,
        progress=say,
    )
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
    places, said = distinct("prompts", encoded(lm, s, asked))
    if not fresh:
        return ToldApart(places, [], said)
    others, more = distinct("fresh prompts", encoded(lm, s, fresh), encoded(lm, s, (*asked, *seen)))
    return ToldApart(places, others, said + more)


def encoded(lm: LanguageModel, s: Settings, prompts: Sequence[Prompt]) -> PromptBatch:
    """Turn prompts into what the model reads, as some settings have it."""
    return lm.encode(
        prompts,
        prefill=s.prefill,
        chat=s.chat,
        enable_thinking=s.enable_thinking,
        room=s.max_new_tokens,
    )
