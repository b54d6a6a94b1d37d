"""Files: what they are called, what is filled into them, and that they appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file that is to stand at `path`, its folder made: at the end it takes its place in one move.

    If anything is raised before, what stood there stays, and nothing else is left. A link goes on pointing to its file;
    what is no file, such as `/dev/stdout`, is written to as it is.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        yield place
        return
    beside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")  # others may write the same file
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(place)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def put(path: Path, content: str | bytes) -> Path:
    """Put a file in its place in one move, see `replacing`; text is UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def append(path: Path, line: str) -> None:
    """Add a line to a file: all of it or, where there is no room, nothing. One that was cut short before ends here.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        rest = (b"" if file.read(1) in (b"", b"\n") else b"\n") + line.encode() + b"\n"
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def complaint(error: OSError) -> str:
    """What the system complains of, as a sentence that names the file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error.filename or 'a file'} cannot be written, and what was there is left as it was"
    named = error.strerror and error.filename is not None
    return f"{error.filename}: {error.strerror}" if named else str(error)


def fill(page: Path, place: str, text: str) -> None:
    """Replace what stands on a page between the comment of a place and the next `<!-- end -->`."""
    pattern = rf"(<!-- {place} -->\n).*?(<!-- end -->)"
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(pattern, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old, flags=re.DOTALL)
    assert count == 1, place
    put(page, new)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell would end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def stem(tasks: Sequence[str]) -> str:
    """How the names of a race's files begin: its tasks, without what a file system may not take."""
    stems = []
    for task in tasks:
        path, colon, name = task.partition(":")
        stems.append(Path(path).stem + (colon and f":{name}") if path.endswith(".py") else task)
    whole = "+".join(re.sub(r"[^\w-]+", ".", one).strip(".") or "task" for one in stems)
    if len(whole) > 80:  # many tasks, or long names: file systems take 255 bytes
        whole = f"{whole[:60]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return whole
