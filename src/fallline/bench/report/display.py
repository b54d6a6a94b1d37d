"""A running race in the terminal: a live table, or plain lines where the output is no terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fallline.bench.common.live import Watching
from fallline.bench.common.numbers import number
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.runs.run import Outcome


class Display(Watching):
    """Shows the progress of a race. `with Display(console) as display: race(..., on_progress=display)`."""

    def __call__(self, progress: RaceProgress) -> None:
        """Show the progress."""
        left = self.left(progress.ran, progress.total - progress.done)
        self.show(lambda: lanes_table(progress), lambda: self.line(progress, left), progress.done, progress.total, left)

    def line(self, progress: RaceProgress, left: str) -> str:
        """The progress in a line."""
        return f"{progress.done}/{progress.total} runs, {left} left"


def lanes_table(progress: RaceProgress) -> Table:
    """One row for each optimizer on each task."""
    design = progress.design
    tasks = ", ".join(design.tasks)
    table = Table(title=f"Racing on {tasks}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    headings = ["defaults"] if "defaults" in design.tracks else []
    headings += ["trials", "reruns", "best loss", "seeds"] if "tuned" in design.tracks else []
    names = [""] if len(design.tasks) == 1 else ["", ""]
    for heading in [*names, "runs", "failed", *headings]:
        table.add_column(heading, justify="right" if heading else "left")
    for task, name, results in progress.contenders():
        first = results[0]
        runs = [outcome for result in results for outcome in result.runs]
        row: list[Text | str] = [task] if len(design.tasks) > 1 else []
        row += [Text(first.label, style="bold" if first.ours else "")]
        row += [f"{len(runs)}/{sum(result.runs_wanted for result in results)}", failed(runs)]
        if "defaults" in design.tracks:
            defaults = progress.results.get((task, "defaults"), {}).get(name)
            row += [str(len(defaults.seeds)) if defaults else "–"]
        if "tuned" in design.tracks:
            tuned = progress.results[task, "tuned"][name]
            reruns = sum(map(len, tuned.reruns.values()))
            best = next((tuned.trials[trial][1].score for trial in tuned.search.finalists), None)
            row += [str(len(tuned.trials)), str(reruns), number(best), str(len(tuned.seeds))]
        table.add_row(*row)
    return table


def failed(runs: Sequence[Outcome]) -> Text:
    """How many of the runs diverged or failed."""
    count = sum(outcome.lost for outcome in runs)
    return Text(str(count), style="yellow") if count else Text("0", style="dim")
