"""The commands of `fallline`: what each one takes, checks and prints."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import fallline
from fallline.bench.cli.check import check as check_optimizers
from fallline.bench.cli.data import app as data_app
from fallline.bench.cli.new import new_task
from fallline.bench.cli.terminal import DATABASE, checked_device, console, readable_errors, warn
from fallline.bench.cli.train import train
from fallline.bench.common.names import unknown
from fallline.bench.common.spaces import as_plain, read_spaces
from fallline.bench.contenders import CONTENDERS, TEAM, get_contender, spelled, under_schedules
from fallline.bench.protocol.aa import aa_results
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.design import TRACKS, Design
from fallline.bench.protocol.records import Race
from fallline.bench.protocol.studies import studies as over_studies
from fallline.bench.race.coordinator import RaceError
from fallline.bench.race.coordinator import race as run_race
from fallline.bench.race.loggers import Logging, open_loggers
from fallline.bench.race.overhead import overhead, overhead_table, overhead_words
from fallline.bench.race.plan import busy, measure_all, parse_budget, plan_table, plan_words, propose
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
from fallline.bench.speed.command import step
from fallline.bench.tasks import REAL, TASKS, get_task, make_sure
from fallline.bench.tasks.data import DATASETS, folders, locate

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where records and report lie.")]
TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK]...",
        help="What to race on: names of [b]fallline list[/b], my_task.py, package.module:Class.",
        show_default="digits",
    ),
]
OptimizersOption = Annotated[
    str,
    typer.Option(
        metavar="A,B,C",
        help="Who races: names of [b]fallline list[/b], any of torch.optim, package.module:Class; [b]all[/b] for the "
        "whole list; NAME@SCHEDULE under another schedule.",
        show_default="those marked * there",
    ),
]
USUAL = ",".join(TEAM)
TracksOption = Annotated[
    str, typer.Option(metavar="A,B", help="With settings [b]tuned[/b] for the task, and with shipped [b]defaults[/b].")
]
SpacesOption = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="Search spaces of your optimizers, and changes to others.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time, one thread each.", show_default="one a core")
]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where models train.")]


class Schedules(StrEnum):
    """Under which schedules the contenders race."""

    common = "common"
    native = "native"
    both = "both"


class Format(StrEnum):
    """What a report can be written as."""

    html = "html"
    md = "md"
    csv = "csv"
    parquet = "parquet"
    png = "png"


class What(StrEnum):
    """What `fallline new` writes."""

    task = "task"


class Size(StrEnum):
    """How many trials each optimizer gets."""

    S = "S"
    M = "M"
    L = "L"


TRIALS = {Size.S: 20, Size.M: 50, Size.L: 75}


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Optimizers for PyTorch, and a fair race between them: [b]fallline race[/b] needs no arguments."""
    if version:
        console.print(f"fallline {fallline.__version__}")
        raise typer.Exit
    if os.getcwd() not in sys.path:  # so that package.module:Class is found from here, as by python -m
        sys.path.append(os.getcwd())


@app.command(no_args_is_help=False)
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


@app.command()
def report(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="The task whose last race to report.", show_default="any")
    ] = None,
    out: OutOption = Path("runs"),
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER.sqlite", help="Say what changed since the races of another database.")
    ] = None,
    format: Annotated[
        Format, typer.Option(help="A page, or tables and figures for a paper.", case_sensitive=False)
    ] = Format.html,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the learning curves as .svg or .png instead.")
    ] = None,
) -> None:
    """Write the report of the last race again, from its records, in one of several forms.

    [b]Examples[/b]

    fallline report

    fallline report bowl --picture bowl.svg

    fallline report --format md

    fallline report --against before.sqlite
    """
    if not os.path.lexists(out / DATABASE):
        raise typer.BadParameter(f"there are no records in {out}; fallline race makes some.", param_hint="--out")
    with readable_errors(), Store(out / DATABASE, read_only=True, complain=warn) as store:
        written = store.last_race(task)
        if written is None:
            raise RaceError(f"there is no race{f' on {task}' if task else ''} in {out}; fallline race makes one.")
        found = results(store, written)
        if picture is not None:
            from fallline.bench.report.page import write_picture

            write_picture(found, picture)
            console.print(f"Picture: {picture}", soft_wrap=True)
        elif format is not Format.html:
            from fallline.bench.report.export import export

            for path in export(found, format.value, out):
                console.print(f"Written: {path}", soft_wrap=True)
        elif against is not None:
            with Store(existing(against), read_only=True, complain=warn) as other:
                before = other.last_race(task)
                if before is None:
                    raise RaceError(f"there is no race{f' on {task}' if task else ''} in {against}.")
                write_report(found, out, before=results(other, before))
        else:
            write_report(found, out)


