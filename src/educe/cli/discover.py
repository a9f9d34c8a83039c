"""``educe discover`` and ``educe methods``: the main job, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from educe.cli.opening import going_on, resumed, telling
from educe.cli.options import SCREEN, NewFolder, Output, PromptsFile, new_folder, prompts_in
from educe.cli.streams import print_text
from educe.errors import MethodError, RunError
from educe.options import ALONE, EMBEDDED, Flag, ModelOptions, SpreadOptions
from educe.run.settings import JobOptions, Settings

#: The job as it is where nothing else is said.
JOB = JobOptions()


def discover(
    *prompts: str,
    prompts_file: PromptsFile = None,
    fresh: Path | None = None,
    setting: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    job: Annotated[JobOptions, Parameter(name="*")] = JOB,
    model: ModelOptions = EMBEDDED,
    who: SpreadOptions = ALONE,
    out: NewFolder = None,
    resume: Flag = False,
    output: Output = SCREEN,
) -> None:
    """Search for perturbations that change what the model writes, and report what they bring out.

    Args:
        prompts: what the model is asked; effects are averaged over them
        fresh: a file of prompts, unseen by the search, for the re-test of the most interesting
        setting: a setting of the method, as name=value; may be repeated
        resume: go on with the run in --out, with the settings it has
    """
    who.check()
    settings = Settings(
        prompts=(*prompts, *prompts_in(prompts_file)),
        fresh=prompts_in(fresh),
        method_settings=_method_settings(setting or []),
        **vars(job),
        **vars(model),
    )
    if resume and out is None:
        raise RunError("--resume goes on with a run: name its folder with --out")
    as_it_was = resume and not settings.prompts
    if as_it_was and settings != Settings(prompts=()):
        raise RunError(
            "--resume goes on with the settings that the run has: leave others out, or repeat the "
            "prompts and all of the settings"
        )
    if not as_it_was:
        settings.check()
    where = out or new_folder(job.method)
    carry_out(None if as_it_was else settings, where, resume=resume, who=who, output=output)


def methods(*, output: Output = SCREEN) -> None:
    """List the methods of discovery and their settings."""
    from educe.methods import described

    known = described()

    def tell() -> None:
        for name, about in known.items():
            settings = " ".join(f"{key}={value}" for key, value in about["settings"].items())
            print_text(f"{name}: {about['summary']}" + (f"\n    {settings}" if settings else ""))

    output.put(known, tell)


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


def carry_out(
    settings: Settings | None,
    out: Path,
    *,
    resume: bool,
    who: SpreadOptions = ALONE,
    output: Output,
) -> None:
    """Run the main job, or go on with one, and say what came out and where it lies."""
    from educe.report import page, terminal
    from educe.run.settings import begin
    from educe.run.stages import discover_behaviours
    from educe.run.store import Run

    tells = telling()
    with going_on(resumed("discover", out), out):
        run = Run.open(out) if settings is None else begin(out, settings, resume=resume)
        with run:
            summary = discover_behaviours(run, reporter=tells, spread=who)
            written = page.write(run, out / "report.html", summary)
            data = terminal.as_data(summary, None) if output.as_json else {}

    def tell() -> None:
        terminal.table(summary, out)
        terminal.where(written)

    output.put(data | {"run": out, "report": written}, tell)
