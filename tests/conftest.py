"""What all tests share: a thread unless more are asked for, no network, a cache, tiny models.

Tests run in any order: each begins with the same random numbers, and one that leaves the process
other than it was is an error.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers

import shapes  # noqa: F401  before educe, whose functions check their arrays from here on
import tiny
from educe.activations import kept
from educe.audit import lexicon
from educe.model.language import LanguageModel
from educe.model.loading import load

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
transformers.logging.set_verbosity_error()


def pytest_collection_finish() -> None:
    """What is loaded and collected stays: the garbage collector need not go through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def natural_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Natural activations are kept where no user has theirs, and begin with none."""
    folder = tmp_path_factory.mktemp("natural")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "folder", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_words() -> Iterator[None]:
    """Audits look through few words of more than one token; a test of them sets its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexicon, "FREQUENT", 60)
        patch.setattr(lexicon, "NUMBERS", range(100, 110))
        yield


def state() -> dict[str, Any]:
    """What one test could leave to the next."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "folder": os.getcwd(),
    }


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    torch.manual_seed(0)
    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def lm_of(tokenizer: Any) -> Callable[..., LanguageModel]:
    """Make a model of an architecture, once a session; tests leave it as it is."""

    @functools.cache
    def make(architecture: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
        hf = tiny.hf_model(architecture, dtype=dtype)
        if dtype == torch.float64 and hf._can_set_experts_implementation():
            hf.set_experts_implementation("eager")  # the grouped kernel knows no float64
        return LanguageModel(hf, tokenizer, name=architecture)

    return make


@pytest.fixture(scope="session")
def tiny_lm(lm_of: Callable[..., LanguageModel]) -> LanguageModel:
    return lm_of("llama")


@pytest.fixture(scope="session")
def tiny64(lm_of: Callable[..., LanguageModel]) -> LanguageModel:
    return lm_of("llama", torch.float64)


@pytest.fixture(params=list(tiny.ARCHITECTURES))
def any_lm(request: pytest.FixtureRequest, lm_of: Callable[..., LanguageModel]) -> LanguageModel:
    """Each architecture in turn."""
    return lm_of(request.param)


@pytest.fixture(scope="session")
def embedded_lm() -> LanguageModel:
    """The embedded model; for tests marked ``model``."""
    return load("embedded", device="cpu", dtype=torch.float32)
