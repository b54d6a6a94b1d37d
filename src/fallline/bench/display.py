"""What a race shows in the terminal: a live table, or plain lines where there is no terminal; and the result."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fallline.bench.race import Lane, Progress
from fallline.bench.results import Result, Results
from fallline.bench.stats import Interval
from fallline.bench.tasks import get_task

PLAIN_EVERY = 15.0
"""Seconds between lines where there is no terminal."""


class Watching:
    """What goes on, live where there is a terminal, else in a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.last_line = float("-inf")

    def __enter__(self) -> Self:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def show(self, table: Callable[[], Table], line: Callable[[], str], done: int, total: int, left: str) -> None:
        """The table with a bar of all runs, or the line."""
        if self.live:
            grid = Table.grid(padding=(0, 1))
            words = f"{done}/{total} runs · {self.passed} · {left} left · Ctrl-C keeps all"
            grid.add_row(ProgressBar(total=total, completed=done, width=24), Text(words, style="dim"))
            self.live.update(Group(table(), grid))
        elif time.monotonic() - self.last_line > PLAIN_EVERY or done == total:
            self.last_line = time.monotonic()
            self.console.print(line(), soft_wrap=True)

    @property
    def passed(self) -> str:
        """The time since the start."""
        return clock(time.monotonic() - self.started)

    def left(self, ran: int, rest: int) -> str:
        """The time left, from the runs so far; those taken from the records do not count."""
        if rest <= 0:
            return clock(0)
        return clock((time.monotonic() - self.started) / ran * rest) if ran >= 4 else "…"


class Display(Watching):
    """Watches a race. `with Display(console) as display: race(..., watch=display)`."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        left = self.left(progress.ran, progress.total - progress.done)
        self.show(lambda: lanes_table(progress), lambda: self.line(progress, left), progress.done, progress.total, left)

    def line(self, progress: Progress, left: str) -> str:
        """The progress in a line."""
        scored = [
            (lane.trials[lane.best].score or 0.0, lane) for lane in progress.lanes.values() if lane.best is not None
        ]
        best = min(scored, key=lambda pair: pair[0], default=None)
        leader = f", best {best[1].contender.label} {number(best[0])}" if best else ""
        return f"{progress.done}/{progress.total} runs, {left} left{leader}"


def lanes_table(progress: Progress) -> Table:
    """One row for each optimizer."""
    design = progress.design
    table = Table(title=f"Racing on {design.task}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("trials", "lost", score_name(design.task), "seeds"):
        table.add_column(heading, justify="right")
    for lane in progress.lanes.values():
        table.add_row(
            Text(lane.contender.label, style="bold" if lane.contender.ours else ""),
            f"{len(lane.trials)}/{design.trials}",
            lost(lane),
            number(lane.trials[lane.best].score) if lane.best is not None else "–",
            f"{len(lane.seeds)}/{design.seeds}",
        )
    return table


def lost(lane: Lane) -> Text:
    """How many of the runs diverged or failed."""
    count = sum(outcome.lost for outcome in [*lane.trials.values(), *lane.seeds.values()])
    return Text(str(count), style="yellow") if count else Text("0", style="dim")


def score_name(task: str) -> str:
    """What the search minimises, in a heading."""
    return "best validation loss" if get_task(task).held_out else "best mean loss"


def results_table(results: Results) -> Table:
    """The result of a race, in 80 columns."""
    design = results.race.design
    accuracy = any(entry.measure("accuracy") for entry in results.entries)
    loss_name = "test loss" if get_task(results.race.task).held_out else "mean loss"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column(loss_name)
    if accuracy:
        table.add_column("accuracy", justify="right")
    table.add_column("lost", justify="right")
    if results.baseline:
        table.add_column(f"minus {results.baseline.label}'s")
    for entry in results.entries:
        share = entry.measure("accuracy")
        row = [Text(entry.label, style="bold" if entry.ours else ""), seeds_cell(entry, design["seeds"])]
        row += [Text(f"{100 * share.mean:.1f} %" if share else "–")] if accuracy else []
        row += [Text(f"{entry.lost_trials}/{design['trials']}")]
        row += [Text(spread(entry.against_baseline, results.scale))] if results.baseline else []
        table.add_row(*row)
    return table


def seeds_cell(entry: Result, seeds: int) -> Text:
    """Loss and interval; seeds that were lost are named beside it."""
    loss = entry.measure("loss")
    if loss is None:
        return Text("every trial lost" if entry.chosen is None else "no seed finished", style="yellow")
    text = Text(spread(loss))
    return text.append(f" {entry.lost_seeds}/{seeds} lost", style="yellow") if entry.lost_seeds else text


def number(value: float | None) -> str:
    """Three significant digits, the trailing zeros too: a column of them can be compared."""
    return "–" if value is None else f"{value:#.3g}".rstrip(".")


def difference(value: float | None, scale: float) -> str:
    """A signed difference to something of size `scale`, to the last place which `number` prints of that."""
    if value is None:
        return "–"
    if abs(value) > 100 * scale:
        return number(value)
    places = max(0, 2 - math.floor(math.log10(scale))) if scale > 0 else 3
    return f"{value:+.{places}f}".replace("-", "−")


def spread(value: Interval | None, scale: float | None = None) -> str:
    """`mean [low, high]`; with a scale, of a difference."""
    if value is None:
        return "–"
    numbers = (value.mean, value.low, value.high)
    mean, low, high = [number(one) if scale is None else difference(one, scale) for one in numbers]
    return mean if value.low is None else f"{mean} [{low}, {high}]"


def clock(seconds: float) -> str:
    """Minutes and seconds, `2:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
