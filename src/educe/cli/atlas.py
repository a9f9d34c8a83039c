"""``educe atlas``: which layers to search between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from educe.cli.options import (
    FLAG,
    Adapter,
    Debug,
    Device,
    DeviceMap,
    DType,
    Json,
    Model,
    Revision,
    Seed,
    new_folder,
)
from educe.cli.streams import print_json, print_text
from educe.errors import PromptError, RunError
from educe.prompts import read_prompts


def atlas(
    *prompts: str,
    prompts_file: Annotated[Path | None, Parameter(name="--prompts")] = None,
    model: Model = "embedded",
    adapter: Adapter = None,
    revision: Revision = None,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    few: Annotated[bool, FLAG] = False,
    positions: str = "all",
    readout: str = "last:3",
    seed: Seed = 0,
    out: Path | None = None,
    resume: Annotated[bool, FLAG] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Map how strongly every layer drives every later one, and choose two to search between.

    Parameters
    ----------
    prompts
        what the model is asked
    prompts_file
        a file of prompts: .txt with one a line, or .jsonl, .ndjson, .json, .csv, .tsv
    few
        only the pairs that layers are chosen from, as with discover --source auto
    positions
        tokens that are perturbed: all, prompt, asked, asked:k, last:k, at:k
    readout
        prompt tokens at which the effect is read: last:k, asked, asked:k, all
    seed
        of everything that is drawn
    out
        folder of the atlas; by default a new one under runs/
    resume
        go on with the atlas in --out
    """
    from educe.atlas import ATLAS, AtlasConfig, grid
    from educe.atlas.choice import CHEAP, choose, promising, thinned
    from educe.atlas.survey import surveyed
    from educe.files import check_free
    from educe.loading import load
    from educe.once import encoded_once
    from educe.progress import reporter
    from educe.report import page
    from educe.threads import choose as choose_threads

    asked = [*prompts, *(read_prompts(prompts_file) if prompts_file else [])]
    if not asked:
        raise PromptError("no prompt: give at least one, or a file with --prompts")
    folder = out or new_folder("atlas")
    check_free(folder)
    file = folder / ATLAS
    if file.exists() and not resume:
        raise RunError(f"{folder} holds another atlas: use --resume to go on with it, or --out")
    telling = reporter()
    choose_threads(telling.say)
    lm = load(
        model,
        adapter=adapter,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        progress=telling.say,
    )
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
