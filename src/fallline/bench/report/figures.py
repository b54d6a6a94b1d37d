"""The figures of a report, as Plotly's JSON: data and layout, drawn by the page or by kaleido."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fallline.bench.common.numbers import describe, number, spread
from fallline.bench.common.spaces import Range, Setting, dimension
from fallline.bench.protocol.analysis import TAUS, Aggregate, Results, highest_drawn
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.stats import band
from fallline.bench.report.looks import EITHER, Figure, Line, coloured, lines, palette

Array = NDArray[np.float64]

AXES = {
    "steps": "step",
    "gradient evaluations": "gradient evaluations",
    "CPU seconds": "cpu seconds",
    "wall seconds": "wall seconds",
}
"""What a learning curve can be drawn against: as printed, and as recorded."""

POINTS = 100
"""A curve has no more points than this: a screen shows no more of them, and a page of many curves stays small."""

EDGE_SHARE = 0.12
"""How far above the highest score, as a share of their range, lost trials stand."""


# --- curves ---


def curves(
    part: Comparison, looks: Mapping[str, Line], measure: str, axis: str = "steps", *, targets: bool = True
) -> Figure | None:
    """A measure against one of `AXES`: mean over the seeds that finished, with the 95 % band of that mean."""
    data: list[Figure] = []
    lows, highs, ends = [], [], []
    for entry in part.entries:
        drawn = courses(entry, measure, axis)
        if drawn is None:
            continue
        x, values = drawn
        told = {"steps": "step %{x}", "gradient evaluations": "%{x} gradients"}.get(axis, "%{x:.3g} s")
        traces, low, high = band_traces(looks[entry.name], x, values, told)
        data += traces
        lows.append(low)
        highs.append(high)
        ends.append(float(x[-1]))
    if not data:
        return None
    data.sort(key=lambda trace: "fill" not in trace)  # the lines over all the bands
    layout = blank_layout()
    horizon = float(part.about["steps"]) if AXES[axis] in ("step", "gradient evaluations") else 0.0
    layout["xaxis"] |= {"range": [0, max(horizon, *ends)]}
    entitle(layout, axis)
    floor = part.about["floor"]
    layout["yaxis"] |= fitted_axis(min([*lows, floor] if floor else lows), max(highs))
    if targets and measure == ("validation loss" if part.held_out else "train loss"):
        _draw_targets(part, layout)
    _draw_floor(part, layout, along="x")
    return {"data": data, "layout": layout}


def courses(entry: ContenderResult, measure: str, axis: str) -> tuple[Array, Array] | None:
    """A measure of the seeds that finished, on one grid: shapes (points,) and (seeds, points); None without any.

    Seeds that were measured at the same places are taken as they are. Else, as with seconds, each is interpolated
    linearly onto an even grid, up to where the last one ends; one that is over keeps its last value, as its model does.
    """
    seen = []
    for outcome in entry.finished.values():
        places = outcome.curve.get(AXES[axis]) or outcome.times.get(AXES[axis], [])
        known = [(x, y) for x, y in zip(places, outcome.curve.get(measure, []), strict=False) if None not in (x, y)]
        if known:
            seen.append(np.array(known, dtype=np.float64).T)
    if not seen:
        return None
    if all(np.array_equal(one[0], seen[0][0]) for one in seen):
        x, values = seen[0][0], np.stack([one[1] for one in seen])
        keep = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
        return x[keep], values[:, keep]
    count = min(POINTS, 2 * max(len(one[0]) for one in seen))
    grid = np.linspace(max(one[0][0] for one in seen), max(one[0][-1] for one in seen), count)
    return grid, np.stack([np.interp(grid, one[0], one[1]) for one in seen])


def band_traces(line: Line, x: ArrayLike, values: ArrayLike, what: str) -> tuple[list[Figure], float, float]:
    """Mean and 95 % band over seeds of `values`, shape (seeds, points); and the lowest and highest of the band."""
    mean, low, high = band(np.asarray(values, dtype=np.float64))
    return shaded(line, short_numbers(np.asarray(x, dtype=np.float64)), mean, low, high, what), low.min(), high.max()


def shaded(
    line: Line, x: Sequence[float], mean: Array, low: Array, high: Array, what: str, *, alpha: int = 18
) -> list[Figure]:
    """A band, of an opacity in percent, and the curve within it."""
    shade: Figure = {
        "x": [*x, *x[::-1]],
        "y": short_numbers([*high, *low[::-1]]),
        "fill": "toself",
        "fillcolor": f"@{line.name}/{alpha}",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "mode": "lines",
        "showlegend": False,
        "meta": line.name,
    }
    return [shade, curve_trace(line, x, mean, what, low, high)]


def curve_trace(
    line: Line, x: Sequence[float], y: Array, what: str, low: Array | None = None, high: Array | None = None
) -> Figure:
    """One curve, and on hovering its value."""
    trace: Figure = {
        "x": list(x),
        "y": short_numbers(y),
        "name": escaped(line.label),
        "mode": "lines",
        "line": line.style,
        "hovertemplate": f"<b>{escaped(line.label)}</b><br>{what}: %{{y:.3g}}<extra></extra>",
        "meta": line.name,
    }
    if low is not None and high is not None:
        trace["customdata"] = [f"{number(a)}, {number(b)}" for a, b in zip(low, high, strict=True)]
        trace["hovertemplate"] = f"<b>{escaped(line.label)}</b><br>{what}: %{{y:.3g}} [%{{customdata}}]<extra></extra>"
    return trace


def best_of(part: Comparison, looks: Mapping[str, Line]) -> Figure | None:
    """What everyone's search would have found with fewer trials: the expected best score of K, with its band."""
    data, lows, highs, most = [], [], [], 1
    for entry in part.entries:
        found = entry.best_of
        if found is None or len(found.mean) < 2 or not np.isfinite([found.low, found.mean, found.high]).all():
            continue
        most = max(most, len(found.mean))
        tries = [float(k + 1) for k in range(len(found.mean))]
        data += shaded(looks[entry.name], tries, found.mean, found.low, found.high, "best of %{x}", alpha=10)
        lows.append(float(found.low.min()))
        highs.append(float(found.high.max()))
    if not data:
        return None
    data.sort(key=lambda trace: "fill" not in trace)
    layout = blank_layout()
    every = max(1, round(most / 10))
    layout["xaxis"] |= {"range": [1 - 0.02 * most, 1.02 * most], "tick0": 0 if every > 1 else 1, "dtick": every}
    entitle(layout, "trials K")
    layout["yaxis"] |= fitted_axis(min(lows), max(highs))
    return {"data": data, "layout": layout}


