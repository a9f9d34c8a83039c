"""``educe audit``, ``educe sources``, ``educe demo``: what a model hides, on the command line."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from educe.audit.settings import AuditOptions, begin, options_of
from educe.cli.judge import HERE, Asked
from educe.cli.opening import going_on, resumed, telling
from educe.cli.options import SCREEN, NewFolder, Output, PromptsFile, new_folder, prompts_in
from educe.cli.streams import print_text
from educe.errors import JudgeError, RunError
from educe.options import (
    ALONE,
    EMBEDDED,
    NAMED,
    Flag,
    ModelOptions,
    NamedModel,
    Seed,
    SpreadOptions,
)
from educe.plain import as_data

if TYPE_CHECKING:
    from educe.audit.overview import Overview
    from educe.progress import Reporter
    from educe.run.store import Run

#: The audit as it is where nothing else is said.
AUDIT = AuditOptions()


def audit(
    name: str = "embedded",
    /,
    *,
    prompts_file: PromptsFile = None,
    options: Annotated[AuditOptions, Parameter(name="*")] = AUDIT,
    asked: Asked = HERE,
    model: NamedModel = NAMED,
    out: NewFolder = None,
    resume: Flag = False,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Search for what a model hides, and report each finding with its evidence.

    Args:
        name: the model: embedded, a Hub id, a folder, or a .gguf file
        prompts_file: what the model is asked beside the ordinary requests that come with educe
        resume: go on with the audit in --out, with the settings that it has
    """
    who.check()
    if resume and out is None:
        raise RunError("--resume goes on with an audit: name its folder with --out")
    suspect = ModelOptions(**replace(model, model=name).how)
    prompts = prompts_in(prompts_file)
    as_it_was = resume and options == replace(AUDIT, judge=options.judge) and not prompts
    if as_it_was and suspect != ModelOptions():
        raise RunError(
            "--resume goes on with the settings that the audit has: leave others out, or repeat all"
        )
    from educe.audit.sources import chosen
    from educe.run.store import Run

    chosen(options.sources)  # an unknown one is an error before anything is loaded
    where = out or new_folder("audit")
    run = (
        Run.open(where)
        if as_it_was
        else begin(where, options, suspect, prompts=prompts, resume=resume)
    )
    with run:
        seen, report = carry_out(run, options.judge or options_of(run).judge, asked, who)
    output.put(data(seen) | {"run": where, "report": report}, lambda: _tell(seen, report))


def carry_out(
    run: Run, judge: str | None = None, asked: Asked = HERE, who: SpreadOptions = ALONE
) -> tuple[Overview, Path]:
    """Do what is missing in an audit, and draw its page; return what it came to and the page.

    Raises:
        JudgeError: The judge cannot be asked; the findings are kept and the page is drawn.
    """
    from educe.audit.overview import overview
    from educe.audit.stages import carry_out as audited
    from educe.report import page

    tells = telling()
    with going_on(resumed("audit", run.folder), run.folder):
        audited(run, reporter=tells, spread=who)
        report = page.write(run, run.folder / "report.html")
        if judge is not None:
            try:
                _judge(run, judge, asked, tells)
            except JudgeError as error:
                again = resumed("audit", run.folder)
                raise JudgeError(f"{error}; the findings are kept, go on with {again}") from error
            report = page.write(run, report)
    return overview(run), report


def _judge(run: Run, spec: str, asked: Asked, tells: Reporter) -> None:
    from educe.audit.judged import judge_findings

    judge_findings(run, asked.kept(spec, run.folder, tells.say, reporter=tells))


def _tell(seen: Overview, report: Path) -> None:
    from educe.report import audit_screen, terminal

    audit_screen.show(seen)
    terminal.where(report)


def data(seen: Overview) -> dict[str, Any]:
    """Return what an audit came to, for machines."""
    return as_data(seen) | {"options": asdict(seen.options), "headline": seen.headline}


def finished(run: Run, folder: Path) -> Overview:
    """Return what an audit came to that has ended.

    Raises:
        RunError: It was cut off.
    """
    from educe.audit.findings import FINDINGS
    from educe.audit.overview import overview

    if not run.has(FINDINGS):
        raise RunError(
            f"the audit in {folder} was cut off before its findings: go on with "
            f"{resumed('audit', folder)}"
        )
    return overview(run)


def demo(
    *,
    seed: Seed = 0,
    model: ModelOptions = EMBEDDED,
    out: NewFolder = None,
    output: Output = SCREEN,
) -> None:
    """Audit a small model that hides something, and one beside it that hides nothing.

    Args:
        seed: of everything that is drawn
    """
    from educe.demo import audits

    where, done = out or new_folder("demo"), {}
    for name, (options, suspect) in audits(seed, model).items():
        with begin(where / name, options, suspect) as run:
            done[name] = carry_out(run)

    def tell() -> None:
        for seen, report in done.values():
            _tell(seen, report)

    told = {name: data(seen) | {"report": report} for name, (seen, report) in done.items()}
    output.put({"run": where, "audits": told}, tell)


def sources(*, output: Output = SCREEN) -> None:
    """List the sources of an audit, in the order in which they look, and what each needs."""
    from educe.audit.sources import SOURCES

    def tell() -> None:
        for source in SOURCES:
            print_text(f"{source.name}: {source.about} (needs {source.needs.value})")

    named = [{"name": s.name, "about": s.about, "needs": s.needs.value} for s in SOURCES]
    output.put(named, tell)