@app.command()
def merge(
    into: Annotated[Path, typer.Argument(metavar="A.sqlite", help="The database that takes the others in.")],
    others: Annotated[list[Path], typer.Argument(metavar="B.sqlite...", help="Databases of other machines.")],
) -> None:
    """Bring the runs and races of several databases together in the first: those of all of them, or of none.

    [b]Examples[/b]

    fallline merge runs/fallline.sqlite from_elsewhere.sqlite
    """
    with readable_errors(), Store(existing(into), complain=warn) as store:
        with store.writing():  # all of them or none
            found = [(other, store.merge(other)) for other in others]
        for other, merged in found:
            told = f"{other}: {merged.runs} new runs, {merged.races} new races"
            if merged.conflicts:
                told += f"; {merged.conflicts} runs have other results here, and were left as they are"
            if merged.skipped:
                told += f"; {merged.skipped} rows that cannot be read were left out"
            console.print(told + ".", soft_wrap=True)


@app.command()
def plan(
    tasks: TasksArgument = None,
    optimizers: OptimizersOption = USUAL,
    tracks: TracksOption = "tuned",
    budget: Annotated[str, typer.Option(metavar="TIME", help="As 90s, 10m, 1.5h.")] = "10m",
    seeds: Annotated[int | None, typer.Option(min=1, help="Confirming seeds.", show_default="10, or fewer")] = None,
    spaces: SpacesOption = None,
    jobs: JobsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Time a few steps of everyone, and propose the largest balanced race that fits into a budget.

    [b]Examples[/b]

    fallline plan --budget 10m

    fallline plan digits bowl --optimizers all --budget 2h --jobs 8
    """
    try:
        seconds = parse_budget(budget)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error
    asked = Design(
        tasks=checked_tasks(tasks or ["digits"]),
        optimizers=checked_names(optimizers),
        tracks=checked_tracks(tracks),
        spaces=plain_spaces(spaces),
        device=checked_device(device),
    )
    with readable_errors():
        costs, excused, start_up = measure_all(asked)
        against = [name for name in asked.optimizers if not get_contender(name).ours]
        found = propose(
            asked,
            {pair: cost.run for pair, cost in costs.items()},
            seconds,
            jobs or available_cores(),
            baselines=against,
            seeds=seeds,
            start_up=start_up,
        )
    console.print(plan_table(found))
    for (task, name), excuse in excused.items():
        console.print(Text(f"{name} stays out on {task}: {excuse}.", style="dim"))
    console.print()
    for sentence in plan_words(found, busy(costs.values())):
        console.print(sentence)
    if found.design:
        console.print(f"\n{command_line(found.design)}", style="bold", soft_wrap=True)


@bench.command()
def harness() -> None:
    """What the harness costs beside a bare loop that makes the same steps.

    [b]Examples[/b]

    fallline bench harness
    """
    with readable_errors():
        found = overhead()
    console.print(overhead_table(found))
    console.print()
    for sentence in overhead_words(found):
        console.print(sentence)


@app.command()
def new(
    what: Annotated[What, typer.Argument(metavar="task", help="What to write.")],
    path: Annotated[Path, typer.Argument(metavar="[FILE.py]", help="Where.")] = Path("my_task.py"),
) -> None:
    """Write a task of your own to start from: a file that runs as it is.

    [b]Examples[/b]

    fallline new task

    fallline race my_task.py --trials 5
    """
    with readable_errors():
        new_task(path)
        console.print(f"Written: {path}. It runs as it is: fallline race {shlex.quote(str(path))}", soft_wrap=True)


@app.command("list")
def list_() -> None:
    """List the tasks, and the optimizers with their search spaces."""
    tasks = Table(title="Tasks", title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    for name in (*TASKS, *REAL):
        task = get_task(name)
        absent = [data for data in task.needs if not locate(DATASETS[data], folders())]
        lacks = f" (fallline data get {' '.join(absent)})" if absent else ""
        tasks.add_row(Text(name, style="bold"), Text.assemble(task.summary, (lacks, "yellow")))
    racers = Table(
        title="Optimizers (* races unless others are named)",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=False,
    )
    for name in CONTENDERS:
        space = "; ".join(f"{setting} {dimension}" for setting, dimension in get_contender(name).space.items())
        racers.add_row(Text(name + (" *" if name in TEAM else ""), style="bold"), space)
    console.print(tasks)
    console.print()
    console.print(racers)
    others = [name for name in fallline.list_optimizers() if name not in CONTENDERS]
    console.print(f"\nAnd, tuning lr alone: {', '.join(others)}, or package.module:Class.")


# Commands with a module of their own; help lists all in the order in which they come here.
app.command("train")(train)
app.add_typer(data_app, name="data")
app.command("check")(check_optimizers)
for extension in entry_points(group="fallline.commands"):  # of packages that build on this one
    app.command(extension.name)(extension.load())
bench.command("step")(step)
app.add_typer(
    bench, name="bench", help="Measure fallline itself: a [b]step[/b] of each optimizer, or the [b]harness[/b]."
)


def checked_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks' names, once each, every one known to be a task."""
    plain = [Path(name).as_posix() if ".py" in name else name for name in names]  # ./my_task.py is my_task.py
    try:
        for name in plain:
            make_sure(get_task(name))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TASK") from error
    return tuple(dict.fromkeys(plain))


def checked_names(optimizers: str) -> tuple[str, ...]:
    """The optimizers' names, every one known to be an optimizer."""
    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    names = [spelled(name) for name in names]
    names = [one for name in names for one in (CONTENDERS if name == "all" else (name,))]
    try:
        if not names:
            raise ValueError("name at least one optimizer.")
        for name in names:
            get_contender(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--optimizers") from error
    return tuple(dict.fromkeys(names))


def checked_tracks(tracks: str) -> tuple[str, ...]:
    """The tracks' names."""
    names = tuple(dict.fromkeys(name.strip() for name in tracks.split(",") if name.strip()))
    for name in names:
        if name not in TRACKS:
            raise typer.BadParameter(str(unknown("track", name, TRACKS)), param_hint="--tracks")
    if not names:
        raise typer.BadParameter("name at least one track.", param_hint="--tracks")
    return names


def plain_spaces(path: Path | None) -> dict[str, dict[str, Any]]:
    """What a file says of search spaces, as plain values."""
    if path is None:
        return {}
    try:
        found: dict[str, dict[str, Any]] = {}
        for written, changes in read_spaces(path).items():
            name = spelled(written)
            get_contender(name)  # or there is no such optimizer
            if name in found:
                raise ValueError(f"{path}: [{written}] changes {name}, which another table has changed")
            found[name] = {setting: as_plain(value) for setting, value in changes.items()}
        return found
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--spaces") from error


def existing(path: Path) -> Path:
    """A database that is there."""
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    return path


def command_line(design: Design) -> str:
    """The command that makes this race, every choice written out."""
    words = ["fallline race", *map(shlex.quote, design.tasks), "--optimizers", shlex.quote(",".join(design.optimizers))]
    words += ["--tracks", ",".join(design.tracks)] if design.tracks != ("tuned",) else []
    words += ["--finalists", str(design.finalists)] if design.finalists != Design.finalists else []
    words += ["--trials", str(design.trials), "--seeds", str(design.seeds), "--seed", str(design.seed)]
    words += ["--baseline", shlex.quote(design.baseline)] if design.baseline else []
    words += ["--until-decided"] if design.until_decided else []
    words += ["--extend"] if design.extend else []
    words += ["--spaces FILE.toml"] if design.spaces else []
    words += ["--device", design.device] if design.device != "cpu" else []
    return " ".join(words)


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


def write_report(found: Results, out: Path, before: Results | None = None) -> None:
    """Write the page and say where."""
    from fallline.bench.report.page import page_name, write_page  # plotly is slow to import, and nothing else needs it

    path = write_page(found, out / page_name(found), before)
    console.print(f"Report: {path}", soft_wrap=True)