def profile(across: Aggregate, looks: Mapping[str, Line]) -> Figure | None:
    """The share of runs that reach the target within a multiple of the best optimizer's time, with bands."""
    if not across.profiles:
        return None
    data = []
    times = short_numbers(np.repeat(TAUS, 2)[1:])  # a share stays as it is until the next time: stairs, not slopes
    for name, shares in across.profiles.items():
        mean, low, high = (np.repeat(share, 2)[:-1] for share in shares)
        data += shaded(looks[name], times, mean, low, high, "within %{x:.3g} times the best", alpha=12)
    data.sort(key=lambda trace: "fill" not in trace)
    layout = blank_layout()
    ticks = [1, 1.5, 2, 3, 4]
    layout["xaxis"] |= {
        "type": "log",
        "range": [math.log10(TAUS[0]) - 0.01, math.log10(TAUS[-1]) + 0.01],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}×" for tick in ticks],
        "tickangle": 0,
    }
    entitle(layout, "gradient evaluations, of the best optimizer’s")
    layout["yaxis"] |= {"range": [-0.03, 1.03], "tickformat": ".0%"}
    return {"data": data, "layout": layout}


# --- dots ---


def final_losses(part: Comparison, looks: Mapping[str, Line]) -> Figure | None:
    """The final loss of every seed, its mean and interval: one row each."""
    data: list[Figure] = []
    values: list[float] = []
    shown = [entry for entry in part.entries if entry.finished]
    if not shown:
        return None
    for row, entry in enumerate(reversed(shown)):
        losses = [outcome.result["loss"] for outcome in entry.finished.values()]
        values += losses
        interval = entry.measure("loss")
        assert interval is not None  # some seed finished
        low = interval.mean if interval.low is None else interval.low
        high = interval.mean if interval.high is None else interval.high
        token = f"@{entry.name}"
        data.append(
            {
                "x": short_numbers(losses),
                "y": [row] * len(losses),
                "mode": "markers",
                "marker": {"color": f"{token}/45", "size": 8},
                "hovertemplate": "seed %{customdata}: %{x:.3g}<extra></extra>",
                "customdata": list(entry.finished),
                "meta": entry.name,
            }
        )
        data.append(
            {
                "x": [interval.mean],
                "y": [row],
                "mode": "markers",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - interval.mean],
                    "arrayminus": [interval.mean - low],
                    "color": token,
                    "thickness": 2.5,
                    "width": 7,
                },
                "marker": {
                    "symbol": "diamond" if entry.ours else "diamond-open",
                    "color": token,
                    "size": 11,
                    "line": {"color": token, "width": 2},
                },
                "hovertemplate": f"<b>{escaped(entry.label)}</b><br>{spread(interval)}<extra></extra>",
                "meta": entry.name,
            }
        )
    layout = blank_layout()
    layout["margin"]["l"] = 8
    layout["yaxis"] |= {
        "tickvals": list(range(len(shown))),
        "ticktext": [escaped(entry.label) for entry in reversed(shown)],
        "range": [-0.6, len(shown) - 0.4],
        "showgrid": False,
        "automargin": True,
        "tickfont": {"size": 13, "color": "@text"},
        "fixedrange": True,
    }
    entitle(layout, part.loss_name)
    floor = part.about["floor"]
    layout["xaxis"] |= fitted_axis(min([*values, floor] if floor else values), max(values), ratio_for_log=8)
    _draw_floor(part, layout, along="y")
    return {"data": data, "layout": layout}


