"""A race's figures for print, by matplotlib: at the width of a column, legible in grey."""

import importlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fallline.bench.common.files import stem
from fallline.bench.common.names import needed
from fallline.bench.common.numbers import plural
from fallline.bench.protocol.analysis import PROFILE_LEVEL, TAUS, Results
from fallline.bench.protocol.comparison import Comparison
from fallline.bench.report import looks, series
from fallline.bench.report.looks import LIGHT, STROKES, Line
from fallline.bench.report.series import Curve
from fallline.bench.runs.run import runaway

COLUMN, PAGE = 3.3, 6.9
"""Widths in inches: of one column of a paper, and of two."""

DPI = 300
SMALL, LARGE = 8, 9
"""Points: of all text but panels' titles, and of those."""

MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")
"""What tells strangers apart when the colours are used up."""

INK, FAINT = "#1d2127", "#dddbd5"

TICKS = 6
"""Number of ticks of a logarithmic axis at most."""


def stroke(line: Line) -> dict[str, Any]:
    """A line as matplotlib draws it on white."""
    dash = line.dash if line.dash in STROKES else "solid" if line.ours else "longdash"
    shape = {"color": line.colour[LIGHT], "linestyle": broken(dash), "linewidth": 1.5 if line.ours else 1.2}
    return {**shape, "marker": MARKERS[line.turn % len(MARKERS)], "markersize": 3.5}


def broken(dash: str) -> Any:
    """A dash by its name as matplotlib wants it."""
    return (0, STROKES[dash]) if STROKES[dash] else "-"


def draw(results: Results) -> dict[str, Any]:
    """The figures that this race has data for, by name, as `matplotlib.figure.Figure`; `ValueError` without it."""
    needed("matplotlib", "PNG", extra="plots")
    drawn: dict[str, Any] = {}
    for track in dict.fromkeys(part.track for part in results.parts):
        parts = [part for part in results.parts if part.track == track]
        end = "" if track == "tuned" else f"-{track}"
        drawn[f"curves{end}"] = learning_curves(results, parts)
        for part in parts:
            name = f"sensitivity{end}" + (f"-{stem([part.task])}" if len(parts) > 1 else "")
            while name in drawn:
                name += "+"  # another task's, whose name is the same once made safe
            drawn[name] = sensitivity(results, part)
        drawn[f"best-of{end}"] = best_of(results, parts)
        drawn[f"profile{end}"] = profile(results, parts)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def as_png(figure: Any, results: Results) -> bytes:
    """The figure as a PNG of 300 dots per inch; race and command stand in its metadata."""
    about = {"Title": f"Race {results.race.id}", "Source": str(results.race.setting.get("command", ""))}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks is drawn as boxes
        figure.savefig(file, format="png", dpi=DPI, metadata=about)
    return file.getvalue()


def learning_curves(results: Results, parts: Sequence[Comparison]) -> Any:
    """A panel a task: loss against gradient evaluations, mean and 95 % band over the seeds that finished.

    What a line does over ten times the loss before training is cut off. None where no seed has finished.
    """
    panels = {part.task: curves for part in parts if (curves := series.learning_curves(part, *_drawn(part)))}
    if not panels:
        return None
    sheet = _Sheet.of_curves(results, panels)
    for part in (part for part in parts if part.task in panels):
        axes, curves = sheet.axes[part.task], panels[part.task]
        low, high = series.bounds(curves)
        if part.initial is not None:
            most = runaway(part.initial, min(low, part.initial), 10)
            high = min(high, max(most, *(float(curve.mean[-1]) for curve in curves)))
        if (floor := part.about.get("floor")) is not None:
            _draw_floor(axes, floor, str(part.about.get("floor_name", "")))
            high = max(high, floor)
            low = min(low, floor / (high / floor) ** 0.1 if floor > 0 else floor - 0.1 * (high - floor))
        _set_axis(axes, "y", series.fit(low, high, most=TICKS))
        axes.set_xlim(0, max(float(curve.x[-1]) for curve in curves))
        _name(axes, part.task, "gradient evaluations", "validation loss" if part.held_out else "training loss")
    return sheet.figure


def _drawn(part: Comparison) -> tuple[str, str]:
    """The measure, and what it is drawn against: steps where the records have no gradient evaluations."""
    curves = [outcome.curve for entry in part.entries for outcome in entry.finished.values()]
    axis = "gradient evaluations" if all("gradient evaluations" in curve for curve in curves) else "steps"
    return "validation loss" if part.held_out else "train loss", axis


