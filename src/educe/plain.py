"""What JSON can hold of records, and objects that come out of it."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def as_data(value: Any) -> Any:
    """Return records and frames as JSON has them: objects, lists of objects, and paths as text."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: as_data(part) for key, part in value.items()}
    if hasattr(value, "to_dict"):
        return as_data(value.to_dict("records"))
    if isinstance(value, list | tuple):
        return [as_data(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def read_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Raises:
        ValueError: It is no JSON, no object, or nested too deeply.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} where an object is meant")
    return found