def sensitivity(part: Comparison, entry: ContenderResult) -> Figure | None:
    """The score of every trial against its learning rate; lost ones are crosses on the upper edge.

    Shaded: where every trial was lost, and what an extension of the range opened.
    """
    rates = [rate for settings, _ in entry.trials.values() if (rate := _rate(settings)) is not None]
    if not rates:
        return None
    every = [score for e in part.entries for _, o in e.trials.values() if (score := o.score) is not None]
    bottom, top = (min(every), max(every)) if every else (0.1, 10.0)
    top = highest_drawn(part, bottom, top)
    edge = (
        top * (top / bottom) ** EDGE_SHARE
        if top > bottom > 0
        else top + (EDGE_SHARE * (top - bottom) or 0.5 * abs(top) + 1e-12)
    )
    groups: dict[str, list[tuple[float, float, str]]] = {"finished": [], "above": [], "lost": [], "chosen": []}
    for trial, (settings, outcome) in entry.trials.items():
        rate = _rate(settings)
        if rate is None:
            continue
        told = f"trial {trial}: {escaped(describe(settings))}"
        if outcome.score is None:
            where = f" at step {outcome.steps}" if outcome.steps else ""
            told += f"<br>{outcome.status}{where}: {escaped(outcome.reason)}"
            groups["lost"].append((rate, edge, told))
            continue
        told += f"<br>{part.score_name} {number(outcome.score)}"
        kind = "above" if outcome.score > edge else "finished"
        groups[kind].append((rate, min(outcome.score, edge), told))
        if trial == entry.chosen_trial:
            groups["chosen"].append((rate, min(outcome.score, edge), told))
    colour = f"@{entry.name}"
    looks: dict[str, Figure] = {
        "finished": {"symbol": "circle", "color": f"{colour}/70", "size": 8},
        "above": {"symbol": "triangle-up-open", "color": colour, "size": 9, "line": {"width": 2, "color": colour}},
        "lost": {"symbol": "x-thin-open", "color": colour, "size": 9, "line": {"width": 2, "color": colour}},
        "chosen": {"symbol": "circle-open", "color": "@text", "size": 15, "line": {"width": 2, "color": "@text"}},
    }
    data = [
        {
            "x": [x for x, _, _ in points],
            "y": short_numbers([y for _, y, _ in points]),
            "text": [text for _, _, text in points],
            "mode": "markers",
            "marker": looks[kind],
            "cliponaxis": False,
            "hovertemplate": "%{text}<extra></extra>",
            "meta": entry.name,
        }
        for kind, points in groups.items()
        if points
    ]
    layout = blank_layout()
    layout["margin"] = {"l": 44, "r": 12, "t": 14, "b": 40}
    entitle(layout, "lr")
    layout["yaxis"] |= fitted_axis(bottom, edge, ratio_for_log=1)
    declared, opened = _lr_range(entry, "ranges"), _lr_range(entry, "extended")
    ends = [*rates, *(end for there in (declared, opened) if there for end in (there.low, there.high))]
    layout["xaxis"] |= fitted_axis(min(ends), max(ends), ratio_for_log=1, ticks=4)
    shades = [(low, high, "@warn/15") for low, high in lost_stretches(entry)]
    if declared and opened:
        shades += [(opened.low, declared.low, "@muted/14")] if opened.low < declared.low else []
        shades += [(declared.high, opened.high, "@muted/14")] if opened.high > declared.high else []
    layout["shapes"] = [
        {
            "type": "rect",
            "layer": "below",
            "xref": "x",
            "yref": "paper",
            "x0": low,
            "x1": high,
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
            "fillcolor": colour,
        }
        for low, high, colour in shades
    ]
    return {"data": data, "layout": layout}


