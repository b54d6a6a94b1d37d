"""What the commands share: where they print, where records lie, and errors in a sentence."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from fallline.bench.race import RaceError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DATABASE = "fallline.sqlite"


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
