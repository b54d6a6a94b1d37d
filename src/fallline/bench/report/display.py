"""What a race shows in the terminal: a live table, or plain lines where there is no terminal; and the result."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fallline.bench.common.live import Watching
from fallline.bench.common.numbers import difference, number, spread
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.runs.loop import Outcome


class Display(Watching):
    """Watches a race. `with Display(console) as display: race(..., on_progress=display)`."""

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
    for heading in ["", "runs", "lost", *headings] if len(design.tasks) == 1 else ["", "", "runs", "lost", *headings]:
        table.add_column(heading, justify="right" if heading else "left")
    for task, name, results in progress.contenders():
        first = results[0]
        runs = [outcome for result in results for outcome in result.runs]
        row: list[Text | str] = [task] if len(design.tasks) > 1 else []
        row += [Text(first.label, style="bold" if first.ours else "")]
        row += [f"{len(runs)}/{sum(result.runs_wanted for result in results)}", lost(runs)]
        if "defaults" in design.tracks:
            shipped = progress.results.get((task, "defaults"), {}).get(name)
            row += [str(len(shipped.seeds)) if shipped else "–"]
        if "tuned" in design.tracks:
            tuned = progress.results[task, "tuned"][name]
            reruns = sum(map(len, tuned.reruns.values()))
            best = next((tuned.trials[trial][1].score for trial in tuned.search.finalists), None)
            row += [str(len(tuned.trials)), str(reruns), number(best), str(len(tuned.seeds))]
        table.add_row(*row)
    return table


def lost(runs: Sequence[Outcome]) -> Text:
    """How many of the runs diverged or failed."""
    count = sum(outcome.lost for outcome in runs)
    return Text(str(count), style="yellow") if count else Text("0", style="dim")


def results_table(part: Comparison, seeds: int) -> Table:
    """One comparison, in 80 columns."""
    accuracy = any(entry.measure("accuracy") for entry in part.entries)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("test loss" if part.held_out else "mean loss")
    if accuracy:
        table.add_column("accuracy", justify="right")
    if part.track == "tuned":
        table.add_column("lost", justify="right")
    if part.baseline:
        table.add_column(f"against {part.baseline.label}")
    for entry in part.entries:
        share = entry.measure("accuracy")
        row = [Text(entry.label, style="bold" if entry.ours else ""), seeds_cell(entry, seeds)]
        row += [Text(f"{100 * share.mean:.1f} %" if share else "–")] if accuracy else []
        row += [Text(f"{entry.lost_trials}/{len(entry.trials)}")] if part.track == "tuned" else []
        row += [verdict_cell(entry, part.scale)] if part.baseline else []
        table.add_row(*row)
    return table


WORD_STYLES = {
    "better": "bold green",
    "worse": "red",
    "practically equal": "",
    "no evidence": "dim",
    "too few seeds": "dim",
}


def verdict_cell(entry: ContenderResult, scale: float | None) -> Text:
    """The word and the difference."""
    if entry.verdict is None:
        return Text("–")
    text = Text(entry.verdict.word, style=WORD_STYLES[entry.verdict.word])
    if entry.verdict.difference:
        text.append(f" {difference(entry.verdict.difference.mean, scale or 1.0)}", style="default")
    return text


def seeds_cell(entry: ContenderResult, seeds: int) -> Text:
    """Loss and interval; seeds that were lost are named beside it."""
    loss = entry.measure("loss")
    if loss is None:
        return Text("every trial lost" if entry.chosen is None else "no seed finished", style="yellow")
    text = Text(spread(loss))
    return text.append(f" {entry.lost_seeds}/{seeds} lost", style="yellow") if entry.lost_seeds else text
