"""The command `python benchmarks/speed`."""

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from speed.ground import DTYPES
from speed.methods import METHODS, Method, all_methods, chosen
from speed.record import machine, write
from speed.results import Part
from speed.run import Plan, measure
from speed.shapes import SETS, get_set
from speed.tables import tables, words

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dtype(StrEnum):
    """Of parameters and gradients."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(StrEnum):
    """Where the step is taken."""

    cpu = "cpu"
    cuda = "cuda"


@app.command()
def step(
    sets: Annotated[
        list[str], typer.Option("--set", metavar="NAME", help=f"Parameters: {', '.join(SETS)}; may come again.")
    ] = ["resnet18"],  # noqa: B006 - typer asks for a list, and hands out another
    dtypes: Annotated[list[Dtype], typer.Option("--dtype", help="Of parameters and gradients; may come again.")] = [  # noqa: B006
        Dtype.float32
    ],
    device: Annotated[Device, typer.Option(help="Where the step is taken.")] = Device.cpu,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,C",
            help="Whom: a name, what names begin with ([b]koala-v[/b]), a mode ([b]fused[/b], eager, foreach, plain).",
            show_default="all but lodo",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="In each, everybody has a turn.")] = 7,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in a turn.", show_default="as many as take 0.05 s")
    ] = None,
    first: Annotated[
        bool, typer.Option("--first/--no-first", help="First steps too, each in two new processes: minutes more.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Memory of temporaries too; on the CPU, in such processes.")
    ] = False,
    files: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="FILE.py", help="More methods: its list [b]METHODS[/b]; may come again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write all numbers there.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order, and of the parameters.")] = 0,
) -> None:
    """Measure a step of each optimizer beside torch's own: time, traffic, first step, memory, host reads.

    About a minute, as it is.

    [b]Examples[/b]

    python benchmarks/speed --only koala-m,fused

    python benchmarks/speed --set gpt2 --dtype float32 --dtype bfloat16 --only fused --first

    python benchmarks/speed --with benchmarks/unfused.py --first --memory --out benchmarks/records/mine.json
    """
    console, watch = wide(), Console(stderr=True, highlight=False)
    checked_device(device)
    if out is not None:
        checked_out(out)
    more = tuple(files or ())
    asked = checked_methods(list(dict.fromkeys(sets)), only, more)
    parts: list[Part] = []
    about = machine(device, threads)
    try:
        for set_name, methods in asked:
            for dtype in dict.fromkeys(dtypes):
                plan = Plan(set_name, dtype.value, device.value, threads, rounds, steps, seed, first, memory)
                with watch.status("") as status:
                    parts.append(measure(plan, methods, more, lambda told: status.update(Text(f"{told} ..."))))
                show(console, parts[-1])
                if out is not None:
                    write(out, parts, about)  # what is done is kept when the next takes too long
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        watch.print(Text.assemble(("Error: ", "bold red"), str(error)))
        raise typer.Exit(1) from None
    console.print(Text(left_out(parts, first, memory)))
    if out is not None:
        console.print(f"Raw numbers: {out}", soft_wrap=True)


def left_out(parts: Sequence[Part], first: bool, memory: bool) -> str:
    """What could have been measured and was not, with what asks for it.

    Args:
        parts: what was measured.
        first, memory: as the command takes them.
    """
    done = {word for part in parts for word in (part.set, part.dtype, *(row.method.name for row in part.rows))}
    rest = [f"--{name}" for name, asked in (("first", first), ("memory", memory)) if not asked]
    rest += [f"--set {name}" for name in SETS if name not in done]
    rest += [f"--dtype {name}" for name in DTYPES if name not in done]
    apart = {one.name.partition("-")[0] for one in METHODS if one.apart and one.name not in done}
    rest += [f"--only {name}" for name in sorted(apart)]
    rest += [] if any(row.method.mode == "plain" for part in parts for row in part.rows) else ["--with FILE.py"]
    return f"Left out, unless asked for: {', '.join(rest)}." if rest else "Nothing is left out."


def wide() -> Console:
    """Of 120 columns at least: a table that is squeezed into fewer cannot be read."""
    console = Console(highlight=False)
    console.width = max(120, console.width)
    return console


def show(console: Console, part: Part) -> None:
    """Print the tables and sentences of a part."""
    for table in tables(part):
        console.print(table)
        console.print()
    for sentence in words(part):
        console.print(Text(sentence))
    console.print()


def checked_device(device: Device) -> None:
    """That it is there."""
    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter(
            f"torch {torch.__version__} finds no CUDA device on this machine.", param_hint="--device"
        )


def checked_out(out: Path) -> None:
    """That the record can be written there, before anything is measured."""
    try:
        if out.is_dir():
            raise IsADirectoryError(f"{out} is a folder; name a file in it.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab") as file:
            empty = file.tell() == 0
        if empty:
            out.unlink()
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


def checked_methods(
    sets: Sequence[str], only: Sequence[str] | None, files: Sequence[Path]
) -> list[tuple[str, tuple[Method, ...]]]:
    """The sets, each with whom to measure on it."""
    try:
        for name in sets:
            get_set(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error
    try:
        known = all_methods(files)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--with") from error
    names = [name for given in only or () for name in re.split(r"[,\s]+", given) if name]
    try:
        return [(name, chosen(known, names, name)) for name in sets]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from error


assert set(DTYPES) == {one.value for one in Dtype}