def lost_stretches(entry: ContenderResult) -> list[tuple[float, float]]:
    """Where, in learning rates, every trial was lost: at least two neighbours, or all up to an end of the range.

    A stretch goes half-way, in the logarithm, to the next trial that finished, or to the end of the range.
    """
    trials = sorted(
        (rate, outcome.lost) for settings, outcome in entry.trials.values() if (rate := _rate(settings)) is not None
    )
    there = _lr_range(entry, "extended") or _lr_range(entry, "ranges")
    found, start = [], 0
    for i in range(len(trials) + 1):
        if i < len(trials) and trials[i][1]:
            continue
        if i - start >= (1 if start == 0 or i == len(trials) else 2):
            low = math.sqrt(trials[start - 1][0] * trials[start][0]) if start else trials[0][0]
            high = math.sqrt(trials[i - 1][0] * trials[i][0]) if i < len(trials) else trials[-1][0]
            if there:
                low = low if start else min(low, there.low)
                high = high if i < len(trials) else max(high, there.high)
            found.append((low, high))
        start = i + 1
    return found


def picture(results: Results) -> Figure:
    """The learning curves of the first part with title and legend, to stand alone at 800 pixels on any ground."""
    part, looks = results.parts[0], lines(results)
    measure = "validation loss" if part.held_out else "train loss"
    figure = curves(part, looks, measure, targets=False)  # which need the page's words
    if figure is None:
        raise ValueError("no run of this race has finished on a confirming seed: there is nothing to draw")
    figure["layout"] |= {
        "showlegend": True,
        "legend": {"font": {"size": 15}, "x": 1.01, "y": 1, "bgcolor": "#00000000", "itemsizing": "trace"},
        "margin": {"l": 64, "r": 8, "t": 12, "b": 52},
        "font": {**figure["layout"]["font"], "size": 15, "family": "Helvetica, Arial, sans-serif"},
    }
    for axis, title in (("xaxis", "steps"), ("yaxis", "validation loss" if part.held_out else "training loss")):
        figure["layout"][axis] |= {"tickfont": {"size": 14}, "title": {"text": title, "font": {"size": 16}}}
    order = {entry.name: i for i, entry in enumerate(part.entries)}
    figure["data"].sort(key=lambda trace: ("name" in trace, order[trace["meta"]]))
    for trace in figure["data"]:
        if "name" in trace:
            trace["line"]["width"] = 3
    return coloured(figure, palette(looks, EITHER))


# --- words and numbers ---


def _rate(settings: Mapping[str, Setting]) -> float | None:
    """The learning rate, where it is a positive number: an axis of rates is logarithmic."""
    rate = settings.get("lr")
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0 else None


def _lr_range(entry: ContenderResult, which: str) -> Range | None:
    plain = entry.about.get(which, {}).get("lr")
    there = None if plain is None else dimension(plain)
    return there if isinstance(there, Range) and there.scale != "one minus log" else None


def short_numbers(values: Iterable[float]) -> list[float]:
    """To five significant digits: no screen shows more, and a page of them stays small."""
    return [float(f"{value:.5g}") for value in values]


