"""A tiny model with a planted difference: an adapter of rank 1 on one matrix, known by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny
from educe.audit.auditing import Audit
from educe.audit.reference import Reference
from educe.audit.settings import AuditOptions, begin
from educe.model.language import LanguageModel
from educe.options import ModelOptions
from educe.run.work import at_work
from peft_oracle import adapted

#: The matrix that differs: the output projection of the attention of block 2.
BLOCK, MODULE = 2, "self_attn.o_proj"
WIDTH = 32
#: How large the difference is.
SIZE = 6.0


def directions(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return unit directions: what the difference reads, and what it writes."""
    draw = torch.Generator().manual_seed(seed)
    both = torch.randn(2, WIDTH, generator=draw, dtype=torch.float64)
    reads, writes = both / both.norm(dim=1, keepdim=True)
    return reads, writes


def suspect(tokenizer: Any, *, size: float = SIZE) -> LanguageModel:
    """Return a model in double precision with ``W + size · writes readsᵀ``, as an adapter."""
    reads, writes = directions()
    hf = tiny.hf_model(dtype=torch.float64)
    name = f"model.layers.{BLOCK}.{MODULE}"
    tuned = adapted(hf, [name], [reads[None]], [writes[None]], size)
    return LanguageModel(tuned, tokenizer, name="suspect", adapter="planted")


def reference(lm: LanguageModel) -> Reference:
    """Return the model under the adapter."""
    return Reference(lm, "clean", True, True, True)


def clean(tokenizer: Any) -> LanguageModel:
    """Return a model of the reference's weights, loaded once more."""
    return LanguageModel(tiny.hf_model(dtype=torch.float64), tokenizer, name="clean")


@contextmanager
def audited(
    lm: LanguageModel, beside: Reference | None, folder: Path, source: str
) -> Iterator[Audit]:
    """Have an audit at work, of one source and as small as can be."""
    options = AuditOptions(budget="quick", sources=(source,), max_new_tokens=3)
    run = begin(folder, options, ModelOptions(), resume=folder.exists())
    with at_work(run, lm) as work:
        yield Audit(work, beside)
    run.close()
