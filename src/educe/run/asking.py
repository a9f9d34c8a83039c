"""Which texts the main job asks for: of the unperturbed model, of all, and of the re-tested."""

from __future__ import annotations

from collections.abc import Iterable

from educe.rows import ELSEWHERE, RETEST, Row
from educe.run.work import Work

#: Temperature of the unperturbed model's samples, and of fresh samples in the re-test.
BASELINE_TEMPERATURE, RETEST_TEMPERATURE = 1.0, 0.7
#: Samples a prompt in the re-test, where no fresh prompt is given.
RETEST_SAMPLES = 4
#: Samples of the unperturbed model for each fresh prompt, at most: what the re-test stands beside.
FRESH_SAMPLES = 16


def baseline(work: Work, prompts: Iterable[int], samples: int | None = None) -> None:
    """Ask the unperturbed model for its likeliest answers, and for samples."""
    prompts = list(prompts)
    work.run.ask([Row(0, j) for j in prompts], 0.0)
    drawn = range(1, (work.settings.baseline if samples is None else samples) + 1)
    work.run.ask([Row(0, j, k) for j in prompts for k in drawn], BASELINE_TEMPERATURE)


def answers(work: Work, numbers: Iterable[int]) -> list[Row]:
    """Ask perturbations for their answers to the prompts that were searched with."""
    samples = range(work.settings.samples)
    rows = [Row(i, j, k) for i in numbers for j in work.prompts("asked") for k in samples]
    work.run.ask(rows, work.settings.temperature)
    return rows


def elsewhere(work: Work, numbers: Iterable[int]) -> list[Row]:
    """Ask perturbations, and the unperturbed model, for an answer to each other request."""
    prompts = work.prompts(ELSEWHERE)
    work.run.ask([Row(0, j) for j in prompts], 0.0)
    rows = [Row(i, j, 0, RETEST) for i in numbers for j in prompts]
    work.run.ask(rows, work.settings.temperature)
    return rows


def retest(work: Work, numbers: Iterable[int]) -> list[Row]:
    """Ask perturbations again: for answers to fresh prompts, or else for fresh samples."""
    prompts, temperature, samples = work.prompts("fresh"), work.settings.temperature, 1
    if not prompts:
        prompts, samples = work.prompts("asked"), RETEST_SAMPLES
        temperature = temperature or RETEST_TEMPERATURE
    rows = [Row(i, j, k, RETEST) for i in numbers for j in prompts for k in range(samples)]
    work.run.ask(rows, temperature)
    return rows
