"""Silence for the time of a load; what was held back is kept."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

LIBRARIES = ("transformers", "peft", "accelerate")
#: Of no account to who uses a model: what is to change in later versions of a library.
LATER = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)


class _Keeping(logging.Handler):
    """Keeps what is logged, one sentence each."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(f"{record.name.partition('.')[0]}: {_sentence(record.getMessage())}")


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Hold back the bars, warnings and remarks of transformers, PEFT and accelerate.

    Yields a list, in which each warning is a sentence once the ``with`` statement has ended.
    """
    from tqdm.std import tqdm
    from transformers.utils import logging as hf_logging

    kept: list[str] = []
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    bar, bars = hf_logging.is_progress_bar_enabled(), tqdm.__init__
    try:
        hf_logging.disable_progress_bar()
        tqdm.__init__ = partialmethod(bars, disable=True)  # some ask for bars without transformers
        for logger in loggers:
            logger.handlers, logger.propagate = [_Keeping(kept)], False
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield kept
        kept += [_sentence(w.message) for w in warned if not issubclass(w.category, LATER)]
        kept[:] = dict.fromkeys(kept)
    finally:
        tqdm.__init__ = bars
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        if bar:
            hf_logging.enable_progress_bar()


def _sentence(message: object) -> str:
    return " ".join(str(message).split())
