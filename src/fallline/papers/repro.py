"""`fallline repro`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text

from fallline.bench.cli.terminal import DATABASE, checked_device, console, errors, readable_errors, warn
from fallline.bench.common.names import unknown
from fallline.bench.race.store import Store
from fallline.bench.race.workers import available_cores, local_pool, visible_devices
from fallline.bench.runs.environment import environment
from fallline.bench.tasks.data import find
from fallline.papers.experiments import Design, Experiment, get_experiment
from fallline.papers.experiments.listing import listed
from fallline.papers.experiments.reproduce import reproduce, write
from fallline.papers.experiments.watch import Watcher, results_tables
from fallline.papers.records import folder


class Size(StrEnum):
    """At which size a preset runs."""

    cpu = "cpu"
    full = "full"


def repro(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]",
            help="Which experiment; without a name they are listed. With --claims: claims or methods, any number.",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the experiments: data, times, what was run, where the records are.")
    ] = False,
    claims: Annotated[
        bool, typer.Option("--claims", help="Test the papers' claims instead: a table of verdicts, in minutes.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps, trials, seeds and contenders: about a minute.")
    ] = False,
    scale: Annotated[
        Size | None,
        typer.Option(
            help="A version for two cores, with a few trials of everyone; or the published size.", show_default="cpu"
        ),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only cases whose names have this in them.", show_default="all"),
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Only these of its contenders.", show_default="all; fewer with --quick"),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Settings to try of each; 1 is the published one.", show_default="5; 1 at full scale"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds.", show_default="the experiment's; fewer with --quick")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time, one thread each.", show_default="one a core; on GPUs one a GPU"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda", help="Where models train.", show_default="cpu; at full scale a GPU if any"),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where --claims looks for records of experiments.",
            show_default="a checkout's benchmarks/records",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where records and report lie.")] = Path("runs"),
) -> None:
    """Run a paper's own experiment again: raw numbers as JSON, and a page that shows them.

    The papers' training experiments have two sizes. --scale cpu is small: a few settings around the published one are
    tried of everyone, and the best runs on fresh seeds. --scale full is the published setting at the published size.
    What has run once is never run again: interrupted with Ctrl-C, the same command goes on.

    [b]Examples[/b]

    fallline repro

    fallline repro koala-cifar

    fallline repro koala-cifar --scale full --cases "ResNet-18" --device cuda --seeds 3

    fallline repro lodo-bowl --optimizers lodo,adam,newton --seeds 2

    fallline repro --claims

    fallline repro --claims koala arturo-bound --quick
    """
    if claims:
        asked = dict(list=list_ or None, scale=scale, cases=cases, optimizers=optimizers, trials=trials, seeds=seeds)
        for option, value in {**asked, "jobs": jobs, "device": device}.items():
            if value is not None:
                raise typer.BadParameter("claims have no such choice.", param_hint=f"--{option}")
        with readable_errors():
            claims_table(names or [], quick, records, out)
        return
    if records is not None:
        raise typer.BadParameter("only --claims looks for records.", param_hint="--records")
    if len(names or []) > 1:
        raise typer.BadParameter("one experiment at a time.", param_hint="NAME")
    name = names[0] if names else None
    if name is None or list_:
        with readable_errors():
            show_list(out)
        return
    try:
        experiment = get_experiment(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    design = checked_design(experiment, name, quick, scale, cases, optimizers, trials, seeds, device)
    workers = jobs or (available_cores() if design.device == "cpu" else max(1, len(visible_devices())))
    with readable_errors():
        for needed in experiment.needs(design):
            find(needed)
        with Store(out / DATABASE, complain=warn) as store:
            introduce(experiment, design)
            with Watcher(console) as watch, local_pool(workers) as pool:
                record = reproduce(experiment, design, store, pool, ahead=2 * workers, watch=watch)
        record["environment"] = environment(workers)
        raw, report = write(experiment, record, out)
        page = experiment.page(record)
        for table in results_tables(page):
            console.print(table)
            console.print()
        for sentence in page.summary:
            console.print(Text(sentence))
        console.print(f"Raw numbers: {raw}", soft_wrap=True)
        console.print(f"Report: {report}", soft_wrap=True)


def claims_table(names: Sequence[str], quick: bool, records: Path | None, out: Path) -> None:
    """Measure the papers' claims, show the table and write it; an error in one of them is exit status 1."""
    from fallline.papers.claims import Effort, chosen  # which no other command needs
    from fallline.papers.claims.examine import FAILED, begun, examined, keep
    from fallline.papers.claims.show import tables, tally

    try:
        wanted = chosen(names)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    if records is not None and not records.is_dir():
        raise typer.BadParameter(f"{records} is no folder.", param_hint="--records")
    command = " ".join(["fallline repro --claims", *names, *(["--quick"] if quick else [])])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small, and sums keep their order
    effort = Effort(quick, records or folder())
    record = begun(effort, command)
    found: list[dict[str, Any]] = record["claims"]
    try:
        with console.status("") as status:
            for claim in wanted:
                status.update(f"{claim.id} ...")
                found.append(examined(claim, effort))
                path = keep(record, out)
    except KeyboardInterrupt:
        errors.print(f"\nStopped. {len(found)} claims were measured and are kept; name the others to go on.")
        raise typer.Exit(130) from None
    finally:
        torch.set_num_threads(threads)
    for table in tables(found):
        console.print(table)
    console.print(f"{tally(found)}; {sum(one['cpu_seconds'] for one in found):.0f} s of CPU time.")
    console.print(f"Raw numbers: {path}", soft_wrap=True)
    if any(one["verdict"] == FAILED for one in found):
        raise typer.Exit(1)


