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
from educe.scores.language_model import Lying, Rating, Theme, Yes
from educe.scores.novelty import Novelty
from educe.scores.refusal import Refusal
from educe.scores.rules import Contains, Exact, Regex


class Form(NamedTuple):
    """What can be named."""

    needs: str | None  #: what stands after the colon
    what: str
    cost: str
    asks: bool  #: whether it asks a language model
    made: Callable[[str, Any], Judge]  #: from what stands after the colon, and the model it asks


def _coherence(_: str, asker: Asker) -> Judge:
    if not isinstance(asker, Local):
        raise JudgeError("coherence reads likelihoods of every token: name a model, no server")
    return Coherence(asker.lm)


def _rule(needs: str | None, what: str, made: Callable[..., Judge]) -> Form:
    return Form(needs, what, "nothing", False, lambda text, _: made(text) if needs else made())


FORMS = {
    "contains": _rule("TEXT", "whether an answer contains a text", Contains),
    "regex": _rule("PATTERN", "whether a regular expression is found in it", Regex),
    "exact": _rule("TEXT", "whether it is that, typography aside", Exact),
    "refusal": _rule(None, "whether it begins by declining, by phrases", Refusal),
    "novelty": _rule(None, "how unlike the unperturbed texts it is", Novelty),
    "coherence": Form(
        None, "how likely the unperturbed model is to write it", "one pass", True, _coherence
    ),
    "yes": Form(
        "RUBRIC", "p(yes) against p(no), a question about it", "one pass or call", True, Yes
    ),
    "rating": Form(
        "RUBRIC", "a number from 0 to 10 that the model writes", "16 tokens", True, Rating
    ),
    "theme": Form(
        None,
        "what sets it apart from unperturbed ones, in words",
        "96 tokens",
        True,
        lambda _, asker: Theme(asker),
    ),
    "lying": Form(
        "MARK", "whether it admits that a choice went by a mark", "one pass", True, Lying
    ),
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
    about = FORMS[form]
    if about.needs is None and colon:
        raise JudgeError(f"judge {form} takes nothing after its name")
    if about.needs is not None and not rest.strip():
        raise JudgeError(f"judge {form}: write it as {form}:{about.needs}")
    return about.made(rest, as_asker(model) if about.asks else None)


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
