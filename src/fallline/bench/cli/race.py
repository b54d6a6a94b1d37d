"""`fallline race`."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fallline.bench.cli.options import (
    USUAL,
    DeviceOption,
    JobsOption,
    OptimizersOption,
    OutOption,
    SpacesOption,
    TasksArgument,
    TracksOption,
    checked_names,
    checked_tasks,
    checked_tracks,
    command_line,
    plain_spaces,
)
from fallline.bench.cli.report import write_report
from fallline.bench.cli.terminal import DATABASE, checked_device, console, readable_errors, warn
from fallline.bench.common.names import unknown
from fallline.bench.contenders import under_schedules
from fallline.bench.protocol.aa import aa_results
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.records import Race
from fallline.bench.protocol.studies import studies as over_studies
from fallline.bench.race.coordinator import race as run_race
from fallline.bench.race.loggers import Logging, open_loggers
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.race.workers import available_cores, cluster, local_pool
from fallline.bench.report.display import Display
from fallline.bench.report.looks import lines
from fallline.bench.report.luck import aa_line, aa_table, aa_words, studies_table, studies_words, write_aa
from fallline.bench.report.race_tables import terminal_results
from fallline.bench.report.tables import terminal
from fallline.bench.report.words import summary
from fallline.bench.runs.environment import environment
from fallline.bench.tasks import get_task


class Schedules(StrEnum):
    """Under which schedules the contenders race."""

    common = "common"
    native = "native"
    both = "both"


class Size(StrEnum):
    """How many trials each optimizer gets."""

    S = "S"
    M = "M"
    L = "L"


TRIALS = {Size.S: 20, Size.M: 50, Size.L: 75}


def race(
    tasks: TasksArgument = None,
    optimizers: OptimizersOption = USUAL,
    tracks: TracksOption = "tuned",
    schedules: Annotated[
        Schedules | None,
        typer.Option(
            help="Everyone under the common schedule, their papers' native one, or both.", show_default="each its own"
        ),
    ] = None,
    size: Annotated[
        Size | None,
        typer.Option(help="Trials for each optimizer: S 20, M 50, L 75.", case_sensitive=False, show_default="S"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials for each optimizer, instead of --size.", show_default="20")
    ] = None,
    finalists: Annotated[
        int, typer.Option(min=1, help="Of the trials so many are run again on three seeds, to choose by the mean.")
    ] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds on which the chosen settings are confirmed.")] = 10,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Up to four times as many seeds where there is no evidence yet.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="A quarter of the trials beyond an edge where the best lies at one.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whom the others are compared with.", show_default="the best that is not ours"
        ),
    ] = None,
    spaces: SpacesOption = None,
    jobs: JobsOption = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://...", help="Run on the workers of this dask.distributed scheduler.")
    ] = None,
    device: DeviceOption = "cpu",
    out: OutOption = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the whole race: search, weights, data order.")] = 0,
    log: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="Write every run to jsonl, tensorboard, wandb, trackio or package.module:Class."
        ),
    ] = "",
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    studies: Annotated[
        int, typer.Option(min=1, help="Repeat all of it, the search too, under so many race seeds.")
    ] = 1,
    aa: Annotated[
        int | None,
        typer.Option(
            "--aa", min=1, metavar="N", help="Race SGD against itself N times: how often is a difference claimed?"
        ),
    ] = None,
) -> None:
    """Race optimizers: tune each with the same number of trials, confirm the best on fresh seeds, give a verdict.

    What has run once is never run again: interrupted with Ctrl-C, the same command goes on.

    [b]Examples[/b]

    fallline race

    fallline race digits bowl --optimizers all

    fallline race my_task.py --optimizers koala-m,adamw,my_module:Mine --spaces spaces.toml

    fallline race --seeds 10 --until-decided --extend --tracks defaults,tuned

    fallline race --aa 20
    """
    if size and trials:
        raise typer.BadParameter("give --size or --trials, not both.")
    where = checked_tasks(tasks or ["digits"])
    if aa:
        optimizers = "sgd,sgd#2"
    who = checked_names(optimizers)
    if schedules:
        who = under_schedules(who, schedules.value)
    if baseline is not None and baseline not in who:
        raise typer.BadParameter(str(unknown("optimizer in this race", baseline, who)), param_hint="--baseline")
    design = Design(
        tasks=where,
        optimizers=who,
        tracks=checked_tracks(tracks),
        trials=trials or TRIALS[size or Size.S],
        finalists=finalists,
        seeds=seeds,
        seed=seed,
        baseline=baseline or ("sgd" if aa else None),
        until_decided=until_decided,
        extend=extend,
        spaces=plain_spaces(spaces),
        device=checked_device(device),
    )
    workers = jobs or available_cores()
    with (
        readable_errors(),
        Store(out / DATABASE, complain=warn) as store,
        Logging(open_loggers(log, out), complain=warn) as loggers,
        workplace(scheduler, workers, out) as (pool, places),
    ):
        about = {"command": command_line(design), "environment": environment(workers)}

        def hold(one: Design) -> Race:
            mine = {**about, "command": command_line(one)}
            with Display(console) as watch:
                return run_race(
                    one, store, pool, max_pending=2 * places, about=mine, on_progress=watch, on_run=loggers.run_finished
                )

        if aa:
            show_aa(store, hold, design, aa)
            return
        for name in where:
            console.print(Text(get_task(name).summary, style="dim"))
        held = []
        for study in range(studies):
            written = hold(dataclasses.replace(design, seed=seed + study))
            held.append(results(store, written))
            loggers.race_finished(written, losses_by_task(held[-1]))
            if studies > 1:
                console.print(f"\nStudy {study + 1}, race seed {seed + study}", style="bold")
            show(held[-1])
        if studies > 1:
            rows = over_studies(held)
            console.print()
            console.print(studies_table(rows))
            for sentence in studies_words(rows):
                console.print(sentence)
        if report:
            write_report(held[-1], out)


@contextmanager
def workplace(scheduler: str | None, jobs: int, out: Path) -> Iterator[tuple[Executor, int]]:
    """Where runs run, and how many at a time; what workers on this machine print goes to a file."""
    if scheduler is None:
        said = out / "printed.txt"
        said.unlink(missing_ok=True)
        try:
            with local_pool(jobs, said) as pool:
                yield pool, jobs
        finally:
            if said.exists() and not said.stat().st_size:
                said.unlink()
        if said.exists():
            console.print(Text(f"What was printed while the runs ran is in {said}.", style="dim"))
        return

    with cluster(scheduler) as (executor, workers):
        yield executor, workers


def show(found: Results) -> None:
    """Print the result: in words, then as tables."""
    console.print()
    for sentence in summary(found):
        console.print(Text(sentence))
    looks = lines(found)
    for part in found.parts:
        console.print()
        if len(found.parts) > 1:
            console.print(Text(f"{part.task}, {part.track}", style="bold"))
        console.print(terminal(terminal_results(part, looks)))
        for name, excuse in part.left_out.items():
            console.print(Text(f"{name} was left out: {excuse}.", style="dim"))
        for entry in part.entries:
            for alarm in entry.alarms:
                console.print(Text.assemble(("! ", "yellow"), f"{entry.label}: {alarm.text}."))
    console.print("\nMean [95 % interval over seeds]. Failed: trials that diverged or raised an error.", style="dim")


def show_aa(store: Store, hold: Callable[[Design], Race], design: Design, times: int) -> None:
    """Race SGD against itself with several seeds, and say how often a difference was claimed."""
    held = []
    for study in range(times):
        held.append(results(store, hold(dataclasses.replace(design, seed=design.seed + study))))
        console.print(aa_line(held[-1]), soft_wrap=True)
    found = aa_results(held)
    for one in found:
        console.print()
        console.print(aa_table(one))
        for sentence in aa_words(one):
            console.print(sentence)
    machine = held[0].race.setting["environment"]
    console.print(f"Raw numbers: {write_aa(found, store.path.parent, machine)}", soft_wrap=True)


def losses_by_task(found: Results) -> dict[str, dict[str, float]]:
    """Mean final losses, for loggers."""
    return {
        f"{part.task}, {part.track}" if len(found.design.tracks) > 1 else part.task: {
            entry.label: loss.mean for entry in part.entries if (loss := entry.measure("loss"))
        }
        for part in found.parts
    }
