"""Resuming: what a training needs to go on where it was cut off, in a file beside its folder.

The file is written every few seconds, between two steps, and goes when the training ends. A
training that goes on takes every step as an uninterrupted one would, bit for bit.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from educe import files
from educe.errors import BlockedError

#: Seconds between two savings, and how many times as long as one takes: a whole model is large.
EVERY, TIMES = 5.0, 20


@dataclass
class Kept:
    """A training's weights and optimiser in a file, with what else it gathers.

    Attributes:
        out: The folder that the training is to fill.
        asked: Everything that it depends on, as text.
        lists: What it gathers: losses, vectors. They are filled in place when it goes on.

    Raises:
        BlockedError: There is a file of a training with other settings, or a damaged one.
    """

    out: Path
    asked: str
    lists: dict[str, list[Any]] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    def __post_init__(self) -> None:
        self._known: dict[str, Any] | None = None
        if not self.file.exists():
            return
        try:
            self._known = torch.load(self.file, weights_only=True)
            same = self._known["asked"] == self.asked
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise BlockedError(f"{self.file} cannot be read ({error}): remove it") from error
        if not same:
            raise BlockedError(
                f"{self.file} is of a training with other settings that was cut off: remove it, or "
                "choose another --out"
            )

    @property
    def file(self) -> Path:
        """The file beside the folder."""
        return self.out.with_name(f".{self.out.name}.training")

    def read(self, weights: Sequence[Tensor], parts: Sequence[Any]) -> int:
        """Take weights, and parts such as an optimiser, to where they were; return the step."""
        if (known := self._known) is None:
            return 0
        for weight, value in zip(weights, known["weights"], strict=True):
            weight.data.copy_(value)
        for part, state in zip(parts, known["parts"], strict=True):
            part.load_state_dict(state)
        for name, own in self.lists.items():
            own[:] = known["lists"][name]
        return int(known["step"])

    def write(self, step: int, weights: Sequence[Tensor], parts: Sequence[Any]) -> None:
        """Save what `read` needs to go on with a step, if it is time."""
        began = time.monotonic()
        if began - self._saved < max(EVERY, TIMES * self._took):
            return
        content = io.BytesIO()
        told = {"asked": self.asked, "step": step, "lists": self.lists}
        told |= {"weights": [w.data for w in weights], "parts": [p.state_dict() for p in parts]}
        torch.save(told, content)
        files.make_folder(self.file.parent)
        files.write_bytes(self.file, content.getvalue())
        self._saved = time.monotonic()
        self._took = self._saved - began

    def done(self) -> None:
        """Remove the file: what was trained is written."""
        self.file.unlink(missing_ok=True)
