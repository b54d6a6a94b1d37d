"""A race's figures for print, by matplotlib: at the width of a column, legible in grey."""

import importlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fallline.bench.common.files import stem
from fallline.bench.common.names import needed
from fallline.bench.protocol.analysis import PROFILE_LEVEL, TAUS, Results, highest_drawn
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.stats import band, censored_median, performance_profile
from fallline.bench.report import looks
from fallline.bench.report.looks import LIGHT, Line
from fallline.bench.runs.loop import runaway

COLUMN, PAGE = 3.3, 6.9
"""Widths in inches: of one column of a paper, and of two."""

DPI = 300
SMALL, LARGE = 8, 9
"""Points: of all text but panels' titles, and of those."""

STROKES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 2)),
    "dashdot": (0, (4.4, 1.6, 1.2, 1.6)),
    "dot": (0, (1, 1.3)),
    "longdash": (0, (7, 2)),
    "longdashdot": (0, (7, 1.6, 1.2, 1.6)),
}
"""Plotly's names for broken lines, as strokes and gaps in line widths."""

MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")
"""What tells strangers apart when the colours are used up."""

INK, FAINT = "#1d2127", "#dddbd5"


def stroke(line: Line) -> dict[str, Any]:
    """A line as matplotlib draws it on white."""
    dash = STROKES.get(line.dash) or STROKES["solid" if line.ours else "longdash"]
    shape = {"color": line.colour[LIGHT], "linestyle": dash, "linewidth": 1.5 if line.ours else 1.2}
    return {**shape, "marker": MARKERS[line.turn % len(MARKERS)], "markersize": 3.5}


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


@dataclass(frozen=True)
class _Line:
    """A line of a panel and its band: who, where and how high; shape (points,) each."""

    entry: ContenderResult
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def learning_curves(results: Results, parts: Sequence[Comparison]) -> Any:
    """A panel a task: loss against gradient evaluations, mean and 95 % band over the seeds that finished.

    What a line does over ten times the loss before training is cut off. None where no seed has finished.
    """
    panels = {part.task: lines for part in parts if (lines := _curves(part))}
    if not panels:
        return None
    sheet = _Sheet.of_lines(results, panels)
    for part in (part for part in parts if part.task in panels):
        axes, lines = sheet.axes[part.task], panels[part.task]
        low, high = min(float(line.low.min()) for line in lines), max(float(line.high.max()) for line in lines)
        if part.initial is not None:
            most = runaway(part.initial, min(low, part.initial), 10)
            high = min(high, max(most, *(float(line.mean[-1]) for line in lines)))
        if (floor := part.about.get("floor")) is not None:
            _draw_floor(axes, floor, str(part.about.get("floor_name", "")))
            high = max(high, floor)
            low = min(low, floor / (high / floor) ** 0.1 if floor > 0 else floor - 0.1 * (high - floor))
        _fit(axes, "y", low, high)
        axes.set_xlim(0, max(float(line.x[-1]) for line in lines))
        _name(axes, part.task, "gradient evaluations", "validation loss" if part.held_out else "training loss")
    return sheet.figure


def _curves(part: Comparison) -> list[_Line]:
    measure, found = "validation loss" if part.held_out else "train loss", []
    for entry in part.entries:
        curves = [outcome.curve for outcome in entry.finished.values() if measure in outcome.curve]
        points = min((len(curve[measure]) for curve in curves), default=0)
        keep = [i for i in range(points) if all(curve[measure][i] is not None for curve in curves)]
        if keep:
            spent = "gradient evaluations" if all("gradient evaluations" in curve for curve in curves) else "step"
            x, y = (np.array([[curve[name][i] for i in keep] for curve in curves], float) for name in (spent, measure))
            found.append(_Line(entry, x.mean(axis=0), *band(y)))
    return found


