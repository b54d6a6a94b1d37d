"""Tables: the text of a cell is written once, and shown in the terminal, on a page or in Markdown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import table as terminals
from rich.text import Text

from fallline.bench.protocol.verdict import Word
from fallline.bench.report.looks import Line

STYLES = {"better": "bold green", "worse": "red", "no": "dim", "too": "dim", "warn": "yellow"}
"""How the terminal shows the styles of spans; others have none there."""

SIGNS: dict[Word, str] = {
    "better": "✓",
    "worse": "✗",
    "practically equal": "=",
    "no evidence": "○",
    "too few seeds": "?",
}
"""A verdict in one sign, so that the page's tables can be read without colours."""


@dataclass(frozen=True)
class Span:
    """A stretch of text in a cell."""

    text: str
    style: str = ""
    """CSS classes of the page: `value`, `bounds`, `warn`, `small`, `line`, `next` on a line of its own."""

    title: str = ""
    """What the page shows on hovering."""

    brief: str | None = None
    """What the terminal shows instead; it has 80 columns."""

    sign: str = ""
    """What the page shows before it."""


def word(verdict: Word, style: str = "", title: str = "") -> Span:
    """A verdict with its sign and its colour."""
    return Span(verdict, f"word {verdict.split()[0]} {style}".rstrip(), title, sign=SIGNS[verdict])


Cell = str | Sequence[Span]
"""Text, in which `mean [low, high]` is set as a number with its interval; or spans, which stand side by side."""


@dataclass(frozen=True)
class Row:
    """A row of a table, and the look of the optimizer that it is about."""

    cells: Sequence[Cell]
    line: Line | None = None
    doubts: list[str] = field(default_factory=list)
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
    style: str = ""
    """A CSS class of the page."""

    right: Sequence[str] = ()
    """Headings of columns that the terminal sets right."""

    short: Mapping[str, str] = field(default_factory=dict)
    """Headings as they are on a narrow screen, where each stands in front of its cell."""


def plain(cell: Cell) -> str:
    """The text of a cell."""
    return cell if isinstance(cell, str) else " ".join(span.text for span in cell)


def terminal(table: Table, title: str = "") -> terminals.Table:
    """The first columns for the terminal."""
    shown = terminals.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    if title:
        shown.title, shown.title_justify, shown.title_style = Text(title), "left", "bold"
    for heading in ("", *table.head[1 : table.brief]):
        shown.add_column(heading, justify="right" if heading in table.right else "left")
    for row in table.rows:
        name, *cells = row.cells[: table.brief]
        bold = "bold" if row.line and row.line.ours else ""
        shown.add_row(Text(plain(name), style=bold), *(_styled(cell) for cell in cells))
    return shown


def _styled(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    texts = [(span.text if span.brief is None else span.brief, span.style.split()) for span in cell]
    styled = [(text, [STYLES[name] for name in names if name in STYLES]) for text, names in texts if text]
    return Text(" ").join(Text(text, style=styles[0] if styles else "") for text, styles in styled)


INTERVAL = re.compile(r"\\\[([−+\d.e∞inf, ]+)\\\](?!\()")
"""An interval with its brackets escaped: numbers are no link."""


def markdown(table: Table) -> list[str]:
    """The lines of a table in GitHub's Markdown; methods of this library in bold."""
    lines = [list(map(_inline, table.head)), ["---"] * len(table.head)]
    for row in table.rows:
        name, *cells = (INTERVAL.sub(r"[\1]", _inline(plain(cell))) for cell in row.cells)
        lines.append([f"**{name}**" if row.line and row.line.ours else name, *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def escaped(text: str) -> str:
    """Text in one line that Markdown shows as it is, at the start of a line too."""
    text = _inline(text)
    return re.sub(r"^([-+=]|\d+[.)](?=\s|$))", lambda start: f"{start[0][:-1]}\\{start[0][-1]}", text)  # else a list


def _inline(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~$&!@])", r"\\\1", " ".join(text.split()))
