"""Quality-diversity: the best setting for each kind of behaviour, by pyribs (Tjanaka et al. 2023).

An archive is a grid over measures of behaviour; a cell keeps the best setting that falls into it,
its elite. Emitters draw settings by an evolution strategy that goes where the archive improves
(CMA-ME; Fontaine et al. 2020).

    coverage    cells with an elite / cells
    QD-score    Σ over elites of (value - the lowest that there can be)

Both stand beside those of draws of the prior at equal budget (`archived`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from educe.sampling.best import Batches
from educe.sampling.objective import Evaluated, Round, Walk

Range = tuple[float, float]


class Archived(NamedTuple):
    """What an archive holds."""

    coverage: float
    qd_score: float
    elites: Int[np.ndarray, "e"]  #: which of the settings that were evaluated, best first
    cells: Int[np.ndarray, "e m"]  #: where each lies


@dataclass(kw_only=True)
class Diversity(Batches):
    """CMA-ME over a grid of measures; a batch is that of each of two emitters.

    Attributes:
        ranges: The least and the largest value of each measure.
        cells: Cells along each measure.
    """

    ranges: Sequence[Range]
    cells: int = 10

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        from ribs.emitters import EvolutionStrategyEmitter
        from ribs.schedulers import Scheduler

        archive = _grid(self.k, self.ranges, self.cells, self.seed)
        emitters = [
            EvolutionStrategyEmitter(
                archive,
                x0=np.zeros(self.k),
                sigma0=0.7,
                batch_size=self.batch,
                seed=self.seed + i,
            )
            for i in range(2)
        ]
        scheduler, taken, asked = Scheduler(archive, emitters), 0, 0
        while True:
            z = scheduler.ask()
            came = yield np.asarray(z, dtype=float)
            scheduler.tell(self.height(z, came), _measured(came))
            taken, asked = len(archive), asked + len(z)
            self.acceptance = taken / asked


def archived(
    rounds: Sequence[Round], ranges: Sequence[Range], *, cells: int = 10, lowest: float = 0.0
) -> Archived:
    """Put everything that was evaluated into an archive of its own.

    Args:
        rounds: What was evaluated, with measures.
        ranges: The least and the largest value of each measure.
        cells: Cells along each measure.
        lowest: The lowest value that there can be.
    """
    values = np.concatenate([one.came.value for one in rounds])
    measures = np.concatenate([_measured(one.came) for one in rounds])
    archive = _grid(1, ranges, cells, 0, lowest)
    archive.add(np.arange(len(values), dtype=float)[:, None], values, measures)
    held = archive.data(["solution", "objective", "index"])
    order = np.argsort(-held["objective"], kind="stable")
    where = np.stack(np.unravel_index(held["index"], (cells,) * len(ranges)), 1)
    return Archived(
        float(archive.stats.coverage),
        float(archive.stats.qd_score),
        held["solution"][order, 0].astype(int),
        where[order].astype(int),
    )


def _measured(came: Evaluated) -> np.ndarray:
    assert came.measures is not None, "quality-diversity comes with measures"
    return came.measures


def _grid(k: int, ranges: Sequence[Range], cells: int, seed: int, lowest: float = 0.0) -> Any:
    from ribs.archives import GridArchive

    return GridArchive(
        solution_dim=k,
        dims=[cells] * len(ranges),
        ranges=list(ranges),
        qd_score_offset=lowest,
        seed=seed,
        dtype=np.float64,
    )


def ranges_of(measures: Float[np.ndarray, "n m"]) -> list[Range]:
    """Return ranges that hold some measures, with a tenth to spare on each side."""
    low, high = measures.min(0), measures.max(0)
    spare = np.maximum(0.1 * (high - low), 1e-6)
    return list(zip((low - spare).tolist(), (high + spare).tolist(), strict=True))