def _draw_floor(axes: Any, floor: float, name: str) -> None:
    """The lowest loss in reach, its name under it, where no line comes."""
    axes.axhline(floor, color=INK, linewidth=0.6, linestyle=STROKES["dot"])
    where: dict[str, Any] = {"xy": (1, floor), "xycoords": ("axes fraction", "data"), "xytext": (-2, -2)}
    align: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "top"}
    text = axes.annotate(_short(name), **where, **align, fontsize=SMALL, color=INK, parse_math=False)
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def best_of(results: Results, parts: Sequence[Comparison]) -> Any:
    """A panel a task: the expected score of the best of K trials against K, with its 95 % band.

    None where nobody has two trials.
    """
    panels = {}
    for part in parts:
        found = [(entry, entry.best_of) for entry in part.entries if entry.best_of and len(entry.best_of.mean) > 1]
        if found:
            panels[part.task] = [
                _Line(entry, np.arange(1.0, len(best.mean) + 1), best.mean, best.low, best.high)
                for entry, best in found
            ]
    if not panels:
        return None
    sheet = _Sheet.of_lines(results, panels)
    for part in (part for part in parts if part.task in panels):
        axes, lines = sheet.axes[part.task], panels[part.task]
        _fit(axes, "y", min(float(line.low.min()) for line in lines), max(float(line.high.max()) for line in lines))
        axes.set_xlim(1, max(float(line.x[-1]) for line in lines))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _name(axes, part.task, "trials", f"expected best {part.score_name.partition(',')[0]}")
    return sheet.figure


def profile(results: Results, parts: Sequence[Comparison]) -> Any:
    """The share of runs that reach a target within a multiple of the best optimizer's median time, with 95 % bands.

    One panel over all tasks, at 95 % of the way to the baseline's loss; of a single task, a panel a target. None where
    there are no targets, or none that an optimizer reaches in half of its runs.
    """
    panels: dict[str, list[_Line]] = {}
    across = next((across for across in results.across if across.track == parts[0].track), None)
    if across is not None and across.profiles:
        entries = {entry.name: entry for entry in parts[0].entries}
        count = len(across.profiled)
        title = f"{100 * PROFILE_LEVEL:.0f} % of the way, {count} task{'s' if count > 1 else ''}"
        panels[title] = [_Line(entries[name], TAUS, *found) for name, found in across.profiles.items()]
    for level in parts[0].targets if len(parts) == 1 else ():
        hits = [(entry, entry.hits[level]) for entry in parts[0].entries if entry.hits.get(level)]
        best = min((censored_median(times) for _, times in hits), default=math.inf)
        if best < math.inf:
            panels[f"{100 * level:.0f} % of the way"] = [
                _Line(entry, TAUS, *performance_profile([[time / best for time in times]], list(TAUS)))
                for entry, times in hits
            ]
    if not panels:
        return None
    sheet = _Sheet.of_lines(results, panels, steps=True)
    for title, axes in sheet.axes.items():
        _fit(axes, "x", float(TAUS[0]), float(TAUS[-1]), air=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        _name(axes, title, "time to target / best median", "share of runs")
    return sheet.figure


def sensitivity(results: Results, part: Comparison) -> Any:
    """A panel an optimizer: the score of every trial against its learning rate, the chosen one ringed.

    Lost trials are crosses at the upper edge, and the rates beyond which every trial was lost are shaded. Triangles at
    the edge have scores beyond it. None where no trial has finished.
    """
    entries = [entry for entry in part.entries if _rate(entry)]
    scores = [o.score for entry in entries for _, o in entry.trials.values() if o.score is not None]
    if not scores:
        return None
    low, high = min(scores), max(scores)
    log = low > 0 and high / low >= LOG_FROM
    high = highest_drawn(part, low, high)
    edge = high * (high / low) ** 0.1 if log else high + 0.1 * ((high - low) or abs(high) or 1.0)
    sheet = _Sheet.blank([entry.name for entry in entries], columns=4 if len(entries) in (4, 7, 8, 11, 12) else 3)
    for place, entry in enumerate(entries):
        axes, rate, colour = sheet.axes[entry.name], _rate(entry), looks.lines(results)[entry.name].colour[LIGHT]
        trials = [(float(settings[rate]), o.score, n) for n, (settings, o) in entry.trials.items() if rate in settings]
        known = [(x, score, n) for x, score, n in trials if score is not None]
        dots: dict[str, Any] = {"color": colour, "linestyle": "", "markersize": 4, "clip_on": False, "zorder": 3}
        for marker, points in {
            "o": [(x, score) for x, score, _ in known if score <= edge],
            "^": [(x, edge) for x, score, _ in known if score > edge],
            "x": [(x, edge) for x, score, _ in trials if score is None],
        }.items():
            if points:  # the layout fails over a line without any
                axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, **dots)
        for x, score, n in known:
            if n == entry.chosen_trial:
                ring = {"color": INK, "markersize": 8, "markerfacecolor": "none"}
                axes.plot(x, min(score, edge), "o", **{**dots, **ring})
        _fit(axes, "x", min(x for x, _, _ in trials), max(x for x, _, _ in trials), ticks=4)
        _fit(axes, "y", low, edge, log=log)
        by_rate = {x: None for x, _, _ in trials} | {x: score for x, score, _ in known}  # one that was not lost counts
        for start, end in lost_regions(by_rate, axes.get_xlim()):
            axes.axvspan(start, end, color=colour, alpha=0.12, linewidth=0)
        first = place % sheet.columns == 0
        _name(axes, entry.label, "learning rate" if rate == "lr" else rate, part.score_name if first else "")
        axes.tick_params(axis="y", labelleft=first)
    return sheet.figure


