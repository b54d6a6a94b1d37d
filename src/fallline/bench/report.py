"""Records to one page: a single HTML file that opens offline. It never trains, and nothing in it is written by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from fallline.bench import figures
from fallline.bench.display import number, spread
from fallline.bench.results import Result, Results
from fallline.bench.tasks import get_task

PICTURE_SIZE = (800, 380)
"""CSS pixels of a README's picture; a PNG has twice as many, for dense screens, an SVG is as sharp as any."""


def write_page(results: Results, path: Path) -> Path:
    """Write the report to `path`, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results), encoding="utf-8")
    return path


def page(results: Results) -> str:
    """The report as HTML: text, styles, data, and Plotly itself."""
    task = get_task(results.race.task)
    drawn = draw(results)
    return fill(
        "report.html",
        drawn,
        results=results,
        race=results.race,
        design=results.race.design,
        setting=results.race.setting,
        task=task,
        loss_name=figures.loss_name(results),
        has_accuracy=any(entry.measure("accuracy") for entry in results.entries),
        has_curves="train loss" in drawn,
        confirmed=sum(bool(entry.finished) for entry in results.entries),
        tuned=[entry for entry in results.entries if f"lr {entry.name}" in drawn],
        dashes={entry.name: figures.line(entry)["dash"] for entry in results.entries},
        lost=losses(results),
        light=figures.palette(results, figures.LIGHT),
        dark=figures.palette(results, figures.DARK),
    )


def fill(template: str, plots: Mapping[str, figures.Figure], **values: Any) -> str:
    """A page with its figures by name. `light` and `dark` among the values are the colours of their tokens."""
    templates = Environment(
        loader=PackageLoader("fallline.bench"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"number": number, "spread": spread, "describe": figures.describe}
    return templates.get_template(template).render(**values, figures=_script_json(plots), plotly=get_plotlyjs())


def draw(results: Results) -> dict[str, figures.Figure]:
    """The figures that this race has data for, by name."""
    drawn = {}
    if any(entry.finished for entry in results.entries):
        for measure in ("validation loss", "train loss") if get_task(results.race.task).held_out else ("train loss",):
            drawn[measure] = figures.curves(results, measure)
        drawn["final losses"] = figures.final_losses(results)
    for entry in results.entries:
        if any("lr" in settings for settings, _ in entry.trials.values()):
            drawn[f"lr {entry.name}"] = figures.sensitivity(results, entry)
    return drawn


def losses(results: Results) -> list[tuple[Result, str, int]]:
    """Why runs were lost: (optimizer, status and reason, how many), most frequent first within an optimizer."""
    rows = []
    for entry in results.entries:
        reasons: dict[str, int] = {}
        for outcome in [*(outcome for _, outcome in entry.trials.values()), *entry.seeds.values()]:
            if outcome.lost:
                told = f"{outcome.status}: {outcome.reason}"
                reasons[told] = reasons.get(told, 0) + 1
        rows += [(entry, told, count) for told, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return rows


def write_picture(results: Results, path: Path) -> None:
    """Draw the learning curves as a file, `.svg` or `.png`.

    Raises:
        ValueError: another suffix, no finished run, or without kaleido or a browser for it to draw with.
    """
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a picture is an .svg or a .png, not {path.name!r}")
    if not any(entry.finished for entry in results.entries):
        raise ValueError("no run of this race has finished on a confirming seed: there is nothing to draw")
    import plotly.graph_objects as go

    try:
        import kaleido  # noqa: F401 (plotly's own message does not know of our extra)
    except ImportError:
        raise ValueError('a picture needs kaleido: pip install "fallline[docs]"') from None
    width, height = PICTURE_SIZE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        go.Figure(figures.picture(results)).write_image(
            path, width=width, height=height, scale=2 if path.suffix == ".png" else 1
        )
    except RuntimeError as error:
        raise ValueError(f"kaleido could not draw; it needs Chrome or Chromium on this machine ({error})") from error


def _script_json(value: Any) -> str:
    """JSON to stand inside a script element, which a `</script>` in a name must not end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
