"""Shapes: arrays that go into a function and come out of it have the shapes that it promises.

The hook of jaxtyping calls `checked` for every function of educe. It looks at arrays alone, whose
dimensions of one name have one size within a call; mypy has the other types.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function check the shapes of the arrays in its arguments and its result."""
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, list[Any]]:
        try:
            found = get_type_hints(function)
        except (NameError, TypeError, AttributeError):  # of names for types alone
            return {}
        return {name: own for name, hint in found.items() if (own := list(arrays(hint)))}

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            check(function, name, value, hints().get(name, ()))
        result = function(*args, **kwargs)
        check(function, "return", result, hints().get("return", ()))
        return result

    return wrapper


def arrays(hint: Any) -> Iterator[Any]:
    """Yield the kinds of array that a hint allows, of a union each."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        yield hint
    elif type(None) in get_args(hint):
        for part in get_args(hint):
            yield from arrays(part)


def check(function: Callable[..., Any], name: str, value: Any, kinds: Any) -> None:
    if kinds and hasattr(value, "shape") and not any(isinstance(value, kind) for kind in kinds):
        raise TypeError(
            f"{function.__module__}.{function.__qualname__}: {name} has the shape "
            f"{tuple(value.shape)} and the type {value.dtype}, where {kinds} is promised"
        )
