"""`fallline list`."""

from rich.table import Table
from rich.text import Text

import fallline
from fallline.bench.cli.terminal import console
from fallline.bench.contenders import TEAM, contenders, get_contender
from fallline.bench.tasks import REAL, TASKS, get_task
from fallline.bench.tasks.data import DATASETS, folders, locate


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
    for name in contenders():
        space = "; ".join(f"{setting} {dimension}" for setting, dimension in get_contender(name).space.items())
        racers.add_row(Text(name + (" *" if name in TEAM else ""), style="bold"), space)
    console.print(tasks)
    console.print()
    console.print(racers)
    others = [name for name in fallline.list_optimizers() if name not in contenders()]
    console.print(f"\nAnd, tuning lr alone: {', '.join(others)}, or package.module:Class.")
