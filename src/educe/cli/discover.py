"""``educe discover``, ``educe methods`` and ``educe demo``: the main job, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from educe.cli.options import (
    FLAG,
    Adapter,
    Count,
    Debug,
    Device,
    DeviceMap,
    DType,
    Json,
    LayerOrAuto,
    Model,
    N,
    NonNegative,
    Revision,
    Seed,
    new_folder,
    to_go_on,
)
from educe.cli.streams import print_json, print_text
from educe.errors import MethodError, RunError
from educe.prompts import read_prompts

if TYPE_CHECKING:
    from educe.run.settings import Settings


def discover(
    *prompts: str,
    prompts_file: Annotated[Path | None, Parameter(name="--prompts")] = None,
    model: Model = "embedded",
    adapter: Adapter = None,
    revision: Revision = None,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    method: str = "dct",
    setting: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    given: Path | None = None,
    control: Path | None = None,
    within: str | None = None,
    ball: Literal["plain", "whitened"] = "plain",
    quiet: NonNegative = 0.0,
    quiet_by: Literal["effect", "kl"] = "effect",
    ordinary: str = "bundled",
    n: N = 64,
    source: LayerOrAuto = 0.33,
    target: LayerOrAuto = 0.6,
    positions: str = "all",
    readout: str = "last:3",
    radius: str = "auto",
    samples: Count = 1,
    temperature: NonNegative = 0.0,
    max_new_tokens: Count = 32,
    seed: Seed = 0,
    fresh: Path | None = None,
    look_for: str | None = None,
    prefill: str = "",
    chat: bool | None = None,
    enable_thinking: bool | None = None,
    out: Path | None = None,
    resume: Annotated[bool, FLAG] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search for perturbations that change what the model writes, and report what they bring out.

    Parameters
    ----------
    prompts
        what the model is asked; effects are averaged over them
    prompts_file
        a file of prompts: .txt with one a line, or .jsonl, .ndjson, .json, .csv, .tsv
    method
        how to search; educe methods lists them
    setting
        a setting of the method, as name=value; may be repeated
    given
        a file of perturbations to put through it instead of searching
    control
        a file of perturbations as the control of those given; by default random
    within
        search inside a subspace: its rank, as in 64, of the activations on ordinary text; or
        prompts:16 of those on the prompts alone, FILE:64 on another text, random:64 for a control
    ball
        what vectors of a subspace are measured by: plain, or whitened by how activations spread
    quiet
        keep the model as it is on other prompts, with this weight; 1 weighs both alike at the start
    quiet_by
        what is kept small there: the effect, or kl of what the model says
    ordinary
        a file of these prompts: ordinary ones as in Alpaca, or some that match those asked but have
        nothing to hide; by default bundled ordinary ones
    n
        perturbations at each radius, so that 16 with three radii are 48 in all; as many random ones
        are the control
    source
        layer after which they are added: an index, a fraction of the depth, or auto
    target
        layer at which their effect is read; auto chooses it from an atlas
    positions
        tokens they are added to: all, prompt, asked, asked:k, last:k, at:k
    readout
        prompt tokens at which the effect is read: last:k, asked, asked:k, all
    radius
        auto (for vectors 0.3, 0.5 and 0.75 of the calibrated one), or 8.5, 0.3x of the calibrated
        one, 0.6d of the activations' norm; several with commas
    samples
        completions for each perturbation and prompt
    temperature
        0 writes the most likely token
    max_new_tokens
        the most tokens of a completion
    seed
        of everything that is drawn, from 0 to 4294967295
    fresh
        a file of prompts, unseen by the search, for the re-test of the most striking
    look_for
        a regular expression to count in the end; it takes no part in the search
    prefill
        the first words of every answer
    chat
        put texts through the chat template; by default, when there is one
    enable_thinking
        for chat templates that know it
    out
        folder of the run; by default a new one under runs/
    resume
        go on with the run in --out, with the settings it has
    """
    from educe.run.settings import Settings

    asked = [*prompts, *(read_prompts(prompts_file) if prompts_file else [])]
    settings = Settings(
        prompts=tuple(asked),
        model=model,
        adapter=adapter,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        method=method,
        method_settings=_method_settings(setting or []),
        given=str(given) if given else None,
        control=str(control) if control else None,
        within=within,
        ball=ball,
        quiet=quiet,
        quiet_by=quiet_by,
        ordinary=ordinary,
        n=n,
        source=source,
        target=target,
        positions=positions,
        readout=readout,
        radius=radius,
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        fresh=tuple(read_prompts(fresh) if fresh else []),
        look_for=look_for,
        prefill=prefill,
        chat=chat,
        enable_thinking=enable_thinking,
    )
    if resume and out is None:
        raise RunError("--resume goes on with a run: name its folder with --out")
    as_it_was = resume and not asked
    if as_it_was and settings != Settings(prompts=()):
        raise RunError(
            "--resume goes on with the settings that the run has: leave others out, or repeat the "
            "prompts and all of the settings"
        )
    if not as_it_was:
        settings.check()
    where = out or new_folder(method)
    carry_out(None if as_it_was else settings, where, resume=resume, as_json=as_json)


def methods(*, as_json: Json = False, debug: Debug = False) -> None:
    """List the methods of discovery and their settings."""
    from educe.methods import described

    known = described()
    if as_json:
        print_json(known, indent=1)
        return
    for name, about in known.items():
        settings = " ".join(f"{key}={value}" for key, value in about["settings"].items())
        print_text(f"{name}: {about['summary']}" + (f"\n    {settings}" if settings else ""))


def demo(
    *, out: Path | None = None, seed: Seed = 0, as_json: Json = False, debug: Debug = False
) -> None:
    """Audit a small model that hides a code: the main job, in a few minutes.

    Parameters
    ----------
    out
        folder of the run; by default a new one under runs/
    seed
        of everything that is drawn
    """
    from educe.demo import settings

    carry_out(settings(seed), out or new_folder("demo"), resume=False, as_json=as_json)


def _method_settings(words: list[str]) -> dict[str, Any]:
    """Read ``name=value``; a value is JSON where it can be, else text."""
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise MethodError(f"setting {word!r}: write it as name=value")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def carry_out(settings: Settings | None, out: Path, *, resume: bool, as_json: bool) -> None:
    """Run the main job and say what came out and where it lies."""
    from educe.progress import reporter
    from educe.report import page, terminal
    from educe.run.settings import begin
    from educe.run.stages import discover_behaviours
    from educe.run.store import Run
    from educe.threads import choose

    telling = reporter()
    choose(telling.say)
    run = Run.open(out) if settings is None else begin(out, settings, resume=resume)
    try:
        with run:
            summary = discover_behaviours(run, reporter=telling)
            written = page.write(run, out / "report.html")
    except KeyboardInterrupt:
        raise to_go_on("discover", out) from None
    if as_json:
        data = terminal.as_data(summary, None) | {"run": str(out), "report": str(written)}
        print_json(data, indent=1)
    else:
        terminal.table(summary, out)
        terminal.where(written)
