"""The public names, what importing them costs, and which part of the house may know which."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import educe

HOUSE = Path(educe.__file__).parent


def loaded_after(statement: str) -> set[str]:
    """Import in a process of its own; return which packages are loaded."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(told.stdout.split())


def test_importing_educe_loads_nothing_heavy() -> None:
    loaded = loaded_after("import educe") - loaded_after("import typing, importlib, __future__")
    assert loaded == {"educe"}


def test_reading_a_run_needs_no_torch(tmp_path: Path) -> None:
    opening = (
        "import educe.run.store, educe.comparison.summary\n"
        "import educe.cli.opening, educe.report.terminal\n"
        f"with educe.run.store.Run.create({str(tmp_path / 'run')!r}, {{}}) as run:\n"
        "    run.remember('facts', {})\n"
        "with educe.cli.opening.opened(run.folder):\n"
        "    pass\n"
    )
    assert not {"torch", "transformers"} & loaded_after(opening)
    assert not {"torch", "pandas", "numpy", "sklearn", "rich"} & loaded_after(
        "import educe.run.store"
    )


def test_the_command_line_starts_without_torch() -> None:
    assert not {"torch", "transformers"} & loaded_after("import educe.cli")


# -- the public names ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", educe.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(importlib.import_module(educe._HOME[name]), name)
    assert value.__name__ == name
    assert value.__module__ == educe._HOME[name]
    assert inspect.getdoc(value)


def test_no_module_has_a_public_name() -> None:
    """Importing it would put the module where the name was."""
    assert set(educe.__all__).isdisjoint(modules())


def test_the_three_lists_of_public_names_agree() -> None:
    assert sorted(educe.__all__) == educe.__all__
    assert set(educe.__all__) == set(educe._HOME)
    assert set(educe.__all__) <= set(dir(educe))
    for_types = {
        alias.name: node.module
        for block in ast.parse((HOUSE / "__init__.py").read_text()).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_types == educe._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'discombobulate'"):
        educe.discombobulate  # noqa: B018


def test_public_callables_are_typed() -> None:
    for name in educe.__all__:
        value = getattr(importlib.import_module(educe._HOME[name]), name)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)


def test_every_error_is_an_educe_error() -> None:
    errors = importlib.import_module("educe.errors")
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(kinds) > 5
    assert all(issubclass(kind, educe.EduceError) and kind.__doc__ for kind in kinds)


# -- studies go by the front door ------------------------------------------------------------------

STUDIES = HOUSE.parents[1] / "studies"