def _draw_floor(axes: Any, floor: float, name: str) -> None:
    """The lowest loss in reach, its name under it, where no line comes."""
    axes.axhline(floor, color=INK, linewidth=0.6, linestyle=broken("dot"))
    where: dict[str, Any] = {"xy": (1, floor), "xycoords": ("axes fraction", "data"), "xytext": (-2, -2)}
    align: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "top"}
    text = axes.annotate(_short(name), **where, **align, fontsize=SMALL, color=INK, parse_math=False)
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def best_of(results: Results, parts: Sequence[Comparison]) -> Any:
    """A panel a task: the expected score of the best of K trials against K, with its 95 % band.

    None where no optimizer has two trials.
    """
    panels = {part.task: curves for part in parts if (curves := series.best_of(part))}
    if not panels:
        return None
    sheet = _Sheet.of_curves(results, panels)
    for part in (part for part in parts if part.task in panels):
        axes, curves = sheet.axes[part.task], panels[part.task]
        _set_axis(axes, "y", series.fit(*series.bounds(curves), most=TICKS))
        axes.set_xlim(1, max(float(curve.x[-1]) for curve in curves))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _name(axes, part.task, "trials", f"expected best {part.score_name.partition(',')[0]}")
    return sheet.figure


def profile(results: Results, parts: Sequence[Comparison]) -> Any:
    """The share of runs that reach a target within a multiple of the best optimizer's median time, with 95 % bands.

    One panel over all tasks, at 95 % of the way to the baseline's loss; of a single task, a panel a target. None where
    there are no targets, or none that an optimizer reaches in half of its runs.
    """
    panels: dict[str, list[Curve]] = {}
    across = next((across for across in results.across if across.track == parts[0].track), None)
    if across is not None and across.profiles:
        title = f"{100 * PROFILE_LEVEL:.0f} % of the way, {plural(len(across.profiled), 'task')}"
        panels[title] = series.profile(across)
    if len(parts) == 1:
        found = series.target_profiles(parts[0])
        panels |= {f"{100 * level:.0f} % of the way": curves for level, curves in found.items()}
    if not panels:
        return None
    sheet = _Sheet.of_curves(results, panels, steps=True)
    for title, axes in sheet.axes.items():
        _set_axis(axes, "x", series.fit(float(TAUS[0]), float(TAUS[-1]), most=TICKS, air=0))
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        _name(axes, title, "time to target / best median", "share of runs")
    return sheet.figure


def sensitivity(results: Results, part: Comparison) -> Any:
    """A panel an optimizer: the score of every trial against its learning rate, the chosen one ringed.

    Failed trials are crosses at the upper edge, and where every trial failed is shaded. Triangles at the edge have
    scores beyond it. None where no trial has finished.
    """
    panels = [(entry, found) for entry in part.entries if (found := series.sensitivity(part, entry))]
    if not any(found.finished or found.above for _, found in panels):
        return None
    names = [entry.name for entry, _ in panels]
    sheet = _Sheet.blank(names, columns=4 if len(panels) in (4, 7, 8, 11, 12) else 3)
    for place, (entry, found) in enumerate(panels):
        axes, colour = sheet.axes[entry.name], looks.lines(results)[entry.name].colour[LIGHT]
        dots: dict[str, Any] = {"color": colour, "linestyle": "", "markersize": 4, "clip_on": False, "zorder": 3}
        for marker, points in {"o": found.finished, "^": found.above, "x": found.failed}.items():
            if points:  # the layout fails over a line without any
                axes.plot([point.x for point in points], [point.y for point in points], marker=marker, **dots)
        if found.chosen:
            ring = {"color": INK, "markersize": 8, "markerfacecolor": "none"}
            axes.plot(found.chosen.x, found.chosen.y, "o", **{**dots, **ring})
        _set_axis(axes, "x", found.x)
        _set_axis(axes, "y", found.y)
        for start, end in found.failed_stretches:
            axes.axvspan(start, end, color=colour, alpha=0.12, linewidth=0)
        first = place % sheet.columns == 0
        setting = "learning rate" if found.setting == "lr" else found.setting
        _name(axes, entry.label, setting, part.score_name if first else "")
        axes.tick_params(axis="y", labelleft=first)
    return sheet.figure


