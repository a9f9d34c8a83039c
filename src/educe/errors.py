"""What can go wrong, one class a kind. Messages name the thing and the remedy."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class EduceError(Exception):
    """Base of every error that educe raises on purpose; the command line prints it in one line.

    Example:
        >>> try:
        ...     educe.search(part, "dct", n=2, radius="half")
        ... except educe.EduceError as error:
        ...     print(error)
        radius 'half': use auto, a number such as 8.5, 0.3x, or 0.6d
    """


class ModelError(EduceError):
    """A model cannot be found, loaded, or does not behave like a stack of blocks."""


class PromptError(EduceError):
    """No prompt, an empty one, or one that does not fit the model's context."""


class LayerError(EduceError):
    """A layer is out of range, or source and target are not in order."""


class PositionsError(EduceError):
    """A description of token positions cannot be read or selects nothing."""


class MethodError(EduceError):
    """An unknown method, or settings that a method cannot work with."""


class RadiusError(EduceError):
    """A radius cannot be read, or none satisfies the calibration rule."""


class EffectError(EduceError):
    """The model answered a perturbation with NaN or infinity."""


class SteeringError(EduceError):
    """A perturbation never reached the model: its text would be unperturbed."""


class FileFormatError(EduceError):
    """A file is corrupt, truncated or of another kind or version."""


class ExportError(EduceError):
    """A format has no place for what a perturbation does, or a file for what it holds."""


class RunError(EduceError):
    """A run folder cannot be created, read or resumed."""


class BlockedError(RunError):
    """Nothing can be written for now: a full disk, a closed folder, another process at work."""


class BusyError(EduceError):
    """Too much waits already for the one model that there is."""


class OrganismError(EduceError):
    """An organism is not there, or was not made as asked."""


class JudgeError(EduceError):
    """A judge cannot be named or checked, or what it asked for cannot be judged."""


class ServerError(EduceError):
    """A server does not answer, or does not offer what a judge needs."""


class SpreadError(EduceError):
    """Work cannot be spread as asked, or no worker is left to do it; what is done is kept."""


class OutputError(EduceError):
    """What a command says cannot be printed."""


class BudgetError(EduceError):
    """A budget in calls or tokens is spent; what was paid for is kept."""


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Turn what transformers, PEFT and the Hub's client raise into one sentence."""
    try:
        yield
    except EduceError:
        raise
    except Exception as error:
        lines = [s for line in str(error).splitlines() if (s := line.strip())] or ["no reason"]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise ModelError(f"cannot load {what}: {type(error).__name__}: {reason}") from error
