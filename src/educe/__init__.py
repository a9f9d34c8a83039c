"""educe brings out what a language model can do but does not show.

    import educe

    lm = educe.load("embedded")
    part = educe.Slice(lm, ["What is the code?"], source=0.33, target=0.6)
    found = educe.search(part, "dct", n=32, radius="0.5x")
    control = educe.control(part, found)
    texts = educe.write(lm, found + control, ["What is the code?"])
    educe.compare(texts)  # a frame: what found perturbations bring out, beside the control

Everything here is loaded when it is first used, so that importing educe costs nothing. What else
there is, such as the configurations of methods, is imported from its module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from educe.errors import EduceError
    from educe.forward.generation import generate, rows_of
    from educe.forward.slice import Slice
    from educe.methods import control, search
    from educe.methods.radius import calibrate
    from educe.model.language import LanguageModel
    from educe.model.loading import load
    from educe.notebook.audits import audit_model
    from educe.notebook.runs import Run, discover
    from educe.notebook.texts import compare, score, write
    from educe.perturbation.set import PerturbationGroup, PerturbationSet
    from educe.rows import Row
    from educe.scores import Answer, Judge, Score

_HOME = {
    "Answer": "educe.scores",
    "EduceError": "educe.errors",
    "Judge": "educe.scores",
    "LanguageModel": "educe.model.language",
    "PerturbationGroup": "educe.perturbation.set",
    "PerturbationSet": "educe.perturbation.set",
    "Row": "educe.rows",
    "Run": "educe.notebook.runs",
    "Score": "educe.scores",
    "Slice": "educe.forward.slice",
    "audit_model": "educe.notebook.audits",
    "calibrate": "educe.methods.radius",
    "compare": "educe.notebook.texts",
    "control": "educe.methods",
    "discover": "educe.notebook.runs",
    "generate": "educe.forward.generation",
    "load": "educe.model.loading",
    "rows_of": "educe.forward.generation",
    "score": "educe.notebook.texts",
    "search": "educe.methods",
    "write": "educe.notebook.texts",
}

__all__ = [
    "Answer",
    "EduceError",
    "Judge",
    "LanguageModel",
    "PerturbationGroup",
    "PerturbationSet",
    "Row",
    "Run",
    "Score",
    "Slice",
    "audit_model",
    "calibrate",
    "compare",
    "control",
    "discover",
    "generate",
    "load",
    "rows_of",
    "score",
    "search",
    "write",
]


def __getattr__(name: str) -> Any:
    if name == "derive":  # a room whose verbs are called by it: educe.derive.scaled
        return importlib.import_module("educe.derive")
    if name not in _HOME:
        raise AttributeError(f"module 'educe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
