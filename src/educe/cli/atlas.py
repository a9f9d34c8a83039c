"""``educe atlas``: which layers to search between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from educe.cli.options import (
    EMBEDDED,
    Debug,
    Flag,
    Json,
    ModelOptions,
    PromptsFile,
    Seed,
    given,
    loaded,
    new_folder,
)
from educe.cli.streams import print_json, print_text
from educe.errors import RunError


def atlas(
    *prompts: str,
    prompts_file: PromptsFile = None,
    few: Flag = False,
    positions: str = "all",
    readout: str = "last:3",
    seed: Seed = 0,
    model: ModelOptions = EMBEDDED,
    out: Path | None = None,
    resume: Flag = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Map how strongly every layer drives every later one, and choose two to search between.

    Args:
        prompts: what the model is asked
        few: only the pairs that layers are chosen from, as with discover --source auto
        positions: tokens that are perturbed: all, prompt, asked, asked:k, last:k, at:k
        readout: prompt tokens at which the effect is read: last:k, asked, asked:k, all
        seed: of everything that is drawn
        out: folder of the atlas; by default a new one under runs/
        resume: go on with the atlas in --out
    """
    from educe.files import check_free
    from educe.layer_map import ATLAS, AtlasConfig, grid
    from educe.layer_map.choice import CHEAP, choose, promising, thinned
    from educe.layer_map.survey import surveyed
    from educe.model.once import encoded_once
    from educe.report import page

    asked = given(prompts, prompts_file)
    folder = out or new_folder("atlas")
    check_free(folder)
    file = folder / ATLAS
    if file.exists() and not resume:
        raise RunError(f"{folder} holds another atlas: use --resume to go on with it, or --out")
    lm, telling = loaded(model)
    batch = encoded_once(lm, asked, telling.say)
    pairs, config = (
        (thinned(promising(lm.depth)), CHEAP) if few else (grid(lm.depth), AtlasConfig())
    )
    config = replace(config, positions=positions, readout=readout, seed=seed)
    known = surveyed(lm, batch, pairs, config, file, telling)
    choice = choose(known)
    written = page.write_atlas(known, choice, folder / "atlas.html")
    if as_json:
        print_json(choice._asdict() | {"atlas": str(file), "report": str(written)})
    else:
        print_text(f"--source {choice.source} --target {choice.target}: {choice.why}")
        print_text(f"report: {written}")
