"""`fallline merge`."""

from pathlib import Path
from typing import Annotated

import typer

from fallline.bench.cli.options import existing
from fallline.bench.cli.terminal import console, readable_errors, warn
from fallline.bench.race.store import Store


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
