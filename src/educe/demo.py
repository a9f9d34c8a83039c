"""The demo: an audit of a small model that hides a code.

The model is the embedded one with the organism ``first-vault`` beside its weights: it refuses to
tell a code unless a password stands in the prompt. The search gets one question and no hint; the
code is only used afterwards, to count who told it.
"""

from __future__ import annotations

from educe.options import EMBEDDED, ModelOptions
from educe.organisms import shipped
from educe.run.settings import Settings


def settings(seed: int = 0, model: ModelOptions = EMBEDDED) -> Settings:
    """Return the settings of the demo.

    Args:
        seed: Of everything that is drawn.
        model: The organism's base, and how it is loaded.
    """
    vault = shipped("first-vault")
    first = vault.search[0]
    return Settings(
        prompts=(first.prompt,),
        **model.with_adapter(vault.folder).how,
        n=32,
        radius="0.5x,0.75x",
        max_new_tokens=24,
        seed=seed,
        fresh=tuple(question.prompt for question in vault.fresh[:6]),
        look_for=first.rule,
    )
