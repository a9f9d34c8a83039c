"""The commands that choose: among perturbations of a run, and among settings to search with."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from educe.cli.judge import HERE, Asked
from educe.cli.opening import going_on, resumed, telling
from educe.cli.options import (
    SCREEN,
    NewFolder,
    Output,
    PromptsFile,
    RunFolder,
    new_folder,
    prompts_in,
)
from educe.cli.streams import print_text
from educe.errors import MethodError, RunError
from educe.options import ALONE, EMBEDDED, Count, Flag, Layer, ModelOptions, N, Seed, SpreadOptions
from educe.run.settings import Settings
from educe.whole import read_layer, read_real, read_whole

SHOWN = 18  #: settings on the screen

if TYPE_CHECKING:
    from educe.comparison.bandit import Setting
    from educe.scores import Judge
    from educe.selection.selecting import Selected
    from educe.selection.tuning import Tried, Tuned, Tuning

T = TypeVar("T")


def select(
    run: RunFolder,
    /,
    *,
    prompts: Path,
    fresh: Path,
    look_for: str | None = None,
    judge: str | None = None,
    asked: Asked = HERE,
    rungs: str = "10:0.25,30:0.25,60:1",
    top: Count = 4,
    samples: Count = 1,
    derived: str = "",
    seed: Seed = 0,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Choose the best perturbations of a run and test them again; the control likewise.

    Both arms go through the same successive halving. The same command goes on where it was cut
    off; what is written is kept in the run.

    Args:
        prompts: a file of prompts to choose by, in this order; all are used if a rung asks for more
        fresh: a file of other prompts, for the re-test
        look_for: a regular expression that a good text matches
        judge: interestingness (coherence times novelty), or one that educe judge list shows
        rungs: prompts, and the share of the perturbations that goes on
        top: perturbations of each arm in the re-test
        samples: texts for each fresh prompt
        derived: choose among what was derived in this way, such as sampled, and its control
        seed: of the random choice between equals
    """
    from educe.run.store import Run
    from educe.scores.rules import Regex
    from educe.selection.selecting import SelectionPlan, select_best

    who.check()
    if (look_for is None) == (judge is None):
        raise MethodError("a selection goes by one thing: give --look-for or --judge")
    plan = SelectionPlan(
        prompts=prompts_in(prompts),
        fresh=prompts_in(fresh),
        rungs=_read(rungs, _rung, "rungs", "write prompts:share, as in 10:0.25,60:1"),
        top=top,
        samples=samples,
        seed=seed,
        derived=derived,
    )
    plan.check()
    tells = telling()
    with going_on(), Run.open(run) as opened:
        by: Judge | None = Regex(look_for) if look_for is not None else None
        if judge not in (None, "interestingness"):
            by = asked.kept(judge, run, tells.say, reporter=tells)
        selected = select_best(opened, plan, judge=by, reporter=tells, spread=who)
    output.put(selected, lambda: _tell(selected))


def tune(
    *prompts: str,
    prompts_file: PromptsFile = None,
    look_for: str | None = None,
    proxy: Literal["plain", "base64"] | None = None,
    fresh: Path | None = None,
    methods: str = "dct,power",
    sources: str = "0.2,0.33,0.5",
    radii: str = "0.3x,0.5x,0.75x",
    signs: Literal["both", "one"] = "both",
    target: Layer = 0.6,
    n: N = 8,
    pulls: Count = 240,
    retest: Count = 64,
    max_new_tokens: Count = 32,
    seed: Seed = 0,
    model: ModelOptions = EMBEDDED,
    who: SpreadOptions = ALONE,
    out: NewFolder = None,
    resume: Flag = False,
    output: Output = SCREEN,
) -> None:
    """Find settings to search with, by Thompson sampling; the control has a budget of its own.

    A pull is one completion at temperature 0.7, and a hit is one that matches --look-for, or gives
    away the secret of a proxy task that needs no prompts.

    Args:
        prompts: what the model is asked
        look_for: a regular expression that a hit matches
        proxy: instead: secrets in the system prompt, as they are or in base64
        fresh: a file of other prompts, for the re-test
        methods: how to search, several with commas
        sources: layers after which perturbations are added: indices or fractions of the depth
        radii: numbers, shares of the calibrated radius (0.3x), or doses (0.6d)
        signs: both tries the other sign of every perturbation as well
        target: layer at which their effect is read
        n: perturbations of each setting, at its one radius
        pulls: completions of each of the two bandits
        retest: completions of each of the two re-tests
        max_new_tokens: the most tokens of a completion
        seed: of everything that is drawn
        resume: go on with the tuning in --out; leave the settings out, or repeat all
    """
    from educe.run.store import Run
    from educe.selection import tuning

    who.check()
    if resume and out is None:
        raise RunError("--resume goes on with a tuning: name its folder with --out")
    example = "write indices or fractions of the depth, as in 0.2,0.33 or 8,12"
    wanted = tuning.Tuning(
        Settings(
            prompts=(*prompts, *prompts_in(prompts_file)),
            fresh=prompts_in(fresh),
            look_for=look_for,
            target=target,
            max_new_tokens=max_new_tokens,
            seed=seed,
            **vars(model),
        ),
        proxy=proxy,
        methods=tuple(methods.split(",")),
        sources=_read(sources, lambda word: read_layer(word.strip()), "sources", example),
        radii=tuple(radii.split(",")),
        signs=signs,
        n=n,
        pulls=pulls,
        retest=retest,
    )
    where = out or new_folder("tune")
    as_it_was = resume and wanted == tuning.Tuning(Settings(prompts=()))
    tells = telling()
    with going_on(resumed("tune", where), where):
        run = Run.open(where) if as_it_was else tuning.begin_tuning(where, wanted, resume=resume)
        with run:
            tuned = tuning.tune(run, reporter=tells, spread=who)
            was = tuning.stored_tuning(run)
    told = {
        "folder": where,
        "flags": _flags(tuned.found[0].setting, tuned, was),
        "fresh": bool(was.proxy or was.job.fresh),
    }
    output.put(tuned._asdict() | told, lambda: _tell_tuned(tuned, was, where))


