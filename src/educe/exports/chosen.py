"""Chosen: perturbations of a run as the formats need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from educe.derive.listing import taken
from educe.derive.projection import as_vectors
from educe.errors import ExportError
from educe.model.language import LanguageModel
from educe.model.loading import configuration
from educe.perturbation import steering
from educe.perturbation.kinds import Joint, Vectors, Within
from educe.perturbation.set import PerturbationSet
from educe.rows import PerturbationRow
from educe.run.fill import check_known
from educe.run.settings import loaded, stored
from educe.run.store import Run


class Chosen:
    """A run, some of its perturbations, and its model, which is loaded when it is needed.

    Args:
        run: The run.
        numbers: The perturbations, as the run numbers them.
        lm: Its model, when it is loaded already.
        say: Is told what is no error.

    Raises:
        RunError: The run has no such perturbation, or its model is another one now.
    """

    def __init__(
        self,
        run: Run,
        numbers: Sequence[int] = (),
        *,
        lm: LanguageModel | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        check_known(run, numbers, derived=None)
        self.run, self.numbers = run, list(dict.fromkeys(numbers))
        self.settings, self.say = stored(run), say
        self.facts: dict[str, Any] = run.note("facts")
        self._lm = lm

    @cached_property
    def lm(self) -> LanguageModel:
        """The model of the run, and no other."""
        return loaded(self.run, self.settings, self.say, self._lm)

    @cached_property
    def config(self) -> Any:
        """The configuration of the model in transformers."""
        return configuration(self.settings) if self._lm is None else self._lm.unwrapped.config

    @cached_property
    def rows(self) -> dict[int, PerturbationRow]:
        """What the run lists of its perturbations."""
        return {p.id: p for p in self.run.perturbation_rows(derived=None)}

    def one(self, number: int) -> PerturbationSet:
        """Return one perturbation, as a set of one; coefficients of one layer as its vector."""
        found = taken(self.run, [number])
        return as_vectors(found) if isinstance(found.kind, Within) else found

    def added(self, number: int, by: str) -> dict[int, Float[Tensor, "d"]]:
        """Return what a perturbation adds to the stream after each block.

        Args:
            number: The perturbation.
            by: What is to add it, for a message.

        Raises:
            ExportError: It does something else, or not at every token.
        """
        one = self.one(number)
        kind = one.kind
        if not isinstance(kind, (Vectors, Joint)):
            raise ExportError(
                f"{by} adds a vector to the stream, and perturbation {number} is none: {kind.name}"
            )
        if kind.positions != "all":
            raise ExportError(
                f"{by} adds a vector at every token, and perturbation {number} is added at "
                f"{kind.positions} alone: it would do something else there"
            )
        return steering.added(kind, one.theta[0])

    @property
    def model(self) -> str:
        """The model as others find it: a name of the Hub, or a folder."""
        if self.settings.model == "embedded":
            from educe.model import embedded

            return str(embedded.folder())
        return self.settings.model

    @property
    def on_hub(self) -> str | None:
        """The name of the model on the Hub; none of a folder, a file or the embedded model."""
        name = self.settings.model
        return None if name == "embedded" or Path(name).exists() else name

    def alone(self, by: str) -> None:
        """Make sure that the run's model is one without an adapter beside it.

        Raises:
            ExportError: It has one.
        """
        if self.settings.adapter:
            raise ExportError(
                f"the model of the run is {self.facts['model']} with the adapter "
                f"{self.settings.adapter}, and {by} has no place for two: merge it into the model"
            )

    def about(self, number: int) -> dict[str, str | float]:
        """Return what is known of a perturbation, for the extra fields of a format."""
        row, one = self.rows[number], self.one(number)
        return {
            "op": "add" if isinstance(one.kind, (Vectors, Joint)) else one.kind.name,
            "point": f"resid_post.{one.kind.before}",
            "positions": one.kind.positions,
            "radius": row.radius,
            "dose": row.dose,
            "number": str(number),
            "method": row.method,
            "arm": row.arm,
            "model": str(self.facts["model"]),
            "model_revision": one.origin.model_revision,
            "adapter": one.origin.adapter,
            "version": version("educe"),
        }
