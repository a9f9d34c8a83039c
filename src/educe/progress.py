"""Progress: a bar with a rate and the time left on a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from educe.visible import visible

Advance = Callable[..., None]  #: ``advance(steps=1, note="")``


def untold(steps: int = 1, note: str = "") -> None:
    """Tell nobody of an advance."""


#: Columns of a terminal that has room for the bar itself.
WIDE = 130


class Reporter(Protocol):
    """What long work tells of itself."""

    def stage(self, title: str, total: int, unit: str = "") -> AbstractContextManager[Advance]:
        """Begin a stage of ``total`` steps in a ``with`` statement, which yields ``advance``."""

    def say(self, sentence: str) -> None:
        """Tell one thing."""


class Silent:
    """Tells nothing."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield untold

    def say(self, sentence: str) -> None:
        """Say nothing."""


class Bars:
    """Bars on a terminal, for people."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Show a bar until the stage ends, then leave one line of it.

        A narrow terminal has no place for the bar: numbers and the note stay whole.
        """
        wide, whole = self.console.width >= WIDE, Column(no_wrap=True)
        columns = (
            SpinnerColumn("line", finished_text="✓"),
            TextColumn("{task.description}", style="bold", markup=False),
            *([BarColumn(bar_width=24)] if wide else []),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[speed]}", style="dim"),
            *([TimeElapsedColumn(table_column=whole)] if wide else []),
            TimeRemainingColumn(table_column=whole),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=Column()),
        )
        with Progress(*columns, console=self.console) as progress:
            name = f"{visible(title):<28}" if wide else visible(title)
            task = progress.add_task(name, total=total, note="", speed="")
            began = time.monotonic()

            def advance(steps: int = 1, note: str = "") -> None:
                progress.update(task, advance=steps, note=visible(note))
                done = progress.tasks[0].completed
                pace = done / max(time.monotonic() - began, 1e-9)
                progress.update(task, speed=f"{pace:.1f} {unit}/s" if unit else "")

            yield advance

    def say(self, sentence: str) -> None:
        """Print a sentence above the bars."""
        self.console.print(visible(sentence), highlight=False, markup=False, emoji=False)


class Lines:
    """Plain lines, at most one in two seconds, for logs and pipes."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Print a line now and then, and one at the end."""
        began = said = time.monotonic()
        done = 0

        def line(note: str) -> None:
            took = time.monotonic() - began
            left = f", {took / done * (total - done):.0f} s left" if done else ""
            pace = f", {done / took:.1f} {unit or 'steps'}/s" if took > 0 else ""
            told = f"{title}: {done}/{total}{pace}{left}{note and f', {note}'}"
            print(visible(told), file=sys.stderr)

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, said
            done += steps
            if time.monotonic() - said > 2:
                said = time.monotonic()
                line(note)

        yield advance
        line("")

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        print(visible(sentence), file=sys.stderr)


class Within:
    """Tells what a part of long work does: its name before each stage, behind it the time left."""

    def __init__(self, whole: Reporter, part: str, left: Callable[[], str]) -> None:
        self.whole, self.part, self.left = whole, part, left

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Begin a stage of the part."""
        with self.whole.stage(f"{self.part}: {title}", total, unit) as advance:

            def further(steps: int = 1, note: str = "") -> None:
                advance(steps, note="; ".join(filter(None, (note, self.left()))))

            yield further

    def say(self, sentence: str) -> None:
        """Tell one thing."""
        self.whole.say(sentence)


def reporter() -> Bars | Lines:
    """Return bars when standard error is a terminal that can draw anew, else lines."""
    console = Console(stderr=True)
    return Bars(console) if console.is_interactive else Lines()
