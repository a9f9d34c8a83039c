"""Judges by name, as on the command line: ``contains:orchid``, ``yes:Is it rude?``, ``theme``.

A name is a form, and after a colon what it needs. `FORMS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from educe.errors import JudgeError
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.options import ModelOptions
from educe.scores import Judge
from educe.scores.asking import Asker, Local
from educe.scores.coherence import Coherence
from educe.scores.language_model import Rating, Theme, Yes
from educe.scores.lying import Lying
from educe.scores.novelty import Novelty
from educe.scores.refusal import Refusal
from educe.scores.rules import Contains, Exact, Regex


class Form(NamedTuple):
    """What can be named."""

    needs: str | None  #: what stands after the colon
    what: str
    cost: str
    asks: bool  #: whether it asks a language model


FORMS = {
    "contains": Form("TEXT", "whether an answer contains a text", "nothing", False),
    "regex": Form("PATTERN", "whether a regular expression is found in it", "nothing", False),
    "exact": Form("TEXT", "whether it is that, typography aside", "nothing", False),
    "refusal": Form(None, "whether it begins by declining, by phrases", "nothing", False),
    "novelty": Form(None, "how unlike the unperturbed texts it is", "nothing", False),
    "coherence": Form(None, "how likely the unperturbed model is to write it", "one pass", True),
    "yes": Form("RUBRIC", "p(yes) against p(no), a question about it", "one pass or call", True),
    "rating": Form("RUBRIC", "a number from 0 to 10 that the model writes", "16 tokens", True),
    "theme": Form(None, "what sets it apart from unperturbed ones, in words", "96 tokens", True),
    "lying": Form("MARK", "whether it admits that a choice went by a mark", "one pass", True),
}


def judge_named(spec: str, model: str | LanguageModel | Asker = "embedded") -> Judge:
    """Return a judge by its name.

    Example:
        ``judge_named("contains:orchid").score([Answer("What?", "An orchid.")])[0].value`` is 1.

    Args:
        spec: The form, and after a colon what it needs.
        model: The language model that it asks, if it asks one: see `educe.load`, or an `Asker`.

    Raises:
        JudgeError: There is no such judge, or it needs something else.
        ModelError: The model cannot be loaded.
    """
    form, colon, rest = spec.partition(":")
    if form not in FORMS:
        raise JudgeError(f"there is no judge {form!r}: use one of {', '.join(FORMS)}")
    needs = FORMS[form].needs
    if needs is None and colon:
        raise JudgeError(f"judge {form} takes nothing after its name")
    if needs is not None and not rest.strip():
        raise JudgeError(f"judge {form}: write it as {form}:{needs}")
    simple: dict[str, Callable[[], Judge]] = {
        "contains": lambda: Contains(rest),
        "regex": lambda: Regex(rest),
        "exact": lambda: Exact(rest),
        "refusal": Refusal,
        "novelty": Novelty,
    }
    if form in simple:
        return simple[form]()
    asker = as_asker(model)
    if form == "coherence":
        if not isinstance(asker, Local):
            raise JudgeError("coherence reads likelihoods of every token: name a model, no server")
        return Coherence(asker.lm)
    asking: dict[str, Callable[[], Judge]] = {
        "yes": lambda: Yes(rest, asker),
        "rating": lambda: Rating(rest, asker),
        "theme": lambda: Theme(asker),
        "lying": lambda: Lying(rest, asker),
    }
    return asking[form]()


def asks(spec: str) -> bool:
    """Return whether a judge of that name asks a language model."""
    form = FORMS.get(spec.partition(":")[0])
    return form is not None and form.asks


def as_asker(
    model: str | ModelOptions | LanguageModel | Asker,
    *,
    name: str | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Asker:
    """Return a language model that can be asked.

    Args:
        model: A loaded model, what `educe.load` takes, or the address of a server; or these as
            the ``model`` of options that say how it is loaded.
        name: The model's name at the server.
        progress: See `educe.load`.
        options: Of the server: see `educe.scores.server.Server`.

    Raises:
        JudgeError: The model has no name at the server, or options of a model that is loaded here.
        ModelError: The model cannot be loaded.
    """
    if isinstance(model, LanguageModel):
        return Local(model)
    if isinstance(model, str):
        model = ModelOptions(model=model)
    if not isinstance(model, ModelOptions):
        return model
    address = model.model
    if not address.startswith(("http://", "https://")):
        return Local(load(**model.how, progress=progress))
    if model != ModelOptions(model=address):
        raise JudgeError(f"the server {address} loads its model itself: leave out how")
    # Its client is loaded when there is something to say to a server.
    from educe.scores.server import Server

    if not name:
        raise JudgeError(f"a server can have several models: name one of {address} (--judge-name)")
    return Server(address, name, **options)
