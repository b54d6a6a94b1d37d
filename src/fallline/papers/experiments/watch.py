"""What an experiment shows in the terminal while it runs: a live table, or plain lines where there is no terminal."""

from collections import Counter
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from fallline.bench.common.live import Watching
from fallline.bench.common.numbers import number
from fallline.bench.report.tables import terminal
from fallline.papers.experiments.page import Page
from fallline.papers.experiments.reproduce import Progress


class Watcher(Watching):
    """Watches an experiment. `with Watcher(console) as watch: reproduce(..., watch=watch)`."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        done, total = len(progress.done), len(progress.planned)
        left = self.left(progress.ran, total - done)
        line = f"stage {progress.stage}: {done}/{total} runs · {self.passed}, {left} left"
        self.show(lambda: runs_table(progress), lambda: line, done, total, left)


def runs_table(progress: Progress) -> Table:
    """One row for each contender."""
    table = Table(title=progress.design.experiment, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("runs", "lost", "best loss"):
        table.add_column(heading, justify="right")
    planned = Counter(progress.row(run) for run in progress.planned)
    for name, count in planned.items():
        outcomes = [outcome for run, outcome in progress.done if progress.row(run) == name]
        lost = sum(outcome.lost for outcome in outcomes)
        best = min((outcome.score for outcome in outcomes if outcome.score is not None), default=None)
        shown = Text(str(lost), style="yellow" if lost else "dim")
        table.add_row(name, f"{len(outcomes)}/{count}", shown, number(best))
    return table


def results_tables(page: Page) -> Iterator[Table]:
    """The first columns of the page's first tables: what was measured here."""
    for title, found in page.results:
        yield terminal(found, title if page.tables > 1 else "")
