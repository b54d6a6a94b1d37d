"""Progress in the terminal: a live table, or a plain line now and then where the output is no terminal."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fallline.bench.common.numbers import clock

PLAIN_EVERY = 15.0
"""Seconds between lines where the output is no terminal."""


class Watching:
    """Shows progress while it is entered."""

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
        """Show the table with a bar of all runs, or the line."""
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
        """The time left, estimated from the runs made so far; runs taken from the records do not count."""
        if rest <= 0:
            return clock(0)
        return clock((time.monotonic() - self.started) / ran * rest) if ran >= 4 else "…"