def _read(text: str, read: Callable[[str], T], what: str, remedy: str) -> tuple[T, ...]:
    """Read words with commas between them.

    Raises:
        MethodError: One cannot be read.
    """
    try:
        return tuple(read(word) for word in text.split(","))
    except ValueError:
        raise MethodError(f"{what} {text!r}: {remedy}") from None


def _rung(word: str) -> tuple[int, float]:
    many, share = word.split(":")
    return read_whole(many), read_real(share)


def _flags(setting: Setting, tuned: Tuned, was: Tuning) -> str:
    """Return what makes discover search with a setting; the best one's other sign is a file."""
    if setting.sign < 0:
        given, control = (shlex.quote(str(file)) for file in tuned.files)
        return f"--given {given} --control {control} --target {was.job.target}"
    return (
        f"--method {setting.method} --source {setting.source:g} --target {was.job.target} "
        f"--radius {setting.radius}"
    )


def _tell_tuned(tuned: Tuned, was: Tuning, where: Path) -> None:
    best = (tuned.found[0].setting, f"matched to {tuned.control[0].setting}")
    prompts = "fresh prompts" if was.proxy or was.job.fresh else "the same prompts: no --fresh"
    print_text(f"re-test of the best setting of each bandit, on {prompts}")
    for name, of, again in zip(("found", "control"), best, tuned.again, strict=True):
        print_text(f"  {name:8}{again!s:28}{of}")
    print_text(f"  found above control: p = {tuned.p_again:.2g}\n")
    print_text(f"{'setting':30}{'found, posterior':26}control, posterior")
    matched = {one.setting: one for one in tuned.control}
    for one in tuned.found[:SHOWN]:
        print_text(f"{one.setting!s:30}{_posterior(one):26}{_posterior(matched[one.setting])}")
    if len(tuned.found) > SHOWN:
        print_text(f"and {len(tuned.found) - SHOWN} more: --json has all")
    print_text(f"\n{tuned.texts} texts kept in {where}; go on with")
    print_text(f"educe discover PROMPT... {_flags(tuned.found[0].setting, tuned, was)}")


def _posterior(one: Tried) -> str:
    return f"{one.hits}/{one.pulls} {one.mean:.0%} ({one.low:.0%} to {one.high:.0%})"


def _tell(selected: Selected) -> None:
    arms = {"found": selected.found, "control": selected.control}
    print_text("re-test on fresh prompts and samples, of the best of each arm")
    for name, arm in arms.items():
        print_text(f"  {name:12}{arm.chosen[0].again!s:28}number {arm.chosen[0].number}")
    print_text(f"  {'unperturbed':12}{selected.unperturbed}")
    if selected.p_again is not None:
        print_text(f"  found above control: p = {selected.p_again:.2g}")
    n, chance = selected.found.candidates, selected.chance
    shown = ".0%" if selected.unperturbed.hits is not None else ".2f"
    print_text(f"\nselection by {textwrap.shorten(repr(selected.judge), 66)}")
    print_text(f"  {n} perturbations an arm, on {', '.join(map(str, selected.prompts))} prompts")
    print_text(f"  {'':12}{'all in the first rung':28}{'best in the last rung':28}p, of {n}")
    for name, arm in arms.items():
        print_text(f"  {name:12}{arm.first!s:28}{arm.chosen[0].seen!s:28}{arm.p_value:.2g}")
    print_text(
        f"  {'by chance':40}{chance.mean:{shown}} "
        f"({chance.low:{shown}} to {chance.high:{shown}} in 90 of 100)"
    )
    print_text(f"\n  {'':12}{'number':>6}  {'selection':28}re-test")
    for name, arm in arms.items():
        for c in arm.chosen:
            print_text(f"  {name:12}{c.number:6}  {c.seen!s:28}{c.again}")
    spent = sum(selected.found.spent)
    print_text(f"\n{spent} texts an arm; {selected.texts} written so far")
