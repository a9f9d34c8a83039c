"""The passport: where a perturbation stands among natural activations, measured.

At its layer the vector is compared with thousands of differences between held-out activations and
thousands of random vectors, all of its norm; this costs nothing. Then the perturbed model runs on
held-out texts, and so do a few of each control, to see what later layers and the output make of it;
then the parts of the vector inside and outside of the natural subspace, at the norm of the whole;
and then the model without the vector's direction, against random directions of equal variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.generation import generate
from educe.kinds import Kind, Noise, Row, Vectors, Within
from educe.manifold import corpus
from educe.manifold.activations import Place, read_prompts
from educe.manifold.distance import Geometry, differences, learning, percentile, random_vectors
from educe.manifold.natural import Gathered
from educe.manifold.project import ablating, equal_variance, injection, oblique, plain
from educe.manifold.record import Depth, Grown, Output, Passport, Range, Standing, Taken
from educe.manifold.subspace import Moments, of_rows
from educe.manifold.trial import Outcome, Trial, perturbing
from educe.model import LanguageModel, PromptBatch
from educe.progress import Silent

#: Controls at the layer itself, and those that run through the model, of each kind.
MANY, FEW = 2000, 5
#: Layers along the depth, the first and the last among them.
LAYERS = 5
#: Points of a curve over the number of directions.
POINTS = 60
#: Tokens that the model writes under what is examined.
WRITTEN = 24

#: How a direction is taken away, and what that is called.
FORMS = {"origin": "about the origin", "mean": "about the mean", "oblique": "obliquely"}


class Labels(NamedTuple):
    """What a perturbation is called: its number and arm in a run, its target, the corpus."""

    number: int
    arm: str
    target: int
    corpus: str


UNLABELLED = Labels(0, "found", -1, corpus.BUNDLED)


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
    labels: Labels = UNLABELLED,
    seed: int = 0,
    reporter: Any = None,
) -> Passport:
    """Write the passport of one perturbation.

    Args:
        lm: The model.
        kind: The kind of the perturbation.
        theta: The perturbation, at its radius.
        gathered: Natural activations at the layers (see `educe.manifold.natural.gather`).
        layers: The last layer that is perturbed, and later ones.
        prompts: Prompts it was searched on: their own span, and what the model writes.
        labels: What it is called.
        seed: Of the controls.
        reporter: Is told of the progress.
    """
    is_vector, directed = isinstance(kind, Vectors | Within), not isinstance(kind, Noise)
    steps = 2 + 2 * FEW + 2 * is_vector + len(FORMS) * (1 + FEW) * directed
    with (reporter or Silent()).stage(f"examining {labels.number}", steps) as step:
        exam = _Exam(lm, kind, theta, gathered, layers, seed, step)
        return Passport(
            **labels._asdict(),
            controls=FEW,
            **exam.place(),
            **exam.standing(),
            **exam.prompt(prompts),
            depth=exam.depth(),
            growth=exam.growth(),
            outputs=exam.outputs(),
            **exam.taken(),
            writes=exam.writes(prompts),
        )


class _Exam:
    """One perturbation under examination, and its controls."""

    def __init__(
        self,
        lm: LanguageModel,
        kind: Kind,
        theta: Tensor,
        gathered: Gathered,
        layers: Sequence[int],
        seed: int,
        step: Any,
    ) -> None:
        self.lm, self.kind, self.theta, self.gathered, self.step = lm, kind, theta, gathered, step
        self.layers, self.layer = list(layers), layers[0]
        self.draw = torch.Generator().manual_seed(seed)
        self.natural = {layer: gathered.natural[Place(layer)] for layer in layers}
        self.learned = {layer: learning(known) for layer, known in self.natural.items()}
        self.here, self.home = self.natural[self.layer], self.learned[self.layer][-1][0]
        self.trial = Trial(lm, gathered.texts, kind.before, layers)
        step()
        self.found = self.run(partial(perturbing, lm, kind, theta))
        self.moved, self.is_vector = self._moved()
        self.parts = self._parts() if self.is_vector else {}

        bare = float(self.home.bare(self.moved).norm(dim=1).mean())
        self.apart = differences(self.here.sample, MANY, self.draw)
        self.scaled = bare * normalize(self.home.bare(self.apart), dim=1)
        self.drawn = bare * random_vectors(MANY, self.home, self.draw)
        self.anywhere = torch.randn(MANY, len(self.home.kept), generator=self.draw)
        self.controls = {
            name: [self.under(v[None]) for v in some[:FEW]]
            for name, some in (("natural", self.scaled), ("random", self.drawn))
        }
        self.forms, self.others = self._ablations()

    def run(self, changing: Any) -> Outcome:
        """Let the changed model read the texts."""
        outcome = self.trial.under(changing)
        self.step()
        return outcome

    def under(self, vector: Float[Tensor, "1 d"]) -> Outcome:
        """Let the model read the texts under another vector, at the layer looked at."""
        kind = Vectors(self.layer, self.lm.width)
        return self.run(partial(perturbing, self.lm, kind, vector.to(self.theta)))

    def _moved(self) -> tuple[Float[Tensor, "m d"], bool]:
        """Return what is added at the layer: one vector, or one for each token of the texts."""
        if isinstance(self.kind, Vectors | Within):
            added = self.kind.added(self.theta, [0], [0])
            assert added is not None
            return added[0, 0], True
        return self.found.streams[self.layer] - self.trial.plain.streams[self.layer], False

    def _parts(self) -> dict[str, Float[Tensor, "1 d"]]:
        """Return the part of the vector in the top directions and the rest, each at its norm."""
        whole, inside = self.home.bare(self.moved), self.home.inside(self.moved)
        return {
            name: part * (whole.norm() / part.norm())
            for name, part in (("its part inside", inside), ("its part outside", whole - inside))
            if part.norm() > 1e-6 * whole.norm()
        }

    def _ablations(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what takes the direction away, and what takes random ones of equal variance.

        Of adapters it is the mean direction of what they change; noise has none.
        """
        if isinstance(self.kind, Noise):
            return {}, []
        direction, moments = self.moved.mean(0, keepdim=True), self.here.moments
        drawn = equal_variance(direction[0], moments, FEW, self.draw)
        return _forms(direction, moments), [_forms(u[None], moments) for u in drawn]

    def place(self) -> dict[str, Any]:
        """Return what is known of the layer."""
        return {
            "layer": self.layer,
            "norm": float(self.moved.norm(dim=1).mean()),
            "tokens": (self.here.moments.count, self.here.held.count),
            "documents": self.gathered.documents,
            "width": len(self.home.vectors),
            "rank": self.home.rank,
            "chance": Range(*self.home.chance),
            "massive": tuple(self.here.massive),
            "massive_tokens": self.gathered.massive,
            "first": self.here.first_norm / self.here.norm,
        }

    def standing(self) -> dict[str, Any]:
        """Place the vector among its controls at the layer."""
        home, moved, scaled, drawn = self.home, self.moved, self.scaled, self.drawn
        massive = (home.massive(v) for v in (moved, self.apart, self.anywhere))
        return {
            "massive_share": _standing(*massive),
            "share": _standing(home.share(moved), home.share(scaled), home.share(drawn)),
            "length": _standing(home.length(moved), home.length(scaled), home.length(drawn)),
            "size": _standing(home.length(moved), home.length(self.apart), home.length(drawn)),
            "spectrum": _spectrum(home, self.here.held, moved, scaled),
        }

    def prompt(self, prompts: PromptBatch | None) -> dict[str, Any]:
        """Compare with the token × activation matrix of the prompts alone: all that it spans."""
        if prompts is None:
            return {"prompt": None, "prompt_rank": 0}
        rows = self.home.bare(read_prompts(self.lm, prompts, Place(self.layer)))
        span = of_rows(rows, centred=False)

        def share(v: Tensor) -> Tensor:
            return (normalize(self.home.bare(v), dim=1) @ span.basis.T).square().sum(1)

        shares = (share(v) for v in (self.moved, self.scaled, self.drawn))
        return {"prompt": _standing(*shares), "prompt_rank": len(span)}

    def depth(self) -> tuple[Depth, ...]:
        """Follow the perturbation and its controls along the depth."""
        return tuple(self._seen_at(layer) for layer in self.layers)

    def _seen_at(self, layer: int) -> Depth:
        natural, (geometry, known) = self.natural[layer], self.learned[layer][-1]
        distances = geometry.distance(natural.sample.rows)
        nearests = geometry.nearest(natural.sample.rows, natural.bank)
        still = self.trial.plain.streams[layer]

        def measured(outcome: Outcome) -> list[float]:
            stream = outcome.streams[layer]
            moved = stream - still
            values = (
                percentile(geometry.distance(stream), distances),
                percentile(geometry.nearest(stream, natural.bank), nearests),
                geometry.share(moved),
                moved.norm(dim=1) / still.norm(dim=1),
            )
            return [float(v.median()) for v in values]

        rows = {name: [measured(o) for o in some] for name, some in self.controls.items()}
        own, unmoved = measured(self.found), measured(self.trial.plain)

        def standing(i: int) -> Standing:
            natural, random = ([row[i] for row in rows[name]] for name in ("natural", "random"))
            return Standing(own[i], Range.of(natural), Range.of(random))

        return Depth(
            layer,
            distance=standing(0),
            nearest=standing(1),
            share=standing(2),
            size=standing(3),
            still_distance=unmoved[0],
            still_nearest=unmoved[1],
            chance=geometry.chance[0],
            enough=known.enough,
        )

    def growth(self) -> tuple[Grown, ...]:
        """Return what the measures say at an eighth, a quarter, a half and all of the corpus."""
        return tuple(
            Grown(
                *known[:4],
                share=_percentile(geometry.share(self.moved), geometry.share(self.scaled)),
                length=_percentile(geometry.length(self.moved), geometry.length(self.scaled)),
                enough=known.enough,
            )
            for geometry, known in self.learned[self.layer]
        )

    def outputs(self) -> tuple[Output, ...]:
        """Return what the model makes of the texts, in each way that it is perturbed."""
        outcomes = [("unperturbed", self.trial.plain), ("the perturbation", self.found)]
        outcomes += [(name, self.under(part)) for name, part in self.parts.items()]
        for name, some in self.controls.items():
            outcomes += [(f"{name} {i}", outcome) for i, outcome in enumerate(some, 1)]
        return tuple(Output(name, o.kl, o.entropy, o.perplexity) for name, o in outcomes)

    def taken(self) -> dict[str, Any]:
        """Take the direction away after the layer, and random directions of equal variance."""
        if not self.forms:
            return {"unused": (0.0, 0.0), "taken": ()}
        moments, taken = self.here.moments, []
        for form, ablation in self.forms.items():
            known = injection(ablation, moments, massive=self.here.massive)
            own = self.run(partial(ablating, self.lm, ablation, [self.layer]))
            random = [
                self.run(partial(ablating, self.lm, other[form], [self.layer]))
                for other in self.others
            ]
            taken.append(
                Taken(
                    form,
                    known.outside,
                    known.after,
                    own.kl,
                    Range.of([o.kl for o in random]),
                    own.perplexity,
                    Range.of([o.perplexity for o in random]),
                )
            )
        return {"unused": (known.natural, known.chance), "taken": tuple(taken)}

    def writes(self, prompts: PromptBatch | None) -> tuple[tuple[str, str], ...]:
        """Return what the model writes to the first prompt, changed in each way."""
        if prompts is None:
            return ()

        def written(row: int, vectors: Tensor | None = None, of: Kind | None = None) -> str:
            rows = [Row(row, 0)]
            batches = generate(self.lm, prompts, rows, vectors, kind=of, max_new_tokens=WRITTEN)
            return next(iter(batches))[0].text

        same = Vectors(self.layer, self.lm.width, self.kind.positions)
        texts = [
            ("unperturbed", written(-1)),
            ("the perturbation", written(0, self.theta, self.kind)),
        ]
        texts += [
            (name, written(0, part.to(self.theta), same)) for name, part in self.parts.items()
        ]
        for form, ablation in self.forms.items():
            random = self.others[0][form]
            for name, away in (("direction", ablation), ("a random one", random)):
                with ablating(self.lm, away, [self.layer]):
                    texts.append((f"{name} taken away, {FORMS[form]}", written(-1)))
        return tuple(texts)


def _percentile(found: Tensor, among: Tensor) -> float:
    return float(percentile(found, among).mean())


def _standing(found: Tensor, natural: Tensor, random: Tensor) -> Standing:
    return Standing(
        float(found.mean()),
        Range.of(natural),
        Range.of(random),
        _percentile(found, natural),
    )


def _spectrum(
    home: Geometry, held: Moments, moved: Tensor, scaled: Tensor
) -> dict[str, list[float]]:
    """Return how much energy lies within the first directions, for more and more of them."""
    counts = np.unique(np.geomspace(1, len(home.vectors), POINTS).round().astype(int))
    at = torch.as_tensor(counts) - 1
    along = (home.vectors @ held.about(home.mean) * home.vectors).sum(1)
    apart = (
        home.energy(scaled)
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


def _forms(moved: Float[Tensor, "1 d"], moments: Moments) -> dict[str, Any]:
    return {
        "origin": plain(moved),
        "mean": plain(moved, moments.mean),
        "oblique": oblique(moved, moments),
    }
