"""`fallline plan`."""

from typing import Annotated

import typer
from rich.text import Text

from fallline.bench.cli.options import (
    USUAL,
    DeviceOption,
    JobsOption,
    OptimizersOption,
    SpacesOption,
    TasksArgument,
    TracksOption,
    checked_names,
    checked_tasks,
    checked_tracks,
    command_line,
    plain_spaces,
)
from fallline.bench.cli.terminal import checked_device, console, readable_errors
from fallline.bench.contenders import get_contender
from fallline.bench.protocol.design import Design
from fallline.bench.race.plan import busy, measure_all, parse_budget, plan_table, plan_words, propose
from fallline.bench.race.workers import available_cores


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
