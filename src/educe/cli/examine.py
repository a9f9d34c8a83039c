"""The command that examines perturbations: their passports, or what their norm tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from educe.cli.options import FLAG, Debug, Json, check_begun
from educe.errors import RunError


def examine(
    run: Path,
    /,
    *numbers: int,
    corpus: str = "bundled",
    tokens: int = 100_000,
    norm: Annotated[bool, FLAG] = False,
    judge: str | None = None,
    ordinary: str = "bundled",
    budget: float = 1.0,
    compared: int = 16,
    seed: int = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say where perturbations of a run stand among the activations of ordinary text.

    The passport goes on the screen and into the report. Several share one pass over the corpus.
    With --norm, say instead what they do at every radius: response curves, three ways to choose the
    radius, and found against random ones at equal effect and equal damage of ordinary text.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        perturbations, as the table numbers them
    corpus
        bundled; a file of text with blank lines between documents; a .jsonl file; or hub:NAME
    tokens
        the most tokens of the corpus that are read
    norm
        examine what the norm tells; without numbers, of the most striking of each arm
    judge
        with --norm: what scores answers, as educe judge names it; by default what the run looks for
    ordinary
        with --norm: bundled; or a file of ordinary prompts, Alpaca's too
    budget
        with --norm: nats at the 95th percentile of the first 20 tokens of ordinary answers
    compared
        with --norm: the most perturbations of each arm that are compared
    seed
        of samples and controls
    """
    from educe import job
    from educe.judge.naming import judge_named
    from educe.manifold import survey
    from educe.norm.survey import examine_norm
    from educe.progress import reporter
    from educe.report import page, terminal
    from educe.runs import Run
    from educe.threads import choose

    if not numbers and not norm:
        raise RunError("no perturbation: name at least one, by its number in educe show")
    telling = reporter()
    with Run.open(run) as opened:
        check_begun(opened)
        known = {p.id for p in opened.perturbations()}
        if unknown := [number for number in numbers if number not in known]:
            raise RunError(
                f"the run has no perturbation {unknown[0]}: see educe show for its numbers"
            )
        choose(telling.say)
        settings = job.stored(opened)
        lm = job.loaded(settings, telling.say)
        prompts = job.encoded(lm, settings, settings.prompts)
        if norm:
            told = examine_norm(
                opened,
                list(numbers) or None,
                lm,
                prompts,
                judge=judge_named(judge, lm) if judge else None,
                ordinary=ordinary,
                budget=budget,
                compared=compared,
                reporter=telling,
            )
            written = page.write(opened, run / "report.html")
            if as_json:
                print(json.dumps({"norm": told, "report": str(written)}, ensure_ascii=False))
            else:
                terminal.norm(told)
                terminal.where(written)
            return
        passports = survey.examine_run(
            opened,
            list(numbers),
            lm,
            prompts,
            corpus=corpus,
            tokens=tokens,
            seed=seed,
            reporter=telling,
        )
        written = page.write(opened, run / "report.html")
    if as_json:
        data = [passport.data() for passport in passports]
        print(json.dumps({"passports": data, "report": str(written)}, ensure_ascii=False))
        return
    for passport in passports:
        terminal.passport(passport.data())
    terminal.where(written)
