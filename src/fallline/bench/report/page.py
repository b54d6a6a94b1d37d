"""Records to one page: a single HTML file that opens offline. It never trains, and nothing in it is written by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from fallline.bench.common.files import put, stem
from fallline.bench.common.numbers import difference, listed, plural
from fallline.bench.protocol.analysis import STEADY, Results
from fallline.bench.protocol.changes import changes
from fallline.bench.protocol.design import TRACK_WORDS, title
from fallline.bench.protocol.stats import FEW
from fallline.bench.protocol.verdict import descriptive
from fallline.bench.report import figures
from fallline.bench.report.looks import DARK, LIGHT, Figure, Line, lines, palette
from fallline.bench.report.race_tables import in_a_line, page_tables
from fallline.bench.report.series import AXES
from fallline.bench.report.tables import SIGNS
from fallline.bench.report.words import caution, changes_words, cost, sentences, verdicts

PICTURE_SIZE = (800, 380)
"""CSS pixels of a README's picture; a PNG has twice as many, for dense screens, an SVG is as sharp as any."""

LEGEND_ROW = 23
"""Of a name beside the curves; a picture of many names is higher."""

UNSTEADY = f"the seeds of one optimizer took wall times that differ by more than {100 * STEADY:.0f} %"


def write_page(results: Results, path: Path, before: Results | None = None) -> Path:
    """Write the report to `path`, whole or not at all, and return it."""
    return put(path, page(results, before))


def page_name(results: Results) -> str:
    """A name for the page's file."""
    return f"{stem(results.design.tasks)}.html"


def page(results: Results, before: Results | None = None) -> str:
    """The report as HTML: text, styles, data, and Plotly itself; with an earlier race, what has changed since."""
    looks = lines(results, *([before] if before else []))
    changed = changes(results, before) if before else None
    drawn = draw(results, looks)
    return fill(
        "report.html",
        drawn,
        results=results,
        race=results.race,
        design=results.design,
        setting=results.race.setting,
        changes=changed,
        changes_words=changes_words(changed) if changed else [],
        tables=page_tables(results, looks, changed),
        looks=looks,
        drawn=drawn,
        axes=list(AXES),
        signs=SIGNS,
        titles=[title(part.task, part.track, results.design.tracks) for part in results.parts],
        entered={entry.name for part in results.parts for entry in part.entries},
        claims=claims(results),
        costs=[*caution(results), *cost(results)],
        runs=sum(len(entry.runs) for part in results.parts for entry in part.entries),
        track_words=TRACK_WORDS,
        unsteady=UNSTEADY,
        light=palette(looks, LIGHT),
        dark=palette(looks, DARK),
    )


def fill(template: str, plots: Mapping[str, Figure], **values: Any) -> str:
    """A page with its figures by name. `light` and `dark` among the values are the colours of their tokens."""
    templates = Environment(
        loader=PackageLoader("fallline.bench.report"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "descriptive": descriptive,
        "difference": difference,
        "few": FEW,
        "in_a_line": in_a_line,
        "listed": listed,
        "plural": plural,
    }
    return templates.get_template(template).render(**values, figures=_script_json(plots), plotly=get_plotlyjs())


def draw(results: Results, looks: Mapping[str, Line]) -> dict[str, Figure]:
    """The figures that this race has data for, by name: those of the i-th part begin with `i: `."""
    drawn: dict[str, Figure | None] = {}
    for i, across in enumerate(results.across):
        drawn[f"profile {i}"] = figures.profile(across, looks)
    for i, part in enumerate(results.parts):
        drawn[f"{i}: final losses"] = figures.final_losses(part, looks)
        for measure in ("validation loss", "train loss") if part.held_out else ("train loss",):
            for axis in AXES:
                drawn[f"{i}: {measure} by {axis}"] = figures.curves(part, looks, measure, axis)
        drawn[f"{i}: best of"] = figures.best_of(part, looks)
        for entry in part.entries:
            drawn[f"{i}: lr {entry.name}"] = figures.sensitivity(part, entry)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def claims(results: Results) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """What the seeds say of each comparison, and the (label, alarm) of its leader and its baseline."""
    made = []
    for part in results.parts:
        weighty = [entry for i, entry in enumerate(part.entries) if i == 0 or entry is part.baseline]
        doubts = [(entry.label, alarm.text) for entry in weighty for alarm in entry.alarms]
        made.append((sentences(verdicts(part), results), doubts))
    return made


def write_picture(results: Results, path: Path) -> None:
    """Draw the learning curves of the first part as a file, `.svg` or `.png`.

    Raises:
        ValueError: another suffix, no finished run, or without kaleido or a browser for it to draw with.
    """
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a picture is an .svg or a .png, not {path.name!r}")
    picture = figures.picture(results)
    import plotly.graph_objects as go

    try:
        import kaleido  # noqa: F401 (plotly's own message does not know of our extra)
    except ImportError:
        raise ValueError('a picture needs kaleido: pip install "fallline[docs]"') from None
    width, height = picture_size(picture)
    try:
        drawn = go.Figure(picture).to_image(
            format=path.suffix[1:], width=width, height=height, scale=2 if path.suffix == ".png" else 1
        )
    except RuntimeError as error:
        raise ValueError(f"kaleido could not draw; it needs Chrome or Chromium on this machine ({error})") from error
    put(path, drawn)


def picture_size(picture: Figure) -> tuple[int, int]:
    """Width and height in CSS pixels, so high that all names find room."""
    width, height = PICTURE_SIZE
    margin = picture["layout"]["margin"]
    names = sum("name" in trace for trace in picture["data"])
    return width, max(height, margin["t"] + LEGEND_ROW * names + margin["b"])


def _script_json(value: Any) -> str:
    """JSON to stand inside a script element, which a `</script>` in a name must not end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
