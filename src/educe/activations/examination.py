"""Examining a perturbation: where it stands among natural activations, measured.

At its layer the vector is compared with thousands of differences between held-out activations and
thousands of random vectors, all of its norm; this costs nothing. Then the perturbed model runs on
held-out texts, and so do some of each control (see `educe.activations.reference`), to see what
later layers and the output make of it. Then what is derived from it does: its parts inside and
outside of the natural subspace, at the norm of the whole, and ablations of its direction, against
random directions of about equal variance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.activations import corpus, report
from educe.activations.project import as_perturbation, equal_variance, injection, oblique, plain
from educe.activations.reading import Place, read_prompts
from educe.activations.reference import FEW, SOME, TRIED, Outcome, Reference
from educe.activations.report import (
    ABLATED,
    FORMS,
    INSIDE,
    OUTSIDE,
    RANDOM,
    Facts,
    ManifoldReport,
    Measure,
    Range,
    at_layer,
)
from educe.activations.subspace import of_rows
from educe.model.batch import PromptBatch
from educe.perturbation.kinds import Ablations, Kind, Noise, Vectors, Within
from educe.progress import Reporter, Silent

#: Layers along the depth, the first and the last among them.
LAYERS = 5
#: Variances that are equal up to this ratio's square root have the same random directions.
RATIO = 1.2
#: Points of a curve over the number of directions.
POINTS = 60


class Part(NamedTuple):
    """A perturbation that is derived from the one examined: a part of it, or an ablation."""

    how: str  #: see `educe.activations.report.Derived`
    kind: Kind
    direction: Float[Tensor, "1 s"]
    radius: float
    scores: dict[str, float]  #: of an ablation what it changes; then of the model on the texts too
    effects: dict[int, float]  #: norm of the mean change of the stream on them, by layer


class Examined(NamedTuple):
    """What is measured of a perturbation."""

    report: ManifoldReport
    measures: dict[str, Measure]  #: by judge, the perturbation and its controls
    derived: list[Part]


def depths(source: int, target: int, depth: int) -> list[int]:
    """Return the layers at which a perturbation is looked at: from its own to the last."""
    even = np.linspace(source, depth - 1, LAYERS).round().astype(int)
    return sorted({source, target, *even.tolist()})


def examine(
    reference: Reference,
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    *,
    prompts: PromptBatch | None = None,
    called: str = corpus.BUNDLED,
    reporter: Reporter | None = None,
) -> Examined:
    """Say where one perturbation stands among natural activations.

    Args:
        reference: Natural activations and controls at the last layer that is perturbed, for any
            perturbations that begin at the same layer.
        kind: The kind of the perturbation.
        theta: The perturbation, at its radius.
        prompts: Prompts it was searched on, for the energy in their own span.
        called: What the corpus is called.
        reporter: Is told of the progress.
    """
    reporter = reporter or Silent()
    found = reference.under(kind, theta)
    vector = kind.added(theta, [0], [0]) if isinstance(kind, Vectors | Within) else None
    # Of other kinds, what they change at each token of the texts.
    still = reference.still[reference.layer]
    moved = found.streams[reference.layer] - still if vector is None else vector[0, 0]
    parts = [] if vector is None else list(_parts(reference, moved, kind.positions))
    if not isinstance(kind, Noise):  # which has no direction
        direction = normalize(moved.mean(0).double().cpu(), dim=0)
        parts += _ablations(reference, ABLATED, direction[None])
    derived = _tried(reference, parts, reporter)
    if not isinstance(kind, Noise):
        derived += _random_ablations(reference, direction, reporter)
    span = None if prompts is None else _span(reference, prompts)
    norm = float(moved.norm(dim=1).mean())
    measures = at_its_layer(reference, moved, span) | _later(reference, found, norm, reporter)
    return Examined(
        ManifoldReport(
            number=0,
            arm="found",
            facts=_facts(reference, norm, called, 0 if span is None else len(span)),
            standings={judge: measure.standings(judge) for judge, measure in measures.items()},
            coverage={at: tuple(c for _, c in known) for at, known in reference.learned.items()},
            spectrum=_spectrum(reference, moved),
            derived=tuple(report.Derived(part.how, part.scores) for part in derived),
        ),
        measures,
        derived,
    )


# -- what is measured ------------------------------------------------------------------------------


def at_its_layer(
    reference: Reference, moved: Float[Tensor, "n d"], span: Float[Tensor, "k d"] | None = None
) -> dict[str, Measure]:
    """Place a vector among its controls at the layer; of several, the mean of each measure.

    Args:
        reference: Natural activations and controls.
        moved: The vector, or what is changed at each token.
        span: Orthonormal directions of the prompts.
    """
    home, apart = reference.home, reference.apart
    geometries = [geometry for geometry, _ in reference.learned[reference.layer]]
    deviating = reference.here.sample.rows.double() - home.mean
    # Measures leave massive coordinates out: they compare at the norm of what remains.
    bare = float(home.bare(moved).norm(dim=1).mean())
    natural, random = bare * normalize(home.bare(apart), dim=1), bare * reference.drawn

    def among(values: list[Callable[[Tensor], Tensor]], *controls: Tensor) -> Measure:
        own, *others = (torch.stack([of(v) for of in values], 1) for v in (moved, *controls))
        return Measure(own.mean(0), *others)

    found = {
        "energy_massive": among([home.massive], apart, reference.anywhere, deviating),
        "energy_top": among([g.share for g in geometries], natural, random, deviating),
        "mahalanobis": among([g.length for g in geometries], natural, random),
        "mahalanobis_own": among([home.length], apart, random, deviating),
    }
    if reference.read is not None:
        found["read"] = among([reference.read.share], natural, random, deviating)
    if span is not None:

        def share(v: Tensor) -> Tensor:
            return (normalize(home.bare(v), dim=1) @ span.T).square().sum(1)

        found["energy_prompt"] = among([share], natural, random)
    return found


def _span(reference: Reference, prompts: PromptBatch) -> Float[Tensor, "k d"]:
    """Return the directions of the token × activation matrix of the prompts alone: all."""
    rows = read_prompts(reference.lm, prompts, Place(reference.layer))
    return of_rows(reference.home.bare(rows), centred=False).basis


def _later(
    reference: Reference, found: Outcome, norm: float, reporter: Reporter
) -> dict[str, Measure]:
    """Follow a perturbation and its controls along the depth, and to the output."""
    controls = reference.controls(norm, reporter)
    natural, random = (controls.seen[kind] for kind in ("natural", "random"))
    measures = {
        at_layer(judge, layer): measure
        for layer, sight in reference.sights.items()
        for judge, measure in sight.measures(
            sight.of(found.streams[layer]), natural[layer], random[layer]
        ).items()
    }
    natural_out, random_out = (controls.outputs[kind] for kind in ("natural", "random"))
    for i, (judge, value) in enumerate(found.scores.items()):
        still = reference.texts.plain.scores[judge]
        measures[judge] = Measure(
            torch.tensor([value], dtype=torch.float64),
            natural_out[:, [i]],
            random_out[:, [i]],
            still=torch.tensor([still], dtype=torch.float64),
        )
    return measures


def _facts(reference: Reference, norm: float, called: str, prompt_rank: int) -> Facts:
    here, home, gathered = reference.here, reference.home, reference.gathered
    return Facts(
        layer=reference.layer,
        layers=tuple(reference.layers),
        norm=norm,
        corpus=called,
        fitted=here.moments.count,
        held_out=here.held.count,
        documents=gathered.documents,
        added=SOME,
        tried=(TRIED, FEW),
        width=len(home.vectors),
        rank=home.rank,
        chance=Range(*home.chance),
        massive=tuple(here.massive),
        massive_tokens=gathered.massive,
        first=here.first_norm / here.norm,
        prompt_rank=prompt_rank,
        unused=home.unused,
        read_rank=0 if reference.read is None else reference.read.rank,
    )


def _spectrum(reference: Reference, moved: Tensor) -> dict[str, list[float]]:
    """Return how much energy lies within the first directions, for more and more of them."""
    home, held = reference.home, reference.here.held
    counts = np.unique(np.geomspace(1, len(home.vectors), POINTS).round().astype(int))
    at = torch.as_tensor(counts) - 1
    along = home.along(held)
    apart = home.energy(reference.apart).cumsum(1)[:, at]
    low, median, high = apart.quantile(torch.tensor([0.025, 0.5, 0.975]).to(apart), dim=0)
    return {
        "directions": [float(c) for c in counts],
        "held-out activations": (along.cumsum(0) / along.sum())[at].tolist(),
        "found": home.energy(moved).mean(0).cumsum(0)[at].tolist(),
        "natural low": low.tolist(),
        "natural": median.tolist(),
        "natural high": high.tolist(),
        "random": (torch.as_tensor(counts) / len(home.vectors)).tolist(),
    }


# -- what is derived -------------------------------------------------------------------------------


def _parts(reference: Reference, moved: Float[Tensor, "1 d"], positions: str) -> Iterator[Part]:
    """Return the part of a vector in the top directions and the rest, each at its norm."""
    home, kind = reference.home, Vectors(reference.layer, reference.lm.width, positions)
    whole, inside = home.bare(moved), home.inside(moved)
    for how, part in ((INSIDE, inside), (OUTSIDE, whole - inside)):
        if part.norm() > 1e-6 * whole.norm():
            yield Part(how, kind, normalize(part), float(whole.norm()), {}, {})


def _ablations(reference: Reference, how: str, directions: Float[Tensor, "n d"]) -> Iterator[Part]:
    """Return what takes each of some directions away, in each form."""
    moments, kind = reference.here.moments, Ablations(reference.layer, reference.lm.width)
    for u in directions[:, None]:
        made = (plain(u), plain(u, moments.mean), oblique(u, moments))
        for form, ablation in zip(FORMS, made, strict=True):
            known = injection(ablation, reference.home)
            scores = {"energy_unused": known.outside, "variance_unused": known.after}
            yield Part(how.format(form), kind, as_perturbation(ablation), 1.0, scores, {})


def _random_ablations(
    reference: Reference, direction: Float[Tensor, "d"], reporter: Reporter
) -> list[Part]:
    """Return what takes random directions away along which activations vary about as much."""
    variance = float(direction @ reference.here.moments.covariance @ direction)
    step = round(math.log(max(variance, sys.float_info.min), RATIO))

    def make() -> list[Part]:
        draw = torch.Generator().manual_seed(reference.seed + 1)  # not those of the controls
        drawn = equal_variance(RATIO**step, reference.here.moments, FEW, draw)
        return _tried(reference, list(_ablations(reference, RANDOM + ABLATED, drawn)), reporter)

    return reference.once("ablations", step, make, Part, Ablations, say=reporter)


def _tried(reference: Reference, parts: Sequence[Part], reporter: Reporter) -> list[Part]:
    """Let the model read the texts under some parts."""
    tried = []
    with reporter.stage("examining", len(parts)) as step:
        for part in parts:
            direction = part.direction.float().cpu()
            outcome = reference.under(part.kind, part.kind.scaled(direction, part.radius))
            effects = {
                layer: float((stream - reference.still[layer]).mean(0).norm())
                for layer, stream in outcome.streams.items()
            }
            scores = part.scores | outcome.scores
            tried.append(part._replace(direction=direction, scores=scores, effects=effects))
            step()
    return tried
