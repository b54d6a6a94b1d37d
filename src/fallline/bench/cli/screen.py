"""What a run shows: a live view where there is a terminal, else a line at each measurement and now and then."""

import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fallline.bench.common.live import PLAIN_EVERY, Watching
from fallline.bench.common.numbers import clock

REDRAWN = 0.1
"""Seconds between two looks of the terminal at the steps."""


@dataclass
class View:
    """What is known of a run just now."""

    title: str
    horizon: int
    """Gradient evaluations in the run."""

    epoch: int | None = None
    """Of them in an epoch."""

    start: int = 0
    """Where this process began."""

    done: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    """By name, as of the last look: `loss`, `lr`, `examples/s`, readings."""

    measures: dict[str, float] = field(default_factory=dict)
    """By name, of the last measurement: `validation loss`, `validation accuracy`."""

    @property
    def place(self) -> str:
        """How far it is: `120/480 steps, epoch 7.5/30`."""
        words = f"{self.done}/{self.horizon} steps"
        return f"{words}, epoch {self.done / self.epoch:.3g}/{self.horizon / self.epoch:.3g}" if self.epoch else words


class Screen(Watching):
    """Shows a view, and shows it again when it has changed. A context manager."""

    def __init__(self, console: Console, view: View) -> None:
        super().__init__(console)
        self.view = view
        self.drawn = float("-inf")

    def step(self) -> None:
        """A step was made, and nothing was read."""
        if self.live and time.monotonic() - self.drawn > REDRAWN:
            self.drawn = time.monotonic()
            self.live.update(self.picture())

    def look(self, measured: bool) -> None:
        """The view has new numbers.

        Args:
            measured: whether on held-out data too.
        """
        if self.live:
            self.live.update(self.picture())
        elif measured or time.monotonic() - self.last_line > PLAIN_EVERY:
            self.last_line = time.monotonic()
            self.console.print(self.line(), soft_wrap=True)

    def picture(self) -> Group:
        """The live view: the numbers, and under them the bar."""
        view, bar = self.view, Table.grid(padding=(0, 1))
        left = self.left(4, 0)
        if made := view.done - view.start:
            left = clock((time.monotonic() - self.started) / made * (view.horizon - view.done))
        words = f"{view.place} · {self.passed} · {left} left · Ctrl-C saves"
        bar.add_row(ProgressBar(total=view.horizon, completed=view.done, width=16), Text(words, style="dim"))
        lines = [Text(view.title, style="bold"), Text(told(view.measures)), Text(told(view.scalars))]
        return Group(*lines, bar)

    def line(self) -> str:
        """The view in a line."""
        return ": ".join(filter(None, [self.view.place, told({**self.view.scalars, **self.view.measures})]))


def told(values: dict[str, float]) -> str:
    """Names and numbers in a row, shares in per cent."""
    return ", ".join(f"{name} {shown(name, value)}" for name, value in values.items())


def shown(name: str, value: float) -> str:
    """A number as it is read best."""
    if name.endswith("accuracy"):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if name.endswith("/s") else f"{value:.4g}"
