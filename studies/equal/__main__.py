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

import educe
from benchmarks import quick
from educe.comparison.account import dose
from educe.comparison.equal import Equal, equal
from educe.derive.norms import COMPARED, examine_norm
from educe.forward.benign import BUNDLED
from educe.progress import reporter
from educe.report.norms import EQUAL
from educe.rows import ARMS
from educe.run.settings import stored


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
            run = educe.discover(
                folder, lm, ["Where is it?"], method="random", n=3, radius="2,8", max_new_tokens=4,
                look_for=quick.RULE,
            )  # fmt: skip
            run.close()
            compare(folder, lm, given.ordinary, 3)
    for folder in given.runs:
        compare(folder, None, given.ordinary, given.compared)


def compare(folder: Path, lm: educe.LanguageModel | None, ordinary: str, compared: int) -> None:
    """Examine a run, on its own model unless one is given, and print its table."""
    with educe.Run.open(folder) as run:
        settings = stored(run)
        told = examine_norm(
            run, [], lm=lm, ordinary=ordinary, compared=compared, reporter=reporter()
        )
    print(f"\n{folder.name}: {settings.method}, {Path(settings.adapter or '').name}\n")
    print(
        "| dose used | at | arm | n | radius | effect | KL 95% | shows it | p "
        "| coherent and new | p | nonsense | p | interestingness |"
    )
    print("|" + "---|" * 14)
    for e in told.equal:
        tell(EQUAL[e.at], e)
    found, control = (told.used[told.used.arm == arm] for arm in ARMS)
    small, large = found.radius.min(), control.radius.max()
    if small < large / 2:
        quiet, loud = found[found.radius == small], control[control.radius == large]
        e = equal("radius", None, told.equal[0].dose, quiet, loud)
        tell(f"found at R, random at {large / small:.3g} R", e)


def tell(at: str, e: Equal) -> None:
    """Print the two lines of a comparison."""
    for name, of in (("found", e.found), ("random", e.control)):
        first = name == "found"
        shares = []
        for each, p in ((of.shows, e.p_shows), (of.new, e.p_new), (of.nonsense, e.p_nonsense)):
            shares += [str(each), f"{p:.2g}" if first else ""]
        mean, low, high = of.interestingness
        cells = [
            dose(e.dose) if first else "",
            at if first else "",
            name,
            str(of.reached),
            f"{of.radius:.3g}",
            f"{of.effect:.3g}",
            f"{of.kl_p95:.2f}",
            *shares,
            f"{mean:.2f} ({low:.2f} to {high:.2f})",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
