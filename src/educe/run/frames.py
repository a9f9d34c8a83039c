"""Frames: the four tables of a run as pandas has them, for statistics by groupby."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from educe.rows import CompletionRow, PerturbationRow, PromptRow, Row, ScoreRow

if TYPE_CHECKING:
    import pandas as pd


class Frames:
    """The tables of a run; `educe.run.store.Run` reads their rows."""

    prompt_rows: Callable[..., list[PromptRow]]
    perturbation_rows: Callable[..., list[PerturbationRow]]
    completion_rows: Callable[..., list[CompletionRow]]
    score_rows: Callable[..., list[ScoreRow]]

    @property
    def prompts(self) -> pd.DataFrame:
        """The prompts: role, content, rendered, tokens, parent, how."""
        return _frame(self.prompt_rows(), PromptRow)

    @property
    def perturbations(self) -> pd.DataFrame:
        """The perturbations, derived ones too: parent, how, arm, method, radius, dose, effect."""
        return _frame(self.perturbation_rows(derived=None), PerturbationRow)

    @property
    def completions(self) -> pd.DataFrame:
        """What was written: perturbation, arm, prompt, phase, sample, temperature, text, finished.

        The arm of the unperturbed model is ``unperturbed``.
        """
        import pandas as pd

        arms = {p.id: p.arm for p in self.perturbation_rows(derived=None)} | {0: "unperturbed"}
        rows = [
            (c.perturbation, arms[c.perturbation], *c.row[1:], *c[1:])
            for c in self.completion_rows()
        ]
        return pd.DataFrame(
            rows,
            columns=[
                *("perturbation", "arm", "prompt", "sample", "phase"),
                *CompletionRow._fields[1:],
            ],
        )

    @property
    def scores(self) -> pd.DataFrame:
        """What judges said: perturbation, prompt, sample, phase, judge, value, unit, why.

        Prompt, sample and phase are missing where it was said of a perturbation as a whole.
        """
        import pandas as pd

        rows = [
            (*((s.of, None, None, None) if isinstance(s.of, int) else s.of), *s[1:])
            for s in self.score_rows()
        ]
        return pd.DataFrame(rows, columns=[*Row._fields, *ScoreRow._fields[1:]])


def _frame(rows: Sequence[Any], of: Any) -> pd.DataFrame:
    """Return rows as a frame whose index is their number."""
    import pandas as pd

    return pd.DataFrame(rows, columns=of._fields).set_index("id")
