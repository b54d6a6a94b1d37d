"""Reading files: IDX, CIFAR's records, text. Nothing is unpickled, and every fault is told with the file's name."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from fallline.bench.tasks.data._find import DataError

EOS = "<eos>"
"""The word at the end of every line."""

UNSIGNED_BYTES = 0x08
"""IDX's code for the only type that our files have."""


def read_bytes(path: Path, unpack: bool = True) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        unpack: what ends in `.gz`.

    Raises:
        DataError: when it cannot be read, or its compression is broken.
    """
    try:
        if path.suffix != ".gz" or not unpack:
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except EOFError:
        raise DataError(f"{path} is truncated: its compressed data end early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is corrupt: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The items of an IDX file.

    Args:
        path: a file of unsigned bytes: two zeros, the type, the number of dimensions, each dimension as a 32-bit
            big-endian number, and the items.
        shape: of one item; () for labels.

    Returns:
        uint8, shape (items, *shape).

    Raises:
        DataError: when the header or the length is wrong.
    """
    content = read_bytes(path)
    header = 4 + 4 * (1 + len(shape))
    if len(content) < header:
        raise DataError(f"{path} is truncated: it has {len(content)} bytes, and the header alone {header}")
    if content[:2] != b"\0\0":
        raise DataError(f"{path} is no IDX file: it begins with {content[:4].hex()}, not with 0000")
    if content[2] != UNSIGNED_BYTES:
        raise DataError(f"{path} holds numbers of type 0x{content[2]:02x}, not unsigned bytes (0x08)")
    if content[3] != 1 + len(shape):
        raise DataError(f"{path} has {content[3]} dimensions, not {1 + len(shape)}")
    count, *found = struct.unpack(f">{content[3]}I", content[4:header])
    if tuple(found) != shape:
        raise DataError(f"{path} has items of {_times(found)}, not {_times(shape)}")
    expected = count * math.prod(shape)
    if len(content) - header != expected:
        fault = "is truncated" if len(content) - header < expected else "is too long"
        raise DataError(f"{path} {fault}: {len(content) - header:,} bytes follow its header, which tells {expected:,}")
    return _tensor(content[header:]).reshape(count, *shape)


def read_cifar(path: Path, shape: tuple[int, int, int], label_bytes: int) -> tuple[Tensor, Tensor]:
    """The images and labels of a file of CIFAR's binary version.

    Args:
        path: a file of records: labels of one byte each, then the planes of the channels.
        shape: channels, height and width of an image.
        label_bytes: how many labels a record has; the last of them is taken.

    Returns:
        Images, uint8, shape (records, *shape), and labels, int64, shape (records,).

    Raises:
        DataError: when the length is not that of whole records.
    """
    content = read_bytes(path)
    record = label_bytes + math.prod(shape)
    if len(content) % record:
        raise DataError(f"{path} is truncated: {len(content):,} bytes are no whole number of records of {record:,}")
    records = _tensor(content).reshape(-1, record)
    return records[:, label_bytes:].reshape(-1, *shape), records[:, label_bytes - 1].long()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        DataError: when it is something else.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start:,} is 0x{error.object[error.start]:02x}"
        ) from None


def words(text: str) -> list[str]:
    """The words between blanks, with `<eos>` after every line, an empty one too."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return [word for line in lines for word in (*line.split(), EOS)]


def _tensor(content: bytes) -> Tensor:
    # a copy: torch has no tensors that must not be written to
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _times(shape: tuple[int, ...] | list[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
