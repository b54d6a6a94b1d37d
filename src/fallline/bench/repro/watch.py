"""What an experiment shows in the terminal while it runs: a live table, or plain lines where there is no terminal."""

import time
from collections import Counter
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fallline.bench.display import PLAIN_EVERY, clock, number
from fallline.bench.repro.page import Page
from fallline.bench.repro.reproduce import Progress


class Watcher:
    """Watches an experiment. `with Watcher(console) as watch: reproduce(..., watch=watch)`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.last_line = float("-inf")

    def __enter__(self) -> "Watcher":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        done, total = len(progress.done), len(progress.planned)
        words = f"{done}/{total} runs · {clock(time.monotonic() - self.started)}"
        if self.live:
            grid = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=total, completed=done, width=24)
            grid.add_row(bar, Text(f"{words} · {self.left(progress)} left · Ctrl-C keeps all", style="dim"))
            self.live.update(Group(runs_table(progress), grid))
        elif time.monotonic() - self.last_line > PLAIN_EVERY or done == total:
            self.last_line = time.monotonic()
            self.console.print(f"stage {progress.stage}: {words}, {self.left(progress)} left", soft_wrap=True)

    def left(self, progress: Progress) -> str:
        """The time left in this stage, from the runs so far; those taken from the records do not count."""
        rest = len(progress.planned) - len(progress.done)
        if rest == 0:
            return clock(0)
        return clock((time.monotonic() - self.started) / progress.ran * rest) if progress.ran >= 4 else "…"


def runs_table(progress: Progress) -> Table:
    """One row for each contender."""
    table = Table(title=progress.design.experiment, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("runs", "lost", "best loss"):
        table.add_column(heading, justify="right")
    planned = Counter(run.optimizer for run in progress.planned)
    for name, count in planned.items():
        outcomes = [outcome for run, outcome in progress.done if run.optimizer == name]
        lost = sum(outcome.lost for outcome in outcomes)
        best = min((outcome.score for outcome in outcomes if outcome.score is not None), default=None)
        told = Text(str(lost), style="yellow" if lost else "dim")
        table.add_row(name, f"{len(outcomes)}/{count}", told, number(best))
    return table


def results_table(page: Page) -> Table:
    """The first columns of the page's first table: what was measured here."""
    found = next(section.table for section in page.sections if section.table)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", *found.head[1:3]):
        table.add_column(heading)
    for row in found.rows:
        name, *cells = row.cells[:3]
        table.add_row(Text(name, style="bold" if row.line and row.line.ours else ""), *map(Text, cells))
    return table
