"""Before the search: the layers, the slice between them, its restrictions, and the radii."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import torch

from educe import beside, discover, embedded, files, radius
from educe.atlas import ATLAS
from educe.atlas.choice import CHEAP, choose, promising, thinned
from educe.atlas.survey import surveyed
from educe.forward.slice import Slice
from educe.job.settings import encoded
from educe.job.work import Work
from educe.kinds import Within
from educe.manifold import inside
from educe.rendering import distinct

#: The subspace of a search inside one.
WITHIN = "within.safetensors"


def cut(work: Work) -> Slice:
    """Return the slice that is searched: its layers chosen, restricted, and with what is beside."""
    with work.timed("slice"):
        positions = work.settings.positions
        if work.given is not None:
            work.given.check(work.lm)
            positions = work.given.kind.positions
        work.batch.at(positions)  # the fresh prompts too, before anything is searched
        source, target = _layers(work, positions)
        part = Slice(
            work.lm,
            work.asked,
            source=source,
            target=target,
            positions=positions,
            readout=work.settings.readout,
        )
        return _beside(work, _inside(work, part))


def _layers(work: Work, positions: str) -> tuple[float, float]:
    """Return source and target; those that are ``auto`` are chosen from an atlas."""
    s = work.settings
    source = s.source if work.given is None else work.given.kind.before
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
        path = work.run.folder / ATLAS
        atlas = surveyed(work.lm, work.asked, pairs, config, path, work.reporter)
        work.run.remember("layers", choose(atlas, **known)._asdict())
    layers = work.run.note("layers")
    return layers["source"], layers["target"]


def _inside(work: Work, part: Slice) -> Slice:
    """Restrict the search to the subspace that was asked for; computed once, and kept."""
    s = work.settings
    if not s.within:
        return part
    path = work.run.folder / WITHIN
    if not path.exists():
        subspace = inside.described(
            work.lm, work.asked, part.source, s.within, seed=s.seed, reporter=work.reporter
        )
        kind = inside.within(subspace, part.source, ball=s.ball)
        files.write_tensors(path, {"rows": kind.rows}, {})
    rows = files.read_tensors(path)[0]["rows"]
    return part.on(Within(part.source, rows, part.positions))


def _beside(work: Work, part: Slice) -> Slice:
    """Put the other prompts beside the slice that the search is to keep as they are."""
    s = work.settings
    if discover.quietly(s.method, s.quiet):
        if not work.run.has("beside"):  # a file can change
            _choose_others(work)
        others = encoded(work.lm, s, work.run.note("beside"))
        return beside.with_others(part, others, weight=s.quiet, by=s.quiet_by)
    return part


def _choose_others(work: Work) -> None:
    """Keep the other prompts: each once, and none that is searched on."""
    s = work.settings
    others = beside.other_prompts(s.ordinary, seed=s.seed)
    places, said = distinct("other prompts", encoded(work.lm, s, others), work.asked)
    work.tell(said)
    work.run.remember("beside", [others[i] for i in places])


def remember_facts(work: Work) -> None:
    """Keep the facts of a run: its model, layers, radii, versions."""
    if work.run.has("facts"):
        return
    s, found = work.settings, None
    if work.given is not None:
        part, radii = work.part.on(work.given.kind), sorted(set(work.given.radius.tolist()))
    else:
        n, config = radius.DIRECTIONS, work.config
        part = discover.prepared(work.part, s.method, n=n, config=config)
        with work.timed("calibrate"), work.reporter.stage("calibrating", 1, "") as step:
            asked = discover.named(s.method).radii if s.radius == "auto" else s.radius
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
            "source": work.part.source,
            "target": work.part.target,
            "median_norm": work.part.median_norm,
            "method": s.method if work.given is None else work.given.method,
            "positions": work.part.positions,
            "kind": part.kind.name,
            "why": work.run.note("layers")["why"] if work.run.has("layers") else None,
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
