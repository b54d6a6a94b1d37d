"""`fallline data`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from fallline.bench.tasks.data._download import fetch, verified
from fallline.bench.tasks.data._find import DataError, find, folders, get_dataset, locate
from fallline.bench.tasks.data._folder import image_folder
from fallline.bench.tasks.data._load import load_images, load_text
from fallline.bench.tasks.data._sets import DATASETS, DataSet

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

NamesArgument = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Sets, as [b]fallline data[/b] lists them.")
]


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """List the data sets: which are there and where, and the size of the others. [b]get[/b] one, or [b]check[/b] it.

    They are looked for in the folder that the environment variable FALLLINE_DATA names, then in the cache folder.

    [b]Examples[/b]

    fallline data

    fallline data get mnist cifar-10

    fallline data check cifar-10
    """
    if context.invoked_subcommand is None:
        console.print(sets_table())
        console.print(Text(f"\nLooked for in {', then '.join(map(str, folders()))}."), soft_wrap=True)


@app.command()
def get(names: NamesArgument) -> None:
    """Download sets into FALLLINE_DATA, or else the cache folder, and check them; [b]all[/b] for all that can be.

    [b]Examples[/b]

    fallline data get mnist

    fallline data get all
    """
    chosen = checked_names(names, everything=[name for name, dataset in DATASETS.items() if not dataset.bring])
    failed = False
    for name in chosen:
        with told() as ok:
            fetched(DATASETS[name])
            ok.append(name)
        failed |= not ok
    if failed:
        raise typer.Exit(1)


@app.command()
def check(names: NamesArgument) -> None:
    """Read sets: their counts, and whether the files have the published checksums; [b]all[/b] for all that are there.

    [b]Examples[/b]

    fallline data check cifar-10
    """
    chosen = checked_names(names, everything=[name for name in DATASETS if locate(DATASETS[name], folders())])
    failed = False
    for name in chosen:
        with told() as ok:
            paths = find(name)
            console.print(Text(f"{name}: {holds(DATASETS[name])}. {origin(DATASETS[name], paths)}"), soft_wrap=True)
            ok.append(name)
        failed |= not ok
    if failed:
        raise typer.Exit(1)


def sets_table() -> Table:
    """All sets: there or not, where, and how much."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Set", no_wrap=True)
    table.add_column("There", no_wrap=True)
    table.add_column("Size", no_wrap=True, justify="right")
    table.add_column("Where", overflow="fold")
    for name, dataset in DATASETS.items():
        if found := locate(dataset, folders()):
            size = sum(path.stat().st_size for path in found) if dataset.kind != "folder" else None
            where = Text(str(found[0].parent))
        else:
            size = dataset.size
            where = Text("bring it yourself: " if dataset.bring else "", style="dim")
            where.append(f"fallline data get {name}")
        there = Text("yes", style="green") if found else Text("no", style="dim")
        table.add_row(Text(name, style="bold"), there, decimal(size) if size else "", where)
    return table


def fetched(dataset: DataSet) -> None:
    """Download a set with a bar, and say where it is and on what terms."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as progress:
        paths = fetch(dataset.name, progress=lambda name: FileBar(progress, name))
    console.print(Text(f"{dataset.name}: {paths[0].parent}. {dataset.publisher}. {dataset.licence}"), soft_wrap=True)


def holds(dataset: DataSet) -> str:
    """What is in a set, which is read for it; of ImageNet the names alone."""
    if dataset.kind in ("words", "characters"):
        text = load_text(dataset.name)
        what = "words" if dataset.kind == "words" else "characters"
        counts = ", ".join(
            f"{len(tokens):,} {split}"
            for split, tokens in (("training", text.train), ("validation", text.validation), ("test", text.test))
        )
        return f"{counts} {what}, {len(text.vocabulary):,} different"
    if dataset.kind == "folder":
        counted = [(image_folder(dataset.name, split), split) for split in ("train", "val")]
        whole = {file.name: file.count for file in dataset.files}
        counts = ", ".join(f"{len(files.paths):,} of {whole[split]:,} in {split}" for files, split in counted)
        return f"{counts}, {len(counted[0][0].classes):,} classes; names alone, the images were not read"
    images = load_images(dataset.name)
    train, test = (len(part.labels) for part in (images.train, images.test))
    return f"{train:,} training and {test:,} test images, {len(images.classes)} classes"


def origin(dataset: DataSet, paths: list[Path]) -> str:
    """Whether its files are the published ones."""
    sums = {path: verified(file, path) for file, path in zip(dataset.files, paths, strict=True)}
    if other := [path.name for path, sum_ in sums.items() if sum_ is False]:
        return f"Other than published, by checksum: {', '.join(other)} in {paths[0].parent}."
    if unknown := [path.name for path, sum_ in sums.items() if sum_ is None]:
        return f"No checksum to compare with: {', '.join(unknown)} in {paths[0].parent}."
    return f"All files in {paths[0].parent} have the published checksums."


def checked_names(names: list[str], everything: list[str]) -> list[str]:
    """The sets' names, once each, every one known."""
    try:
        chosen = [one for name in names for one in (everything if name == "all" else [get_dataset(name).name])]
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    return list(dict.fromkeys(chosen))


@contextmanager
def told() -> Iterator[list[str]]:
    """What goes wrong with one set, as a sentence, so that the next has its turn."""
    try:
        yield []
    except KeyboardInterrupt:
        errors.print("\nStopped. Nothing half-made is left; what was whole is kept.")
        raise typer.Exit(130) from None
    except DataError as error:
        errors.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)


class FileBar:
    """One download's line among rich's progress bars, as pooch talks to it."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.task, self._total = progress, progress.add_task(name, total=None), 0

    @property
    def total(self) -> int:
        """Bytes to come; 0 if unknown."""
        return self._total

    @total.setter
    def total(self, count: int) -> None:
        self._total = count
        self.progress.update(self.task, total=count or None)

    def update(self, count: int) -> None:
        """So many bytes more."""
        self.progress.advance(self.task, count)

    def reset(self) -> None:
        """Back to none."""
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        """It is done."""
