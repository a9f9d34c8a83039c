"""What tests of spread work share: tiny models, and the run that this process makes of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import spread_audit
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a model, and of one whose weights differ a little."""
    return spread_audit.pair(tmp_path_factory.mktemp("pair"))
