"""What the records say, drawn and tabled: step.svg, and what stands in README.md here.

    python benchmarks/chart.py        # or: make figures

Reads records/*.json, as `python benchmarks/speed --out` writes them (make bench, make gpu): no number of a page is
typed by hand. Needs fallline[docs], and Chrome or Chromium.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from fallline.bench.common.files import fill
from fallline.bench.report.looks import COLOURS, EITHER, INK
from speed import METHODS
from speed.methods import ADAMW
from speed.shapes import SETS

HERE = Path(__file__).parent
Part = dict[str, Any]
"""A parameter set in a dtype: `parts` of a record; its rows by name under `by_name`, its record's under `machine`."""

MAIN = ("resnet18", "float32")
"""The part that the chart and most tables are of."""

DRAWN = ("coolmomentum", "coolmomentum-skip", "koala-v", "koala-m", "koala-pp", "arturo", "arturo-newton")
FORMS = {
    "fused": ("fused", "circle", "top center"),
    "eager": ("eager", "circle-open", "bottom center"),
    "plain": ("as the authors write it", "x-thin-open", "top center"),
}
"""How a form is called, which mark it has, and where its number stands."""

BELOW = 0.24
"""How far under a method's line its floor and its target stand, in lines."""

PASSES = {
    "sgd-fused": "p g v → p v",
    "adamw-fused": "p g m v → p m v",
    "coolmomentum-fused": "p g v → p v",
    "coolmomentum-skip-fused": "g; p g v → p v",
    "koala-v-fused": "g; p g → p",
    "koala-v-decay-fused": "p g; p g → p",
    "koala-m-fused": "g; p g v m → p v m",
    "koala-m-decay-fused": "p g; p g v m → p v m",
    "koala-m-fixed-fused": "g; p g v → p v",
    "koala-pp-fused": "g v h; p g v h → p v h",
    "koala-metric-fused": "g; g m v → m v; g m v; p g m v → p",
    "arturo-fused": "g; p g Λ a b P₀₀ P₀₁ P₁₁ → a b P₀₀ P₀₁ P₁₁; p Λ a b → p Λ",
    "arturo-newton-fused": (
        "g; p g Λ a b P₀₀ P₀₁ P₁₁ → a b P₀₀ P₀₁ P₁₁; p Λ a b; p Λ a b; p Λ a b; p Λ a b; p Λ a b → p Λ"
    ),
}
"""What the passes of a fused step read → write, one letter a tensor: parameter, gradient, and state."""

# --- records ---


def read(folder: Path, pattern: str) -> dict[tuple[str, str], Part]:
    """The parts of all records of a folder that the pattern fits, by set and dtype; of two alike the last."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        record = json.loads(path.read_text(encoding="utf-8"))
        for part in record["parts"]:
            by_name = {row["name"]: row for row in part["rows"]}
            found[part["set"], part["dtype"]] = {**part, "by_name": by_name, "machine": record["machine"]}
    order = [(name, dtype) for name in SETS for dtype in ("float32", "bfloat16")]
    return {key: found[key] for key in sorted(found, key=lambda key: order.index(key) if key in order else 99)}


def row(part: Part, name: str) -> Any:
    """A method's, or None."""
    return part["by_name"].get(name)


def fused(part: Part) -> Iterator[dict[str, Any]]:
    """The rows of our fused methods whose words are counted."""
    yield from (one for one in part["rows"] if one["mode"] == "fused" and one["words"] and one["against"])


def relative(part: Part, name: str) -> dict[str, float]:
    """A method's forms by the time of torch's fused method that its own fused form is timed beside.

    The fused form's is the ratio that it is judged by, of neighbouring turns; the authors' way's is its ratio to the
    fused form, times that; the eager form, which is timed beside another, is known by medians alone.
    """
    own, clock = part["by_name"][f"{name}-fused"], part["clock"]
    found = {"fused": own["ratios"][clock]["median"]}
    if eager := row(part, f"{name}-eager"):
        found["eager"] = eager["times"][clock]["median"] / part["by_name"][own["against"]]["times"][clock]["median"]
    if plain := row(part, f"{name}-plain"):
        found["plain"] = plain["ratios"][clock]["median"] * found["fused"]
    return found


def stem(one: Mapping[str, Any]) -> str:
    """A method's name without its form."""
    return str(one["name"]).rpartition("-")[0]


# --- words ---


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the first row is its head. All but the first columns, so many, are numbers and stand at the right."""
    head, *body = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([head, "|" + " --- |" * left + " ---: |" * (len(rows[0]) - left), *body])


def number(value: float | None, digits: int = 2) -> str:
    """To so many decimals, fewer where it is large; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.{max(0, digits - (value >= 10) - (value >= 100))}f}"


