"""Shapes: the arrays that go into a function, and come out of it, are what its hints promise.

    import shapes  # before educe
    def effect(theta: Float[Tensor, "n s"]) -> Float[Tensor, "n d"]: ...
    effect(torch.zeros(3))  # TypeError

Every module of educe is guarded right after it has run, so that others import guarded
functions. Within a call, dimensions of one name have one size, by jaxtyping. What has no array in
its hints is left as it is; mypy has all other types.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

import jaxtyping
import numpy as np
import torch
from jaxtyping import AbstractArray, jaxtyped

#: Hints that are checked: arrays, perhaps None instead, and tuples of them.
ARRAYS = re.compile(r"(tuple\[.*)?\b(Bool|Float|Int)\[")


class Watching(MetaPathFinder):
    """Finds the modules of educe, and guards their functions when they have run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] != "educe":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_guard(module: ModuleType) -> None:
                run(module)
                guard(module, module.__name__)

            spec.loader.exec_module = run_and_guard  # type: ignore[method-assign]
        return spec


def guard(place: Any, module: str) -> None:
    """Guard the functions of a module, and those of its classes."""
    for name, value in list(vars(place).items()):
        if isinstance(value, FunctionType) and value.__module__ == module:
            setattr(place, name, checked(value))
        elif isinstance(value, classmethod | staticmethod):
            setattr(place, name, type(value)(checked(value.__func__)))
        elif isinstance(value, property) and value.fget is not None:
            setattr(place, name, property(checked(value.fget), value.fset, value.fdel))
        elif inspect.isclass(value) and value.__module__ == module and place is not value:
            guard(value, module)


def checked(function: Any) -> Any:
    """Return a function that checks the arrays in its arguments and in its result."""
    hints = {
        name: hint
        for name, hint in getattr(function, "__annotations__", {}).items()
        if ARRAYS.match(str(hint))
    }
    if not hints:
        return function
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, Any]:
        known = {**vars(jaxtyping), "Tensor": torch.Tensor, "np": np, **function.__globals__}
        return {n: eval(h, known) if isinstance(h, str) else h for n, h in hints.items()}

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        with jaxtyped("context"):
            for name, kind in kinds().items():
                if name in given:
                    check(function, name, given[name], kind)
            result = function(*args, **kwargs)
            if "return" in hints:
                check(function, "return", result, kinds()["return"])
        return result

    return wrapper


def check(function: Callable[..., Any], name: str, value: Any, kind: Any) -> None:
    """Raise a TypeError where an array is none of those that a hint allows."""
    if get_origin(kind) is tuple and isinstance(value, tuple) and ... not in get_args(kind):
        for part, own in zip(value, get_args(kind), strict=True):
            check(function, name, part, own)
    elif hasattr(value, "shape"):
        union = get_origin(kind) in (Union, UnionType)
        arrays = [k for k in (get_args(kind) if union else [kind]) if _is_array(k)]
        if arrays and not any(isinstance(value, array) for array in arrays):
            raise TypeError(
                f"{function.__module__}.{function.__qualname__}: {name} has the shape "
                f"{tuple(value.shape)} and the type {value.dtype}, where {kind} is promised"
            )


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, AbstractArray)


assert "educe" not in sys.modules
sys.meta_path.insert(0, Watching())
