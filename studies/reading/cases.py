"""The cases: organisms and what is done to them, as runs of the main job.

The adapter of an organism can be added at a share of its strength: then its lock is weaker, and
what it hides comes out in some of its own samples.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import educe
from educe import organisms
from educe.methods.contrast import difference_of_means, optimised
from educe.organisms import Organism
from educe.run.settings import Settings

#: Questions that are asked, and fresh ones of the re-test.
ASKED, FRESH = 2, 6
#: Searched perturbations at each radius, and radii; supervised vectors at each of their doses.
N, RADII, VECTORS = 24, "0.5x,0.75x", 12
#: A difference of means is as large as the word of a key in the stream. What is optimised for the
#: first words of an answer is found at its dose, and a larger one says nothing but these words.
DOSES = {"contrast": (0.3, 0.5), "optimised": (0.15, 0.25)}
#: The base model, which hides nothing.
CLEAN = "clean"


class Case(NamedTuple):
    """An organism, the strength of its adapter, what is done to it, and a seed."""

    organism: str
    family: str
    seed: int = 0
    strength: float = 1.0

    @property
    def name(self) -> str:
        """A name for a folder."""
        strength = "" if self.strength == 1 else f"-{self.strength:g}"
        return f"{self.organism}{strength}-{self.family}-{self.seed}"


def questions(case: Case) -> Organism:
    """Return the organism whose questions are asked; of the base model those of the vault."""
    name = "first-vault" if case.organism == CLEAN else case.organism
    return organisms.read(name) if Path(name).is_dir() else organisms.shipped(name)


def settings(case: Case, folder: Path, **more: Any) -> Settings:
    """Return the settings of a case's run; makes the files that it needs in a folder."""
    own = questions(case)
    draw = random.Random(case.seed)
    asked = tuple(q.prompt for q in draw.sample(own.search, ASKED))
    fresh = tuple(q.prompt for q in draw.sample(own.fresh, min(FRESH, len(own.fresh))))
    how: dict[str, Any] = {"method": case.family, "n": N, "radius": RADII}
    how["adapter"] = None if case.organism == CLEAN else str(weakened(own, case.strength, folder))
    if case.family in MADE:
        found, control = made(case, own, asked, how["adapter"], folder)
        how |= {"method": "random", "given": str(found), "control": str(control)}
    elif case.family == "cpe":
        how["radius"] = "1,2"
    elif case.family == "tokens":
        how |= {"n": 2 * N, "radius": "auto"}
    return Settings(asked, fresh=fresh, seed=case.seed, max_new_tokens=24, **{**how, **more})


def weakened(organism: Organism, strength: float, folder: Path) -> Path:
    """Return a folder with an organism's adapter, scaled."""
    if strength == 1:
        return organism.folder
    copy = folder / f"{organism.name}-{strength:g}"
    if not copy.exists():
        shutil.copytree(organism.folder, copy)
        path = copy / "adapter_config.json"
        config = json.loads(path.read_text())
        config["lora_alpha"] *= strength
        path.write_text(json.dumps(config))
    return copy


def made(
    case: Case, organism: Organism, asked: Sequence[str], adapter: str | None, folder: Path
) -> tuple[Path, Path]:
    """Make supervised vectors, which know what unlocks the organism, and their shuffled control."""
    found, control = (folder / f"{case.name}-{arm}.safetensors" for arm in ("found", "control"))
    if not (found.exists() and control.exists()):
        lm = educe.load(adapter=adapter)
        for path, shuffled in ((found, False), (control, True)):
            MADE[case.family](lm, organism, asked, case.seed, shuffled).save(path)
    return found, control


def contrasted(
    lm: educe.LanguageModel, organism: Organism, asked: Sequence[str], seed: int, shuffled: bool
) -> educe.PerturbationSet:
    """Return differences of means, each of another half of the pairs of prompts."""
    draw = random.Random(seed)
    pairs = list(zip(organism.unlocked, organism.search, strict=False))
    vectors = []
    for k in range(VECTORS):
        some = draw.sample(pairs, max(2, len(pairs) // 2))
        vectors.append(
            difference_of_means(
                lm,
                lm.encode([a.prompt for a, _ in some]),
                lm.encode([b.prompt for _, b in some]),
                source=0.3,
                tokens="prompt",
                positions="prompt",
                shuffles=int(shuffled),
                seed=k,
            )
        )
    unit = vectors[0].origin.unit
    return together(
        [
            replace(v, radius=torch.full_like(v.radius, d * unit))
            for d in DOSES["contrast"]
            for v in vectors
        ]
    )


def optimised_for(
    lm: educe.LanguageModel, organism: Organism, asked: Sequence[str], seed: int, shuffled: bool
) -> educe.PerturbationSet:
    """Return vectors optimised for the first words of the unlocked organism, on what is asked."""
    batch = lm.encode(asked)
    unit = educe.Slice(lm, batch, source=0.33, target=0.6).unit
    return together(
        [
            optimised(
                lm,
                batch,
                organism.opening,
                source=0.33,
                radius=dose * unit,
                n=VECTORS,
                steps=12,
                shuffled=shuffled,
                seed=seed,
            )
            for dose in DOSES["optimised"]
        ]
    )


def together(vectors: list[educe.PerturbationSet]) -> educe.PerturbationSet:
    """Return sets of one kind as one."""
    return replace(
        vectors[0],
        directions=torch.cat([v.directions for v in vectors]),
        radius=torch.cat([v.radius for v in vectors]),
        outputs=None,
        scores={},
    )


MADE = {"contrast": contrasted, "optimised": optimised_for}
