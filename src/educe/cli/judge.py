"""The commands that judge: labelled answers, to measure a judge, and the completions of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter

from educe.cli.opening import going_on
from educe.cli.options import SCREEN, Output, RunFolder
from educe.cli.streams import print_text
from educe.errors import JudgeError
from educe.options import (
    ALONE,
    EMBEDDED,
    Count,
    ModelOptions,
    Natural,
    Real,
    Seconds,
    SpreadOptions,
)
from educe.plain import as_data
from educe.visible import isolated, visible

if TYPE_CHECKING:
    from educe.progress import Reporter
    from educe.run.scored import Scored
    from educe.scores import Judge
    from educe.scores.cache import Cached
    from educe.scores.calibration import Checked

app = App(name="judge", help="Judges of answers: measure one, score a run with one, list them.")

Judges = Annotated[list[str], Parameter(name="--judge", negative="")]
#: The options of every model, with judge- before their names.
JudgeModel = Annotated[
    ModelOptions,
    Parameter(
        name="*",
        name_transform=lambda name: "judge-" + name.replace("_", "-"),
        group=Group("Judge's model", sort_key=2),
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """The language model that a judge asks.

    Attributes:
        judge_name: the model's name at a server, where --judge-model is the address of one that is
            OpenAI-compatible, http://host:port/v1; its key is read from OPENAI_API_KEY
        at_once: calls to the server in flight
        time_out: seconds that a call may take
        retries: how often a call that failed is made again, after growing pauses
        max_calls: the most calls to the server, retries aside; by default no limit
        max_tokens: the most tokens, of questions and replies; by default no limit
    """

    judge_model: JudgeModel = EMBEDDED
    judge_name: str | None = None
    at_once: Count = 8
    time_out: Seconds = 60.0
    retries: Natural = 4
    max_calls: Count | None = None
    max_tokens: Count | None = None

    def judges(self, specs: list[str], say: Callable[[str], None]) -> list[Judge]:
        """Return the judges of some names; the model is loaded once, if one asks it."""
        from educe.scores.naming import as_asker, asks, judge_named

        if not specs:
            raise JudgeError("no judge: name one with --judge; educe judge list shows them")
        if not any(asks(spec) for spec in specs):
            return [judge_named(spec) for spec in specs]
        from educe.scores.server import Budget
        from educe.threads import choose

        choose(say)
        asker = as_asker(
            self.judge_model,
            name=self.judge_name,
            progress=say,
            concurrency=self.at_once,
            timeout=self.time_out,
            retries=self.retries,
            budget=Budget(calls=self.max_calls, tokens=self.max_tokens),
        )
        return [judge_named(spec, asker) for spec in specs]

    def kept(
        self,
        spec: str,
        run: RunFolder,
        say: Callable[[str], None],
        *,
        file: Path | None = None,
        reporter: Reporter | None = None,
    ) -> Cached:
        """Return a judge whose scores are kept: in a file, by default that of a run."""
        from educe.scores.cache import FILE, Cached

        (made,) = self.judges([spec], say)
        return Cached(made, file or run / FILE, reporter=reporter)


#: Of the embedded model, here.
HERE = Asked()


@app.command(name="list")
def show(*, output: Output = SCREEN) -> None:
    """List the judges, what each says and what an answer costs it."""
    from educe.scores.naming import FORMS

    def tell() -> None:
        for name, form in FORMS.items():
            spec = f"{name}:{form.needs}" if form.needs else name
            print_text(f"{spec:15} {form.what} ({form.cost})")

    named = [{"name": name, **form._asdict()} for name, form in FORMS.items()]
    output.put([{k: v for k, v in form.items() if k != "made"} for form in named], tell)


@app.command
def check(
    labelled: Path,
    /,
    *,
    judge: Judges,
    asked: Asked = HERE,
    threshold: Real = 0.5,
    cache: Path | None = None,
    output: Output = SCREEN,
) -> None:
    """Measure judges on labelled answers: agreement, false alarms, AUC, with intervals.

    educe organism answers NAME > labelled.jsonl makes some, labelled by an organism's own rule;
    educe explore RUN labels those of a run.

    Args:
        labelled: the folder of a run whose texts have labels; or JSON lines of prompt, text, label
            (true or false); where there are any, plain, what the unperturbed model writes, and
            group, whose answers theme compares together
        judge: as educe judge list shows them, such as contains:orchid; may be repeated
        threshold: a score from here on says that an answer shows the behaviour
        cache: the file that keeps the scores; by default one beside the labelled answers
    """
    from educe.progress import reporter
    from educe.run import marks
    from educe.run.store import Run
    from educe.scores.cache import FILE, Cached
    from educe.scores.calibration import check_judge, read_labelled

    tells = reporter()
    if labelled.is_dir():
        with Run.open(labelled) as run:
            rows = marks.labelled(run)
        kept = cache or labelled / FILE
    else:
        rows = read_labelled(labelled, tells.say)
        kept = cache or labelled.with_name(f"{labelled.name}.judging.sqlite")
    results = []
    with going_on():
        for each in asked.judges(judge, tells.say):
            cached = Cached(each, kept, reporter=tells)
            results.append(check_judge(cached, rows, threshold=threshold))
            _paid(cached)

    def tell() -> None:
        shown = sum(row.label for row in rows)
        print_text(f"{labelled}: {len(rows)} answers, {shown} labelled true")
        for result in results:
            _print_checked(result)

    output.put([as_data(r) | {"near_chance": r.near_chance} for r in results], tell)


@app.command
def score(
    run: RunFolder,
    /,
    *,
    judge: str,
    asked: Asked = HERE,
    threshold: Real = 0.5,
    cache: Path | None = None,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Score the completions of a run: what was found beside the control.

    Args:
        judge: as educe judge list shows them, such as "yes:Does the answer give a code?"
        threshold: a score from here on says that an answer shows the behaviour
        cache: the file that keeps what is judged; by default judging.sqlite in the run
    """
    from educe.progress import reporter
    from educe.run.scored import score_run
    from educe.run.store import Run

    who.check()
    tells = reporter()
    with going_on(), Run.open(run) as opened:
        cached = asked.kept(judge, run, tells.say, file=cache)
        scored = score_run(opened, cached, threshold=threshold, reporter=tells, spread=who)
    _paid(cached)
    data = as_data(scored)
    output.put(data | data.pop("arms"), lambda: _print_scored(scored))


