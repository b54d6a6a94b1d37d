"""Tables: what stands in their cells is said once, and shown in the terminal, on a page or in Markdown."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import table as terminals
from rich.text import Text

from fallline.bench.report.looks import Line

STYLES = {"better": "bold green", "worse": "red", "no evidence": "dim", "too few seeds": "dim", "warn": "yellow"}
"""How the terminal shows the styles of spans; all others as they are."""


@dataclass(frozen=True)
class Span:
    """A stretch of text in a cell."""

    text: str
    style: str = ""
    """A CSS class of the page, `value`, `bounds`, `warn`, `small`, `line`, or the word of a verdict."""

    title: str = ""
    """What the page shows on hovering."""


Cell = str | Sequence[Span]
"""Text, in which `mean [low, high]` is set as a number with its interval; or spans, which stand side by side."""


@dataclass(frozen=True)
class Row:
    """A row of a table, and the look of the optimizer that it is about."""

    cells: Sequence[Cell]
    line: Line | None = None
    doubts: Sequence[str] = ()
    """Reasons to doubt what the row says."""


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row names it."""

    id: str
    head: Sequence[str]
    rows: Sequence[Row]
    brief: int = 3
    """Number of columns that the terminal shows."""

    caption: str = ""


def plain(cell: Cell) -> str:
    """The text of a cell."""
    return cell if isinstance(cell, str) else " ".join(span.text for span in cell)


def terminal(table: Table, title: str = "") -> terminals.Table:
    """The first columns for the terminal."""
    shown = terminals.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    if title:
        shown.title, shown.title_justify, shown.title_style = Text(title), "left", "bold"
    for heading in ("", *table.head[1 : table.brief]):
        shown.add_column(heading)
    for row in table.rows:
        name, *cells = row.cells[: table.brief]
        bold = "bold" if row.line and row.line.ours else ""
        shown.add_row(Text(plain(name), style=bold), *(_styled(cell) for cell in cells))
    return shown


def _styled(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    return Text(" ").join(Text(span.text, style=STYLES.get(span.style, "")) for span in cell)


def markdown(table: Table) -> list[str]:
    """The lines of a table in GitHub's Markdown; methods of this library in bold."""
    lines = [markdown_row(map(escaped, table.head)), markdown_row(["---"] * len(table.head))]
    for row in table.rows:
        name, *cells = (escaped(plain(cell)) for cell in row.cells)
        lines.append(markdown_row([f"**{name}**" if row.line and row.line.ours else name, *cells]))
    return lines


def markdown_row(cells: Iterable[str]) -> str:
    """A row of cells that are escaped."""
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Text in one line that Markdown shows as it is, in a table too."""
    text = re.sub(r"([\\`*_{}\[\]<>|#~$&!@])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([-+=]|\d+[.)](?=\s|$))", lambda start: f"{start[0][:-1]}\\{start[0][-1]}", text)  # else a list
