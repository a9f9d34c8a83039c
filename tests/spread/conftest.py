"""What tests of spread work share: a tiny model, and the run that this process makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import spread_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model."""
    return spread_run.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The run of this process."""
    place = tmp_path_factory.mktemp("whole") / "run"
    spread_run.carried_out(place, folder)
    return place


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, Any]:
    """What it keeps."""
    return spread_run.content(finished)