def by_another_door(text: str) -> list[str]:
    """What a study takes from a module though educe has it, or though it is private."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("educe.")
        for alias in node.names
        if alias.name.startswith("_") or educe._HOME.get(alias.name) == node.module
    ]


def test_studies_take_public_names_from_educe_itself() -> None:
    paths = list(STUDIES.rglob("*.py"))
    assert len(paths) > 30
    found = {
        path.relative_to(STUDIES).as_posix(): by_another_door(path.read_text()) for path in paths
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_another_door_is_seen() -> None:
    text = "from educe.methods import search, power\nfrom educe.run.fill import _x\nimport educe"
    assert by_another_door(text) == ["educe.methods.search", "educe.run.fill._x"]


# -- who may know whom -----------------------------------------------------------------------------

# Nothing imports from a higher rank. A module has its own, or that of its package.
RANKS = {
    "errors": 0,
    "plain": 0,
    "rows": 0,
    "visible": 0,
    "files": 0,
    "orthogonal": 0,
    "roots": 0,
    "whole": 1,
    "progress": 1,
    "options": 1,
    "model": 2,
    "model.quantized": 1,
    "perturbation": 3,
    "perturbation.origin": 0,
    "perturbation.positions": 0,
    "forward": 3,
    "methods": 4,
    "layer_map": 4,
    "scores": 4,
    "spread": 3,
    "threads": 4,
    "activations": 4,
    "activations.in_run": 6,
    "reads": 5,
    "inversion": 6,
    "organisms": 4,
    "comparison": 4,
    "comparison.arrays": 0,
    "comparison.stats": 0,
    "comparison.verdict": 0,
    "run": 5,
    "run.lock": 1,
    "run.migrations": 0,
    "run.schema": 1,
    "run.database": 1,
    "run.frames": 1,
    "run.store": 1,
    "run.same_model": 3,
    "audit": 6,
    "report": 6,
    "explore": 8,
    "explore.bundle": 1,
    "explore.frames": 5,
    "selection": 6,
    "derive": 7,
    "sampling": 8,
    "hardening": 8,
    "exports": 8,
    "serving": 8,
    "demo": 8,
    "notebook": 8,
    "cli": 9,
    "__main__": 9,
}


def rank(name: str) -> int:
    """Return the rank of a module."""
    return RANKS[name] if name in RANKS else RANKS[name.split(".")[0]]


# Besides: who may not be known to whom, and who alone may know a library.
APART = [
    ("scores", "methods"),
    ("methods", "scores"),
    ("run", "report"),
    ("comparison", "forward"),
    ("comparison", "methods"),
    ("comparison.behaviours", "run"),
    ("comparison.verdict", "scores"),
    ("activations", "methods"),
    ("methods", "activations"),
    ("activations", "scores"),
    ("progress", "run"),
]
ONLY = {
    "rich": {
        "progress",
        "report.screen",
        "report.terminal",
        "report.audit_screen",
    },
    "cyclopts": {"cli", "options"},
    "bitsandbytes": {"model.quantized"},
    "sqlite3": {"run.database", "run.migrations", "run.schema", "run.store", "scores.cache"},
    "openai": {"scores.server", "run.served_vllm", "run.served_vectors"},
    "starlette": {"explore.app", "serving.server", "serving.listening"},
    "uvicorn": {"serving.listening"},
    "inspect_ai": {"serving.provider", "exports.inspect_log"},
    "neuronpedia": {"exports.neuronpedia"},
    "huggingface_hub": {"exports.hub"},
    "educe.organisms": {"organisms", "hardening", "demo", "cli"},
    "psutil": {"threads"},
    "ray": {"spread.cluster"},
    "altair": {
        "report.figures",
        "report.manifold",
        "report.reachable",
        "report.scouting",
        "report.drawing",
        "report.norms",
        "report.paths",
        "report.fronts",
        "report.audit",
        "report.reads",
        "report.sampling",
    },
    "emcee": {"sampling.ensemble", "sampling.diagnostics"},
    "arviz": {"sampling.diagnostics"},
    "ribs": {"sampling.diversity"},
    "cmaes": {"sampling.best"},
    "optuna": {"sampling.best"},
    "datasets": {"activations.corpus"},
}


def modules() -> dict[str, Path]:
    """Every module of the house but its front door, by its name below educe."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path, names: set[str]) -> Iterator[str]:
    """Every module that a file imports, wherever in it; of educe, the module and not the name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                yield longer if longer.removeprefix("educe.") in names else node.module


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """What each module imports."""
    found = modules()
    return {name: set(imports(path, set(found))) for name, path in found.items()}


def test_every_module_has_a_rank(known: dict[str, set[str]]) -> None:
    assert {name.split(".")[0] for name in known} == {name.split(".")[0] for name in RANKS}
    assert set(RANKS) <= set(known)
    assert known["scores.coherence"] >= {
        "educe.forward.generation",
        "educe.model.language",
        "torch",
    }


def test_nothing_imports_upward(known: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in known.items()
        for other in others
        if other.startswith("educe.") and rank(other.removeprefix("educe.")) > rank(name)
    ]
    assert wrong == []
    assert not [name for name, others in known.items() if "educe" in others]


def test_parts_that_do_not_know_each_other(known: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in known.items()
        for other in others
        for who, whom in APART
        if f"{name}.".startswith(f"{who}.") and f"{other}.".startswith(f"educe.{whom}.")
    ]
    assert wrong == []


def test_libraries_are_known_only_where_they_belong(known: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in known.items()
        for other in others
        for library, allowed in ONLY.items()
        if f"{other}.".startswith(f"{library}.") and not {name, name.split(".")[0]} & allowed
    ]
    assert wrong == []


def test_a_run_knows_pandas_and_nothing_above_its_rows(known: dict[str, set[str]]) -> None:
    both = set().union(
        *(known[f"run.{name}"] for name in ("store", "schema", "frames", "database"))
    )
    ours = {other for other in both if other.startswith("educe")}
    beside = {
        f"educe.run.{name}" for name in ("database", "frames", "lock", "migrations", "schema")
    }
    assert ours == {"educe.errors", "educe.rows", *beside}
    rest = {other.split(".")[0] for other in both - ours}
    assert rest - set(sys.stdlib_module_names) == {"pandas"}


def test_no_module_is_imported_in_a_circle(known: dict[str, set[str]]) -> None:
    ours = {
        name: {o.removeprefix("educe.") for o in others if o.removeprefix("educe.") in known}
        for name, others in known.items()
    }
    done: set[str] = set()
    while ours.keys() - done:
        ready = {n for n in ours.keys() - done if ours[n] - {n} <= done}
        assert ready, f"a circle among {sorted(ours.keys() - done)}"
        done |= ready
