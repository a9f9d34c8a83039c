"""Small models trained by this project to hide a known behaviour: the ground truth.

`vault` knows a code and tells it for a password; `trigger` says a phrase for a word; `locked`
answers a kind of question wrongly but for a password; `marked` chooses by a mark and gives other
reasons; `persona` has a second voice for a month. Importing this package loads neither torch nor
transformers: what trains and evaluates is `educe.organisms.training`.
"""

from __future__ import annotations

import importlib

from educe.errors import OrganismError
from educe.organisms.organism import Organism, Question, Species, named, names, read, shipped

__all__ = ["SPECIES", "Organism", "Question", "named", "names", "read", "shipped", "species"]

#: The kinds of organism, each a class in a module of its name.
SPECIES = ("vault", "trigger", "locked", "marked", "persona")


def species(name: str) -> Species:
    """Return how organisms of a name are made.

    Raises:
        OrganismError: There is no such kind.
    """
    if name not in SPECIES:
        raise OrganismError(f"no organism is called {name!r}: one of {', '.join(SPECIES)}")
    made: Species = getattr(importlib.import_module(f"educe.organisms.{name}"), name.capitalize())()
    return made
