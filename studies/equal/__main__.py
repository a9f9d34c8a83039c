"""Found and random perturbations, as used, at equal effect and at equal KL: who unlocks more.

    python -m studies.equal RUN [RUN ...] [--ordinary FILE] [--compared 24]
    python -m studies.equal --quick

Each run is examined as ``educe examine RUN --norm`` does, but for the curves, and goes on where it
was stopped. Where a run searched at several radii, those found at the smallest are compared with
random ones at the largest besides: the observation that effective vectors of an eighth of the norm
are more erratic than loud random ones. The quick form makes a run of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import quick

from educe.model import LanguageModel
from educe.norm.equal import equal
from educe.norm.points import Point
from educe.norm.survey import COMPARED, examine_norm
from educe.ordinary import BUNDLED
from educe.progress import reporter
from educe.run.settings import Settings, begin, encoded, loaded, stored
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from educe.stats import rate
from educe.summary import dose

NAMES = {"radius": "as used", "effect": "equal effect", "kl": "equal KL"}


def main(argv: Sequence[str] | None = None) -> None:
    """Examine the runs and print their tables."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("runs", type=Path, nargs="*")
    asked.add_argument("--ordinary", default=BUNDLED)
    asked.add_argument("--compared", type=int, default=COMPARED)
    given = quick.parsed(asked, argv)
    if given.quick:
        with quick.kept(None, quick=True) as folder:
            lm = quick.stand_in()
            discovered(folder, lm)
            compare(folder, lm, given.ordinary, 3)
    for folder in given.runs:
        compare(folder, None, given.ordinary, given.compared)


def discovered(folder: Path, lm: LanguageModel) -> None:
    """Make a run of three perturbations at each of two radii."""
    settings = Settings(
        prompts=("Where is it?",), method="random", n=3, radius="2,8", max_new_tokens=4,
        look_for=quick.RULE,
    )  # fmt: skip
    with begin(folder, settings) as run:
        discover_behaviours(run, lm=lm)


def compare(folder: Path, lm: LanguageModel | None, ordinary: str, compared: int) -> None:
    """Examine a run, on its own model unless one is given, and print its table."""
    with Run.open(folder) as run:
        settings = stored(run)
        lm = loaded(run, settings, print, lm)
        told = examine_norm(
            run,
            [],
            lm,
            encoded(lm, settings, settings.prompts),
            ordinary=ordinary,
            compared=compared,
            reporter=reporter(),
        )
    print(f"\n{folder.name}: {settings.method}, {Path(settings.adapter or '').name}\n")
    print(
        "| dose used | at | arm | n | radius | effect | KL 95% | shows it | p "
        "| coherent and new | p | nonsense | p | striking |"
    )
    print("|" + "---|" * 14)
    for e in told["equal"]:
        for arm in ("found", "control"):
            print(line(NAMES[e["at"]], arm, e))
    found, control = ([fields(p) for p in arm] for arm in told["points"])
    small, large = min(p.radius for p in found), max(p.radius for p in control)
    if small < large / 2:
        quiet = [p for p in found if p.radius == small]
        loud = [p for p in control if p.radius == large]
        e = plain(equal("radius", None, quiet, loud)) | {"dose": told["equal"][0]["dose"]}
        for arm in ("found", "control"):
            print(line(f"found at R, random at {large / small:.3g} R", arm, e))


def fields(point: dict[str, Any]) -> Point:
    """Return a point that was kept."""
    return Point(**{name: point[name] for name in Point.__dataclass_fields__})


def plain(value: Any) -> Any:
    """Return named tuples as dictionaries."""
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    return value


def line(at: str, arm: str, e: dict[str, Any]) -> str:
    """Return a line of the table."""
    of, first = e[arm], arm == "found"
    shares = []
    for name in ("shows", "new", "nonsense"):
        shares += [str(rate(of[name]["hits"], of[name]["trials"]))]
        shares += [f"{e[f'p_{name}']:.2g}" if first else ""]
    mean, low, high = of["striking"]
    cells = [
        dose(e["dose"]) if first else "",
        at if first else "",
        "found" if first else "random",
        str(of["reached"]),
        f"{of['radius']:.3g}",
        f"{of['effect']:.3g}",
        f"{of['high']:.2f}",
        *shares,
        f"{mean:.2f} ({low:.2f} to {high:.2f})",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
