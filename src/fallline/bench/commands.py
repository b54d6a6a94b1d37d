"""The commands of `fallline`: what each one takes, checks and prints."""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fallline
from fallline.bench import display
from fallline.bench import repro as experiments
from fallline.bench.contenders import CONTENDERS, TEAM, get_contender
from fallline.bench.environment import environment
from fallline.bench.names import unknown
from fallline.bench.pool import available_cores, local_pool
from fallline.bench.race import Design, RaceError
from fallline.bench.race import race as run_race
from fallline.bench.record import Race, Store
from fallline.bench.repro.reproduce import reproduce, write
from fallline.bench.repro.watch import Watcher, results_table
from fallline.bench.results import results
from fallline.bench.tasks import TASKS, get_task

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DATABASE = "fallline.sqlite"
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where records and report lie.")]


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
    task: Annotated[
        str, typer.Argument(metavar="[TASK]", help="What to race on: see [b]fallline list[/b].")
    ] = "digits",
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="Who races: names of [b]fallline list[/b], any of torch.optim, package.module:Class; [b]all[/b] for "
            "the whole list.",
        ),
    ] = ",".join(TEAM),
    size: Annotated[
        Size | None,
        typer.Option(help="Trials for each optimizer: S 20, M 50, L 75.", case_sensitive=False, show_default="S"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials for each optimizer, instead of --size.", show_default="20")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds on which the chosen settings are confirmed.")] = 10,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, one thread each.", show_default="one a core")
    ] = None,
    out: OutOption = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the whole race: search, weights, data order.")] = 0,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
) -> None:
    """Race optimizers: tune each with the same number of trials, confirm the best on fresh seeds, write a report.

    What has run once is never run again: interrupted with Ctrl-C, the same command goes on.

    [b]Examples[/b]

    fallline race

    fallline race --optimizers all

    fallline race bowl --optimizers coolmomentum,sgd,adamw

    fallline race digits --optimizers koala-m,adamw,radam --size M --jobs 8
    """
    if size and trials:
        raise typer.BadParameter("give --size or --trials, not both.")
    design = Design(task, checked_names(task, optimizers), trials or TRIALS[size or Size.S], seeds, seed)
    workers = jobs or available_cores()
    about = {"command": command_line(design), "environment": environment(workers)}
    with readable_errors(), Store(out / DATABASE) as store:
        console.print(Text(get_task(task).summary, style="dim"))
        with display.Display(console) as watch, local_pool(workers) as pool:
            written = run_race(design, store, pool, ahead=2 * workers, about=about, watch=watch)
        show(store, written)
        if report:
            write_report(store, written, out)


@app.command()
def report(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="The task whose last race to report.", show_default="any")
    ] = None,
    out: OutOption = Path("runs"),
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the learning curves as .svg or .png instead.")
    ] = None,
) -> None:
    """Write the report of the last race again, from its records, or a picture of it.

    [b]Examples[/b]

    fallline report

    fallline report bowl --picture bowl.svg
    """
    if not (out / DATABASE).exists():
        raise typer.BadParameter(f"there are no records in {out}; fallline race makes some.", param_hint="--out")
    with readable_errors(), Store(out / DATABASE) as store:
        found = store.last_race(task)
        if found is None:
            raise RaceError(f"there is no race{f' on {task}' if task else ''} in {out}; fallline race makes one.")
        if picture is None:
            write_report(store, found, out)
        else:
            from fallline.bench.report import write_picture

            write_picture(results(store, found), picture)
            console.print(f"Picture: {picture}", soft_wrap=True)


@app.command("list")
def list_() -> None:
    """List the tasks, and the optimizers with their search spaces."""
    tasks = Table(title="Tasks", title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    for name in TASKS:
        tasks.add_row(Text(name, style="bold"), get_task(name).summary)
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


@app.command()
def repro(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Which experiment; without a name they are listed.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps, trials and contenders: about a minute.")] = False,
    optimizers: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Only these of its contenders.", show_default="all; fewer with --quick"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds.", show_default="8; fewer with --quick")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, one thread each.", show_default="one a core")
    ] = None,
    out: OutOption = Path("runs"),
) -> None:
    """Run a paper's own experiment again: raw numbers as JSON, and a page that shows them.

    What has run once is never run again: interrupted with Ctrl-C, the same command goes on.

    [b]Examples[/b]

    fallline repro

    fallline repro lodo-bowl --quick

    fallline repro lodo-bowl --optimizers lodo,adam,newton --seeds 2
    """
    if name is None:
        table = Table(box=None, pad_edge=False, show_header=False)
        for known in experiments.EXPERIMENTS:
            table.add_row(Text(known, style="bold"), experiments.get_experiment(known).summary)
        console.print(table)
        return
    try:
        experiment = experiments.get_experiment(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    chosen = tuple(dict.fromkeys(one.strip() for one in (optimizers or "").split(",") if one.strip()))
    for one in chosen:
        if one not in experiment.contenders:
            mistake = unknown("contender", one, experiment.contenders)
            raise typer.BadParameter(str(mistake), param_hint="--optimizers")
    seeds = seeds or (experiment.quick_seeds if quick else experiment.seeds)
    design = experiments.Design(name, quick, seeds, chosen)
    workers = jobs or available_cores()
    with readable_errors(), Store(out / DATABASE) as store:
        console.print(Text(f"{experiment.summary[0].upper()}{experiment.summary[1:]}.", style="dim"))
        with Watcher(console) as watch, local_pool(workers) as pool:
            record = reproduce(experiment, design, store, pool, ahead=2 * workers, watch=watch)
        record["environment"] = environment(workers)
        raw, page = write(experiment, record, out)
        console.print(results_table(experiment.page(record)))
        console.print(f"Raw numbers: {raw}", soft_wrap=True)
        console.print(f"Report: {page}", soft_wrap=True)


def checked_names(task: str, optimizers: str) -> tuple[str, ...]:
    """The optimizers' names, checked along with the task's."""
    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    names = [name if ":" in name else name.lower() for name in names]
    names = [one for name in names for one in (CONTENDERS if name == "all" else (name,))]
    try:
        get_task(task)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TASK") from error
    try:
        if not names:
            raise ValueError("name at least one optimizer.")
        for name in names:
            get_contender(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--optimizers") from error
    return tuple(dict.fromkeys(names))


def command_line(design: Design) -> str:
    """The command that makes this race, every choice written out."""
    return (
        f"fallline race {design.task} --optimizers {','.join(design.optimizers)} "
        f"--trials {design.trials} --seeds {design.seeds} --seed {design.seed}"
    )


@contextmanager
def readable_errors() -> Iterator[None]:
    """What can go wrong, as a sentence and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("\nStopped. What has finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    except (RaceError, ValueError, OSError, sqlite3.Error) as error:
        errors.print(Text.assemble(("Error: ", "bold red"), str(error)))
        raise typer.Exit(1) from None


def show(store: Store, written: Race) -> None:
    """Print the result."""
    found = results(store, written)
    console.print()
    console.print(display.results_table(found))
    for name, excuse in written.setting["left_out"].items():
        console.print(f"{name} was left out: {excuse}.", style="dim")
    console.print("Mean [95 % interval over seeds]. Lost: trials that diverged or failed.", style="dim")


def write_report(store: Store, written: Race, out: Path) -> None:
    """Write the page and say where."""
    from fallline.bench.report import write_page  # plotly is slow to import, and nothing else needs it

    path = write_page(results(store, written), out / f"{written.task.replace(':', '.')}.html")
    console.print(f"Report: {path}", soft_wrap=True)
