"""Contrast: the supervised yardsticks that an unsupervised search is measured against.

They are told what a search is not, and so need labels or the whole model rather than a slice. One
is told which prompts show the behaviour and takes the *difference of means* of the stream ``h``
leaving block ``source``, over prompts and some of their tokens; the other is told what the model
is to say and *optimises* a vector ``θ`` for the likelihood of that target ``y``:

    θ = R normalise( mean_positive h - mean_negative h )

    max over ‖θ‖ = R of   mean over prompts x and tokens y_i of   log p(y_i | x, y_<i; h + θ)

Difference of means: contrastive activation addition (Panickssery et al. 2023; from one pair of
prompts, Turner et al. 2023). Optimised: promotion steering (Dunefsky & Cohan 2025).

The latter's reference code bounds the norm, if at all, from above; here it is ``R`` throughout, so
that vectors compare with those of a search at the same ``R``. Its probabilities have an inverse
temperature of 0.7; here they are the model's. Its step is absolute; here it is a share of ``R``.
Restarts run in one batch here, and the blocks up to the source only once.

Controls go through the same procedure. *Shuffled labels*: half of the positive and half of the
negative prompts against the other halves. A shuffle that is not even keeps a share of the real
difference, and scaled to ``R`` that share can be most of it. *Shuffled target*: the target's tokens
in another order, each restart its own; length and words are the target's, the sequence is not.
*Random directions*: ``optimised`` without a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import MethodError, PositionsError, PromptError, RadiusError
from educe.forward.forced import Forced, finite
from educe.forward.slice import Slice
from educe.methods import origin
from educe.methods.state import Progress
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation import positions as where
from educe.perturbation.kinds import Kind, Vectors
from educe.perturbation.origin import Origin
from educe.perturbation.set import PerturbationSet

WHAT = "the log-probability of the target"


def difference_of_means(
    lm: LanguageModel,
    positive: PromptBatch,
    negative: PromptBatch,
    *,
    source: int | float,
    tokens: str = "last:1",
    positions: str = "all",
    radius: float | None = None,
    shuffles: int = 0,
    seed: int = 0,
) -> PerturbationSet:
    """Return the difference between the mean streams of two sets of prompts.

    Args:
        lm: The model.
        positive: Prompts that show the behaviour.
        negative: Prompts that do not.
        source: Layer whose stream is compared, and after which the vector is to be added.
        tokens: Prompt tokens whose stream is compared (see `educe.perturbation.positions`); a
            prompt counts the same however many they are.
        positions: Tokens to which the vector is to be added.
        radius: Its norm; by default that of the difference itself.
        shuffles: 0 for the difference; otherwise the control, this many differences with the labels
            shuffled, at the same radius.
        seed: Of the shuffles.

    Returns:
        One item, or one a shuffle. The score ``natural_norm`` is the norm of the difference.

    Raises:
        LayerError: There is no such layer, or it is the last one.
        PositionsError: ``tokens`` or ``positions`` cannot be read, or ``tokens`` selects nothing.
        PromptError: The sets do not differ, or are too small to be shuffled.
    """
    _check(radius, positions)
    part = Slice(lm, _joined(lm, positive, negative), source=source, target=-1, readout=tokens)
    read = part.batch.at(tokens).to(part.start.device, part.work_dtype)
    share = read / read.sum(1, keepdim=True)
    streams = torch.einsum("ptd,pt->pd", part.start.to(part.work_dtype), share)
    p = len(positive)
    groups = [(list(range(p)), list(range(p, len(streams))))]
    if shuffles:
        draw = torch.Generator().manual_seed(seed)
        groups += [_halves(p, len(negative), draw) for _ in range(shuffles)]
    differences = torch.stack([streams[a].mean(0) - streams[b].mean(0) for a, b in groups])
    size = differences.norm(dim=1)
    if not bool((size > 0).all()):
        raise PromptError(
            f"prompts that are told apart have the same stream at layer {part.source}: "
            "give prompts that differ, or read other tokens"
        )
    if radius is None:
        radius = float(size[0])
    if shuffles:
        differences, size = differences[1:], size[1:]
    return _perturbations(
        differences / size[:, None],
        radius,
        origin(part),
        Vectors(part.source, lm.width, positions),
        method="difference_of_means" if not shuffles else "shuffled_labels",
        seed=seed,
        scores={"natural_norm": size},
        config={"tokens": tokens, "positive": p, "negative": len(negative)},
    )


def optimised(
    lm: LanguageModel,
    batch: PromptBatch,
    target: str,
    *,
    source: int | float,
    radius: float,
    n: int = 8,
    steps: int = 30,
    step: float = 0.3,
    positions: str = "all",
    shuffled: bool = False,
    seed: int = 0,
    on_step: Callable[[Progress], None] | None = None,
) -> PerturbationSet:
    """Return vectors under which the model would rather say a target.

    Args:
        lm: The model.
        batch: The prompts that it shall be the answer to; one is enough.
        target: The first words of the answer.
        source: Layer after which the vectors are added.
        radius: Their norm.
        n: How many restarts, each from a random direction.
        steps: How many steps of Adam; without one the random directions are left as they are.
        step: Length of the first step as a share of the radius; it falls linearly to zero.
        positions: Tokens to which the vectors are added (see `educe.perturbation.positions`); those
            of the target are the generated ones.
        shuffled: Optimise the control instead: the target's tokens in another order.
        seed: The same seed gives the same vectors; shuffled or not, they start from the same.
        on_step: Called after each step.

    Returns:
        One item a restart, the best first. Scores: ``target_logprob``, the mean over prompts and
        tokens of the log-probability, in nats, of what the item was optimised for, and
        ``target_logprob_before``, the same without a perturbation. Shuffled targets are in the
        configuration as ``targets``, one an item.

    Raises:
        LayerError: There is no such layer, or it is the last one.
        PositionsError: The positions cannot be read, or none of them is before the target's end.
        PromptError: The target is empty, or too long for the context.
        MethodError: The target has no other order, or ``n`` is below one.
        RadiusError: The radius is not above zero.
        EffectError: The radius is so large that the model breaks down.
    """
    _check(radius, positions)
    if n < 1:
        raise MethodError(f"n = {n}: ask for at least one perturbation")
    part = Slice(lm, batch, source=source, target=-1)
    draw = torch.Generator().manual_seed(seed)
    kind = Vectors(part.source, lm.width, positions)
    v = kind.draw(n, draw).to(part.device, part.work_dtype)
    wanted = _tokens(lm, batch, target)
    targets = torch.stack([_reordered(wanted, draw) if shuffled else wanted for _ in range(n)])
    likely = Targets(lm, batch, targets, kind=kind)
    before = likely.logprob(torch.zeros_like(v))

    adam = torch.optim.Adam([v], lr=step / lm.width**0.5)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=max(1, steps))
    for count in range(1, steps + 1):
        value, gradient = likely.value_and_grad(radius * v)
        v.grad = (gradient * v).sum(1, keepdim=True) * v - gradient  # ascent, along the sphere
        adam.step()
        falling.step()
        v /= v.norm(dim=1, keepdim=True)
        if on_step is not None:
            on_step(Progress(count == steps, float(value.mean())))

    after = likely.logprob(radius * v)
    best = after.argsort(descending=True, stable=True)
    config: dict[str, Any] = {"target": target, "steps": steps, "step": step}
    if shuffled:
        config["targets"] = [lm.text(targets[i]) for i in best.tolist()]
    return _perturbations(
        v[best],
        radius,
        origin(part),
        kind,
        method="optimised" if not shuffled else "shuffled_target",
        seed=seed,
        scores={"target_logprob": after[best], "target_logprob_before": before[best]},
        config=config,
    )


class Targets:
    """How likely targets are after prompts when the model is perturbed.

    Args:
        lm: The model.
        batch: The prompts.
        targets: The tokens that each perturbation shall bring out.
        kind: The kind of the perturbations.

    Raises:
        PositionsError: No perturbed token comes before the end of a target.
    """

    def __init__(
        self, lm: LanguageModel, batch: PromptBatch, targets: Int[Tensor, "n m"], *, kind: Kind
    ) -> None:
        self.kind = kind
        distinct, which = targets.cpu().unique(dim=0, return_inverse=True)
        p, k = len(batch), len(distinct)
        prompts = batch.select(list(range(p)) * k)
        answers = distinct.repeat_interleave(p, 0).tolist()
        self._forced = Forced(lm, prompts, answers, before=kind.before)
        if not self._forced.at(kind.positions).any(1).all():
            raise PositionsError(
                f"positions {kind.positions!r} leave all that comes before the target's last token "
                "unperturbed: use others, or a longer target"
            )
        self._texts = torch.arange(k * p).view(k, p)[which]

    def logprob(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n"]:
        """Return the log-probability of each target, in nats a token, averaged over prompts.

        Raises:
            EffectError: One is NaN or infinite.
        """
        each = self._forced.each(theta, self.kind, self._forced.likelihood, self._texts)
        return finite(each.mean((1, 2)), WHAT).to(theta)

    def value_and_grad(
        self, theta: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return `logprob` and its gradient.

        Raises:
            EffectError: A value or gradient is NaN or infinite.
        """
        value, gradient = self._forced.value_and_grad(
            theta, self.kind, self._forced.likelihood, self._texts
        )
        return finite(value, WHAT), finite(gradient, WHAT)


