"""Opening: a run's model and perturbations, ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from educe.model.language import LanguageModel
from educe.run.fill import check_known, groups
from educe.run.settings import loaded, stored
from educe.run.store import Run
from educe.serving.batching import Batcher


def batcher_of(
    folder: str | Path,
    *,
    model: str | None = None,
    numbers: Sequence[int] | None = None,
    lm: LanguageModel | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Batcher:
    """Return who writes under the perturbations of a run.

    Args:
        folder: The run.
        model: Where its model is now; by default where it was. It must be the same one.
        numbers: Which perturbations; by default all, derived ones too.
        lm: The model, when it is loaded.
        say: Is told what is no error.

    Raises:
        RunError: There is no such run or perturbation, or the model is another one.
    """
    with Run.open(folder) as run:
        settings = stored(run)
        known = [p.id for p in run.perturbation_rows(derived=None)]
        wanted = known if numbers is None else [number for number in numbers if number]
        check_known(run, wanted, derived=None)
        if model is not None:
            settings = replace(settings, model=model)
        lm = loaded(run, settings, say, lm)
        members = groups(run, wanted) if wanted else []
    return Batcher(lm, members, chat=settings.chat, enable_thinking=settings.enable_thinking)
