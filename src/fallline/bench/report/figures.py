"""The figures of a report, as Plotly's JSON: data and layout, drawn by the page or by kaleido."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fallline.bench.common.numbers import describe, number, spread
from fallline.bench.protocol.analysis import TAUS, Aggregate, Results
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.stats import band
from fallline.bench.report import series
from fallline.bench.report.looks import EITHER, Figure, Line, coloured, lines, palette
from fallline.bench.report.series import Array, Curve, Point

# --- curves ---


def curves(
    part: Comparison, looks: Mapping[str, Line], measure: str, axis: str = "steps", *, targets: bool = True
) -> Figure | None:
    """A measure against one of `series.AXES`: mean over the seeds that finished, with the 95 % band of that mean."""
    found = series.learning_curves(part, measure, axis)
    if not found:
        return None
    place = {"steps": "step %{x}", "gradient evaluations": "%{x} gradients"}.get(axis, "%{x:.3g} s")
    layout = blank_layout()
    horizon = float(part.about["steps"]) if axis in ("steps", "gradient evaluations") else 0.0
    layout["xaxis"] |= {"range": [0, max(horizon, *(float(curve.x[-1]) for curve in found))]}
    entitle(layout, axis)
    low, high = series.bounds(found)
    layout["yaxis"] |= fitted_axis(min(low, part.about["floor"] or low), high)
    if targets and measure == ("validation loss" if part.held_out else "train loss"):
        _draw_targets(part, layout)
    _draw_floor(part, layout, along="x")
    return {"data": shaded_curves(found, looks, place), "layout": layout}


def shaded_curves(curves: Iterable[Curve], looks: Mapping[str, Line], what: str, alpha: int = 18) -> list[Figure]:
    """Curves over all of their bands, whose opacity is in percent."""
    data: list[Figure] = []
    for curve in curves:
        data += shaded(looks[curve.name], short_numbers(curve.x), curve.mean, curve.low, curve.high, what, alpha=alpha)
    return sorted(data, key=lambda trace: "fill" not in trace)


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
    """The expected best score of K trials against K, with its band."""
    found = series.best_of(part)
    if not found:
        return None
    layout = blank_layout()
    most = max(len(curve.x) for curve in found)
    every = max(1, round(most / 10))
    layout["xaxis"] |= {"range": [1 - 0.02 * most, 1.02 * most], "tick0": 0 if every > 1 else 1, "dtick": every}
    entitle(layout, "trials K")
    layout["yaxis"] |= fitted_axis(*series.bounds(found))
    return {"data": shaded_curves(found, looks, "best of %{x}", alpha=10), "layout": layout}


def profile(across: Aggregate, looks: Mapping[str, Line]) -> Figure | None:
    """The share of runs that reach the target within a multiple of the best optimizer's time, with bands."""
    found = series.profile(across)
    if not found:
        return None
    # A share stays as it is until the next time: stairs, not slopes.
    stairs = [
        Curve(one.name, np.repeat(one.x, 2)[1:], *(np.repeat(y, 2)[:-1] for y in (one.mean, one.low, one.high)))
        for one in found
    ]
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
    return {"data": shaded_curves(stairs, looks, "within %{x:.3g} times the best", alpha=12), "layout": layout}


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
    """The score of every trial against its learning rate; failed ones are crosses on the upper edge.

    Shaded: where every trial failed, and what an extension of the range opened. None for an optimizer without a
    learning rate.
    """
    found = series.sensitivity(part, entry)
    if found is None or found.setting != "lr":
        return None
    colour = f"@{entry.name}"
    outlined = {"color": colour, "size": 9, "line": {"width": 2, "color": colour}}
    groups: list[tuple[list[Point], Figure]] = [
        (found.finished, {"symbol": "circle", "color": f"{colour}/70", "size": 8}),
        (found.above, {"symbol": "triangle-up-open", **outlined}),
        (found.failed, {"symbol": "x-thin-open", **outlined}),
        (
            [found.chosen] if found.chosen else [],
            {"symbol": "circle-open", "color": "@text", "size": 15, "line": {"width": 2, "color": "@text"}},
        ),
    ]
    data = [
        {
            "x": [point.x for point in points],
            "y": short_numbers(point.y for point in points),
            "text": [_trial_text(part, point) for point in points],
            "mode": "markers",
            "marker": marker,
            "cliponaxis": False,
            "hovertemplate": "%{text}<extra></extra>",
            "meta": entry.name,
        }
        for points, marker in groups
        if points
    ]
    layout = blank_layout()
    layout["margin"] = {"l": 44, "r": 12, "t": 14, "b": 40}
    entitle(layout, "lr")
    layout["xaxis"] |= drawn_axis(found.x)
    layout["yaxis"] |= drawn_axis(found.y)
    shades = [(*stretch, "@warn/15") for stretch in found.failed_stretches]
    shades += [(*stretch, "@muted/14") for stretch in found.opened]
    corner = {"type": "rect", "layer": "below", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 0}}
    layout["shapes"] = [{**corner, "x0": low, "x1": high, "fillcolor": fill} for low, high, fill in shades]
    return {"data": data, "layout": layout}


def _trial_text(part: Comparison, point: Point) -> str:
    """What a trial shows on hovering."""
    outcome = point.outcome
    text = f"trial {point.number}: {escaped(describe(point.settings))}"
    if outcome.score is not None:
        return f"{text}<br>{part.score_name} {number(outcome.score)}"
    where = f" at step {outcome.steps}" if outcome.steps else ""
    return f"{text}<br>{outcome.status}{where}: {escaped(outcome.reason)}"


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


def fitted_axis(low: float, high: float, *, ratio_for_log: float = series.LOG_FROM, ticks: int = 7) -> Figure:
    """An axis with some air, logarithmic from a ratio of its ends on."""
    return drawn_axis(series.fit(low, high, log_from=ratio_for_log, most=ticks))


def drawn_axis(axis: series.Axis) -> Figure:
    """An axis as Plotly has it, whose logarithmic ranges are exponents."""
    if not axis.log:
        return {"type": "linear", "range": [axis.low, axis.high]}
    texts = [f"{tick:g}" for tick in axis.ticks]
    return {
        "type": "log",
        "range": [math.log10(axis.low), math.log10(axis.high)],
        "tickvals": list(axis.ticks),
        "ticktext": texts,
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