def _check(radius: float | None, positions: str) -> None:
    where.check(positions)
    if radius is not None and not 0 < radius < math.inf:
        raise RadiusError(f"radius {radius:g}: it must be above zero and finite")


def _joined(lm: LanguageModel, *batches: PromptBatch) -> PromptBatch:
    """Return the prompts of several batches as one."""
    rows = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]
    own = [span for batch in batches for span in batch.spans]
    return lm.pad(rows, [text for batch in batches for text in batch.texts], own)


def _halves(positive: int, negative: int, draw: torch.Generator) -> tuple[list[int], list[int]]:
    """Split two sets of prompts into halves at random; join one half of each, and the others.

    The second set is counted on from the first; where a set is odd, one prompt is left out.
    """
    if min(positive, negative) < 2:
        raise PromptError(
            "labels of a single prompt cannot be shuffled: give two of each set, or take random "
            "directions for the control"
        )
    first: list[int] = []
    second: list[int] = []
    for start, size in ((0, positive), (positive, negative)):
        order = (start + torch.randperm(size, generator=draw)).tolist()
        first += order[: size // 2]
        second += order[size // 2 : size // 2 * 2]
    return first, second


def _tokens(lm: LanguageModel, batch: PromptBatch, target: str) -> Int[Tensor, "m"]:
    """Return the tokens of a target."""
    ids = lm.tokens(target, templated=True)
    if not ids:
        raise PromptError("the target is empty: give the words that the model shall say")
    length = batch.ids.shape[1] + len(ids)
    if lm.context is not None and length > lm.context:
        raise PromptError(
            f"prompt and target have {length} tokens, the context of {lm.name} {lm.context}: "
            "shorten one of them"
        )
    return torch.tensor(ids)


def _reordered(tokens: Int[Tensor, "m"], draw: torch.Generator) -> Int[Tensor, "m"]:
    """Return tokens in an order that is another one."""
    if bool((tokens == tokens[0]).all()):
        raise MethodError("the target has one order only and cannot be shuffled: use a longer one")
    while True:
        other = tokens[torch.randperm(len(tokens), generator=draw)]
        if not torch.equal(other, tokens):
            return other


def _perturbations(
    directions: Float[Tensor, "n d"],
    radius: float,
    place: Origin,
    kind: Kind,
    *,
    method: str,
    seed: int,
    scores: dict[str, Float[Tensor, "n"]],
    config: dict[str, Any],
) -> PerturbationSet:
    return PerturbationSet(
        kind=kind,
        directions=directions.float().cpu(),
        radius=torch.full((len(directions),), radius),
        origin=place,
        method=method,
        seed=seed,
        scores={name: values.float().cpu() for name, values in scores.items()},
        config=config,
    )
