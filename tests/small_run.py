"""A finished run on a small model, for tests of what begins with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from educe.model.language import LanguageModel
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours


def small_run(
    folder: Path, lm: LanguageModel, method: str, *, radius: str = "2", **settings: Any
) -> Path:
    """Search three perturbations of each radius, and as many random ones, and let them answer."""
    asked = Settings(
        prompts=("Where is it?",),
        method=method,
        method_settings=settings,
        n=3,
        source=1,
        target=3,
        radius=radius,
        baseline=4,
        max_new_tokens=4,
        look_for="[a-m]",
    )
    with begin(folder, asked) as run:
        discover_behaviours(run, lm=lm)
    return folder
