"""Audits in a notebook: an audit in one call, and its findings as a frame."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from educe.audit import reference as references
from educe.audit.findings import Finding, kept
from educe.audit.overview import overview
from educe.audit.settings import AuditOptions, begin
from educe.audit.stages import carry_out
from educe.errors import MethodError
from educe.model.language import LanguageModel, loaded
from educe.model.prompts import Prompt
from educe.notebook.texts import Warns
from educe.options import ModelOptions
from educe.progress import Reporter
from educe.run import store
from educe.run.settings import check_prompts


class Audited(store.Run):
    """The run of an audit, on disk.

    Open one by its folder, or use `educe.audit_model`, which makes it.
    """

    @property
    def findings(self) -> pd.DataFrame:
        """The findings, and below them what is none: a row each, rates as hits and trials."""
        return pd.DataFrame([_row(f) for f in kept(self)], columns=COLUMNS)

    def report(self, path: str | Path) -> Path:
        """Write the page of the audit, one HTML file, and return where it is.

        Raises:
            RunError: The file cannot be written.
        """
        from educe.report import page  # its charts are loaded when they are drawn

        return page.write(self, Path(path))

    def __repr__(self) -> str:
        seen = overview(self)
        first = f"again {seen.findings[0].shown}" if seen.findings else f"{seen.texts} texts"
        return f"Audited({self.folder}: {seen.headline}; {first})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.findings.to_html(index=False)}"


COLUMNS = ["kind", "saying", "evidence", "again", "plain", "reference", "trigger", "alarm", "text"]


def audit_model(
    folder: str | Path,
    lm: LanguageModel,
    prompts: Sequence[Prompt] = (),
    *,
    reference: LanguageModel | str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Audited:
    """Search for what a model hides, and keep everything in a folder; return the finished run.

    Called again with the same arguments, it goes on where it stopped.

    Args:
        folder: Of the run.
        lm: The model.
        prompts: What it is asked beside ordinary requests: texts, or lists of messages.
        reference: A clean model, the name of one, or ``none``; by default the model under the
            adapter, where there is one.
        reporter: Is told of the progress (see `educe.progress`).
        options: What else can be asked for, by the names of `educe.audit.settings.AuditOptions`:
            ``topics``, ``budget``, ``sources``, ``max_new_tokens`` and ``seed``.

    Raises:
        ModelError: The model is not loaded, or the reference is the model itself.
        PromptError: A prompt is none.
        MethodError: An option is unknown, or a value makes no sense.
        RunError: The folder holds another run, or something else.

    Example:
        >>> asked = {"budget": "quick", "sources": ("topics",), "max_new_tokens": 2}
        >>> run = educe.audit_model(folder / "audit", lm, **asked)
        >>> run
        Audited(...audit: Nothing hidden was found; 0 texts)
        >>> len(run.findings)
        0
        >>> run.close()
    """
    check_prompts(prompt=prompts)
    known = [f.name for f in fields(AuditOptions) if f.name not in ("reference", "judge")]
    if unknown := [name for name in options if name not in known]:
        raise MethodError(
            f"audit_model has no option {unknown[0]!r}; its options: {', '.join(known)}"
        )
    many: dict[str, Any] = {name: tuple(options.pop(name, ())) for name in ("topics", "sources")}
    beside = None
    if isinstance(reference, LanguageModel):
        beside, reference = references.between(loaded(lm), reference), reference.name
    asked = AuditOptions(reference=reference, **many, **options)
    model = ModelOptions(model=loaded(lm).name, adapter=lm.adapter, revision=lm.revision)
    with begin(folder, asked, model, tuple(prompts), resume=True) as run:
        carry_out(run, lm=lm, beside=beside, reporter=reporter or Warns())
    return Audited.open(folder)


def _row(f: Finding) -> list[Any]:
    rates = [f"{r.hits}/{r.trials}" for r in (f.shown, f.plain, f.control)]
    trigger = f.triggers[0].text if f.triggers else ""
    text = f.examples[0].text if f.examples else ""
    alarm = f"{f.alarm.hits}/{f.alarm.trials}"
    return [f.kind.value, f.saying, f.evidence, *rates, trigger, alarm, text]
