"""How many planted factors the methods find; see the page beside this.

    python -m studies.recovery [--methods dct,melbo] [--write studies/recovery/README.md] [--quick]

The slice is a map that is written down, ``width`` inputs to as many outputs,

    Δ(θ) = Σ_l (exp⟨v_l, θ⟩ - 1) u_l        32 random unit u and v

and a planted factor counts as found when a direction that was found has a cosine above 0.99 with
its ``v``, on either side. This is the synthetic test of Mack & Turner, "Deep causal transcoding".
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import educe
from benchmarks import quick
from benchmarks.measuring import processor, write
from educe.forward.chunks import Chunk
from educe.forward.slice.shift import Shift
from educe.methods import METHODS, dct
from educe.methods.dct import DctConfig
from educe.methods.state import Progress, State
from educe.perturbation.kinds import Kind, Vectors

BEGIN, END = "<!-- recovery: begin -->", "<!-- recovery: end -->"
PLANTED = 32
#: Those that search vectors and ask no more of a slice than `Planted` has.
FOUND_BY = ("dct", "dct-linear", "dct-quadratic", "melbo", "random")
AFTER = (10, 30, 100)  #: Iterations after which DCT is looked at.


class Planted:
    """What methods ask of a `Slice`, for planted factors; every derivative in closed form."""

    source, target, positions, readout = 0, 1, "all", "last:1"
    median_norm, device, work_dtype, retain = 1.0, torch.device("cpu"), torch.float32, None

    def __init__(self, width: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.width, self.kind, self.unit = width, Vectors(self.source, width), self.median_norm
        self.u, self.v = (Vectors(0, width).draw(PLANTED, draw) for _ in range(2))
        self.lm = SimpleNamespace(
            name="planted", revision="", adapter="", width=width, depth=2, parts={}
        )
        self.batch = SimpleNamespace(texts=("planted",))

    def on(self, kind: Kind) -> Planted:
        """Return this slice: it knows vectors only."""
        return self

    def shift(self, theta: Tensor) -> Shift:
        """Return the effect as that on one position of one prompt."""
        values = torch.expm1(theta @ self.v.T) @ self.u
        return Shift(values[:, None, None], torch.ones(1, 1), Chunk(0, len(theta), 0, 1))

    def effect(self, theta: Tensor) -> Tensor:
        """Return Δ(θ)."""
        return self.shift(theta).mean

    def jvp(self, theta: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Return Δ and the Jacobian times ``tangent``."""
        steep = (theta @ self.v.T).exp()
        return self.effect(theta), (steep * (tangent @ self.v.T)) @ self.u

    def vjp(self, theta: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Return Δ and the transposed Jacobian times ``cotangent``."""
        steep = (theta @ self.v.T).exp()
        return self.effect(theta), (steep * (cotangent @ self.u.T)) @ self.v

    def hvp(self, theta: Tensor, cotangent: Tensor, tangent: Tensor) -> Tensor:
        """Return the Hessian of ``⟨cotangent, Δ⟩`` times ``tangent``."""
        steep = (theta @ self.v.T).exp()
        return (steep * (cotangent @ self.u.T) * (tangent @ self.v.T)) @ self.v

    def second_derivative(self, theta: Tensor, tangent: Tensor) -> Tensor:
        """Return the second derivative along ``tangent``."""
        steep = (theta @ self.v.T).exp()
        return (steep * (tangent @ self.v.T).square()) @ self.u

    def measure(self, theta: Tensor, objective: Any) -> tuple[Tensor, Tensor]:
        """Return Δ and an objective."""
        shift = self.shift(theta)
        return shift.mean, objective(shift)

    def value_and_grad(self, theta: Tensor, objective: Any) -> tuple[Tensor, Tensor]:
        """Return an objective and its gradient."""
        theta = theta.clone().requires_grad_(True)
        value = objective(self.shift(theta))
        return value.detach(), torch.autograd.grad(value.sum(), theta)[0]


# -- measuring -----------------------------------------------------------------------------------


class Recovery(NamedTuple):
    """How near the nearest direction comes to each planted factor."""

    nearest: float  #: mean over the factors of the largest absolute cosine
    found: float  #: share of the factors with one above 0.99


@dataclass(frozen=True)
class Case:
    """One line of a table."""

    label: str
    method: str = "dct"
    width: int = 1024
    n: int = 128
    radius: float = 4.0
    seeds: int = 3
    keep_sides: bool = True  #: or take QR as LAPACK gives it, as the reference code of DCT does
    config: Any = field(default_factory=lambda: DctConfig(iterations=max(AFTER)))


def recovery(directions: Tensor, planted: Tensor) -> Recovery:
    """Compare what was found with what was planted."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    nearest = (unit @ planted.T).abs().max(0).values
    return Recovery(float(nearest.mean()), float((nearest > 0.99).float().mean()))


def lapack_qr(v: Tensor) -> Tensor:
    """Orthonormalise rows, about half of them turned to their negatives."""
    return torch.linalg.qr(v.T).Q.T


def run(case: Case) -> dict[int, Recovery]:
    """Search, and measure after some iterations; under zero, what the method ended with."""
    seen: dict[int, list[Recovery]] = {}
    for seed in range(case.seeds):
        part = Planted(case.width, 1000 + seed)  # not what a search with this seed draws

        def look(state: State, progress: Progress, part: Planted = part) -> None:
            if case.method == "dct" and len(state["curve"]) in AFTER:
                came = recovery(state["directions"], part.v)
                seen.setdefault(len(state["curve"]), []).append(came)

        with nullcontext() if case.keep_sides else patch.object(dct, "orthonormal", lapack_qr):
            found = educe.search(
                part,  # type: ignore[arg-type]
                case.method,
                n=case.n,
                radius=case.radius,
                seed=seed,
                config=case.config,
                on_step=look,
            )
        seen.setdefault(0, []).append(recovery(found.directions, part.v))
    return {
        at: Recovery(*(sum(values) / len(values) for values in zip(*all_seeds, strict=True)))
        for at, all_seeds in seen.items()
    }


# -- what is measured ----------------------------------------------------------------------------


def tables(methods: list[str]) -> dict[str, list[Case]]:
    """Return the lines of each table."""
    from_jacobian = DctConfig(iterations=max(AFTER), init="jacobian")
    wide = Case("", width=4096, n=512, seeds=1)
    small = Case("", radius=1.0)
    iterated = {
        "As published: width 4096, 512 directions": [
            replace(wide, label="dct, radius 1", radius=1.0),
            replace(wide, label="dct, radius 1, jacobian start", radius=1.0, config=from_jacobian),
            replace(wide, label="dct, radius 1, the reference's QR", radius=1.0, keep_sides=False),
            replace(wide, label="dct, radius 4"),
            replace(wide, label="random directions", method="random", config=None),
        ],
        "By radius: width 1024, 128 directions": [
            Case(f"radius {radius:g}", radius=radius)
            for radius in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
        ],
        "By count: width 1024, radius 4": [
            Case(f"{n} directions", n=n) for n in (8, 16, 32, 64, 128, 256, 512)
        ],
        "By start: width 1024, 128 directions, radius 1": [
            replace(small, label="random"),
            replace(small, label="jacobian, 32 projections", config=from_jacobian),
            replace(
                small,
                label="jacobian, 128 projections",
                config=replace(from_jacobian, projections=128),
            ),
        ],
    }
    defaults = [Case(method, method, config=METHODS[method].config()) for method in methods]
    return (iterated if "dct" in methods else {}) | {
        "By method: width 1024, 128 perturbations, radius 4": defaults
    }


def written(came: Recovery | None) -> str:
    """Write a cell."""
    return f"{came.nearest:.2f}, {came.found:.0%}" if came is not None else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.recovery", description=__doc__)
    parser.add_argument("--methods", default=",".join(FOUND_BY), help="which")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page to put the tables into")
    asked = quick.parsed(parser, argv)
    torch.set_num_threads(asked.threads)
    console = Console()
    begun = time.monotonic()
    lines: list[str] = []
    for title, cases in tables(asked.methods.split(",")).items():
        if asked.quick:
            cases = [replace(case, width=64, n=min(case.n, 32), seeds=1) for case in cases]
        iterated = any(case.method == "dct" for case in cases) and not title.startswith("By method")
        columns = [f"{at} iterations" for at in AFTER] if iterated else ["at its end"]
        table = Table(title=title, title_justify="left")
        for column in ("", *columns):
            table.add_column(column)
        lines += ["", f"**{title}**", "", "| | " + " | ".join(columns) + " |"]
        lines += ["|" + "---|" * (len(columns) + 1)]
        with console.status(title):
            for case in cases:
                came = run(case)
                cells = [written(came.get(at, came[0])) for at in (AFTER if iterated else (0,))]
                table.add_row(case.label, *cells)
                lines.append("| " + " | ".join([case.label, *cells]) + " |")
        console.print(table)
    where = (
        f"Measured {datetime.date.today().isoformat()} in {time.monotonic() - begun:.0f} s; "
        f"{processor()}, {asked.threads} thread{'s' if asked.threads > 1 else ''}; torch "
        f"{torch.__version__}. A cell is the mean over the planted factors of the largest absolute "
        f"cosine, and the share found; over 3 draws, one at width 4096."
    )
    console.print(where)
    if asked.write:
        write(asked.write, "\n".join([where, *lines]), BEGIN, END)
        console.print(f"written to {asked.write}")


if __name__ == "__main__":
    main()
