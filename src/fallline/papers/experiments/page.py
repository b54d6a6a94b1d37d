"""A page of an experiment: the race report's fonts, colours and script around other tables and figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fallline.bench.common.numbers import plural
from fallline.bench.protocol.stats import Interval
from fallline.bench.report.figures import band_traces as band_traces
from fallline.bench.report.figures import blank_layout, fitted_axis
from fallline.bench.report.figures import curve_trace as curve_trace
from fallline.bench.report.looks import DARK, INK, LIGHT, Figure
from fallline.bench.report.looks import Line as Line  # the experiments take all of their page from here
from fallline.bench.report.tables import Row as Row
from fallline.bench.report.tables import Table as Table


@dataclass(frozen=True)
class Plot:
    """A figure with its title, and what one must know to read it."""

    name: str
    title: str
    figure: Figure
    note: str = ""
    height: int = 380


@dataclass(frozen=True)
class Section:
    """A heading, a note, and what stands below."""

    title: str
    note: str = ""
    table: Table | None = None
    plots: Sequence[Plot] = ()
    points: Sequence[str] = ()
    """A list of sentences."""


@dataclass(frozen=True)
class Page:
    """All that is particular to an experiment's page."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    lines: Sequence[Line] = ()
    """Those that can be shown and hidden."""

    colours: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Further tokens of its figures."""

    tables: int = 1
    """How many of its tables, the first ones, hold its results: the terminal and the records' summary show them."""

    summary: Sequence[str] = ()
    """Sentences that the terminal shows after them."""

    @property
    def results(self) -> list[tuple[str, Table]]:
        """The tables with what was measured here, each with the heading above it."""
        return [(section.title, section.table) for section in self.sections if section.table][: self.tables]


def render(page: Page, record: Mapping[str, Any]) -> str:
    """The page as HTML: one file that opens offline."""
    from fallline.bench.report.page import fill  # plotly is slow to import, and listing the experiments needs none

    plots = {plot.name: plot.figure for section in page.sections for plot in section.plots}
    colours = {**INK, **page.colours, **{line.name: line.colour for line in page.lines}}
    return fill(
        "repro.html",
        plots,
        light={name: faces[LIGHT] for name, faces in colours.items()},
        dark={name: faces[DARK] for name, faces in colours.items()},
        page=page,
        record=record,
    )


def layout(x: str, y: str, *, log_x: tuple[float, float] | None = None) -> Figure:
    """A layout in the report's manner with named axes; with `log_x`, the logarithmic range of the first."""
    made = blank_layout()
    made["margin"] |= {"l": 60, "b": 48}
    for axis, title in (("xaxis", x), ("yaxis", y)):
        made[axis]["title"] = {**made[axis]["title"], "text": title}
    if log_x:
        made["xaxis"] |= log_axis(*log_x)
    return made


def log_axis(low: float, high: float, *, air: float = 0.02, ticks: int = 8) -> Figure:
    """A logarithmic axis with a tick a decade, or every few decades of a long one."""
    start, end = math.log10(low), math.log10(high)
    every = math.ceil((end - start) / ticks) or 1
    values = [10.0**d for d in range(math.ceil(start - 1e-9), math.floor(end + 1e-9) + 1) if d % every == 0]
    if len(values) < 2:
        return fitted_axis(low, high, ratio_for_log=1)
    margin = air * (end - start)
    texts = [f"{v:,.0f}" if 1 <= v < 1e6 else f"{v:g}" for v in values]
    return {"type": "log", "range": [start - margin, end + margin], "tickvals": values, "ticktext": texts}


def value_axis(low: float, high: float, *, ratio_for_log: float = 3) -> Figure:
    """The axis of a measure: the race's, logarithmic where the range asks for it."""
    return fitted_axis(low, high, ratio_for_log=ratio_for_log)


def level(value: float, text: str, *, log: bool) -> Figure:
    """A dotted horizontal line with its name: `shapes` and `annotations` of a layout."""
    return {
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "yref": "y",
                "x0": 0,
                "x1": 1,
                "y0": value,
                "y1": value,
                "line": {"color": "@muted", "width": 1.5, "dash": "dot"},
            }
        ],
        "annotations": [
            {
                "x": 0.99,
                "y": math.log10(value) if log else value,
                "xref": "paper",
                "yref": "y",
                "xanchor": "right",
                "yanchor": "top",
                "yshift": -3,
                "text": text,
                "showarrow": False,
                "font": {"size": 12, "color": "@muted"},
            }
        ],
    }


# --- numbers in words ---


def digits(value: Interval | None) -> str:
    """`mean [low, high]` with as many decimals as the interval is worth."""
    if value is None:
        return "–"
    if value.low is None or value.high is None or value.high <= value.low:
        return f"{value.mean:#.4g}"
    places = max(0, min(4, 1 - math.floor(math.log10(value.high - value.low))))
    return f"{value.mean:.{places}f} [{value.low:.{places}f}, {value.high:.{places}f}]"


def lost_of(lost: int, seeds: int) -> str:
    """` (1 of 3 seeds lost)`; nothing where none was lost."""
    return f" ({lost} of {plural(seeds, 'seed')} lost)" if lost else ""
