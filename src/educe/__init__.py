"""educe brings out what a language model can do but does not show.

    import educe

    lm = educe.load("embedded")
    part = educe.Slice(lm, ["What is the code?"], source=0.33, target=0.6)
    found = educe.search(part, "dct", n=32, radius="0.5x")
    control = educe.control(part, found)
    texts = educe.write(lm, found + control, ["What is the code?"])
    educe.compare(texts)  # a frame: what found perturbations bring out, beside the control

Everything here is loaded when it is first used, so that importing educe costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from educe.activations.examination import examine
    from educe.activations.in_run import examine_run
    from educe.activations.inside import within
    from educe.activations.natural import gather
    from educe.activations.project import Ablation, ablating, ablating_weights, injection
    from educe.activations.reading import Place
    from educe.activations.report import ManifoldReport
    from educe.activations.subspace import Moments, Subspace
    from educe.atlas import Atlas, AtlasConfig, Pair, grid
    from educe.atlas.choice import Choice, choose, promising
    from educe.atlas.survey import survey
    from educe.contrast import difference_of_means, optimised
    from educe.errors import EduceError
    from educe.forward.generation import Completion, generate, rows_of
    from educe.forward.slice import Slice
    from educe.judge import Answer, Judge, Score
    from educe.judge.cache import Cached
    from educe.judge.calibration import check_judge
    from educe.judge.language_model import Rating, Theme, Yes
    from educe.judge.lying import Lying
    from educe.judge.naming import judge_named
    from educe.judge.scoring import score_run
    from educe.judge.server import Budget, Server
    from educe.kinds.kind import Kind
    from educe.kinds.low_rank import Adapters, adapters
    from educe.kinds.noise import TokenNoise, WeightNoise
    from educe.kinds.vectors import Vectors, Within
    from educe.loading import load
    from educe.methods import control, search
    from educe.methods.cpe import CpeConfig
    from educe.methods.dct import DctConfig
    from educe.methods.linear import LinearDctConfig
    from educe.methods.lora import LoraConfig
    from educe.methods.melbo import MelboConfig
    from educe.methods.noise import NoiseConfig
    from educe.methods.power import PowerConfig
    from educe.methods.quadratic import QuadraticDctConfig
    from educe.methods.random import RandomConfig
    from educe.methods.words import WordsConfig
    from educe.model import LanguageModel
    from educe.norm.survey import examine_norm
    from educe.notebook.runs import Run, discover
    from educe.notebook.texts import compare, score, write
    from educe.ordinary import Ordinary
    from educe.origin import Origin
    from educe.perturb import PerturbationGroup, PerturbationSet
    from educe.radius import Calibration, calibrate, response
    from educe.rendering import PromptBatch
    from educe.rows import Row
    from educe.run.settings import Settings, begin
    from educe.run.stages import discover_behaviours
    from educe.selection.bandit import Setting, Thompson
    from educe.selection.chance import Chance, best_by_chance, best_mean_by_chance, p_of_best
    from educe.selection.halving import Halving, halve
    from educe.selection.proxy import Proxy, secrets
    from educe.selection.selecting import SelectionPlan, select_best
    from educe.summary import Summary, summarise

_HOME = {
    "Atlas": "educe.atlas",
    "AtlasConfig": "educe.atlas",
    "Choice": "educe.atlas.choice",
    "Pair": "educe.atlas",
    "choose": "educe.atlas.choice",
    "grid": "educe.atlas",
    "promising": "educe.atlas.choice",
    "survey": "educe.atlas.survey",
    "difference_of_means": "educe.contrast",
    "optimised": "educe.contrast",
    "CpeConfig": "educe.methods.cpe",
    "DctConfig": "educe.methods.dct",
    "LinearDctConfig": "educe.methods.linear",
    "LoraConfig": "educe.methods.lora",
    "MelboConfig": "educe.methods.melbo",
    "QuadraticDctConfig": "educe.methods.quadratic",
    "PowerConfig": "educe.methods.power",
    "NoiseConfig": "educe.methods.noise",
    "RandomConfig": "educe.methods.random",
    "WordsConfig": "educe.methods.words",
    "EduceError": "educe.errors",
    "Completion": "educe.forward.generation",
    "Adapters": "educe.kinds.low_rank",
    "Kind": "educe.kinds.kind",
    "Row": "educe.rows",
    "TokenNoise": "educe.kinds.noise",
    "Vectors": "educe.kinds.vectors",
    "WeightNoise": "educe.kinds.noise",
    "Within": "educe.kinds.vectors",
    "adapters": "educe.kinds.low_rank",
    "generate": "educe.forward.generation",
    "rows_of": "educe.forward.generation",
    "Settings": "educe.run.settings",
    "begin": "educe.run.settings",
    "discover_behaviours": "educe.run.stages",
    "Score": "educe.judge",
    "Answer": "educe.judge",
    "Judge": "educe.judge",
    "Cached": "educe.judge.cache",
    "check_judge": "educe.judge.calibration",
    "judge_named": "educe.judge.naming",
    "score_run": "educe.judge.scoring",
    "Rating": "educe.judge.language_model",
    "Theme": "educe.judge.language_model",
    "Yes": "educe.judge.language_model",
    "Lying": "educe.judge.lying",
    "Server": "educe.judge.server",
    "Budget": "educe.judge.server",
    "Place": "educe.activations.reading",
    "within": "educe.activations.inside",
    "gather": "educe.activations.natural",
    "examine": "educe.activations.examination",
    "Ablation": "educe.activations.project",
    "ablating": "educe.activations.project",
    "ablating_weights": "educe.activations.project",
    "injection": "educe.activations.project",
    "ManifoldReport": "educe.activations.report",
    "Moments": "educe.activations.subspace",
    "Subspace": "educe.activations.subspace",
    "examine_run": "educe.activations.in_run",
    "LanguageModel": "educe.model",
    "PromptBatch": "educe.rendering",
    "load": "educe.loading",
    "examine_norm": "educe.norm.survey",
    "Ordinary": "educe.ordinary",
    "Origin": "educe.origin",
    "PerturbationGroup": "educe.perturb",
    "PerturbationSet": "educe.perturb",
    "Calibration": "educe.radius",
    "calibrate": "educe.radius",
    "response": "educe.radius",
    "search": "educe.methods",
    "Run": "educe.notebook.runs",
    "compare": "educe.notebook.texts",
    "control": "educe.methods",
    "discover": "educe.notebook.runs",
    "score": "educe.notebook.texts",
    "write": "educe.notebook.texts",
    "Setting": "educe.selection.bandit",
    "Thompson": "educe.selection.bandit",
    "Chance": "educe.selection.chance",
    "best_by_chance": "educe.selection.chance",
    "best_mean_by_chance": "educe.selection.chance",
    "p_of_best": "educe.selection.chance",
    "Halving": "educe.selection.halving",
    "halve": "educe.selection.halving",
    "SelectionPlan": "educe.selection.selecting",
    "select_best": "educe.selection.selecting",
    "Proxy": "educe.selection.proxy",
    "secrets": "educe.selection.proxy",
    "Slice": "educe.forward.slice",
    "Summary": "educe.summary",
    "summarise": "educe.summary",
}

__all__ = [
    "Ablation",
    "Adapters",
    "Answer",
    "Atlas",
    "AtlasConfig",
    "Budget",
    "Cached",
    "Calibration",
    "Chance",
    "Choice",
    "Completion",
    "CpeConfig",
    "DctConfig",
    "EduceError",
    "Halving",
    "Judge",
    "Kind",
    "LanguageModel",
    "LinearDctConfig",
    "LoraConfig",
    "Lying",
    "ManifoldReport",
    "MelboConfig",
    "Moments",
    "NoiseConfig",
    "Ordinary",
    "Origin",
    "Pair",
    "PerturbationGroup",
    "PerturbationSet",
    "Place",
    "PowerConfig",
    "PromptBatch",
    "Proxy",
    "QuadraticDctConfig",
    "RandomConfig",
    "Rating",
    "Row",
    "Run",
    "Score",
    "SelectionPlan",
    "Server",
    "Setting",
    "Settings",
    "Slice",
    "Subspace",
    "Summary",
    "Theme",
    "Thompson",
    "TokenNoise",
    "Vectors",
    "WeightNoise",
    "Within",
    "WordsConfig",
    "Yes",
    "ablating",
    "ablating_weights",
    "adapters",
    "begin",
    "best_by_chance",
    "best_mean_by_chance",
    "calibrate",
    "check_judge",
    "choose",
    "compare",
    "control",
    "difference_of_means",
    "discover",
    "discover_behaviours",
    "examine",
    "examine_norm",
    "examine_run",
    "gather",
    "generate",
    "grid",
    "halve",
    "injection",
    "judge_named",
    "load",
    "optimised",
    "p_of_best",
    "promising",
    "response",
    "rows_of",
    "score",
    "score_run",
    "search",
    "secrets",
    "select_best",
    "summarise",
    "survey",
    "within",
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
