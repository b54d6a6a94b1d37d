"""What the commands share: where they print, where records lie, and errors in a sentence."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from fallline.bench.common.files import complaint

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DATABASE = "fallline.sqlite"


def checked_device(name: str) -> str:
    """A device that is there."""
    import torch  # here, as the list of commands does without

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise typer.BadParameter(str(error).splitlines()[0], param_hint="--device") from error
    return name


def warn(sentence: str) -> None:
    """Say that something did not work which the command can do without."""
    errors.print(Text.assemble(("Warning: ", "yellow"), sentence), soft_wrap=True)


@contextmanager
def readable_errors() -> Iterator[None]:
    """What can go wrong, as a sentence and an exit code."""
    from fallline.bench.race.coordinator import RaceError  # here: it imports torch

    try:
        yield
    except KeyboardInterrupt:
        errors.print("\nStopped. What has finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    except (RaceError, ValueError, OSError, sqlite3.Error) as error:
        said = complaint(error) if isinstance(error, OSError) else str(error)
        errors.print(Text.assemble(("Error: ", "bold red"), said), soft_wrap=True)
        raise typer.Exit(1) from None
