"""`fallline report`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fallline.bench.cli.options import (
    OutOption,
    existing,
)
from fallline.bench.cli.terminal import DATABASE, console, readable_errors, warn
from fallline.bench.protocol.analysis import Results
from fallline.bench.race.coordinator import RaceError
from fallline.bench.race.results import results
from fallline.bench.race.store import Store


class Format(StrEnum):
    """What a report can be written as."""

    html = "html"
    md = "md"
    csv = "csv"
    parquet = "parquet"
    png = "png"


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


def write_report(found: Results, out: Path, before: Results | None = None) -> None:
    """Write the page and say where."""
    from fallline.bench.report.page import page_name, write_page  # plotly is slow to import, and nothing else needs it

    path = write_page(found, out / page_name(found), before)
    console.print(f"Report: {path}", soft_wrap=True)
