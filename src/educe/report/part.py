"""Parts: what the page shows of the studies of a run, each in a file of its own.

A file has a `Part`, and `educe.report.page` goes through them: a new study changes nothing there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from educe.run.store import Run

#: Specifications of charts by name; each is drawn where an element has ``chart-`` and its name.
Charts = dict[str, dict[str, Any]]


class Shown(NamedTuple):
    """What a part shows of a run."""

    html: Markup  #: a section whose id is the part's name
    charts: Charts


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        name: The id of its section.
        title: Its title in the contents.
        render: Takes a run and the pattern that is looked for in it; returns what it shows, or None
            where the run has nothing for it.
    """

    name: str
    title: str
    render: Callable[[Run, re.Pattern[str] | None], Shown | None]


def together(each: Iterable[Charts]) -> Charts:
    """Return the charts of several, whose names differ."""
    return {name: chart for charts in each for name, chart in charts.items()}