def _paid(by: Cached) -> None:
    print(f"{by.judged} judged, the others kept; an answer costs {by.cost}", file=sys.stderr)


def _print_checked(checked: Checked) -> None:
    wrong_way = ": the wrong way round" if checked.auc.high < 0.5 else ""
    verdict = ": indistinguishable from chance" if checked.near_chance else wrong_way
    print_text(f"\n{shorten(checked.judge, 78)}")
    print_text(f"  agreement     {checked.agreement}, at threshold {checked.threshold:g}")
    print_text(f"  false alarms  {checked.false_alarms}")
    print_text(f"  detected      {checked.detected}")
    print_text(f"  AUC           {checked.auc}{verdict}")
    print_text(f"  kappa         {checked.kappa:.2f}")


def _print_scored(scored: Scored) -> None:
    print_text(f"{shorten(scored.judge, 60)}: higher is {scored.higher_is}")
    print_text(
        f"{'':22} {'mean score':22} perturbations with an answer from {scored.threshold:g} on"
    )
    if scored.unperturbed is not None:
        plain = scored.unperturbed
        print_text(f"{'unperturbed':22} {plain.mean:<22.3f} {plain.shows} answers")
    for name, ((value, low, high), shows) in scored.arms.items():
        mean = f"{value:.3f} ({low:.3f} to {high:.3f})"
        print_text(f"{name.replace('_retest', ', re-test'):22} {mean:22} {shows}")
    print_text(f"more found than control: p = {scored.p_value:.2g}")
    print_text("highest of those found, chosen by this very score:")
    for best in scored.best:
        print(f"{best.number:6d} {best.mean:.2f} {isolated(shorten(visible(best.text), 60))}")
