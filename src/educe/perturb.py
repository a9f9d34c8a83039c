"""PerturbationSet: what every method returns and everything else takes.

One safetensors file holds a set; its header says of which kind its perturbations are, where they
belong, how large they are in the units of that place, and how they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from educe import files, kinds, peft_folder
from educe.applied import applied
from educe.errors import FileFormatError, ModelError
from educe.kinds import Adapters, Kind
from educe.model import LanguageModel
from educe.rendering import PromptBatch

FORMAT_VERSION = "2"
#: Version 1 measured the unit by a mean norm, and kept that too.
READABLE = ("1", FORMAT_VERSION)


@dataclass(frozen=True)
class Origin:
    """Where a set of perturbations belongs: the model, the place in it, and the prompts.

    Attributes:
        model_id: The model they were found in.
        model_revision: Its Hub revision, or an empty string.
        adapter: The PEFT adapter beside its weights, or an empty string.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        source: Last layer that they do not reach; vectors are added after it.
        target: Layer at which their effect was read.
        readout: Tokens over which the effect was averaged.
        unit: The radius whose dose is 1: for vectors, the median norm of the stream at the source
            (see `educe.slice.norms`); in files of version 1, the mean norm.
        prompts_sha256: Digest of the rendered prompts.
    """

    model_id: str
    model_revision: str
    adapter: str
    d_model: int
    n_layers: int
    source: int
    target: int
    readout: str
    unit: float
    prompts_sha256: str


def digest(texts: Sequence[str]) -> str:
    """Return the SHA-256 of some rendered prompts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@dataclass(frozen=True)
class PerturbationSet:
    """Perturbations of one kind: unit directions, radii, and what is known of them.

    Attributes:
        kind: What they change in a running model (see `educe.kinds`).
        directions: Unit perturbations, ``[n, size]``: for vectors, directions in the stream; for
            adapters, factors whose columns have norm one.
        radius: What each is scaled to, ``[n]``.
        origin: Where they belong.
        method: The method that made them.
        seed: Its seed.
        outputs: Unit directions in which each moves the target, ``[n, width]``, if the method has
            them.
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

    @property
    def theta(self) -> Float[Tensor, "n s"]:
        """The directions at their radius: for vectors, what is added to the stream."""
        return self.kind.scaled(self.directions, self.radius[:, None])

    @property
    def dose(self) -> Float[Tensor, "n"]:
        """The radius in units of the place: for vectors, a share of the stream's median norm."""
        return self.radius / self.origin.unit

    def select(self, items: Sequence[int]) -> PerturbationSet:
        """Return some of the items, in the order given."""
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

    def check(self, lm: LanguageModel) -> None:
        """Make sure that the set belongs to a model.

        Raises:
            ModelError: The model has another width or number of blocks.
        """
        theirs = (self.origin.d_model, self.origin.n_layers)
        if theirs != (lm.width, lm.depth):
            raise ModelError(
                f"these perturbations belong to {self.origin.model_id} (width {theirs[0]}, "
                f"{theirs[1]} blocks), not to {lm.name} (width {lm.width}, {lm.depth} blocks)"
            )

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
            "origin_json": json.dumps(vars(self.origin), sort_keys=True),
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
                f"{path} has format version {version}, this educe reads {' and '.join(READABLE)}: "
                "use the version that wrote it"
            )
        try:
            of_kind = {
                name.removeprefix("kind."): values
                for name, values in tensors.items()
                if name.startswith("kind.")
            }
            kind = kinds.read(header["kind"], json.loads(header["kind_json"]), of_kind)
            place = json.loads(header["origin_json"])
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
                config=json.loads(header["config_json"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__}: {error}") from error
