"""What the model writes in the main job: its baseline, what was found, and the re-test."""

from __future__ import annotations

from collections.abc import Iterable

from educe import writing
from educe.job.work import Work
from educe.kinds import Row
from educe.summary import RETEST

#: Temperature of the unperturbed model's samples, and of fresh samples in the re-test.
BASELINE_TEMPERATURE, RETEST_TEMPERATURE = 1.0, 0.7
#: Samples a prompt: of the unperturbed model, and of the re-test where no fresh prompt is given.
BASELINE_SAMPLES, RETEST_SAMPLES = 8, 4


def baseline(work: Work) -> dict[float, list[Row]]:
    """Return the rows of the unperturbed model: its likeliest answers, and samples."""
    prompts = range(len(work.batch))
    return {
        0.0: [Row(-1, j, 0) for j in prompts],
        BASELINE_TEMPERATURE: [
            Row(-1, j, k) for j in prompts for k in range(1, BASELINE_SAMPLES + 1)
        ],
    }


def main(work: Work) -> dict[float, list[Row]]:
    """Return the rows of all perturbations on the prompts asked."""
    return {
        work.settings.temperature: [
            Row(p.id - 1, j, k)
            for p in work.run.perturbations()
            for j in range(len(work.asked))
            for k in range(work.settings.samples)
        ]
    }


def retest(work: Work, chosen: Iterable[int]) -> dict[float, list[Row]]:
    """Return the rows of some perturbations on fresh prompts, or else on fresh samples."""
    heat, samples = work.settings.temperature, 1
    prompts = range(len(work.asked), len(work.batch))
    if not prompts:  # no fresh prompts: fresh samples
        heat, samples = heat or RETEST_TEMPERATURE, RETEST_SAMPLES
        prompts = range(len(work.asked))
    return {
        heat: [
            Row(number - 1, j, RETEST + k)
            for number in chosen
            for j in prompts
            for k in range(samples)
        ]
    }


def write(work: Work, what: str, rows: dict[float, list[Row]]) -> None:
    """Write what is missing of some rows, listed by temperature."""
    with work.timed("generate"):
        writing.write(
            work.lm,
            work.batch,
            rows,
            of=work.run,
            into=work.run,
            before=work.part.source,
            max_new_tokens=work.settings.max_new_tokens,
            seed=work.settings.seed,
            reporter=work.reporter,
            what=what,
        )
