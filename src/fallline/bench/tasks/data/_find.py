"""Where a set lies on this machine."""

import os
from collections.abc import Sequence
from pathlib import Path

from fallline.bench.common.names import unknown
from fallline.bench.tasks.data._sets import DATASETS, DataSet, File

VARIABLE = "FALLLINE_DATA"
"""The environment variable that names the data folder."""


class DataError(ValueError):
    """Something is wrong with data: a sentence that names the file and the fault."""


class MissingData(DataError):
    """A set is not there: which file is looked for, where, and how to get it."""


def folders() -> list[Path]:
    """The folders in which sets are looked for, in this order: `$FALLLINE_DATA` if it is set, then the cache's `data`.

    A download goes into the first.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("FALLLINE_CACHE") or Path(base) / "fallline").expanduser()
    own = os.environ.get(VARIABLE)
    return [*([Path(own).expanduser().absolute()] if own else []), cache / "data"]


def get_dataset(name: str) -> DataSet:
    """The set of that name.

    Raises:
        DataError: when there is none.
    """
    if name not in DATASETS:
        raise DataError(str(unknown("data set", name, DATASETS)))
    return DATASETS[name]


def find(name: str) -> list[Path]:
    """The files of a set, in the order of its table; for an image folder its `train` and `val`.

    Raises:
        MissingData: when the set is not there, or not all of it.
    """
    dataset = get_dataset(name)
    if paths := locate(dataset, folders()):
        return paths
    raise MissingData(_missing(dataset, [folder / place for folder in folders() for place in dataset.places]))


def locate(dataset: DataSet, among: Sequence[Path]) -> list[Path] | None:
    """A set's files in the first of the data folders that has them all in one place; None if none has."""
    for folder in among:
        for place in dataset.places:
            paths = [present(folder / place, file) for file in dataset.files]
            if all(paths):
                return [path for path in paths if path]
    return None


def present(folder: Path, file: File) -> Path | None:
    """The file in that folder, as published, packed or unpacked; None if it is not there."""
    for name in (file.name, file.name.removesuffix(".gz"), f"{file.name}.gz"):
        if (path := folder / name).exists():
            return path
    return None


def _missing(dataset: DataSet, places: Sequence[Path]) -> str:
    lacking = {place: [file.name for file in dataset.files if not present(place, file)] for place in places}
    nearest = min(lacking, key=lambda place: len(lacking[place]))
    if len(lacking[nearest]) < len(dataset.files):
        told = f"{dataset.title} is not all there: {lacking[nearest][0]} is missing in {nearest}"
    else:
        told = f"{dataset.title} is not there: {lacking[nearest][0]} is looked for in {', '.join(map(str, places))}"
    if dataset.bring:
        return f"{told}; `fallline data get {dataset.name}` says what to put there"
    return f"{told}; `fallline data get {dataset.name}` downloads it"
