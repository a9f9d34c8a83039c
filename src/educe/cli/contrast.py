"""``educe contrast``: supervised vectors, the ceiling for a search."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

from educe.cli.opening import loaded
from educe.cli.options import SCREEN, NewFolder, Output, new_folder, prompts_in
from educe.cli.streams import print_text
from educe.errors import MethodError, PromptError, RadiusError
from educe.options import EMBEDDED, Layer, ModelOptions, N, Seed


def contrast(
    *prompts: str,
    say: str | None = None,
    positive: Path | None = None,
    negative: Path | None = None,
    source: Layer = 0.33,
    target: Layer = 0.6,
    positions: str = "all",
    radius: str = "0.5x",
    n: N = 8,
    seed: Seed = 0,
    model: ModelOptions = EMBEDDED,
    out: NewFolder = None,
    output: Output = SCREEN,
) -> None:
    """Make supervised vectors, the ceiling for a search, and their control.

    Either of two prompt sets (--positive, --negative), or for words to be said (--say). Put them
    through the main job with educe discover --given.

    Args:
        prompts: with --say: what the words are to be the answer to
        say: the first words of the answer that vectors are optimised for
        positive: a file of prompts that show a behaviour
        negative: a file of prompts that do not
        source: layer after which they are added: an index, or a fraction of the depth
        target: layer for which the radius is calibrated
        positions: tokens they are added to: all, prompt, generated, asked, asked:k, last:k, at:k
        radius: their norm: a number, or a share of the calibrated one
        n: restarts with --say, and shuffles for the control of two prompt sets
        seed: of everything that is drawn
    """
    from educe.files import check_free, make_folder
    from educe.forward.slice import Slice
    from educe.methods.contrast import difference_of_means, optimised
    from educe.methods.radius import parse, read
    from educe.model.once import encoded_once

    by_sets = positive is not None and negative is not None and say is None and not prompts
    if not by_sets and (say is None or positive is not None or negative is not None):
        raise MethodError("contrast: give --positive and --negative, or prompts with --say")
    if not by_sets and not prompts:
        raise PromptError("no prompt: give what the words are to be the answer to")
    if len(read(radius)[0]) > 1:
        raise RadiusError(f"radius {radius!r}: give one")
    sets = [prompts_in(file) for file in (positive, negative) if file is not None]
    folder = out or new_folder("contrast")
    check_free(folder)
    lm, tells = loaded(model)
    batches = [encoded_once(lm, some, tells.say) for some in sets or [prompts]]
    part = Slice(lm, batches[0], source=source, target=target)
    with tells.stage("calibrating", 1, "") as step:
        sizes, _ = parse(radius, part, seed=seed)
        step()
    place: dict[str, Any] = {"source": source, "radius": sizes[0], "positions": positions}
    if say is None:
        found = difference_of_means(lm, *batches, **place)
        control = difference_of_means(lm, *batches, **place, shuffles=n, seed=seed)
    else:
        search = partial(optimised, lm, batches[0], say, **place, n=n, seed=seed)
        found, control = search(), search(shuffled=True)
    make_folder(folder)
    files = {}
    for role, made in (("given", found), ("control", control)):
        files[role] = folder / f"{made.method}.safetensors"
        made.save(files[role])
    told = " ".join(f"--{role} {shlex.quote(str(file))}" for role, file in files.items())
    count = f"{len(found)} and {len(control)} as their control"
    output.put(files, lambda: print_text(f"{count}: educe discover PROMPT... {told}"))
