"""Inspect: a run as an ``.eval`` log, for ``inspect view`` and `inspect_ai.log`.

A sample is a completion: its input is the prompt, its scores are those of the run's judges, and its
metadata say which perturbation wrote it, of which arm, and how large it is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from educe.errors import ExportError
from educe.exports.chosen import Chosen
from educe.rows import CompletionRow, PerturbationRow, PromptRow, Row, ScoreRow
from educe.scores import asked_in


def write(chosen: Chosen, folder: Path) -> list[str]:
    """Write ``run.eval``.

    Raises:
        ExportError: Inspect is not installed.
    """
    try:
        from inspect_ai import log
        from inspect_ai.model import GenerateConfig
    except ImportError as error:
        raise ExportError("Inspect is needed: pip install 'educe[inspect]'") from error
    run, s = chosen.run, chosen.settings
    prompts = {p.id: p for p in run.prompt_rows()}
    scores: dict[Row | int, dict[str, ScoreRow]] = {}
    for score in run.score_rows():
        scores.setdefault(score.of, {})[score.judge] = score
    samples = [
        _sample(c, prompts[c.prompt], chosen.rows.get(c.perturbation), scores.get(c.row, {}))
        for c in run.completion_rows()
    ]
    began = datetime.fromtimestamp(run.note("began"), UTC).isoformat()
    log.write_eval_log(
        log.EvalLog(
            status="success",
            eval=log.EvalSpec(
                created=began,
                task=run.folder.name,
                model=f"educe/{chosen.facts['model']}",
                dataset=log.EvalDataset(name=run.folder.name, samples=len(samples)),
                config=log.EvalConfig(),
                model_generate_config=GenerateConfig(max_tokens=s.max_new_tokens, seed=s.seed),
                metadata={k: v for k, v in chosen.facts.items() if k != "seconds"},
                packages={"educe": str(chosen.facts["educe"])},
            ),
            samples=samples,
        ),
        str(folder / "run.eval"),
    )
    return []


def _sample(
    c: CompletionRow,
    prompt: PromptRow,
    by: PerturbationRow | None,
    scores: dict[str, ScoreRow],
) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    output = ModelOutput.from_content("educe", c.text, "stop" if c.finished else "max_tokens")
    about: dict[str, Any] = {"perturbation": c.perturbation, "phase": c.phase, "prompt": c.prompt}
    about |= {"arm": "unperturbed"} if by is None else by._asdict()
    return EvalSample(
        id=f"{c.perturbation}-{c.prompt}-{c.phase}",
        epoch=c.sample + 1,
        input=asked_in(prompt.content),
        target="",
        messages=[output.message],
        output=output,
        scores={
            name: Score(value=score.value, answer=c.text, explanation=score.why or None)
            for name, score in scores.items()
        },
        metadata=about | {"temperature": c.temperature, "rendered": prompt.rendered},
    )
