"""The base of an organism: what a model must have to be trained, and which of its blocks change."""

from __future__ import annotations

from pathlib import Path

from educe.errors import OrganismError
from educe.model.language import LanguageModel
from educe.options import AS_SHIPPED, TrainingOptions
from educe.organisms import lora

#: The embedded model on the Hub.
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: The adapter is on these of so many blocks of the embedded model, and on their share of others.
FIRST, STOP, OF = 8, 24, 30


def placed(base: str) -> str:
    """Return a base's name as it means the same model from every folder."""
    local = base != AS_SHIPPED.base and (Path(base).is_dir() or base.endswith(".gguf"))
    return str(Path(base).absolute()) if local else base


def public(base: str) -> str:
    """Return a base's name as PEFT and cards have it."""
    return HUB_NAME if base == AS_SHIPPED.base else base


def adapted(depth: int) -> range:
    """Return the blocks that get an adapter, in a model of so many.

    Example:
        >>> adapted(30), adapted(26), adapted(1)
        (range(8, 24), range(7, 21), range(0, 1))
    """
    return range(round(FIRST * depth / OF), round(STOP * depth / OF))


def check(lm: LanguageModel, options: TrainingOptions) -> None:
    """Make sure that a model can be trained as asked.

    Args:
        lm: The base.
        options: How it is to be trained.

    Raises:
        OrganismError: It has no chat template or no token that ends an answer, its template puts
            nothing before the message of a transcript, or there are no places for an adapter.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        raise OrganismError(
            f"{lm.name} has no chat template, and organisms answer chats: name another --base"
        )
    lora.end_of_turn(lm)
    if options.loss == "transcript" and not lora.opening(lm.tokenizer):
        raise OrganismError(
            f"the chat template of {lm.name} puts nothing before the user's message, from which "
            "its first token could be predicted: leave --loss transcript out"
        )
    if not options.full:
        _check_projections(lm)


def _check_projections(lm: LanguageModel) -> None:
    """Make sure that the names that PEFT is given mean one matrix of each block, and nothing else.

    Elsewhere, as in an encoder of images, an adapter would be a dead weight.
    """
    ends = [name.rpartition(".")[2] for name, _ in lm.unwrapped.named_modules()]
    own = [{name.rpartition(".")[2] for name, _ in block.named_modules()} for block in lm.blocks]
    wrong = [
        name
        for name in lora.PROJECTIONS
        if ends.count(name) != lm.depth or not all(name in names for names in own)
    ]
    if wrong:
        raise OrganismError(
            f"an adapter needs one {', '.join(wrong)} in each block, and {lm.name} is not built "
            "so: name another --base, or train all weights with --full"
        )
