"""The commands that make perturbations of a run do less beside: fronts, sparse, ungated."""

from __future__ import annotations

from pathlib import Path

from educe.cli.opening import end, opened, some
from educe.cli.options import Debug, Json, Natural, Part


def front(
    run: Path,
    /,
    *,
    ordinary: str = "bundled",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what each perturbation costs on ordinary prompts, and draw effect against it.

    Parameters
    ----------
    run
        the folder of the run
    ordinary
        a file of ordinary prompts, as in Alpaca; by default bundled ones
    """
    from educe.refine.front import measure
    from educe.report import fronts, tables

    with opened(run) as (found, lm, telling):
        measure(found, lm, ordinary=ordinary, reporter=telling)
        points = fronts.points(found)
        end(found, as_json, {"front": points}, lambda: tables.front(points))


def sparse(
    run: Path,
    /,
    *numbers: Natural,
    basis: str = "residual",
    keep: Part = 0.8,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find how few coordinates of a basis carry what vectors do, and what these write.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        vectors, as the table numbers them
    basis
        residual, components, heads, neurons, random, or a safetensors file of directions
    keep
        the share of the effect that is to be kept
    """
    from educe.refine.sparse import sparsify
    from educe.report import tables

    with opened(run, some(numbers)) as (found, lm, telling):
        done = sparsify(found, list(numbers), lm, basis=basis, keep=keep, reporter=telling)
        data = [one.data() for one in done]
        end(found, as_json, {"sparse": data}, lambda: tables.sparse(data, basis, keep))


def degate(
    run: Path,
    /,
    *numbers: Natural,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Let adapters write the same at every token, and scan sign and size of it.

    Random adapters go through the same scan; the best of both are tested again.

    Parameters
    ----------
    run
        the folder of the run
    numbers
        adapters, as the table numbers them
    """
    from educe.refine import degate as scanning
    from educe.report import tables

    with opened(run, some(numbers)) as (found, lm, telling):
        data = scanning.degate(found, list(numbers), lm, reporter=telling).data()
        end(found, as_json, {"degate": data}, lambda: tables.degate(data))
