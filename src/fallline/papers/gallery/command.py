"""`fallline gallery`."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from rich.text import Text

from fallline.bench.cli.terminal import console, readable_errors
from fallline.bench.common.files import put
from fallline.bench.race.workers import available_cores
from fallline.papers.gallery import PICTURES, get_picture
from fallline.papers.gallery.player import player


def gallery(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Which pictures.", show_default="all"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the pictures.")] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the pictures go.")] = Path("gallery"),
    seed: Annotated[int, typer.Option(min=0, help="The seed of everything that is random.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Searches at a time, one thread each.", show_default="one a core")
    ] = None,
) -> None:
    """Draw what the optimizers do, from runs made on the spot: SVG files for a light and a dark ground.

    Of what moves there is also a player, NAME.html, which opens offline. The same seed gives the same picture. A file
    of the same name is replaced.

    [b]Examples[/b]

    fallline gallery --list

    fallline gallery double-well

    fallline gallery rosenbrock valley --seed 1 --out pictures
    """
    try:
        chosen = {name: get_picture(name) for name in names or PICTURES}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    if list_:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, make in chosen.items():
            table.add_row(Text(name, style="bold"), Text(make.__doc__ or ""))
        console.print(table)
        return
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other, and round otherwise
    with readable_errors():
        for name, make in chosen.items():
            start = time.perf_counter()
            drawn = make(seed, jobs or available_cores())
            files = [put(out / f"{name}.svg", drawn.svg)]
            if drawn.seconds is not None:
                files.append(put(out / f"{name}.html", player(name, drawn.svg, drawn.seconds)))
            console.print(Text(f"{name}, {time.perf_counter() - start:.0f} s", style="bold"))
            for line in drawn.summary:
                console.print(Text(f"  {line}"))
            console.print(f"  {', '.join(map(str, files))}", soft_wrap=True)
