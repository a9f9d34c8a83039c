"""``educe reads``: what later layers read, and how far the model can be thinned to it."""

from __future__ import annotations

from typing import Any

from educe.cli.opening import loaded
from educe.cli.options import SCREEN, NewFolder, Output, PromptsFile, new_folder, prompts_in
from educe.cli.streams import print_text
from educe.options import EMBEDDED, Count, ModelOptions, Seed


def reads(
    *prompts: str,
    prompts_file: PromptsFile = None,
    answer: str | None = None,
    max_new_tokens: Count = 16,
    corpus: str = "bundled",
    tokens: Count = 8192,
    seed: Seed = 0,
    model: ModelOptions = EMBEDDED,
    out: NewFolder = None,
    output: Output = SCREEN,
) -> None:
    """Say what later layers read of each layer, and how far the model can be thinned to it.

    With prompts, say instead which components of every layer the answer to each used. What was
    read of the corpus is kept in the user's cache, so a second call does not read it again.

    Args:
        prompts: what the model is asked
        answer: with prompts: what was answered; by default the likeliest answer
        max_new_tokens: with prompts: the longest that is
        corpus: bundled; a file of text with blank lines between documents; a .jsonl file; or
            hub:NAME
        tokens: the most tokens of the corpus that are read forward and backward
        seed: of everything that is drawn
    """
    from educe.files import check_free, make_folder
    from educe.reads.single import used
    from educe.reads.survey import survey, swept
    from educe.report import page
    from educe.report import reads as told_of

    asked = (*prompts, *prompts_in(prompts_file))
    folder = out or new_folder("reads")
    check_free(folder)
    lm, tells = loaded(model)
    path = folder / "reads.html"
    if asked:
        layers = swept(lm, corpus, tokens=tokens, seed=seed, reporter=tells).layers
        found = [
            used(
                lm,
                prompt,
                layers,
                answer=answer,
                max_new_tokens=max_new_tokens,
                seed=seed,
                reporter=tells,
            )
            for prompt in asked
        ]
        make_folder(folder)
        page.put(told_of.of_answers(lm.name, found), path)
        data: dict[str, Any] = {"answers": [one.data() for one in found]}
        lines = [line for one in found for line in told_of.words_of(one)]
    else:
        known = survey(lm, corpus, tokens=tokens, seed=seed, reporter=tells)
        make_folder(folder)
        page.put(told_of.of_survey(known), path)
        data, lines = known.data(), told_of.words(known)
    told = "\n".join([*lines, f"report: {path}"])
    output.put(data | {"report": path}, lambda: print_text(told))
