"""The commands: thin, over the public API. Each prints one screen; ``--json`` is for machines."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from educe.cli import bench, examine, judge, organism, refine, select
from educe.cli.options import FLAG, Debug, Json, check_begun, new_folder
from educe.errors import EduceError, MethodError, PromptError, RadiusError, RunError
from educe.prompts import read_prompts

if TYPE_CHECKING:
    from educe.job.settings import Settings

app = App(
    name="educe",
    help="Bring out what a language model can do but does not show.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)

app.command(organism.app)
app.command(judge.app)
app.command(bench.app)
app.command(select.select)
app.command(select.tune)
app.command(examine.examine)
app.command(refine.app)


@app.command
def discover(
    *prompts: str,
    prompts_file: Annotated[Path | None, Parameter(name="--prompts")] = None,
    model: str = "embedded",
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | None = None,
    method: str = "dct",
    setting: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    given: Path | None = None,
    control: Path | None = None,
    within: str | None = None,
    ball: Literal["plain", "whitened"] = "plain",
    quiet: float = 0.0,
    quiet_by: Literal["effect", "kl"] = "effect",
    ordinary: str = "bundled",
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 64,
    source: float | Literal["auto"] = 0.33,
    target: float | Literal["auto"] = 0.6,
    positions: str = "all",
    readout: str = "last:3",
    radius: str = "auto",
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 32,
    seed: int = 0,
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
        a file of prompts: one a line, or .jsonl with strings or lists of messages
    model
        embedded, a Hub id, a folder, or a .gguf file
    adapter
        a PEFT adapter, loaded beside the weights and never merged
    revision
        revision on the Hub
    dtype
        auto, float32, bfloat16, float16
    device
        cpu, cuda, cuda:1, mps; by default a GPU when there is one
    device_map
        auto spreads a large model over all GPUs
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
        perturbations at each radius; as many random ones are the control
    source
        layer after which they are added: an index, a fraction of the depth, or auto
    target
        layer at which their effect is read; auto chooses it from an atlas
    positions
        tokens they are added to: all, prompt, last:k, at:k
    readout
        prompt tokens at which the effect is read: last:k, all
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
        of everything that is drawn
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
    from educe.job.settings import Settings

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


@app.command
def methods(*, as_json: Json = False, debug: Debug = False) -> None:
    """List the methods of discovery and their settings."""
    from educe.discover import described

    known = described()
    if as_json:
        print(json.dumps(known, indent=1, ensure_ascii=False))
        return
    for name, about in known.items():
        settings = " ".join(f"{key}={value}" for key, value in about["settings"].items())
        print(f"{name}: {about['summary']}" + (f"\n    {settings}" if settings else ""))


@app.command
def atlas(
    *prompts: str,
    prompts_file: Annotated[Path | None, Parameter(name="--prompts")] = None,
    model: str = "embedded",
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | None = None,
    few: Annotated[bool, FLAG] = False,
    positions: str = "all",
    readout: str = "last:3",
    seed: int = 0,
    out: Path | None = None,
    resume: Annotated[bool, FLAG] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Map how strongly every layer drives every later one, and choose two to search between.

    Parameters
    ----------
    prompts
        what the model is asked
    prompts_file
        a file of prompts: one a line, or .jsonl with strings or lists of messages
    model
        embedded, a Hub id, a folder, or a .gguf file
    adapter
        a PEFT adapter, loaded beside the weights and never merged
    revision
        revision on the Hub
    dtype
        auto, float32, bfloat16, float16
    device
        cpu, cuda, cuda:1, mps; by default a GPU when there is one
    device_map
        auto spreads a large model over all GPUs
    few
        only the pairs that layers are chosen from, as with discover --source auto
    positions
        tokens that are perturbed: all, prompt, last:k, at:k
    readout
        prompt tokens at which the effect is read: last:k, all
    seed
        of everything that is drawn
    out
        folder of the atlas; by default a new one under runs/
    resume
        go on with the atlas in --out
    """
    from educe.atlas import (
        ATLAS,
        CHEAP,
        AtlasConfig,
        choose,
        grid,
        promising,
        surveyed,
        thinned,
    )
    from educe.model import load
    from educe.progress import reporter
    from educe.report import page
    from educe.threads import choose as choose_threads

    asked = [*prompts, *(read_prompts(prompts_file) if prompts_file else [])]
    if not asked:
        raise PromptError("no prompt: give at least one, or a file with --prompts")
    folder = out or new_folder("atlas")
    file = folder / ATLAS
    if file.exists() and not resume:
        raise RunError(f"{folder} holds another atlas: use --resume to go on with it, or --out")
    telling = reporter()
    choose_threads(telling.say)
    lm = load(
        model,
        adapter=adapter,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        progress=telling.say,
    )
    batch = lm.encode(asked)
    pairs, config = (
        (thinned(promising(lm.depth)), CHEAP) if few else (grid(lm.depth), AtlasConfig())
    )
    config = replace(config, positions=positions, readout=readout, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    known = surveyed(lm, batch, pairs, config, file, telling)
    choice = choose(known)
    written = page.write_atlas(known, choice, folder / "atlas.html")
    if as_json:
        print(json.dumps(choice._asdict() | {"atlas": str(file), "report": str(written)}))
    else:
        print(f"--source {choice.source} --target {choice.target}: {choice.why}")
        print(f"report: {written}")


@app.command
def contrast(
    *prompts: str,
    say: str | None = None,
    positive: Path | None = None,
    negative: Path | None = None,
    model: str = "embedded",
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    source: float = 0.33,
    target: float = 0.6,
    positions: str = "all",
    radius: str = "0.5x",
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 8,
    seed: int = 0,
    out: Path | None = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make supervised vectors, the ceiling for a search, and their control.

    Either of two prompt sets (--positive, --negative), or for words to be said (--say). Put them
    through the main job with educe discover --given.

    Parameters
    ----------
    prompts
        with --say: what the words are to be the answer to
    say
        the first words of the answer that vectors are optimised for
    positive
        a file of prompts that show a behaviour
    negative
        a file of prompts that do not
    model
        embedded, a Hub id, a folder, or a .gguf file
    adapter
        a PEFT adapter, loaded beside the weights and never merged
    revision
        revision on the Hub
    dtype
        auto, float32, bfloat16, float16
    device
        cpu, cuda, cuda:1, mps; by default a GPU when there is one
    source
        layer after which they are added: an index, or a fraction of the depth
    target
        layer for which the radius is calibrated
    positions
        tokens they are added to: all, prompt, generated, last:k, at:k
    radius
        their norm: a number, or a share of the calibrated one
    n
        restarts with --say, and shuffles for the control of two prompt sets
    seed
        of everything that is drawn
    out
        folder of the two files; by default a new one under runs/
    """
    from educe.contrast import difference_of_means, optimised
    from educe.model import load
    from educe.progress import reporter
    from educe.radius import parse
    from educe.slice import Slice
    from educe.threads import choose

    by_sets = positive is not None and negative is not None and say is None and not prompts
    if not by_sets and (say is None or positive is not None or negative is not None):
        raise MethodError("contrast: give --positive and --negative, or prompts with --say")
    if not by_sets and not prompts:
        raise PromptError("no prompt: give what the words are to be the answer to")
    read = [read_prompts(file) for file in (positive, negative) if file is not None]
    telling = reporter()
    choose(telling.say)
    lm = load(
        model,
        adapter=adapter,
        revision=revision,
        dtype=dtype,
        device=device,
        progress=telling.say,
    )
    batches = [lm.encode(some) for some in read or [list(prompts)]]
    part = Slice(lm, batches[0], source=source, target=target)
    with telling.stage("calibrating", 1, "") as step:
        sizes, _ = parse(radius, part, seed=seed)
        step()
    if len(sizes) > 1:
        raise RadiusError(f"radius {radius!r}: give one")
    place: dict[str, Any] = {"source": source, "radius": sizes[0], "positions": positions}
    if say is None:
        found = difference_of_means(lm, *batches, **place)
        control = difference_of_means(lm, *batches, **place, shuffles=n, seed=seed)
    else:
        search = partial(optimised, lm, batches[0], say, **place, n=n, seed=seed)
        found, control = search(), search(shuffled=True)
    folder = out or new_folder("contrast")
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for role, made in (("given", found), ("control", control)):
        files[role] = folder / f"{made.method}.safetensors"
        made.save(files[role])
    if as_json:
        print(json.dumps({role: str(file) for role, file in files.items()}))
    else:
        told = " ".join(f"--{role} {shlex.quote(str(file))}" for role, file in files.items())
        print(f"{len(found)} and {len(control)} as their control: educe discover PROMPT... {told}")


@app.command
def show(
    run: Path, number: int | None = None, /, *, as_json: Json = False, debug: Debug = False
) -> None:
    """Show what a run found, or one perturbation with everything it wrote.

    Parameters
    ----------
    run
        the folder of the run
    number
        a perturbation, as the table numbers them; 0 is the unperturbed model
    """
    from educe.report import terminal
    from educe.runs import Run
    from educe.summary import summarise

    with Run.open(run) as opened:
        check_begun(opened)
        summary = summarise(opened)
    if as_json:
        print(json.dumps(terminal.as_data(summary, number), indent=1, ensure_ascii=False))
    elif number is None:
        terminal.table(summary, run)
    else:
        terminal.perturbation(summary, number)


@app.command
def report(
    run: Path, /, *, out: Path | None = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Draw a run as one HTML file that opens offline.

    Parameters
    ----------
    run
        the folder of the run
    out
        the file; by default report.html in the run
    """
    from educe.report import page
    from educe.runs import Run

    with Run.open(run) as opened:
        check_begun(opened)
        written = page.write(opened, out or run / "report.html")
    print(json.dumps({"report": str(written)}) if as_json else f"report: {written}")


@app.command
def demo(
    *, out: Path | None = None, seed: int = 0, as_json: Json = False, debug: Debug = False
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
    from educe.job import discover_behaviours
    from educe.job.settings import begin
    from educe.progress import reporter
    from educe.report import page, terminal
    from educe.runs import Run
    from educe.threads import choose

    telling = reporter()
    choose(telling.say)
    run = Run.open(out) if settings is None else begin(out, settings, resume=resume)
    try:
        with run:
            summary = discover_behaviours(run, reporter=telling)
            written = page.write(run, out / "report.html")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"educe discover --resume --out {shlex.quote(str(out))}") from None
    if as_json:
        data = terminal.as_data(summary, None) | {"run": str(out), "report": str(written)}
        print(json.dumps(data, indent=1, ensure_ascii=False))
    else:
        terminal.table(summary, out)
        terminal.where(written)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and the exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_exit_status(lambda: app(arguments, **_QUIET), "--debug" in arguments))


_QUIET: dict[str, Any] = {
    "exit_on_error": False,
    "print_error": False,
    "result_action": "return_value",
}


def _exit_status(command: Callable[[], object], debug: bool) -> int:
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:
        hint = f"; go on with: {interrupt}" if str(interrupt) else ""
        print(f"educe: interrupted, nothing is lost{hint}", file=sys.stderr)
        return 130
    except (EduceError, CycloptsError) as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"educe: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
