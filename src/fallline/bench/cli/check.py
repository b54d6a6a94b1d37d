"""`fallline check`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fallline.bench.check import show
from fallline.bench.check.limits import Limits, watched
from fallline.bench.check.promises import GROUPS, PROMISES
from fallline.bench.check.promises._promise import Promise
from fallline.bench.check.run import check as run_check
from fallline.bench.check.run import described
from fallline.bench.check.subject import Loss, Subject, parse_settings
from fallline.bench.check.trial import Verdict, program
from fallline.bench.common.files import complaint, put
from fallline.bench.common.names import unknown


def check(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER]...",
            help="package.module:Class, my_file.py:Class, or a name such as [b]koala-m[/b] or [b]adamw[/b].",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the class, as lr=0.1; may come again."),
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(
            help="How a step is told the loss: not, as step(loss=mean), as step(loss=one per example), by a closure.",
            show_default="what its signature asks for",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP[/NAME]", help="These promises alone; may come again.", show_default="all"),
    ] = None,
    excuse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP/NAME=REASON", help="A promise that may be broken, and why; shown as such; may come again."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Time that a promise may take.")] = 60.0,
    memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="Memory that it may take.", show_default="half of what is free, or 8"),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all verdicts there.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table, or the list, as Markdown.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the promises and leave.")] = False,
) -> None:
    """Check what everybody expects of an optimizer: state, groups, dtypes, gradients, hooks, schedulers, processes.

    Prints what holds, and for what fails the ten lines that reproduce it. The exit code is 1 if something fails.

    [b]Examples[/b]

    fallline check my_module:MyOptimizer --set lr=0.1

    fallline check my_file.py --only state --only speed/compiles-once

    fallline check koala-m adamw --markdown
    """
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    console.width = max(120, console.width)  # a table that is squeezed into fewer columns cannot be read
    promises = checked_promises(only or [])
    if list_:
        if markdown:
            print(show.promises_markdown(promises))
        else:
            console.print(show.promises_table(promises))
        return
    excuses = checked_excuses(excuse or [])
    limits = Limits(seconds=timeout) if memory is None else Limits(seconds=timeout, memory=memory)
    subjects = checked_subjects(optimizers or [], settings or [], loss, limits)
    if not watched():
        errors.print("This system has no /proc: only the time and the output of a promise are limited.")
    found: dict[Subject, list[Verdict]] = {}
    for subject in subjects:
        with errors.status("") as status:
            status.update(Text(f"{subject.name} ..."))
            done: list[Verdict] = []

            def heard(verdict: Verdict, subject: Subject = subject, done: list[Verdict] = done) -> None:
                done.append(verdict)
                status.update(Text(f"{subject.name}: {len(done)} of {len(promises)}, {verdict.promise}"))

            found[subject] = run_check(subject, promises, excuses, limits, heard)
        if not markdown:
            report(console, subject, found[subject])
    if markdown:
        print(show.results_markdown(found))
    if json is not None:
        try:
            put(json, show.as_json(found))
        except OSError as error:
            raise typer.BadParameter(complaint(error), param_hint="--json") from error
    if any(verdict.broken for verdicts in found.values() for verdict in verdicts):
        raise typer.Exit(1)


def report(console: Console, subject: Subject, verdicts: Sequence[Verdict]) -> None:
    """Print the table, the count, and each failure with its reproduction."""
    console.print(show.results_table(subject, verdicts))
    console.print()
    for verdict in verdicts:
        if verdict.broken:
            promise = PROMISES[verdict.promise]
            console.print(Text.assemble((f"{verdict.promise}: ", "bold red"), verdict.reason), soft_wrap=True)
            console.print(Text(promise.why, style="dim"), soft_wrap=True)
            console.print(Text("\n" + program(promise, subject)), soft_wrap=True)
    console.print(Text(show.count(verdicts), style="bold"))


def checked_promises(only: Sequence[str]) -> list[Promise]:
    """The promises that are asked for, in their order; all where none is named."""
    for one in only:
        if one not in GROUPS and one not in PROMISES:
            raise typer.BadParameter(str(unknown("promise", one, [*GROUPS, *PROMISES])), param_hint="--only")
    return [one for one in PROMISES.values() if not only or one.group in only or one.path in only]


def checked_excuses(written: Sequence[str]) -> dict[str, str]:
    """Reasons by promise."""
    excuses = {}
    for one in written:
        path, equals, reason = one.partition("=")
        if path not in PROMISES:
            raise typer.BadParameter(str(unknown("promise", path, PROMISES)), param_hint="--excuse")
        if not equals or not reason.strip():
            raise typer.BadParameter(f"say why, as in {path}=REASON", param_hint="--excuse")
        excuses[path] = reason.strip()
    return excuses


def checked_subjects(names: Sequence[str], written: Sequence[str], loss: Loss | None, limits: Limits) -> list[Subject]:
    """The optimizers, every one imported and made once."""
    if not names:
        raise typer.BadParameter("name an optimizer, as package.module:Class; --list has the promises.")
    try:
        settings = parse_settings(written)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error
    try:
        return [described(name, settings, loss, limits) for name in dict.fromkeys(names)]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="OPTIMIZER") from error
