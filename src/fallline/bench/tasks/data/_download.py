"""Getting sets from their publishers. What arrives is checked, and only then moved into place, file by file."""

import errno
import hashlib
import http
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from fallline.bench.common.names import needed
from fallline.bench.tasks.data._find import DataError, folders, get_dataset, locate
from fallline.bench.tasks.data._read import read_bytes
from fallline.bench.tasks.data._sets import Archive, DataSet, File

CHUNK = 1 << 16
"""Bytes written at a time."""


class Bar(Protocol):
    """What shows the progress of one download: the object that pooch takes as its progress bar."""

    total: int
    """Bytes to come, 0 where the server does not say; set once at the start."""

    def update(self, count: int) -> None:
        """So many bytes more."""

    def reset(self) -> None:
        """Back to none."""

    def close(self) -> None:
        """It is done."""


def fetch(name: str, into: Path | None = None, progress: Callable[[str], Bar] | None = None) -> list[Path]:
    """Download a set, unless it is there with the published checksums.

    Args:
        name: of the set.
        into: the data folder; None for the first in which sets are looked for.
        progress: a bar for the file of that name; None shows nothing.

    Returns:
        Its files, in the order of its table.

    Raises:
        DataError: when it cannot be had. Nothing half-made is left, and what was there is kept.
    """
    dataset = get_dataset(name)
    if dataset.bring:
        raise DataError(f"{dataset.title} cannot be downloaded by this command: {dataset.bring}, below {folders()[0]}")
    into = folders()[0] if into is None else into
    found = locate(dataset, [into])
    if found and all(_whole(file, path) for file, path in zip(dataset.files, found, strict=True)):
        return found
    target = into / dataset.places[0]
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=into) as place:  # the same disk: a move is a rename
            if dataset.archive:
                _room(dataset, [dataset.archive.size, *(file.size for file in dataset.files)], into)
                _put(_unpacked(dataset, dataset.archive, Path(place), progress), target)
            else:
                lacking = [file for file in dataset.files if not _whole(file, target / file.name)]
                _room(dataset, [file.size for file in lacking], into)
                for file in lacking:
                    got = _retrieved(file.addresses, file.checksum, file.name, Path(place), progress)
                    _put([got], target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk is full: {into} has no room for {dataset.title}") from error
        raise DataError(f"{into} cannot be written to: {error.strerror or error}") from error
    return [target / file.name for file in dataset.files]


def verified(file: File, path: Path) -> bool | None:
    """Whether a file has its published checksum, packed or unpacked; None where there is none to compare with.

    Raises:
        DataError: when it cannot be read.
    """
    if not file.checksum or (file.name.endswith(".gz") and path.suffix != ".gz"):  # it is of the packed file
        return None
    algorithm, _, published = file.checksum.partition(":")
    return hashlib.new(algorithm, read_bytes(path, unpack=path.name != file.name)).hexdigest() == published


def _whole(file: File, path: Path) -> bool:
    try:
        return verified(file, path) is True
    except DataError:  # not there, or broken: what is downloaded takes its place
        return False


def _room(dataset: DataSet, sizes: list[int | None], into: Path) -> None:
    need, free = sum(size or 0 for size in sizes), shutil.disk_usage(into).free
    if free < need:
        from rich.filesize import decimal

        raise DataError(
            f"the disk is too full: {dataset.title} takes {decimal(need)}, and {into} has room for {decimal(free)}"
        )


def _put(paths: list[Path], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.chmod(0o644)  # temporary files are their owner's alone
        path.replace(target / path.name)


def _retrieved(
    addresses: tuple[str, ...], checksum: str, name: str, place: Path, progress: Callable[[str], Bar] | None
) -> Path:
    """A file from the first address that gives it, with the right checksum."""
    pooch, requests = (needed(package, "downloading data", extra="bench") for package in ("pooch", "requests"))
    pooch.get_logger().setLevel("WARNING")  # it would print what it does
    faults = []
    for address in addresses:
        downloader = pooch.HTTPDownloader(
            progressbar=progress(name) if progress else False,
            chunk_size=CHUNK,
            headers={"Accept-Encoding": "identity"},  # so that the length told is the file's
        )
        try:
            return Path(pooch.retrieve(address, checksum, fname=name, path=place, downloader=downloader))
        except requests.exceptions.RequestException as error:
            faults.append(f"{address} {_why(error, requests.exceptions)}")
        except ValueError as error:
            if "hash" not in str(error):
                raise
            faults.append(f"{address} gave a file with another checksum than the published {checksum}")
    raise DataError(f"{name} could not be downloaded: {'; '.join(faults)}. What was there is unchanged")


def _why(error: Any, kinds: Any) -> str:
    """A network's fault in a few words."""
    if isinstance(error, kinds.HTTPError):
        code = error.response.status_code
        return f"answered {code} ({http.HTTPStatus(code).phrase})" if code in set(http.HTTPStatus) else f"said {code}"
    if isinstance(error, kinds.ChunkedEncodingError):
        return "broke off before the end"
    if isinstance(error, kinds.Timeout):
        return "did not answer in time"
    if isinstance(error, kinds.ConnectionError):
        return "could not be reached, or broke off"
    return f"failed ({type(error).__name__})"


def _unpacked(dataset: DataSet, archive: Archive, place: Path, progress: Callable[[str], Bar] | None) -> list[Path]:
    """A set's files out of its archive. Where they are written is in our table, and never what the archive says."""
    name = archive.addresses[0].rpartition("/")[2]
    packed = _retrieved(archive.addresses, archive.checksum, name, place, progress)
    paths = {f"{archive.folder}/{file.name}": place / file.name for file in dataset.files}
    try:
        for member, content in _members(packed):
            if member in paths:
                with content() as source, paths[member].open("wb") as copy:
                    shutil.copyfileobj(source, copy, CHUNK)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{name} is corrupt: {error}") from error
    if lacking := [member for member, path in paths.items() if not path.exists()]:
        raise DataError(f"{name} has no file {lacking[0]}")
    return list(paths.values())


def _members(packed: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """The regular files of a zip or tar file, in its order: name, and how to open it until the next."""
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for name in archive.namelist():
                yield name, partial(archive.open, name)
    else:
        with tarfile.open(packed) as tape:
            for member in tape:
                if member.isreg():
                    yield member.name, partial(_regular, tape, member)


def _regular(tape: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tape.extractfile(member)
    assert content is not None  # None is for what is neither a file nor a link
    return content
