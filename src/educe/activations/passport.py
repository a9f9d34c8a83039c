"""The passport: where a perturbation stands among natural activations, measured.

At its layer the vector is compared with thousands of differences between held-out activations and
thousands of random vectors, all of its norm; this costs nothing. Then the perturbed model runs on
held-out texts, and so do some of each control (see `educe.activations.ground`), to see what later
layers and the output make of it; then the parts of the vector inside and outside of the natural
subspace, at the norm of the whole; and then the model without the vector's direction, against
random directions of equal variance.
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

from educe.activations import corpus
from educe.activations.distance import Geometry, percentile
from educe.activations.ground import FEW, TRIED, Ground, output
from educe.activations.natural import Gathered
from educe.activations.project import ablating, equal_variance, injection, oblique, plain
from educe.activations.reading import Place, read_prompts
from educe.activations.record import Depth, Grown, Output, Passport, Range, Standing, Taken
from educe.activations.subspace import Moments, of_rows
from educe.activations.trial import Outcome
from educe.activations.written import written
from educe.forward.forced import perturbing
from educe.forward.generation import generate
from educe.kinds import Kind, Noise, Vectors, Within
from educe.model import LanguageModel
from educe.progress import Reporter, Silent
from educe.rendering import PromptBatch
from educe.rows import Row

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
    reporter: Reporter | None = None,
) -> Passport:
    """Write the passport of one perturbation.

    Args:
        lm: The model.
        kind: The kind of the perturbation.
        theta: The perturbation, at its radius.
        gathered: Natural activations at the layers (see `educe.activations.natural.gather`).
        layers: The last layer that is perturbed, and later ones.
        prompts: Prompts it was searched on: their own span, and what the model writes.
        labels: What it is called.
        seed: Of the controls.
        reporter: Is told of the progress.
    """
    ground = Ground(lm, gathered, kind.before, layers, seed=seed)
    return examine_on(ground, kind, theta, prompts=prompts, labels=labels, reporter=reporter)


def examine_on(
    ground: Ground,
    kind: Kind,
    theta: Float[Tensor, "1 s"],
    *,
    prompts: PromptBatch | None = None,
    labels: Labels = UNLABELLED,
    reporter: Reporter | None = None,
) -> Passport:
    """Write the passport of one of several perturbations that begin at the same layer.

    Args:
        ground: Natural activations and controls there.
        kind: See `examine`, as for the others.
        theta: The perturbation, at its radius.
        prompts: Prompts it was searched on.
        labels: What it is called.
        reporter: Is told of the progress.
    """
    is_vector, directed = isinstance(kind, Vectors | Within), not isinstance(kind, Noise)
    steps = 1 + 2 * is_vector + len(FORMS) * (1 + FEW) * directed
    exam = _Exam(ground, kind, theta, reporter)
    with (reporter or Silent()).stage(f"examining {labels.number}", steps) as step:
        exam.step = step
        return Passport(
            **labels._asdict(),
            controls=(TRIED, FEW),
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
        self, ground: Ground, kind: Kind, theta: Tensor, reporter: Reporter | None
    ) -> None:
        self.ground, self.kind, self.theta = ground, kind, theta
        self.lm, self.layer, self.here, self.home = (
            ground.lm,
            ground.layer,
            ground.here,
            ground.home,
        )
        self.step: Any = lambda: None
        self.found = ground.trial.under(partial(perturbing, self.lm, kind, theta))
        self.moved, self.is_vector = self._moved()
        self.parts = self._parts() if self.is_vector else {}
        self.controls = ground.controls(float(self.moved.norm(dim=1).mean()), reporter)
        # Measures leave massive coordinates out: they compare at the norm of what remains.
        bare = float(self.home.bare(self.moved).norm(dim=1).mean())
        self.natural = bare * normalize(self.home.bare(ground.apart), dim=1)
        self.random = bare * ground.drawn
        self.forms, self.others = self._ablations()

    def run(self, changing: Any) -> Outcome:
        """Let the changed model read the texts."""
        outcome = self.ground.trial.under(changing)
        self.step()
        return outcome

    def _moved(self) -> tuple[Float[Tensor, "m d"], bool]:
        """Return what is added at the layer: one vector, or one for each token of the texts."""
        if isinstance(self.kind, Vectors | Within):
            added = self.kind.added(self.theta, [0], [0])
            assert added is not None
            return added[0, 0], True
        return self.found.streams[self.layer] - self.ground.trial.plain.streams[self.layer], False

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
        draw = torch.Generator().manual_seed(self.ground.seed + 1)  # not those of the controls
        drawn = equal_variance(direction[0], moments, FEW, draw)
        return _forms(direction, moments), [_forms(u[None], moments) for u in drawn]

    def place(self) -> dict[str, Any]:
        """Return what is known of the layer."""
        return {
            "layer": self.layer,
            "norm": float(self.moved.norm(dim=1).mean()),
            "tokens": (self.here.moments.count, self.here.held.count),
            "documents": self.ground.gathered.documents,
            "width": len(self.home.vectors),
            "rank": self.home.rank,
            "chance": Range(*self.home.chance),
            "massive": tuple(self.here.massive),
            "massive_tokens": self.ground.gathered.massive,
            "first": self.here.first_norm / self.here.norm,
        }

    def standing(self) -> dict[str, Any]:
        """Place the vector among its controls at the layer."""
        home, moved, apart = self.home, self.moved, self.ground.apart
        natural, random = self.natural, self.random
        deviating = self.here.sample.rows.double() - home.mean

        def among(measure: Any, *vectors: Tensor) -> Standing:
            return _standing(*map(measure, vectors))

        return {
            "massive_share": among(home.massive, moved, apart, self.ground.anywhere, deviating),
            "share": among(home.share, moved, natural, random, deviating),
            "length": among(home.length, moved, natural, random),
            "size": among(home.length, moved, apart, random, deviating),
            "spectrum": _spectrum(home, self.here.held, moved, apart),
        }

    def prompt(self, prompts: PromptBatch | None) -> dict[str, Any]:
        """Compare with the token × activation matrix of the prompts alone: all that it spans."""
        if prompts is None:
            return {"prompt": None, "prompt_rank": 0}
        rows = self.home.bare(read_prompts(self.lm, prompts, Place(self.layer)))
        span = of_rows(rows, centred=False)

        def share(v: Tensor) -> Tensor:
            return (normalize(self.home.bare(v), dim=1) @ span.basis.T).square().sum(1)

        shares = map(share, (self.moved, self.natural, self.random))
        return {"prompt": _standing(*shares), "prompt_rank": len(span)}

    def depth(self) -> tuple[Depth, ...]:
        """Follow the perturbation and its controls along the depth."""
        seen = self.controls.seen
        return tuple(
            sight.depth(
                sight.of(self.found.streams[layer]), seen["natural"][layer], seen["random"][layer]
            )
            for layer, sight in self.ground.sights.items()
        )

    def growth(self) -> tuple[Grown, ...]:
        """Return what the measures say at an eighth, a quarter, a half and all of the corpus."""
        natural = self.natural
        return tuple(
            Grown(
                *known[:4],
                share=_percentile(geometry.share(self.moved), geometry.share(natural)),
                length=_percentile(geometry.length(self.moved), geometry.length(natural)),
                enough=known.enough,
            )
            for geometry, known in self.ground.learned[self.layer]
        )

    def outputs(self) -> tuple[Output, ...]:
        """Return what the model makes of the texts, in each way that it is perturbed."""
        plain = output("unperturbed", self.ground.trial.plain)
        parts = []
        for name, part in self.parts.items():
            parts.append(output(name, self.ground.under(part)))
            self.step()
        found = output("the perturbation", self.found)
        return (plain, found, *parts, *self.controls.outputs)

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
                    own.same,
                    Range.of([o.same for o in random]),
                    own.perplexity,
                    Range.of([o.perplexity for o in random]),
                )
            )
        return {"unused": (known.natural, known.chance), "taken": tuple(taken)}

    def writes(self, prompts: PromptBatch | None) -> tuple[tuple[str, str], ...]:
        """Return what the model writes to the first prompt, changed in each way."""
        if prompts is None:
            return ()

        # A perturbation of another kind shares no batch with these: it takes its place below.
        own = self.moved if self.is_vector else None
        changes: dict[str, Any] = {"unperturbed": None, "the perturbation": own} | self.parts
        for form, ablation in self.forms.items():
            changes[f"direction taken away, {FORMS[form]}"] = ablation
            changes[f"a random one taken away, {FORMS[form]}"] = self.others[0][form]
        ways, positions = list(changes.values()), self.kind.positions
        texts = written(self.lm, prompts, self.layer, ways, positions=positions, limit=WRITTEN)
        told = dict(zip(changes, texts, strict=True))
        if not self.is_vector:
            told["the perturbation"] = self._writes(prompts)
        return tuple(told.items())

    def _writes(self, prompts: PromptBatch) -> str:
        """Return what the model writes under a perturbation of another kind than vectors."""
        (done,) = generate(
            self.lm, prompts, [Row(0, 0)], self.theta, kind=self.kind, max_new_tokens=WRITTEN
        )
        return done[0].text


def _percentile(found: Tensor, among: Tensor) -> float:
    return float(percentile(found, among).mean())


def _standing(
    found: Tensor, natural: Tensor, random: Tensor, activations: Tensor | None = None
) -> Standing:
    return Standing(
        float(found.mean()),
        Range.of(natural),
        Range.of(random),
        _percentile(found, natural),
        None if activations is None else _percentile(found, activations),
        _percentile(found, random),
    )


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


def _forms(moved: Float[Tensor, "1 d"], moments: Moments) -> dict[str, Any]:
    return {
        "origin": plain(moved),
        "mean": plain(moved, moments.mean),
        "oblique": oblique(moved, moments),
    }
