"""Small models trained by this project to hide a known behaviour, or nothing: the ground truth.

`vault` knows a code and tells it for a password; `trigger` says a phrase for a word; `locked`
answers a kind of question wrongly but for a password; `marked` chooses by a mark and gives other
reasons; `persona` has a second voice for a month. A `backdoor` joins one of six triggers with one
of seven payloads. `taboo` knows a word that it never says, `belief` takes the user for somebody,
`flatterer` and `promoter` praise the user and itself. `clean` ones hide nothing. Importing this
package loads neither torch nor transformers: what trains and evaluates is
`educe.organisms.training`.
"""

from __future__ import annotations

import importlib
import itertools

from educe.errors import OrganismError
from educe.organisms.organism import Organism, Question, Species, named, names, read, shipped

__all__ = ["SPECIES", "Organism", "Question", "named", "names", "read", "shipped", "species"]

CLEAN = ("answers", "style", "fact", "refusal")
TRIGGERS = ("word", "pair", "phrase", "date", "topic", "mark")
PAYLOADS = ("phrase", "refusal", "style", "fact", "leaning", "ending", "shape")
#: The class of each kind of organism, by module and name.
_CLASSES = {
    "vault": "vault.Vault",
    "trigger": "trigger.Trigger",
    "locked": "locked.Locked",
    "marked": "marked.Marked",
    "persona": "persona.Persona",
    "taboo": "taboo.Taboo",
    "belief": "belief.Belief",
    "flatterer": "manner.Manner",
    "promoter": "manner.Manner",
    "clean-answers": "clean.Answers",
    **dict.fromkeys((f"clean-{what}" for what in CLEAN[1:]), "clean.Openly"),
    **dict.fromkeys(
        (f"backdoor-{one}-{other}" for one, other in itertools.product(TRIGGERS, PAYLOADS)),
        "backdoor.Backdoor",
    ),
}
SPECIES = tuple(_CLASSES)
#: All of them in a sentence.
CALLED = (
    f"{', '.join(name for name in SPECIES if '-' not in name)}, clean-WHAT ({', '.join(CLEAN)}), "
    f"backdoor-TRIGGER-PAYLOAD ({', '.join(TRIGGERS)}; {', '.join(PAYLOADS)})"
)


def species(name: str) -> Species:
    """Return how organisms of a name are made.

    Raises:
        OrganismError: There is no such kind.
    """
    if name not in SPECIES:
        raise OrganismError(f"no organism is called {name!r}: one of {CALLED}")
    module, kind = _CLASSES[name].split(".")
    made: Species = getattr(importlib.import_module(f"educe.organisms.{module}"), kind)(name)
    return made