@dataclass(frozen=True)
class _Sheet:
    """A figure and its panels by name. Agg draws it: nothing of pyplot's state is touched."""

    figure: Any
    axes: dict[str, Any]
    columns: int

    @classmethod
    def blank(cls, names: Sequence[str], columns: int = 0, below: float = 0.0) -> "_Sheet":
        """Empty panels, `columns` side by side, and some inches below them."""
        figures = importlib.import_module("matplotlib.figure")
        agg = importlib.import_module("matplotlib.backends.backend_agg")
        count = len(names)
        columns = min(count, columns or {1: 1, 2: 2, 4: 2}.get(count, 3))
        rows = math.ceil(count / columns)
        size = COLUMN if count == 1 else PAGE, rows * (2.2 if columns < 4 else 1.8) + below
        figure = figures.Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
        agg.FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.03)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in panels[:count]:
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set(linewidth=0.6, color=INK)
            axes.tick_params(which="both", labelsize=SMALL, width=0.6, length=2.5, color=INK, labelcolor=INK)
            axes.grid(color=FAINT, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.locator_params(nbins=5)
        for axes in panels[count:]:
            axes.remove()
        return cls(figure, dict(zip(names, panels[:count], strict=True)), columns)

    @classmethod
    def of_curves(cls, results: Results, panels: Mapping[str, Sequence[Curve]], steps: bool = False) -> "_Sheet":
        """Panels of curves over all of their bands, with a legend under them.

        Broken lines lie over whole ones: where two are one, both can be seen.
        """
        every = looks.lines(results)
        drawn = {curve.name: every[curve.name] for curves in panels.values() for curve in curves}
        labels = {name: _short(line.label) for name, line in drawn.items()}
        width = COLUMN if len(panels) == 1 else PAGE
        fitting = max(1, int(width / (0.55 + 0.068 * max(map(len, labels.values())))))
        rows = math.ceil(len(labels) / fitting)
        sheet = cls.blank(list(panels), below=0.15 * rows)
        for name, curves in panels.items():
            axes = sheet.axes[name]
            for curve in reversed(curves):
                line = drawn[curve.name]
                alpha = max(0.05, 0.16 - 0.01 * len(curves))  # many bands must not hide what lies under them
                tint: dict[str, Any] = {"color": line.colour[LIGHT], "alpha": alpha, "linewidth": 0, "zorder": 2}
                axes.fill_between(curve.x, curve.low, curve.high, **tint, step="post" if steps else None)
                shape: dict[str, Any] = {"drawstyle": "steps-post"} if steps else {}
                shape |= {"markevery": max(1, len(curve.x) // 6), "zorder": 3 if line.ours else 4}
                axes.plot(curve.x, curve.mean, **stroke(line), **shape)
        sheet.add_legend(drawn, list(labels.values()), math.ceil(len(labels) / rows))
        return sheet

    def add_legend(self, drawn: Mapping[str, Line], labels: Sequence[str], columns: int) -> None:
        """Below the panels, so many side by side."""
        lines = importlib.import_module("matplotlib.lines")
        handles = [lines.Line2D([], [], **stroke(look)) for look in drawn.values()]
        text: dict[str, Any] = {"fontsize": SMALL, "labelcolor": INK, "labelspacing": 0.25, "columnspacing": 1.2}
        room: dict[str, Any] = {"handlelength": 2.6, "handletextpad": 0.5, "borderpad": 0.1, "frameon": False}
        names = ["name"] * len(handles)  # the labels come after: matplotlib leaves out those that begin with _
        legend = self.figure.legend(handles, names, loc="outside lower center", ncols=columns, **text, **room)
        for written, label in zip(legend.get_texts(), labels, strict=True):
            written.set(text=label, parse_math=False)


def _set_axis(axes: Any, along: str, axis: series.Axis) -> None:
    """The range of an axis; round ticks where it is logarithmic."""
    axes.set(**{f"{along}scale": "log" if axis.log else "linear", f"{along}lim": (axis.low, axis.high)})
    if axis.log:
        axes.set(**{f"{along}ticks": axis.ticks, f"{along}ticklabels": [f"{value:g}" for value in axis.ticks]})
        (axes.xaxis if along == "x" else axes.yaxis).minorticks_off()


def _name(axes: Any, title: str, x: str, y: str) -> None:
    """Title and labels; none is read as a formula."""
    text: dict[str, Any] = {"color": INK, "parse_math": False}
    axes.set_title(_short(title), fontsize=LARGE, pad=4, **text)
    axes.set_xlabel(_short(x), fontsize=SMALL, labelpad=2, **text)
    axes.set_ylabel(_short(y), fontsize=SMALL, labelpad=2, **text)


def _short(name: str, most: int = 32) -> str:
    """A name in one line that leaves room for others."""
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
    return name if len(name) <= most else f"{name[: most - 1]}…"