def escaped(text: str) -> str:
    """Plotly reads a little HTML and its own `%{}`; names are not to use them."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


# --- layouts ---


def entitle(layout: Figure, x: str) -> None:
    """Name the horizontal axis."""
    layout["xaxis"]["title"] = {**layout["xaxis"]["title"], "text": x}


def blank_layout() -> Figure:
    """A layout in the page's manner."""
    axis = {
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zeroline": False,
        "tickfont": {"size": 12, "color": "@muted"},
        "title": {"font": {"size": 12, "color": "@muted"}, "standoff": 8},
    }
    return {
        "paper_bgcolor": "#00000000",
        "plot_bgcolor": "#00000000",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "@muted"},
        "margin": {"l": 52, "r": 16, "t": 12, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@grid", "font": {"color": "@text"}, "align": "left"},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def fitted_axis(low: float, high: float, *, ratio_for_log: float = 3, ticks: int = 7) -> Figure:
    """A range with some air, logarithmic when it spans more than a ratio, with round ticks."""
    if low <= 0 or high / low < ratio_for_log:
        air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return {"type": "linear", "range": [low - air, high + air]}
    start, end = math.log10(low), math.log10(high)
    air = 0.05 * (end - start) or 0.1
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(start - air), math.ceil(end + air) + 1)
        values = [m * 10.0**d for d in decades for m in steps if start - air <= math.log10(m * 10.0**d) <= end + air]
        if len(values) <= ticks:
            break
    else:
        values = values[:: math.ceil(len(values) / ticks)]
    return {
        "type": "log",
        "range": [start - air, end + air],
        "tickvals": values,
        "ticktext": [f"{v:g}" for v in values],
    }


def _draw_targets(part: Comparison, layout: Figure) -> None:
    """The target losses, thin and dotted, named beside the plot; those that lie close share a name."""
    axis = layout["yaxis"]
    log, (bottom, top) = axis["type"] == "log", axis["range"]
    groups: list[list[tuple[float, str]]] = []
    for level, loss in sorted(part.targets.items()):
        if loss <= 0 and log:
            continue
        at = math.log10(loss) if log else loss
        if not bottom <= at <= top:
            continue
        line = {"color": "@muted/55", "width": 1, "dash": "dot"}
        _add_line(layout, {"x0": 0, "x1": 1, "y0": loss, "y1": loss, "xref": "paper", "yref": "y", "line": line})
        if not groups or groups[-1][-1][0] - at > 0.045 * (top - bottom):
            groups.append([])
        groups[-1].append((at, f"{100 * level:.0f} %"))
    for group in groups:
        text = "<br>".join(name for _, name in group)
        corner = {"x": 1, "y": (group[0][0] + group[-1][0]) / 2, "xref": "paper", "yref": "y"}
        anchor = {"xanchor": "left", "yanchor": "middle", "xshift": 2, "showarrow": False}
        note = {"text": text, "font": {"size": 11, "color": "@muted"}, **corner, **anchor}
        layout.setdefault("annotations", []).append(note)
        layout["margin"]["r"] = 46  # beside the plot, where no curve runs


def _draw_floor(part: Comparison, layout: Figure, *, along: str) -> None:
    """The lowest loss in reach, where the task knows it."""
    floor = part.about["floor"]
    if floor is None:
        return
    across = "y" if along == "x" else "x"
    where = {f"{across}0": floor, f"{across}1": floor, f"{along}0": 0, f"{along}1": 1}
    refs = {f"{along}ref": "paper", f"{across}ref": across}
    _add_line(layout, {**where, **refs, "line": {"color": "@muted", "width": 1.5, "dash": "dot"}})
    log = layout[f"{across}axis"].get("type") == "log"
    at = math.log10(floor) if log and floor > 0 else floor
    corner = {"x": 0.99, "y": at, "xanchor": "right", "yanchor": "bottom"}
    if along == "y":
        corner = {"x": at, "y": 0.01, "xanchor": "left", "yanchor": "bottom", "xshift": 5}
    text = {
        "text": f"{escaped(part.about.get('floor_name') or 'the lowest in reach')}: {number(floor)}",
        "showarrow": False,
        "font": {"size": 12, "color": "@muted"},
    }
    layout.setdefault("annotations", []).append({**corner, **refs, **text})


def _add_line(layout: Figure, line: Figure) -> None:
    layout.setdefault("shapes", []).append({"type": "line", "layer": "below", **line})
