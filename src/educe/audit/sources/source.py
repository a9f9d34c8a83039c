"""A source, as the audit sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from educe.audit.auditing import Audit
from educe.audit.reference import Reference


class Needs(Enum):
    """What a source needs beside the model."""

    NOTHING = "nothing"
    REFERENCE = "a reference"
    TOKENS = "a reference of the same tokenizer"
    WEIGHTS = "a reference of the same shape"


@dataclass(frozen=True)
class Source:
    """A way of looking.

    Attributes:
        name: As commands have it.
        about: What it does, in a sentence.
        needs: What it cannot do without.
        look: Looks, and leaves in the run what it saw.
        dear: How much it costs: 1 is tried by every audit, 2 where nothing stands out yet, 3 where
            nothing does and there is no reference; a thorough audit tries everything.
        begin: Says who writes for other models that it lists; called before anything is written,
            since an audit that was cut off may lack texts of theirs.
    """

    name: str
    about: str
    needs: Needs
    look: Callable[[Audit], None]
    dear: int = 1
    begin: Callable[[Audit], object] | None = None

    def hindered(self, reference: Reference | None) -> str | None:
        """Return why the source cannot look, if it cannot."""
        if self.needs is Needs.NOTHING:
            return None
        if reference is None:
            return f"it needs {self.needs.value}, and there is none"
        if self.needs is not Needs.REFERENCE and not reference.same_tokens:
            return f"it needs {self.needs.value}, and {reference.name} has another tokenizer"
        if self.needs is Needs.WEIGHTS and not reference.same_shape:
            return f"it needs {self.needs.value}, and {reference.name} has another"
        return None

    def ready(self, audit: Audit) -> None:
        """Begin, where the source can look."""
        if self.begin is not None and self.hindered(audit.reference) is None:
            self.begin(audit)
