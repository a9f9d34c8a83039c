"""Draw what taking away ``(b - d)/√2`` does to ``a = x b + y c``, of which ``d`` is no part.

python -m studies.counterexample studies/counterexample/counterexample.svg [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import torch
import vl_convert

from benchmarks import quick
from educe.activations.distance import Geometry
from educe.activations.project import injection, oblique, plain
from educe.activations.subspace import Moments

WIDTH, N = 8, 60


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="where to draw it")
    asked = quick.parsed(parser, argv)
    with quick.kept(asked.file, quick=asked.quick) as path:
        draw_to(path)


def draw_to(path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    b, c, d = torch.linalg.qr(torch.randn(WIDTH, 3, generator=draw, dtype=torch.float64)).Q.T
    x = 3 * torch.randn(N, 1, generator=draw, dtype=torch.float64)
    y = torch.randn(N, 1, generator=draw, dtype=torch.float64)
    a = x * b + y * c
    u, known = (b - d)[None] / 2**0.5, Moments.of(a)
    panels = {
        "activations": a,
        "(b − d)/√2 projected away": plain(u)(a),
        "taken away obliquely": oblique(u, known)(a),
    }
    rows = [
        {"panel": name, "along b": float(h @ b), "along d": float(h @ d)}
        for name, some in panels.items()
        for h in some
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_circle(size=22, opacity=0.6, color="#0c6a72")
        .encode(
            alt.X("along b:Q", scale=alt.Scale(domain=[-11, 11]), axis=alt.Axis(tickCount=5)),
            alt.Y("along d:Q", scale=alt.Scale(domain=[-6, 6]), axis=alt.Axis(tickCount=5)),
            alt.Column(
                "panel:N", sort=list(panels), title=None, header=alt.Header(labelFontSize=13)
            ),
        )
        .properties(width=200, height=150)
        .configure(background="#ffffff", font="sans-serif")
    )
    path.write_text(vl_convert.vegalite_to_svg(chart.to_dict()) + "\n", encoding="utf-8")
    for name, ablation in (("plain", plain(u)), ("oblique", oblique(u, known))):
        print(name, injection(ablation, Geometry.of(known)))


if __name__ == "__main__":
    main()
