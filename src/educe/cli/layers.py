"""``educe layers``: which layers to search between."""

from __future__ import annotations

from dataclasses import replace

from educe.cli.opening import loaded
from educe.cli.options import SCREEN, NewFolder, Output, PromptsFile, given, new_folder
from educe.cli.streams import print_text
from educe.errors import RunError
from educe.options import EMBEDDED, Flag, ModelOptions, Seed


def layers(
    *prompts: str,
    prompts_file: PromptsFile = None,
    few: Flag = False,
    positions: str = "all",
    readout: str = "last:3",
    seed: Seed = 0,
    model: ModelOptions = EMBEDDED,
    out: NewFolder = None,
    resume: Flag = False,
    output: Output = SCREEN,
) -> None:
    """Map how strongly every layer drives every later one, and choose two to search between.

    Args:
        prompts: what the model is asked
        few: only the pairs that layers are chosen from, as with discover --source auto
        positions: tokens that are perturbed: all, prompt, asked, asked:k, last:k, at:k
        readout: prompt tokens at which the effect is read: last:k, asked, asked:k, all
        seed: of everything that is drawn
        resume: go on with the layer map in --out
    """
    from educe.files import check_free
    from educe.layer_map import LAYER_MAP, LayerMapConfig, grid
    from educe.layer_map.choice import CHEAP, choose, promising, thinned
    from educe.layer_map.survey import surveyed
    from educe.model.once import encoded_once
    from educe.report import page

    asked = given(prompts, prompts_file)
    folder = out or new_folder("layers")
    check_free(folder)
    file = folder / LAYER_MAP
    if file.exists() and not resume:
        raise RunError(f"{folder} holds another layer map: use --resume to go on with it, or --out")
    lm, tells = loaded(model)
    batch = encoded_once(lm, asked, tells.say)
    pairs, config = (
        (thinned(promising(lm.depth)), CHEAP) if few else (grid(lm.depth), LayerMapConfig())
    )
    config = replace(config, positions=positions, readout=readout, seed=seed)
    known = surveyed(lm, batch, pairs, config, file, tells)
    choice = choose(known)
    written = page.put(page.of_layers(known, choice), folder / "layers.html")
    chosen = f"--source {choice.source} --target {choice.target}: {choice.why}"
    output.put(
        choice._asdict() | {"layer_map": file, "report": written},
        lambda: print_text(f"{chosen}\nreport: {written}"),
    )