def _rate(entry: ContenderResult) -> str:
    """The setting to draw the trials against: `lr`, or the first that is a number; empty if there is none."""
    names = [name for settings, _ in entry.trials.values() for name, value in settings.items() if type(value) is float]
    return "lr" if "lr" in names else next(iter(names), "")


def lost_regions(scores: Mapping[float, float | None], bounds: tuple[float, float]) -> list[tuple[float, float]]:
    """The outer stretches of a learning rate in which every trial was lost; each ends half-way to one that was not.

    Args:
        scores: by learning rate; None where the trial was lost.
        bounds: the ends of the axis.
    """

    def between(a: float, b: float) -> float:
        return math.sqrt(a * b) if min(a, b) > 0 else (a + b) / 2

    fine = [rate for rate, score in scores.items() if score is not None]
    lost = scores.keys() - fine
    if not fine:
        return [bounds]
    under, over = [rate for rate in lost if rate < min(fine)], [rate for rate in lost if rate > max(fine)]
    left = [(bounds[0], between(max(under), min(fine)))] if under else []
    return left + ([(between(max(fine), min(over)), bounds[1])] if over else [])


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
    def of_lines(cls, results: Results, panels: Mapping[str, Sequence[_Line]], steps: bool = False) -> "_Sheet":
        """Panels of lines over all of their bands, with a legend under them.

        Broken lines lie over whole ones: where two are one, both can be seen.
        """
        drawn = looks.lines(results)
        labels = {line.entry.name: _short(line.entry.label) for lines in panels.values() for line in lines}
        width = COLUMN if len(panels) == 1 else PAGE
        fitting = max(1, int(width / (0.55 + 0.068 * max(map(len, labels.values())))))
        rows = math.ceil(len(labels) / fitting)
        sheet = cls.blank(list(panels), below=0.15 * rows)
        for name, lines in panels.items():
            axes = sheet.axes[name]
            for line in reversed(lines):
                look, order = drawn[line.entry.name], 3 if line.entry.ours else 4
                alpha = max(0.05, 0.16 - 0.01 * len(lines))  # many bands must not hide what lies under them
                tint: dict[str, Any] = {"color": look.colour[LIGHT], "alpha": alpha, "linewidth": 0, "zorder": 2}
                axes.fill_between(line.x, line.low, line.high, **tint, step="post" if steps else None)
                shape: dict[str, Any] = {"drawstyle": "steps-post"} if steps else {}
                axes.plot(line.x, line.mean, **stroke(look), **shape, markevery=max(1, len(line.x) // 6), zorder=order)
        sheet.add_legend({name: drawn[name] for name in labels}, list(labels.values()), math.ceil(len(labels) / rows))
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


LOG_FROM = 3.0
"""From this ratio of its ends an axis is logarithmic."""


def _fit(
    axes: Any, along: str, low: float, high: float, *, log: bool | None = None, ticks: int = 6, air: float = 0.05
) -> None:
    """The range of an axis, with some air; round ticks where it is logarithmic."""
    if low <= 0 or not (high / low >= LOG_FROM if log is None else log):
        margin = air * (high - low) or 0.1 * abs(high) or 1.0
        axes.set(**{f"{along}lim": (low - margin, high + margin)})
        return
    start, end = math.log10(low), math.log10(high)
    margin = air * (end - start)
    start, end = (start - margin, end + margin) if end > start else (start - 0.1, end + 0.1)
    values = round_values(start, end, ticks)
    axes.set(**{f"{along}scale": "log", f"{along}lim": (10**start, 10**end)})
    axes.set(**{f"{along}ticks": values, f"{along}ticklabels": [f"{value:g}" for value in values]})
    (axes.xaxis if along == "x" else axes.yaxis).minorticks_off()


def round_values(start: float, end: float, most: int) -> list[float]:
    """At most so many round numbers between 10^start and 10^end."""
    exponents = range(math.floor(start), math.ceil(end) + 1)
    values: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        values = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
        values = [value for value in values if start - 1e-9 <= math.log10(value) <= end + 1e-9]
        if len(values) <= most:
            return values
    return values[:: math.ceil(len(values) / most)]


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
