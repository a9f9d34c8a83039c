"""Before the search: the layers, the slice between them, its restrictions, and the radii."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from educe import files, methods
from educe.activations import inside
from educe.forward.slice import Slice
from educe.layer_map import LAYER_MAP
from educe.layer_map.choice import CHEAP, choose, promising, thinned
from educe.layer_map.survey import surveyed
from educe.methods import radius, retain
from educe.model import embedded
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.perturbation import foreign
from educe.perturbation.kinds import Within
from educe.perturbation.set import PerturbationSet
from educe.run import scouting
from educe.run.settings import Settings, encoded
from educe.run.work import WITHIN, Work


class Recipe(NamedTuple):
    """What a slice is made of, beside the model: so another process can make the same one."""

    settings: Settings
    source: float
    target: float
    positions: str
    rows: Tensor | None = None  #: of the subspace that is searched, if not all
    retained: list[Prompt] | None = None  #: prompts that the search keeps as they are

    def sliced(self, lm: LanguageModel) -> Slice:
        """Return the slice of a model."""
        s = self.settings
        whole = Slice(
            lm,
            encoded(lm, s, s.prompts),
            source=self.source,
            target=self.target,
            positions=self.positions,
            readout=s.readout,
        )
        return self.restricted(whole)

    def restricted(self, part: Slice) -> Slice:
        """Return a slice for the subspace that is searched, with what is kept beside it."""
        s = self.settings
        if self.rows is not None:
            part = part.on(Within(part.source, self.rows, part.positions))
        if self.retained is not None:
            batch = encoded(part.lm, s, self.retained)
            part = retain.with_retain_prompts(part, batch, weight=s.retain, by=s.retain_by)
        return part


class Search:
    """What is searched: the slice, its layers chosen, restricted, and with what is beside.

    Args:
        work: The run at work.

    Attributes:
        given: Perturbations to put through the job instead of searching, if any.
        config: The configuration of the method.
        recipe: What the slice is made of.
        part: The slice.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.settings, self.why = work, work.settings, None
        if self.settings.scout:
            place = scouting.scouted(work)
            self.why = place.why
            self.settings = replace(
                self.settings,
                source=place.source,
                target=place.target,
                positions=place.positions,
                radius=",".join(f"{dose}d" for dose in place.doses),
            )
        s = self.settings
        self.given = self.read(s.given) if s.given else None
        self.config: Any = methods.configured(s.method, s.method_settings)
        with work.timed("slice"):
            self.part = self._cut()
            if self.given is not None:
                self.given = self._placed(self.given)

    def read(self, file: str) -> PerturbationSet:
        """Read perturbations that are given."""
        s = self.settings
        return foreign.read(file, self.work.lm, source=s.source, positions=s.positions)

    def _placed(self, given: PerturbationSet) -> PerturbationSet:
        """Return what was given with its dose; what has no length, at the radii asked for."""
        part = self.part.on(given.kind)
        if given.method == "given":  # its file did not say how large activations are there
            here, there = methods.origin(part), given.origin
            known = {name: getattr(there, name) for name in ("model_id", "model_revision")}
            given = replace(given, origin=replace(here, **known, model_parts={}))
        if given.config.get("scaled", True):
            return given
        if self.work.run.has("facts"):
            radii = self.work.run.note("facts")["radii"]
        else:
            radii, _ = radius.parse(self.settings.radius, part, seed=self.settings.seed)
        items = [item for item in range(len(given)) for _ in radii]
        sizes = torch.tensor([float(size) for _ in range(len(given)) for size in radii])
        return replace(given.select(items), radius=sizes)

    def _cut(self) -> Slice:
        work, s, positions = self.work, self.settings, self.settings.positions
        if self.given is not None:
            control = [self.read(s.control)] if s.control else []
            for some in (self.given, *control):
                work.tell(some.check(work.lm))
            positions = self.given.kind.positions
        work.batch.at(positions)  # the fresh prompts too, before anything is searched
        source, target = self._layers(positions)
        whole = Recipe(s, source, target, positions)
        part = whole.sliced(work.lm)
        self.recipe = whole._replace(rows=self._rows(part.source), retained=self._retained())
        return self.recipe.restricted(part)

    def _layers(self, positions: str) -> tuple[float, float]:
        """Return source and target; those that are ``auto`` are chosen from a layer map."""
        s, work = self.settings, self.work
        source = s.source if self.given is None else self.given.kind.before
        known = {
            end: work.lm.layer(layer)
            for end, layer in (("source", source), ("target", s.target))
            if not isinstance(layer, str)
        }
        if len(known) == 2:
            return known["source"], known["target"]
        if not work.run.has("layers"):
            pairs = thinned(promising(work.lm.depth, **known))
            config = replace(CHEAP, positions=positions, readout=s.readout, seed=s.seed)
            path = work.run.folder / LAYER_MAP
            layer_map = surveyed(work.lm, work.asked, pairs, config, path, work.reporter)
            work.run.remember("layers", choose(layer_map, **known)._asdict())
        layers = work.run.note("layers")
        return layers["source"], layers["target"]

    def _rows(self, source: int) -> Tensor | None:
        """Return the subspace to search in, if one was asked for; computed once, and kept."""
        s, work = self.settings, self.work
        if not s.within:
            return None
        path = work.run.folder / WITHIN
        if not path.exists():
            subspace = inside.described(
                work.lm, work.asked, source, s.within, seed=s.seed, reporter=work.reporter
            )
            kind = inside.within(subspace, source, ball=s.ball)
            files.write_tensors(path, {"rows": kind.rows}, {})
        return files.read_tensors(path)[0]["rows"]

    def _retained(self) -> list[Prompt] | None:
        """Return the other prompts that the search is to keep as they are, if there are any."""
        s, work = self.settings, self.work
        if not methods.retains(s.method, s.retain):
            return None
        if not work.run.has("retain"):  # a file can change
            encode = partial(encoded, work.lm, s)
            others = retain.retain_prompts(s.retain_prompts)
            kept, said = retain.drawn(others, encode, work.asked, seed=s.seed)
            work.tell(said)
            work.run.remember("retain", kept)
        return work.run.note("retain")

    def remember_facts(self) -> None:
        """Keep the facts of a run: its model, layers, radii, versions."""
        work, s, found = self.work, self.settings, None
        if work.run.has("facts"):
            return
        if self.given is not None:
            part, radii = self.part.on(self.given.kind), sorted(set(self.given.radius.tolist()))
        else:
            n = radius.DIRECTIONS
            part = methods.prepared(self.part, s.method, n=n, config=self.config)
            with work.timed("calibrate"), work.reporter.stage("calibrating", 1, "") as step:
                asked = methods.named(s.method).radii if s.radius == "auto" else s.radius
                radii, found = radius.parse(asked, part, seed=s.seed)
                step()
        work.run.remember(
            "facts",
            {
                "model": embedded.NAME if work.lm.name == "embedded" else work.lm.name,
                "adapter": work.lm.adapter,
                "revision": work.lm.revision,
                "dtype": str(work.lm.dtype).removeprefix("torch."),
                "device": str(work.lm.device),
                "threads": torch.get_num_threads(),
                "depth": work.lm.depth,
                "width": work.lm.width,
                "source": self.part.source,
                "target": self.part.target,
                "median_norm": self.part.median_norm,
                "method": s.method if self.given is None else self.given.method,
                "positions": self.part.positions,
                "kind": part.kind.name,
                "why": work.run.note("layers")["why"] if work.run.has("layers") else self.why,
                "unit": part.unit,
                "calibrated_radius": found.radius if found else None,
                "calibrated_dose": found.dose if found else None,
                "calibrated_interval": found.interval if found else None,
                "radii": radii,
                "remarks": work.remarks,
                "seconds": {},
                **{name: version(name) for name in ("educe", "torch", "transformers")},
            },
        )