def target(one: Mapping[str, Any]) -> str:
    """A row's, and whether it is met."""
    return "–" if one["target"] is None else f"{number(one['target'])} {'✓' if one['met'] else '✗'}"


def prose(text: str) -> str:
    """Sentences in lines as long as those of the pages."""
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def ratio(one: Mapping[str, Any]) -> str:
    """A row's: the median and the middle half."""
    own = one["ratios"][one["clock"]]
    return f"{number(own['median'])} [{number(own['low'])}, {number(own['high'])}]"


def called(one: Mapping[str, Any]) -> str:
    """A row's method, for sentences: its settings in brackets."""
    name, _, settings = one["label"].partition(", ")
    return f"{name} ({settings})" if settings else name


def conditions(part: Part) -> str:
    """What a table's numbers hold for."""
    about = part["machine"]
    threads = "one thread" if part["threads"] == 1 else f"{part['threads']} threads"
    where = f"{about.get('GPU', about['processor'])}, {threads}, torch {about['torch']}"
    return (
        f"*{part['set']}, {part['dtype']}: {part['elements']:,} parameters in {part['tensors']:,} tensors. {where}; "
        f"medians of {part['rounds']} rounds, by {'CPU' if part['clock'] == 'cpu' else 'wall'} time.*"
    )


def passes_table() -> str:
    """What each pass of a fused step reads and writes, and how many words that makes."""
    rows = [["method", "passes: read → write", "words"]]
    for one in METHODS:
        if one.name in PASSES:
            assert one.words is not None
            rows.append([one.label, PASSES[one.name], f"{one.words.total:g}"])
    return markdown(rows, left=2)


def time_table(part: Part) -> str:
    """Each method's forms, by the time of the one beside which it is timed."""
    clock = part["clock"]
    rows = [["method", "beside", "floor", "fused", "target", "eager", "the authors' way", "fused, ms", "of copy's"]]
    for name in ("sgd", "adamw"):
        own, lists = (part["by_name"][f"{name}-{form}"] for form in ("fused", "foreach"))
        ms, foreach = (one["times"][clock]["median"] for one in (own, lists))
        rows.append([own["label"], "itself", "1.00", "1", "–", f"{number(foreach / ms)} (foreach)", "–"])
        rows[-1] += [number(1e3 * ms, 1), f"{own['share']:.0%}"]
    for one in fused(part):
        forms = relative(part, stem(one))
        beside = part["by_name"][one["against"]]["label"]
        rows.append([one["label"], beside, number(one["floor"]), ratio(one), target(one)])
        rows[-1] += [number(forms.get(form)) for form in ("eager", "plain")]
        rows[-1] += [number(1e3 * one["times"][clock]["median"], 1), f"{one['share']:.0%}"]
    return f"{markdown(rows)}\n\n{conditions(part)}"


def eager_table(part: Part) -> str:
    """Eager steps beside AdamW over lists, which may cost as much a word."""
    rows = [["method, eager", "words", "allowed: words by AdamW's", "× AdamW, foreach", "kept"]]
    for one in part["rows"]:
        if one["mode"] == "eager" and one["ratios"]:
            words = sum(one["words"].values())
            met = "–" if one["met"] is None else "✓" if one["met"] else "✗"
            rows.append([one["label"], f"{words:g}", number(words / ADAMW.total), ratio(one), met])
    return markdown(rows)


def sets_table(parts: Mapping[tuple[str, str], Part], dtype: str) -> str:
    """Fused methods on all parameter sets in a dtype: ratio, and in brackets the share of a copy's bandwidth."""
    here = {name: part for (name, other), part in parts.items() if other == dtype}
    if not here:
        return f"Not measured in {dtype}."
    first = next(iter(here.values()))
    rows = [["method", "beside", "floor", *(f"`{name}`" for name in here)]]
    for one in fused(first):
        cells = []
        for part in here.values():
            own = row(part, one["name"])
            cells.append(f"{number(own['ratios'][own['clock']]['median'])} ({own['share']:.0%})" if own else "–")
        rows.append([one["label"], first["by_name"][one["against"]]["label"], number(one["floor"]), *cells])
    return markdown(rows)


def first_table(parts: Sequence[Part]) -> str:
    """Seconds of first steps, cold and warm; of those parts that have them."""
    timed = [part for part in parts if any(one["fresh"] and one["fresh"]["cold"] for one in part["rows"])]
    head = [f"{part['tensors']:,} tensors, {word}" for part in timed for word in ("cold", "warm")]
    rows = [["method, fused", *head]]
    for one in timed[0]["rows"]:
        if one["mode"] == "fused":
            cells = []
            for part in timed:
                told = (row(part, one["name"]) or {}).get("fresh") or {}
                cells += [number(told.get("cold")), number(told.get("warm"))]
            rows.append([one["label"], *cells])
    return markdown(rows)


