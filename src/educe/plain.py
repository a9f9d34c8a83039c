"""What JSON can hold of records."""

from __future__ import annotations

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