def checked_design(
    experiment: Experiment,
    name: str,
    quick: bool,
    scale: Size | None,
    cases: str | None,
    optimizers: str | None,
    trials: int | None,
    seeds: int | None,
    device: str | None,
) -> Design:
    """What was asked for, every part of it known to the experiment."""
    if not experiment.scaled:
        for option, value in (("--cases", cases), ("--trials", trials), ("--device", device)):
            if value is not None:
                raise typer.BadParameter(f"{name} has no such choice.", param_hint=option)
    for option, value in (("--cases", cases), ("--optimizers", optimizers)):
        if value is not None and not words(value):
            raise typer.BadParameter("name at least one.", param_hint=option)
    known = {contender.lower(): contender for contender in experiment.contenders}
    for one in words(optimizers):
        if one.lower() not in known:
            mistake = unknown("contender", one, experiment.contenders)
            raise typer.BadParameter(str(mistake), param_hint="--optimizers")
    chosen = tuple(dict.fromkeys(known[one.lower()] for one in words(optimizers)))
    usual = experiment.quick_seeds if quick else experiment.seeds
    if not experiment.scaled:
        return Design(name, quick, seeds or usual, chosen)
    if scale is Size.full:
        usual = experiment.quick_seeds if quick else experiment.full_seeds
    design = Design(
        name,
        quick,
        seeds or usual,
        chosen,
        scale="full" if scale is Size.full else "cpu",
        cases=words(cases),
        trials=trials,
        device=chosen_device(device, scale),
    )
    try:
        experiment.cases(design)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return design


def introduce(experiment: Experiment, design: Design) -> None:
    """Say what will be run, at which scale and where."""
    console.print(Text(f"{experiment.summary[0].upper()}{experiment.summary[1:]}.", style="dim"))
    if not experiment.scaled:
        return
    if design.quick:
        about = "a few steps of each, to see that all of it works (--quick)"
    elif design.scale == "full":
        about = f"full, as published (--scale full). CPU: {experiment.cpu_time}; GPU: {experiment.gpu_time}"
    else:
        about = "for two cores (--scale cpu; --scale full is the published size)"
    console.print(Text(f"Scale: {about}. Device: {design.device}."))


def show_list(out: Path) -> None:
    """Every experiment in a few lines."""
    for one in listed(out, warn):
        console.print(Text.assemble((one.name, "bold"), "\n", one.summary))
        facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 2))
        for what, text in (("data", one.data), ("CPU", one.cpu), ("GPU", one.gpu), ("run", one.ran)):
            facts.add_row(Text(what, style="dim"), Text(text))
        console.print(facts)
        console.print()


def words(text: str | None) -> tuple[str, ...]:
    """What stands between the commas, once each."""
    return tuple(dict.fromkeys(one.strip() for one in (text or "").split(",") if one.strip()))


def chosen_device(name: str | None, scale: Size | None) -> str:
    """A device that is there: the one named, or an accelerator for the published size, if there is one."""
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found.type if found and scale is Size.full else "cpu"
    return checked_device(name)
