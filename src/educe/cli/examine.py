"""The command that gives perturbations their passports."""

from __future__ import annotations

import json
from pathlib import Path

from educe.cli.options import Debug, Json, check_begun
from educe.errors import RunError


def examine(
    run: Path,
    /,
    *numbers: int,
    corpus: str = "bundled",
    tokens: int = 100_000,
    seed: int = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say where perturbations of a run stand among the activations of ordinary text.

    The passport goes on the screen and into the report. Several share one pass over the corpus.

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
    seed
        of samples and controls
    """
    from educe import job
    from educe.manifold import survey
    from educe.progress import reporter
    from educe.report import page, terminal
    from educe.runs import Run
    from educe.threads import choose

    if not numbers:
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
        passports = survey.examine_run(
            opened,
            list(numbers),
            lm,
            job.encoded(lm, settings, settings.prompts),
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
