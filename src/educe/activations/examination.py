"""Examining a perturbation: where it stands among natural activations, measured.

At its layer the vector is compared with thousands of differences between held-out activations and
thousands of random vectors, all of its norm; this costs nothing. Then the perturbed model runs on
held-out texts, and so do some of each control (see `educe.activations.reference`), to see what
later layers and the output make of it. Then what is derived from it does: its parts inside and
outside of the natural subspace, at the norm of the whole, and ablations of its direction, against
random directions of equal variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.activations import corpus, report
from educe.activations.distance import Coverage, Geometry
from educe.activations.natural import Gathered
from educe.activations.project import (
    Ablation,
    as_perturbation,
    equal_variance,
    injection,
    oblique,
    plain,
)
from educe.activations.reading import Place, read_prompts
from educe.activations.reference import FEW, SOME, TRIED, Controls, Reference
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
from educe.activations.subspace import Moments, of_rows
from educe.model.language import LanguageModel
from educe.model.rendering import PromptBatch
from educe.perturbation.kinds import Ablations, Kind, Noise, Vectors, Within
from educe.progress import Reporter, Silent

#: Layers along the depth, the first and the last among them.
LAYERS = 5
#: Points of a curve over the number of directions.
POINTS = 60


@dataclass(frozen=True)
class Changed:
    """A perturbation that is derived from the one examined.

    Attributes:
        how: See `educe.activations.report.Derived`.
        kind: Its kind.
        direction: It, at radius 1, ``[1, size]``.
        radius: Its radius.
        scores: What the model makes of the held-out texts under it, and what an ablation changes.
        effects: Norm of the mean change of the stream on these texts, by layer.
    """

    how: str
    kind: Kind
    direction: Tensor
    radius: float
    scores: dict[str, float]
    effects: dict[int, float]


@dataclass(frozen=True)
class Examined:
    """What is measured of a perturbation.

    Attributes:
        facts: What it was examined with.
        measures: By judge, the perturbation and its controls.
        coverage: See `ManifoldReport`.
        spectrum: See `ManifoldReport`.
        derived: Its parts, and ablations of its direction and of random ones.
    """

    facts: Facts
    measures: dict[str, Measure]
    coverage: dict[int, tuple[Coverage, ...]]
    spectrum: dict[str, list[float]]
    derived: tuple[Changed, ...]

    def report(self, number: int = 0, arm: str = "found") -> ManifoldReport:
        """Return the report of it, by what it is called in a run."""
        return ManifoldReport(
            number,
            arm,
            self.facts,
            {judge: measure.standings(judge) for judge, measure in self.measures.items()},
            self.coverage,
            self.spectrum,
            tuple(report.Derived(one.how, one.scores) for one in self.derived),
        )


def depths(source: int, target: int, depth: int) -> list[int]:
    """Return the layers at which a perturbation is looked at: from its own to the last."""
    even = np.linspace(source, depth - 1, LAYERS).round().astype(int)
    return sorted({source, target, *even.tolist()})


def examine(
    lm: LanguageModel,
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    gathered: Gathered,
    layers: Sequence[int],
    *,
    prompts: PromptBatch | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> ManifoldReport:
    """Say where one perturbation stands among natural activations.

    Args:
        lm: The model.
        kind: The kind of the perturbation.
        theta: The perturbation, at its radius.
        gathered: Natural activations at the layers (see `educe.activations.natural.gather`).
        layers: The last layer that is perturbed, and later ones.
        prompts: Prompts it was searched on, for the energy in their own span.
        seed: Of the controls.
        reporter: Is told of the progress.
    """
    reference = Reference(lm, gathered, kind.before, layers, seed=seed)
    return examined(reference, kind, theta, prompts=prompts, reporter=reporter).report()


def examined(
    reference: Reference,
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    *,
    prompts: PromptBatch | None = None,
    called: str = corpus.BUNDLED,
    reporter: Reporter | None = None,
) -> Examined:
    """Measure one of several perturbations that begin at the same layer.

    Args:
        reference: Natural activations and controls there.
        kind: See `examine`, as for the others.
        theta: The perturbation, at its radius.
        prompts: Prompts it was searched on.
        called: What the corpus is called.
        reporter: Is told of the progress.
    """
    exam = _Exam(reference, kind, theta, reporter)
    derived = exam.derived()
    span = None if prompts is None else exam.span(prompts)
    return Examined(
        exam.facts(called, 0 if span is None else len(span)),
        exam.at_layer(span) | exam.along_depth() | exam.on_texts(),
        {layer: tuple(c for _, c in known) for layer, known in reference.learned.items()},
        _spectrum(reference.home, reference.here.held, exam.moved, reference.apart),
        derived,
    )


class _Exam:
    """One perturbation under examination, and its controls."""

    def __init__(
        self, reference: Reference, kind: Kind, theta: Tensor, reporter: Reporter | None
    ) -> None:
        self.reference, self.kind, self.reporter = reference, kind, reporter or Silent()
        self.layer, self.here, self.home = reference.layer, reference.here, reference.home
        self.found = reference.under(kind, theta)
        self.is_vector = isinstance(kind, Vectors | Within)
        if self.is_vector:
            added = kind.added(theta, [0], [0])
            assert added is not None
            self.moved = added[0, 0]
        else:  # what it changes at each token of the texts
            self.moved = self.found.streams[self.layer] - self._still(self.layer)
        self.norm = float(self.moved.norm(dim=1).mean())
        self.controls: Controls = reference.controls(self.norm, reporter)
        # Measures leave massive coordinates out: they compare at the norm of what remains.
        bare = float(self.home.bare(self.moved).norm(dim=1).mean())
        self.natural = bare * normalize(self.home.bare(reference.apart), dim=1)
        self.random = bare * reference.drawn

    def _still(self, layer: int) -> Float[Tensor, "m d"]:
        return self.reference.texts.plain.streams[layer]

    def facts(self, called: str, prompt_rank: int) -> Facts:
        """Return what it is examined with."""
        gathered = self.reference.gathered
        return Facts(
            layer=self.layer,
            layers=tuple(self.reference.layers),
            norm=self.norm,
            corpus=called,
            fitted=self.here.moments.count,
            held_out=self.here.held.count,
            documents=gathered.documents,
            added=SOME,
            tried=(TRIED, FEW),
            width=len(self.home.vectors),
            rank=self.home.rank,
            chance=Range(*self.home.chance),
            massive=tuple(self.here.massive),
            massive_tokens=gathered.massive,
            first=self.here.first_norm / self.here.norm,
            prompt_rank=prompt_rank,
            unused=self.home.unused,
        )

    def span(self, prompts: PromptBatch) -> Float[Tensor, "k d"]:
        """Return the directions of the token × activation matrix of the prompts alone: all."""
        rows = self.home.bare(read_prompts(self.reference.lm, prompts, Place(self.layer)))
        return of_rows(rows, centred=False).basis

    def at_layer(self, span: Float[Tensor, "k d"] | None) -> dict[str, Measure]:
        """Place the vector among its controls at the layer; of other kinds, the mean of changes."""
        home, apart = self.home, self.reference.apart
        geometries = [geometry for geometry, _ in self.reference.learned[self.layer]]
        deviating = self.here.sample.rows.double() - home.mean

        def among(
            values: Callable[[Tensor], list[Tensor]],
            natural: Tensor,
            random: Tensor,
            *others: Tensor,
        ) -> Measure:
            own, *controls = (
                torch.stack(values(v), 1) for v in (self.moved, natural, random, *others)
            )
            return Measure(own.mean(0), *controls)

        def share(v: Tensor) -> Tensor:
            assert span is not None
            return (normalize(home.bare(v), dim=1) @ span.T).square().sum(1)

        found = {
            "energy_massive": among(
                lambda v: [home.massive(v)], apart, self.reference.anywhere, deviating
            ),
            "energy_top": among(
                lambda v: [g.share(v) for g in geometries], self.natural, self.random, deviating
            ),
            "mahalanobis": among(
                lambda v: [g.length(v) for g in geometries], self.natural, self.random
            ),
            "mahalanobis_own": among(lambda v: [home.length(v)], apart, self.random, deviating),
        }
        if span is not None:
            found["energy_prompt"] = among(lambda v: [share(v)], self.natural, self.random)
        return found

    def along_depth(self) -> dict[str, Measure]:
        """Follow the perturbation and its controls along the depth."""
        natural, random = (self.controls.seen[kind] for kind in ("natural", "random"))
        return {
            at_layer(judge, layer): measure
            for layer, sight in self.reference.sights.items()
            for judge, measure in sight.measures(
                sight.of(self.found.streams[layer]), natural[layer], random[layer]
            ).items()
        }

    def on_texts(self) -> dict[str, Measure]:
        """Return what the model makes of the texts."""
        natural, random = (self.controls.outputs[kind] for kind in ("natural", "random"))
        still = self.reference.texts.plain.scores
        return {
            judge: Measure(
                torch.tensor([value], dtype=torch.float64),
                natural[:, [i]],
                random[:, [i]],
                still=torch.tensor([still[judge]], dtype=torch.float64),
            )
            for i, (judge, value) in enumerate(self.found.scores.items())
        }

    def derived(self) -> tuple[Changed, ...]:
        """Derive its parts and ablations, and let the model read the texts under each."""
        parts, ablations = self._parts(), self._ablations()
        vectors = Vectors(self.layer, self.reference.lm.width, self.kind.positions)
        kind = Ablations(self.layer, self.reference.lm.width)
        made = []
        with self.reporter.stage("examining", len(parts) + len(ablations)) as step:
            for how, part in parts.items():
                made.append(self._changed(how, vectors, normalize(part), float(part.norm()), {}))
                step()
            for how, ablation in ablations:
                known = injection(ablation, self.here.moments, massive=self.here.massive)
                scores = {"energy_unused": known.outside, "variance_unused": known.after}
                made.append(self._changed(how, kind, as_perturbation(ablation), 1.0, scores))
                step()
        return tuple(made)

    def _changed(
        self,
        how: str,
        kind: Kind,
        direction: Tensor,
        radius: float,
        scores: dict[str, float],
    ) -> Changed:
        direction = direction.float().cpu()
        outcome = self.reference.under(kind, kind.scaled(direction, radius))
        effects = {
            layer: float((stream - self._still(layer)).mean(0).norm())
            for layer, stream in outcome.streams.items()
        }
        return Changed(how, kind, direction, radius, scores | outcome.scores, effects)

    def _parts(self) -> dict[str, Float[Tensor, "1 d"]]:
        """Return the part of a vector in the top directions and the rest, each at its norm."""
        if not self.is_vector:
            return {}
        whole, inside = self.home.bare(self.moved), self.home.inside(self.moved)
        return {
            how: part * (whole.norm() / part.norm())
            for how, part in ((INSIDE, inside), (OUTSIDE, whole - inside))
            if part.norm() > 1e-6 * whole.norm()
        }

    def _ablations(self) -> list[tuple[str, Ablation]]:
        """Return what takes the direction away, and what takes random ones of equal variance.

        Of adapters it is the mean direction of what they change; noise has none.
        """
        if isinstance(self.kind, Noise):
            return []
        direction, moments = self.moved.mean(0), self.here.moments
        draw = torch.Generator().manual_seed(self.reference.seed + 1)  # not those of the controls
        drawn = equal_variance(direction, moments, FEW, draw)
        return [
            (name.format(form), ablation)
            for name, some in ((ABLATED, direction[None]), (RANDOM + ABLATED, drawn))
            for unit in some
            for form, ablation in zip(FORMS, _ablations_of(unit[None], moments), strict=True)
        ]


def _ablations_of(direction: Float[Tensor, "1 d"], moments: Moments) -> list[Ablation]:
    """Return what takes a direction away, in the order of `FORMS`."""
    return [plain(direction), plain(direction, moments.mean), oblique(direction, moments)]


def _spectrum(
    home: Geometry, held: Moments, moved: Tensor, natural: Tensor
) -> dict[str, list[float]]:
    """Return how much energy lies within the first directions, for more and more of them."""
    counts = np.unique(np.geomspace(1, len(home.vectors), POINTS).round().astype(int))
    at = torch.as_tensor(counts) - 1
    along = (home.vectors @ held.about(home.mean) * home.vectors).sum(1)
    apart = (
        home.energy(natural)
        .cumsum(1)[:, at]
        .quantile(torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64), dim=0)
    )
    return {
        "directions": [float(c) for c in counts],
        "held-out activations": (along.cumsum(0) / along.sum())[at].tolist(),
        "found": home.energy(moved).mean(0).cumsum(0)[at].tolist(),
        "natural low": apart[0].tolist(),
        "natural": apart[1].tolist(),
        "natural high": apart[2].tolist(),
        "random": (torch.as_tensor(counts) / len(home.vectors)).tolist(),
    }
