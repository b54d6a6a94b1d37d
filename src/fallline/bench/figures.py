"""The figures of a report, as Plotly's JSON: data and layout, drawn by the page or by kaleido.

Colours are written as tokens, `@koala-v` or, translucent, `@koala-v/20`; the page puts in those of its light or its
dark face, a picture those that both can bear.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from fallline.bench.display import number, spread
from fallline.bench.results import Result, Results
from fallline.bench.spaces import Setting
from fallline.bench.stats import band
from fallline.bench.tasks import get_task

Figure = dict[str, Any]

# After Okabe and Ito (2008), darkened or lightened for the ground: on white, on black, on either. The last two differ
# from the rest in lightness too, for whoever sees fewer hues.
COLOURS = {
    "koala-v": ("#c85200", "#ff9a56", "#d55e00"),
    "koala-m": ("#a83a86", "#f0a3d6", "#cc5fa4"),
    "coolmomentum": ("#0067a8", "#62bdf2", "#1b86d1"),
    "sgd": ("#5b6470", "#aab4c0", "#7d8590"),
    "adamw": ("#00805d", "#35c99b", "#009e73"),
    "muon": ("#946200", "#eac04e", "#b8860b"),
    "koala-pp": ("#6e1423", "#d1405a", "#a53f49"),
    "arturo": ("#2e1a86", "#7d62f5", "#5a50d0"),
    "lodo": ("#4f5d00", "#bccb3f", "#849410"),
}
SPARE_COLOURS = (
    ("#8c4a3c", "#d9a398", "#a96454"),
    ("#0f766e", "#5cd0c6", "#17938a"),
    ("#9d174d", "#f58ab5", "#c2356f"),
)
INK = {
    "text": ("#1d2127", "#e8eaed", "#757f8a"),
    "muted": ("#5d6570", "#a2abb6", "#757f8a"),
    "grid": ("#e6e4df", "#30353c", "#7d859033"),
    "paper": ("#ffffff", "#191c20", "#ffffff00"),
}
LIGHT, DARK, EITHER = 0, 1, 2
DASHES = {"sgd": "dashdot", "adamw": "dash", "muon": "dot"}
"""How the lines of those that are not ours are broken; "longdash" for all others."""


def palette(results: Results, face: int) -> dict[str, str]:
    """Token to colour, for `LIGHT`, `DARK` or `EITHER` ground."""
    strangers = [entry.name for entry in results.entries if entry.name not in COLOURS]
    spare = {name: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, name in enumerate(sorted(strangers))}
    return {name: faces[face] for name, faces in {**INK, **COLOURS, **spare}.items()}


def coloured(figure: Figure, colours: dict[str, str]) -> Figure:
    """The figure with its tokens replaced; a share after a slash, in percent, becomes the alpha channel."""

    def colour(match: re.Match[str]) -> str:
        alpha = match["alpha"]
        return colours[match["name"]] + (f"{round(int(alpha) * 2.55):02x}" if alpha else "")

    painted: Figure = json.loads(re.sub(r'(?<=")@(?P<name>[^"/]+)(/(?P<alpha>\d+))?(?=")', colour, json.dumps(figure)))
    return painted


def curves(results: Results, measure: str) -> Figure:
    """A measure against steps: mean over the seeds that finished, with the 95 % band of that mean."""
    data: list[Figure] = []
    lows: list[float] = []
    highs: list[float] = []
    for entry in results.entries:
        points = [(o.curve["step"], o.curve[measure]) for o in entry.finished.values() if measure in o.curve]
        if not points:
            continue
        keep = [i for i in range(len(points[0][0])) if all(values[i] is not None for _, values in points)]
        steps = [points[0][0][i] for i in keep]
        mean, low, high = band(np.array([[values[i] for i in keep] for _, values in points], dtype=np.float64))
        lows.append(float(low.min()))
        highs.append(float(high.max()))
        data.append(
            {
                "x": steps + steps[::-1],
                "y": short_numbers([*high, *low[::-1]]),
                "fill": "toself",
                "fillcolor": f"@{entry.name}/18",
                "line": {"width": 0},
                "hoverinfo": "skip",
                "mode": "lines",
                "showlegend": False,
                "meta": entry.name,
            }
        )
        data.append(
            {
                "x": steps,
                "y": short_numbers(mean),
                "name": entry.label,
                "mode": "lines",
                "line": line(entry),
                "customdata": [f"{number(a)}, {number(b)}" for a, b in zip(low, high, strict=True)],
                "hovertemplate": f"<b>{escaped(entry.label)}</b><br>step %{{x}}: %{{y:.3g}} [%{{customdata}}]"
                "<extra></extra>",
                "meta": entry.name,
            }
        )
    data.sort(key=lambda trace: trace["mode"] == "lines" and "fill" not in trace)  # the lines over all the bands
    layout = blank_layout()
    layout["xaxis"] |= {"title": {"text": "steps"}, "range": [0, get_task(results.race.task).steps]}
    floor = get_task(results.race.task).floor
    if lows:
        bottom = min([*lows, floor] if floor else lows)
        layout["yaxis"] |= fitted_axis(bottom, max(highs))
    _draw_floor(results, layout, along="x")
    return {"data": data, "layout": layout}


def final_losses(results: Results) -> Figure:
    """The final loss of every seed, its mean and interval: one row each."""
    data: list[Figure] = []
    values: list[float] = []
    shown = [entry for entry in results.entries if entry.finished]
    for entry in shown:
        losses = [outcome.result["loss"] for outcome in entry.finished.values()]
        values += losses
        interval = entry.measure("loss")
        assert interval is not None  # some seed finished
        low, high = interval.low or interval.mean, interval.high or interval.mean
        data.append(
            {
                "x": short_numbers(losses),
                "y": [entry.label] * len(losses),
                "mode": "markers",
                "marker": {"color": f"@{entry.name}/45", "size": 8},
                "hovertemplate": "seed %{customdata}: %{x:.3g}<extra></extra>",
                "customdata": list(entry.finished),
                "meta": entry.name,
            }
        )
        data.append(
            {
                "x": [interval.mean],
                "y": [entry.label],
                "mode": "markers",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - interval.mean],
                    "arrayminus": [interval.mean - low],
                    "color": f"@{entry.name}",
                    "thickness": 2.5,
                    "width": 7,
                },
                "marker": {
                    "symbol": "diamond" if entry.ours else "diamond-open",
                    "color": f"@{entry.name}",
                    "size": 11,
                    "line": {"color": f"@{entry.name}", "width": 2},
                },
                "hovertemplate": f"<b>{escaped(entry.label)}</b><br>{spread(interval)}<extra></extra>",
                "meta": entry.name,
            }
        )
    layout = blank_layout()
    layout["margin"]["l"] = 8
    layout["yaxis"] |= {
        "categoryorder": "array",
        "categoryarray": [entry.label for entry in reversed(shown)],
        "range": [-0.6, len(shown) - 0.4],
        "showgrid": False,
        "automargin": True,
        "tickfont": {"size": 13, "color": "@text"},
        "fixedrange": True,
    }
    layout["xaxis"] |= {"title": {"text": loss_name(results)}}
    if values:
        floor = get_task(results.race.task).floor
        layout["xaxis"] |= fitted_axis(min([*values, floor] if floor else values), max(values), ratio_for_log=8)
    _draw_floor(results, layout, along="y")
    return {"data": data, "layout": layout}


def sensitivity(results: Results, entry: Result) -> Figure:
    """The score of every trial against its learning rate; lost ones are crosses on the upper edge."""
    every = [score for e in results.entries for _, o in e.trials.values() if (score := o.score) is not None]
    bottom, top = (min(every), max(every)) if every else (0.1, 10.0)
    top = min(top, 300 * bottom)  # one trial that ends in the millions must not flatten all others
    edge = top * (top / bottom) ** 0.12 if top > bottom else top * 1.5
    groups: dict[str, list[tuple[float, float, str]]] = {"finished": [], "above": [], "lost": [], "chosen": []}
    for trial, (settings, outcome) in entry.trials.items():
        told = f"trial {trial}: {describe(settings)}"
        if outcome.score is None:
            where = f" at step {outcome.steps}" if outcome.steps else ""
            told += f"<br>{outcome.status}{where}: {escaped(outcome.reason)}"
            groups["lost"].append((_rate(settings), edge, told))
            continue
        told += f"<br>loss {number(outcome.score)}"
        kind = "above" if outcome.score > edge else "finished"
        groups[kind].append((_rate(settings), min(outcome.score, edge), told))
        if trial == entry.best_trial:
            groups["chosen"].append((_rate(settings), outcome.score, told))
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
    rates = [_rate(settings) for settings, _ in entry.trials.values()]
    layout = blank_layout()
    layout["margin"] = {"l": 44, "r": 12, "t": 14, "b": 40}
    layout["xaxis"] |= {"title": {"text": "lr"}}
    layout["yaxis"] |= fitted_axis(bottom, edge, ratio_for_log=1)
    if rates:
        layout["xaxis"] |= fitted_axis(min(rates), max(rates), ratio_for_log=1, ticks=4)
    return {"data": data, "layout": layout}


def picture(results: Results) -> Figure:
    """The learning curves with title and legend, to stand alone at 800 pixels on a light or a dark ground."""
    held_out = get_task(results.race.task).held_out
    figure = curves(results, "validation loss" if held_out else "train loss")
    figure["layout"] |= {
        "showlegend": True,
        "legend": {"font": {"size": 15}, "x": 1.01, "y": 1, "bgcolor": "#00000000", "itemsizing": "trace"},
        "margin": {"l": 64, "r": 8, "t": 12, "b": 52},
        "font": {**figure["layout"]["font"], "size": 15, "family": "Helvetica, Arial, sans-serif"},
    }
    for axis in ("xaxis", "yaxis"):
        figure["layout"][axis]["tickfont"] = {"size": 14}
    figure["layout"]["yaxis"]["title"] = {"text": "validation loss" if held_out else "training loss"}
    names = {entry.label: i for i, entry in enumerate(results.entries)}
    figure["data"].sort(key=lambda trace: ("name" in trace, names.get(trace.get("name", ""), 0)))
    for trace in figure["data"]:
        if "name" in trace:
            trace["line"]["width"] = 3
    return coloured(figure, palette(results, EITHER))


def line(entry: Result) -> Figure:
    """Ours are whole lines, the others broken."""
    dash = "solid" if entry.ours else DASHES.get(entry.name, "longdash")
    return {"color": f"@{entry.name}", "width": 2.5 if entry.ours else 2, "dash": dash}


def loss_name(results: Results) -> str:
    """What is called the result on this task."""
    return "test loss" if get_task(results.race.task).held_out else "mean loss, last tenth"


def describe(settings: dict[str, Setting]) -> str:
    """Settings in a line, the learning rate first."""
    order = sorted(settings, key=lambda name: (name != "lr", name))
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.items()}
    return ", ".join(f"{name} {values[name]}" for name in order)


def _rate(settings: dict[str, Setting]) -> float:
    return float(settings["lr"])


def short_numbers(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def escaped(text: str) -> str:
    """Plotly reads a little HTML and its own `%{}`; names are not to use them."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def blank_layout() -> Figure:
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


def _draw_floor(results: Results, layout: Figure, *, along: str) -> None:
    """The lowest loss in reach, where the task knows it."""
    task = get_task(results.race.task)
    if task.floor is None:
        return
    across = "y" if along == "x" else "x"
    where = {f"{across}0": task.floor, f"{across}1": task.floor, f"{along}0": 0, f"{along}1": 1}
    refs = {f"{along}ref": "paper", f"{across}ref": across}
    layout["shapes"] = [{"type": "line", **where, **refs, "line": {"color": "@muted", "width": 1.5, "dash": "dot"}}]
    at = math.log10(task.floor) if layout[f"{across}axis"].get("type") == "log" else task.floor
    corner = {"x": 0.99, "y": at, "xanchor": "right", "yanchor": "bottom"}
    if along == "y":
        corner = {"x": at, "y": 0.01, "xanchor": "left", "yanchor": "bottom", "xshift": 5}
    text = {
        "text": f"{task.floor_name}: {number(task.floor)}",
        "showarrow": False,
        "font": {"size": 12, "color": "@muted"},
    }
    layout["annotations"] = [{**corner, **refs, **text}]