def by_form(part: Part) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """The fused rows, each with all rows of its method: fused, eager (torch's: over lists), the authors' way."""
    for own in (one for one in part["rows"] if one["mode"] == "fused"):
        forms = ("fused", "eager" if own["against"] else "foreach", "plain")
        yield own, [row(part, f"{stem(own)}-{form}") for form in forms]


def memory_table(part: Part) -> str:
    """State, and temporaries form by form."""
    rows = [["method", "words of state", "temporaries, MB: fused", "eager", "the authors' way"]]
    for own, forms in by_form(part):
        held = [one["temporaries"] if one else None for one in forms]
        told = ["–" if size is None else f"{size / 1e6:.1f}" for size in held]
        rows.append([own["label"], f"{own['state']:.3g}", *told])
    return f"{markdown(rows)}\n\n*The largest tensor has {part['largest'] / 1e6:.1f} MB.*"


def operations_table(part: Part) -> str:
    """Operations and host reads, form by form."""
    rows = [
        ["method", "operations: fused", "eager", "the authors' way", "host reads: fused", "eager", "the authors' way"]
    ]
    for own, forms in by_form(part):
        counts = [one["counts"] if one else None for one in forms]
        told = [f"{one[key]:,}" if one else "–" for key in ("launches", "host_reads") for one in counts]
        rows.append([own["label"], *told])
    return markdown(rows)


def judged(part: Part) -> str:
    """How many of the targets are met, and which are not."""
    told = []
    for mode in ("fused", "eager"):
        rows = [one for one in part["rows"] if one["mode"] == mode and one["met"] is not None]
        missed = [
            f"{called(one)} {number(one['ratios'][one['clock']]['median'])} for {number(one['target'])}"
            for one in rows
            if not one["met"]
        ]
        end = f": all but {', '.join(missed)}" if missed else ""
        told.append(f"{mode.capitalize()}, {len(rows) - len(missed)} of {len(rows)} targets are met{end}.")
    return prose(" ".join(told))


UNMEASURED = (
    "Not measured: no GPU was at hand. The tests run the Triton kernels in Triton's interpreter and compile them for\n"
    "sm_90; nobody has timed them. `make gpu` checks and measures them where there is one."
)


