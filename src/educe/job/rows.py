"""What the model writes in the main job: its baseline, what was found, and the re-test."""

from __future__ import annotations

from collections.abc import Iterable

from educe import writing
from educe.job.settings import Settings
from educe.job.work import Work
from educe.kinds import Row
from educe.summary import RETEST

#: Temperature of the unperturbed model's samples, and of fresh samples in the re-test.
BASELINE_TEMPERATURE, RETEST_TEMPERATURE = 1.0, 0.7
#: Samples a prompt: of the unperturbed model, and of the re-test where no fresh prompt is given.
BASELINE_SAMPLES, RETEST_SAMPLES = 8, 4


def baseline(prompts: int, samples: int = BASELINE_SAMPLES) -> dict[float, list[Row]]:
    """Return the rows of the unperturbed model: its likeliest answers, and samples."""
    return {
        0.0: [Row(-1, j, 0) for j in range(prompts)],
        BASELINE_TEMPERATURE: [
            Row(-1, j, k) for j in range(prompts) for k in range(1, samples + 1)
        ],
    }


def answers(settings: Settings, chosen: Iterable[int]) -> dict[float, list[Row]]:
    """Return the rows of some perturbations, by their numbers, on the prompts asked."""
    return {
        settings.temperature: [
            Row(number - 1, j, k)
            for number in chosen
            for j in range(len(settings.prompts))
            for k in range(settings.samples)
        ]
    }


def retest(settings: Settings, chosen: Iterable[int]) -> dict[float, list[Row]]:
    """Return the rows of some perturbations on fresh prompts, or else on fresh samples."""
    asked, heat, samples = len(settings.prompts), settings.temperature, 1
    prompts = range(asked, asked + len(settings.fresh))
    if not prompts:  # no fresh prompts: fresh samples
        heat, samples = heat or RETEST_TEMPERATURE, RETEST_SAMPLES
        prompts = range(asked)
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
