"""A running race in the terminal: a live table, or plain lines where the output is no terminal."""

from rich.table import Table
from rich.text import Text

from fallline.bench.common.live import Watching
from fallline.bench.common.numbers import number
from fallline.bench.race.coordinator import Lane, Progress


class Display(Watching):
    """Shows the progress of a race. `with Display(console) as display: race(..., watch=display)`."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        left = self.left(progress.ran, progress.total - progress.done)
        self.show(lambda: lanes_table(progress), lambda: self.line(progress, left), progress.done, progress.total, left)

    def line(self, progress: Progress, left: str) -> str:
        """The progress in a line."""
        return f"{progress.done}/{progress.total} runs, {left} left"


def lanes_table(progress: Progress) -> Table:
    """One row for each optimizer on each task."""
    design = progress.design
    tasks = ", ".join(design.tasks)
    table = Table(title=f"Racing on {tasks}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    headings = ["defaults"] if "defaults" in design.tracks else []
    headings += ["trials", "reruns", "best loss", "seeds"] if "tuned" in design.tracks else []
    for heading in ["", "runs", "lost", *headings] if len(design.tasks) == 1 else ["", "", "runs", "lost", *headings]:
        table.add_column(heading, justify="right" if heading else "left")
    for (task, _), lane in progress.lanes.items():
        best = lane.finalists[0] if lane.finalists else None
        reruns = sum(map(len, lane.reruns.values()))
        row: list[Text | str] = [task] if len(design.tasks) > 1 else []
        row += [Text(lane.contender.label, style="bold" if lane.contender.ours else "")]
        row += [f"{lane.runs}/{lane.wanted}", lost(lane)]
        if "defaults" in design.tracks:
            row += [str(len(lane.defaults)) if lane.has_defaults else "–"]
        if lane.plan:
            score = lane.trials[best].score if best is not None else None
            row += [str(len(lane.trials)), str(reruns), number(score), str(len(lane.seeds))]
        table.add_row(*row)
    return table


def lost(lane: Lane) -> Text:
    """How many of the runs diverged or failed."""
    count = sum(outcome.lost for outcome in lane.outcomes)
    return Text(str(count), style="yellow") if count else Text("0", style="dim")
