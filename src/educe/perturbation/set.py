"""PerturbationSet: what every method returns and everything else takes.

One safetensors file holds a set; its header says of which kind its perturbations are, where they
belong, how large they are in the units of that place, and how they were made.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.errors import FileFormatError, MethodError, ModelError
from educe.model.batch import PromptBatch
from educe.model.digest import others
from educe.model.language import LanguageModel
from educe.perturbation import kinds
from educe.perturbation import peft as peft_folder
from educe.perturbation.applied import applied
from educe.perturbation.kinds import Adapters, Kind
from educe.perturbation.origin import Origin
from educe.plain import read_object
from educe.whole import check_whole

FORMAT_VERSION = "3"
#: Version 1 measured the unit by a mean norm, and kept that too; version 2 knew no digests.
READABLE = ("1", "2", FORMAT_VERSION)


@dataclass(frozen=True, repr=False)
class PerturbationSet:
    """Perturbations of one kind: unit directions, radii, and what is known of them.

    Attributes:
        kind: What they change in a running model (see `educe.perturbation.kinds`).
        directions: Unit perturbations, ``[n, size]``: for vectors, directions in the stream; for
            adapters, factors whose columns have norm one.
        radius: What each is scaled to, ``[n]``.
        origin: Where they belong.
        method: The method that made them.
        seed: Its seed.
        outputs: Unit directions in which each moves the target, ``[n, width]``, if the method has
            them; zero for one that does not move it.
        scores: Numbers the method gives each of them, ``{name: [n]}``.
        config: The method's settings.
    """

    kind: Kind
    directions: Float[Tensor, "n s"]
    radius: Float[Tensor, "n"]
    origin: Origin
    method: str
    seed: int
    outputs: Float[Tensor, "n d"] | None = None
    scores: Mapping[str, Float[Tensor, "n"]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.directions)

    @overload
    def __getitem__(self, at: int) -> PerturbationSet: ...
    @overload
    def __getitem__(self, at: slice) -> PerturbationSet: ...
    def __getitem__(self, at: int | slice) -> PerturbationSet:
        return self.select(_places(at, len(self)))

    def __iter__(self) -> Iterator[PerturbationSet]:
        return (self[item] for item in range(len(self)))

    def __add__(self, other: PerturbationSet | PerturbationGroup) -> PerturbationGroup:
        return PerturbationGroup((self,)) + other

    def __repr__(self) -> str:
        where = self.origin
        said = [
            f"{len(self)} {self.kind.name} by {self.method}",
            f"layers {where.source} to {where.target} of {where.model_id}",
            f"positions {self.kind.positions}",
        ]
        if len(self):
            said.append(f"radius {_span(self.radius)} (dose {_span(self.dose)})")
        if self.scores:
            said.append(f"scores {', '.join(self.scores)}")
        return f"PerturbationSet({'; '.join(said)})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.frame().to_html(index=False)}"

    def frame(self) -> pd.DataFrame:
        """Return a row for each: its number here, method, kind, radius, dose, and every score.

        Example:
            >>> found = educe.search(part, "random", n=3, radius=2.0)
            >>> list(found.frame())
            ['number', 'method', 'kind', 'radius', 'dose', 'effect']
            >>> largest = found.frame().nlargest(1, "effect")["number"].item()
            >>> found[largest].theta.equal(found.top(1).theta)
            True
        """
        columns = {"number": range(len(self)), "method": self.method, "kind": self.kind.name}
        sizes = {"radius": self.radius.numpy(), "dose": self.dose.numpy()}
        return pd.DataFrame(columns | sizes | {k: v.numpy() for k, v in self.scores.items()})

    def top(self, n: int, by: str = "effect") -> PerturbationSet:
        """Return those with the highest scores, the highest first; NaN counts as the lowest.

        Args:
            n: How many; all when there are fewer.
            by: The name of the score.

        Raises:
            MethodError: The set has no such score.

        Example:
            >>> found = educe.search(part, "dct", n=8, radius=2.0)
            >>> best = found.top(2, by="alpha")
            >>> bool(best.scores["alpha"][0] == found.scores["alpha"].max())
            True
        """
        if by not in self.scores:
            known = ", ".join(self.scores) or "none"
            raise MethodError(f"these {self.kind.name} have no score {by!r}; their scores: {known}")
        check_whole("n", n)
        scores = self.scores[by].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        return self.select(scores.argsort(descending=True, stable=True)[:n].tolist())

    @property
    def theta(self) -> Float[Tensor, "n s"]:
        """The directions at their radius: for vectors, what is added to the stream."""
        return self.kind.scaled(self.directions, self.radius[:, None])

    @property
    def dose(self) -> Float[Tensor, "n"]:
        """The radius in units of the place: for vectors, a share of the stream's median norm."""
        return self.radius / self.origin.unit

    def select(self, items: Sequence[int]) -> PerturbationSet:
        """Return some of the items, in the order given; ``found[2:5]`` is ``select([2, 3, 4])``."""
        at = torch.tensor(list(items), dtype=torch.long)
        return replace(
            self,
            kind=self.kind.select(at),
            directions=self.directions[at],
            radius=self.radius[at],
            outputs=None if self.outputs is None else self.outputs[at],
            scores={name: values[at] for name, values in self.scores.items()},
        )

    @contextmanager
    def applied(self, lm: LanguageModel, prompts: PromptBatch | None = None) -> Iterator[None]:
        """Change the model in place, for plain transformers, while a ``with`` statement lasts.

        Inside, ``lm.hf(...)`` and ``lm.hf.generate(...)`` are those of the perturbed model, with
        whatever options they have; several sets can act at once. Behind the statement the model is
        as it was. One perturbation acts on every row; ``n`` of them act on ``n`` rows, one on each.

        Positions mean what they mean to `educe.generate`: what ``generate`` is given is the prompt.
        For a plain call that is every token which comes without a filled cache; those that come
        with one are generated.

        Args:
            lm: The model.
            prompts: What the model will be given, as ``lm.encode`` read it; needed for positions
                ``asked`` where a prompt is more than one message, since the token numbers alone do
                not tell which part of it is the person's last one.

        Raises:
            LayerError: There is no such layer.
            ModelError: The perturbations belong to a model of another size.
            PositionsError: The person's message cannot be found in what the model is given.
            SteeringError: The rows are not as many as the perturbations, a prompt has padding on
                its right in ``generate``, or the perturbation never reaches the model.

        Example:
            >>> part = educe.Slice(lm, lm.encode(["Why?"]), source=1, target=3)
            >>> found = educe.search(part, "random", n=4, radius=5.0)
            >>> asked = lm.tokenizer("Why?", return_tensors="pt")
            >>> before = lm.hf(**asked).logits
            >>> with found[3].applied(lm):
            ...     written = lm.hf.generate(**asked, max_new_tokens=5)
            ...     bool((lm.hf(**asked).logits == before).all())
            False
            >>> bool((lm.hf(**asked).logits == before).all())
            True
        """
        self.check(lm)
        with applied(lm, self.kind, self.theta, prompts):
            yield

    def check(self, lm: LanguageModel) -> list[str]:
        """Make sure that the set fits a model, and see whether it was found on it.

        Perturbations may be carried to another model, such as a fine-tuned one, if it is said.

        Returns:
            What is to be said: that they were found on another model, or that this is not known.

        Raises:
            ModelError: The model has another width or number of blocks.
        """
        theirs = (self.origin.d_model, self.origin.n_layers)
        if theirs != (lm.width, lm.depth):
            raise ModelError(
                f"these perturbations belong to {self.origin.model_id} (width {theirs[0]}, "
                f"{theirs[1]} blocks), not to {lm.name} (width {lm.width}, {lm.depth} blocks)"
            )
        found_on = " with ".join(filter(None, (self.origin.model_id, self.origin.adapter)))
        if not self.origin.model_parts:
            was, now = self.origin.model_revision, lm.revision or "unknown"
            return [
                f"the perturbations of {found_on} were kept without a digest of their model: "
                f"whether it is {lm.name} as it is now cannot be checked"
                + (f" (its revision was {was}, this is {now})" if was not in ("", now) else "")
            ]
        # Another dtype rounds otherwise, and is the same model.
        if changed := [p for p in others(self.origin.model_parts, lm.parts) if p != "dtype"]:
            return [
                f"the perturbations were found on another model ({found_on}) than {lm.name} is "
                f"now, whose {' and '.join(changed)} differ: what they do here is of {lm.name}"
            ]
        return []

    def save(self, path: str | Path) -> None:
        """Write the set to one safetensors file, whole or not at all."""
        described, of_kind = kinds.described(self.kind)
        tensors = {self.kind.tensor: self.directions, "radius": self.radius}
        tensors |= {f"kind.{name}": values for name, values in of_kind.items()}
        if self.outputs is not None:
            tensors["outputs"] = self.outputs
        tensors |= {f"score.{name}": values for name, values in self.scores.items()}
        header = {
            "format": "educe.perturbations",
            "format_version": FORMAT_VERSION,
            "kind": self.kind.name,
            "kind_json": json.dumps(described, sort_keys=True),
            "point": f"resid_post.{self.kind.before}",
            "units": "absolute",
            "method": self.method,
            "seed": str(self.seed),
            "config_json": json.dumps(dict(self.config), sort_keys=True),
            "origin_json": json.dumps(asdict(self.origin), sort_keys=True),
        }
        files.write_tensors(Path(path), tensors, header)

    def save_peft(self, folder: str | Path, item: int) -> None:
        """Write one adapter, at its radius, as a folder that PEFT loads on the same base model.

        An adapter that was found with another beside the weights belongs beside it: load both.

        Raises:
            FileFormatError: The perturbations are of another kind.
        """
        if not isinstance(self.kind, Adapters):
            raise FileFormatError(
                f"PEFT knows no {self.kind.name}, only adapters: keep these with save"
            )
        where = self.origin
        peft_folder.write(
            Path(folder),
            self.kind,
            self.theta[item],
            model=where.model_id,
            revision=where.model_revision,
        )

    @classmethod
    def load(cls, path: str | Path) -> PerturbationSet:
        """Read a set back, bit for bit.

        Raises:
            FileFormatError: The file is missing, truncated, or holds something else.
        """
        tensors, header = files.read_tensors(path)
        if header.get("format") != "educe.perturbations":
            raise FileFormatError(f"{path} is no set of perturbations of educe")
        version = header.get("format_version")
        if version not in READABLE:
            raise FileFormatError(
                f"{path} has format version {version}, this educe reads {', '.join(READABLE)}: "
                "use the version that wrote it"
            )
        try:
            of_kind = {
                name.removeprefix("kind."): values
                for name, values in tensors.items()
                if name.startswith("kind.")
            }
            kind = kinds.read(header["kind"], read_object(header["kind_json"]), of_kind)
            place = read_object(header["origin_json"])
            if version == "1":
                del place["mean_resid_norm"]
            return cls(
                kind=kind,
                directions=tensors[kind.tensor],
                radius=tensors["radius"],
                origin=Origin(**place),
                method=header["method"],
                seed=int(header["seed"]),
                outputs=tensors.get("outputs"),
                scores={
                    name.removeprefix("score."): values
                    for name, values in tensors.items()
                    if name.startswith("score.")
                },
                config=read_object(header["config_json"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, repr=False)
class PerturbationGroup:
    """Sets one after the other, such as what was found and its control: ``found + control``.

    Each set keeps what it is known by: its method, settings and scores, and also its kind, since
    the control of noise is vectors. So a group has no ``theta`` of its own; its perturbations are
    counted through, and ``group[i]`` is a set of one.

    Attributes:
        parts: The sets.

    Example:
        >>> found = educe.search(part, "dct", n=3, radius=2.0)
        >>> control = educe.search(part, "random", n=2, radius=2.0)
        >>> both = found + control
        >>> len(both), both[3].method, [len(some) for some in both[1:4].parts]
        (5, 'random', [2, 1])
        >>> both.frame()["method"].tolist()
        ['dct', 'dct', 'dct', 'random', 'random']
    """

    parts: tuple[PerturbationSet, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, at: int) -> PerturbationSet: ...
    @overload
    def __getitem__(self, at: slice) -> PerturbationGroup: ...
    def __getitem__(self, at: int | slice) -> PerturbationSet | PerturbationGroup:
        all_of = [(line, item) for line, part in enumerate(self.parts) for item in range(len(part))]
        chosen = [all_of[place] for place in _places(at, len(self))]
        some = [
            self.parts[line].select([item for _, item in run])
            for line, run in groupby(chosen, key=lambda pair: pair[0])
        ]
        return PerturbationGroup(tuple(some)) if isinstance(at, slice) else some[0]

    def __iter__(self) -> Iterator[PerturbationSet]:
        return (one for part in self.parts for one in part)

    def __add__(self, other: PerturbationSet | PerturbationGroup) -> PerturbationGroup:
        if isinstance(other, PerturbationSet):
            other = PerturbationGroup((other,))
        if not isinstance(other, PerturbationGroup):
            return NotImplemented
        return PerturbationGroup((*self.parts, *other.parts))

    def __repr__(self) -> str:
        return f"PerturbationGroup({' + '.join(map(repr, self.parts))})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.frame().to_html(index=False)}"

    def frame(self) -> pd.DataFrame:
        """Return the rows of all sets, numbered through; a score that a set lacks is NaN."""
        frames = [part.frame() for part in self.parts]
        if not frames:
            return pd.DataFrame(columns=["number", "method", "kind", "radius", "dose"])
        return pd.concat(frames, ignore_index=True).assign(number=range(len(self)))


def _places(at: int | slice, n: int) -> list[int]:
    """Return which of ``n`` items an index or a slice means."""
    if isinstance(at, slice):
        return list(range(n)[at])
    try:
        return [range(n)[at]]
    except IndexError:
        raise IndexError(f"number {at} of {n} perturbations: they are counted from 0") from None


def _span(values: Float[Tensor, "n"]) -> str:
    low, high = f"{float(values.min()):.3g}", f"{float(values.max()):.3g}"
    return low if low == high else f"{low} to {high}"
