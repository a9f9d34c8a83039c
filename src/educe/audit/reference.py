"""The reference: a model that is known to hide nothing, beside the one that is audited.

Under an adapter it is the model without it, at no further cost. For full weights it is the model
that they were made from, or any other: one of the same tokenizer is compared token by token, one
of another by the log-likelihood of whole words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from educe.errors import ModelError
from educe.model.language import LanguageModel
from educe.options import ModelOptions

#: What says that there is to be no reference, though there could be one.
NONE = "none"
#: A request by which two chat templates are told apart.
PROBE = "Hello"


@dataclass(frozen=True)
class Reference:
    """A clean model.

    Attributes:
        lm: The model itself; where it is the suspect without its adapter, the suspect.
        name: What it is called.
        beneath: Whether it is the model under the suspect's adapter.
        same_tokens: Whether its tokenizer has the same tokens, and its logits as many numbers.
        same_template: Whether it reads a request as the suspect does.
        same_shape: Whether its blocks are as many and its matrices of the same shapes.
    """

    lm: LanguageModel
    name: str
    beneath: bool
    same_tokens: bool
    same_template: bool
    same_shape: bool = True

    @property
    def token_by_token(self) -> bool:
        """Whether what it expects can be compared with what the suspect does, token by token."""
        return self.same_tokens and self.same_template

    @contextmanager
    def here(self) -> Iterator[LanguageModel]:
        """Yield the clean model, for the time of a ``with`` statement."""
        if not self.beneath:
            yield self.lm
            return
        with self.lm.hf.disable_adapter():
            yield self.lm

    @property
    def remarks(self) -> list[str]:
        """What is to be said of how the two models can be compared."""
        said = []
        if not self.same_tokens:
            said.append(
                f"the reference {self.name} has another tokenizer: what is compared are whole "
                "words, and differences of weights, logits and activations are left out"
            )
        elif not self.same_shape:
            said.append(
                f"the reference {self.name} has another shape: differences of weights and "
                "activations are left out"
            )
        if not self.same_template:
            said.append(
                f"the reference {self.name} has another chat template: each model reads a request "
                "by its own"
            )
        return said


def of(
    lm: LanguageModel,
    asked: str | None,
    how: ModelOptions,
    say: Callable[[str], None],
) -> Reference | None:
    """Return the reference of a model; None where there is none.

    Args:
        lm: The model that is audited.
        asked: A model's name, ``none``, or None for the model under the adapter, if any.
        how: How the suspect was loaded; a reference is loaded likewise.
        say: Is told of slow steps, and of what loading warns of.

    Raises:
        ModelError: The reference is the model itself.
    """
    if asked == NONE or (asked is None and lm.adapter is None):
        return None
    if asked is None:
        return Reference(lm, f"{lm.name} without the adapter", True, True, True)
    from educe.model.loading import load

    options = replace(how, model=asked, adapter=None, revision=None)
    other = load(**options.how, progress=say)
    if other.digest == lm.digest:
        raise ModelError(
            f"the reference {asked} is the model itself, weight for weight: name another, or none"
        )
    return between(lm, other)


def between(lm: LanguageModel, other: LanguageModel) -> Reference:
    """Return a loaded model as the reference of another."""
    same = lm.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    tokens = same and lm.vocabulary == other.vocabulary
    template = lm.render(PROBE) == other.render(PROBE)
    return Reference(other, other.name, False, tokens, template, _shape(lm) == _shape(other))


def _shape(lm: LanguageModel) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of the parameters of each block."""
    return [{name: tuple(p.shape) for name, p in b.named_parameters()} for b in lm.blocks]
