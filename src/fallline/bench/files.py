"""Files: what they are called, what is filled into them, and that they appear whole or not at all."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def put(path: Path, content: str | bytes) -> Path:
    """Put a file in its place in one move, its folder too; text is UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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