def gpu_text(folder: Path) -> str:
    """The tables of all records from GPUs, or that there is none."""
    told = []
    for path in sorted(folder.glob("gpu-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for part in read(folder, path.name).values():
            rows = [["method", "beside", "floor", "ratio", "wall, ms", "of copy's", "kernels launched", "waits"]]
            for one in part["rows"]:
                if one["mode"] in ("fused", "captured"):
                    beside = part["by_name"][one["against"]]["label"] if one["ratios"] else "itself"
                    against = ratio(one) if one["ratios"] else "–"
                    rows.append([f"{one['label']}, {one['mode']}", beside, number(one["floor"]), against])
                    rows[-1] += [number(1e3 * one["times"]["wall"]["median"], 3), f"{one['share']:.0%}"]
                    rows[-1] += [f"{one['counts']['launches']:,}", f"{one['counts']['host_reads']:,}"]
            told.append(f"{markdown(rows)}\n\n{conditions(part)}")
        checks = record.get("checks", [])
        failed = [f"{one['method']} in {one['dtype']} ({one['check']})" for one in checks if one["error"]]
        said = f"{len(checks) - len(failed)} of {len(checks)} checks passed."
        left_out = record.get("left_out", [])
        said += f" Failed: {', '.join(failed)}." if failed else ""
        told.append(prose(said + (f" Left out: {', '.join(left_out)}." if left_out else "")))
    return "\n\n".join(told) or UNMEASURED


def paragraph(part: Part) -> str:
    """In short: what a step costs, and what fusing gains."""
    beside: dict[str, list[str]] = {}
    gains, colds = [], []
    for one in fused(part):
        if stem(one) in DRAWN:
            forms = relative(part, stem(one))
            beside.setdefault(one["against"], []).append(f"{called(one)} {number(forms['fused'])}")
            gains += [forms["plain"] / forms["fused"]] if "plain" in forms else []
            colds += [one["fresh"]["cold"]] if one["fresh"] and one["fresh"]["cold"] else []
    times = "; ".join(f"of {part['by_name'][one]['label']} {', '.join(told)}" for one, told in beside.items())
    said = f"A step with `fused=True` takes this many steps of torch's fused optimizers: {times}."
    if gains:
        said += f" The authors' way takes {number(min(gains), 1)} to {number(max(gains), 1)} times as long as ours."
    if colds:
        said += f" The first step takes at most {number(max(colds), 1)} seconds where nothing is compiled yet."
    return f"{prose(said)}\n\n{conditions(part)}"


# --- the chart ---


def figure(part: Part) -> dict[str, Any]:
    """A line a method: its forms' times by the reference's, the floor, the target; on a logarithmic axis."""
    ink = INK["muted"][EITHER]
    names = [name for name in DRAWN if row(part, f"{name}-fused")]
    data: list[dict[str, Any]] = []
    known = {form: (title, {"symbol": symbol, "size": 11}) for form, (title, symbol, _) in FORMS.items()}
    known |= {"floor": ("floor", {"symbol": "line-ns-open", "size": 13})}
    known |= {"target": ("target", {"symbol": "triangle-up-open", "size": 10})}
    for label, mark in known.values():  # the legend, without anybody's colour
        marker = {**mark, "color": ink, "line": {"width": 2, "color": ink}}
        data.append({"mode": "markers", "x": [None], "y": [None], "name": label, "marker": marker})
    for i, name in enumerate(names):
        own, forms = part["by_name"][f"{name}-fused"], relative(part, name)
        colour = COLOURS[max((known for known in COLOURS if name.startswith(known)), key=len)][EITHER]
        ends = [min(forms.values()), max(forms.values())]
        look = {"showlegend": False, "hoverinfo": "skip"}
        data.append({"mode": "lines", "x": ends, "y": [i, i], "line": {"color": f"{colour}55", "width": 2}, **look})
        marks = {**forms, "floor": own["floor"]} | ({"target": own["target"]} if own["target"] else {})
        for form, x in marks.items():
            tint, y = (colour, i) if form in forms else (ink, i + BELOW)
            marker = {**known[form][1], "color": tint, "line": {"width": 2.5, "color": tint}}
            trace = {"mode": "markers", "x": [x], "y": [y], "marker": marker, **look}
            if form in forms:
                font = {"size": 13, "color": colour}
                trace |= {"mode": "markers+text", "text": [number(x, 2 if x < 10 else 1)], "textfont": font}
                trace["textposition"] = FORMS[form][2]
            data.append(trace)
    labels = []
    for name in names:
        own = part["by_name"][f"{name}-fused"]
        labels.append(f"{own['label'].replace(', ', '<br>')}<br>× {part['by_name'][own['against']]['label']}")
    axis = {"gridcolor": INK["grid"][EITHER], "zeroline": False, "tickfont": {"size": 14}}
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    return {
        "data": data,
        "layout": {
            "paper_bgcolor": "#00000000",
            "plot_bgcolor": "#00000000",
            "font": {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": ink},
            "margin": {"l": 150, "r": 12, "t": 8, "b": 48},
            "legend": {"orientation": "h", "x": -0.2, "y": 1.02, "yanchor": "bottom", "bgcolor": "#00000000"},
            "xaxis": {**axis, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
            | {"title": {"text": "time of a step ÷ that of torch's fused SGD or AdamW", "font": {"size": 14}}},
            "yaxis": {**axis, "tickvals": list(range(len(names))), "ticktext": labels}
            | {"range": [len(names) - 0.4, -0.6], "showgrid": False},
            "shapes": [
                {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
                | {"line": {"color": ink, "width": 1, "dash": "dot"}}
            ],
        },
    }


# --- pages ---


def texts(folder: Path) -> dict[str, str]:
    """What stands where on the page."""
    parts = read(folder, "cpu*.json")
    if MAIN not in parts:
        raise SystemExit(f"{folder} has no record of {' in '.join(MAIN)}: make bench")
    main = parts[MAIN]
    return {
        "in short": paragraph(main),
        "passes": passes_table(),
        "time": time_table(main),
        "judged": judged(main),
        "eager": eager_table(main),
        "float32": sets_table(parts, "float32"),
        "bfloat16": sets_table(parts, "bfloat16"),
        "first": first_table([part for (_, dtype), part in parts.items() if dtype == "float32"]),
        "memory": memory_table(main),
        "operations": operations_table(main),
        "gpu": gpu_text(folder),
    }


def main() -> None:
    """Write and draw."""
    for place, text in texts(HERE / "records").items():
        fill(HERE / "README.md", place, text)
    drawn = figure(read(HERE / "records", "cpu*.json")[MAIN])
    go.Figure(drawn).write_image(HERE / "step.svg", width=800, height=520)


if __name__ == "__main__":
    main()
