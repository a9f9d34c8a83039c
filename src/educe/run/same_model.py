"""The same model: a run goes on only with the one that it began with.

A run keeps the digests of the parts of its model (see `educe.model.digest`) as soon as the model is
loaded. Whoever opens it again with a model comes through `check`.
"""

from __future__ import annotations

from collections.abc import Callable

from educe.errors import RunError
from educe.model.digest import others, whole
from educe.model.language import LanguageModel
from educe.run.store import Run

#: What a run keeps of its model, by name.
NOTE = "model-parts"


def check(run: Run, lm: LanguageModel, say: Callable[[str], None] = lambda sentence: None) -> None:
    """Make sure that a model is the one of a run; a run that knows none keeps this one.

    A dtype that leaves the weights as they are, as float32 does for a checkpoint in bfloat16, is
    told: numbers differ by rounding.

    Args:
        run: The run.
        lm: The model.
        say: Is told what is no error.

    Raises:
        RunError: Weights, configuration or tokenizer are others.
    """
    now = dict(lm.parts)
    if not run.has(NOTE):
        if run.has("facts") or run.perturbation_rows():
            say(
                f"the run in {run.folder} was kept without a digest of its model: whether "
                f"{lm.name} is still the same cannot be checked; from now on it is"
            )
        run.remember(NOTE, now)
        return
    was = run.note(NOTE)
    dtype = f"the dtype ({was['dtype']} then, {now['dtype']} now)"
    changed = others(was, now)
    if changed == ["dtype"]:
        say(f"the run in {run.folder} has another dtype: {dtype}; numbers differ by rounding")
    elif changed:
        told = ", ".join(dtype if part == "dtype" else f"the {part}" for part in changed)
        raise RunError(
            f"the run in {run.folder} was made with another model than {lm.name} is now: {told} "
            f"changed (digest {whole(was)[:12]} then, {whole(now)[:12]} now); put that model "
            "back, or begin a new run"
        )
