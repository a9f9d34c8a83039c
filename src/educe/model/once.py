"""Once: prompts that a model reads alike are one prompt, wherever prompts are counted.

Two that differ as they are written can be the same tokens, and a file can have a line twice. Such a
prompt would weigh more than others, and make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from educe.errors import PromptError
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt


def distinct(
    what: str, batch: PromptBatch, before: PromptBatch | None = None
) -> tuple[list[int], list[str]]:
    """Return which prompts differ as the model reads them, and what to say of the others.

    Args:
        what: What the prompts are called.
        batch: The prompts.
        before: Others, which they are to differ from as well.

    Returns:
        The places of those that stand first, and a sentence for each way in which others do not.

    Raises:
        PromptError: Each of them is one of the others.
    """
    taken = set(before.read) if before is not None else set()
    first = {read: i for i, read in reversed(list(enumerate(batch.read))) if read not in taken}
    if not first:
        raise PromptError(
            f"no {what} are left: the model reads each of the {len(batch)} as one that is searched "
            "on; give others"
        )
    elsewhere = sum(read in taken for read in batch.read)
    again = len(batch) - elsewhere - len(first)
    said = []
    if elsewhere:
        said.append(
            f"{elsewhere} of the {len(batch)} {what} read as one that is searched on: left out"
        )
    if again:
        said.append(f"{again} of the {len(batch)} {what} read as one before: counted once")
    return sorted(first.values()), said


def encoded_once(
    lm: LanguageModel, prompts: Sequence[Prompt], say: Callable[[str], None], what: str = "prompts"
) -> PromptBatch:
    """Encode prompts; of those that the model reads alike, one, and say so.

    Args:
        lm: The model.
        prompts: The prompts.
        say: Is told what is left out.
        what: What the prompts are called.
    """
    places, said = distinct(what, lm.encode(prompts))
    for sentence in said:
        say(sentence)
    return lm.encode([prompts[i] for i in places])
