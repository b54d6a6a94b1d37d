"""What arturo.md shows and quotes: arTuRO's solvers on real images, with the published settings.

    python docs/arturo.py

Sixteen runs of 60 epochs on scikit-learn's digits, one to two minutes on one core. Puts the tables into docs/arturo.md
and draws docs/arturo.svg. Needs fallline[docs], and Chrome or Chromium.
"""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

import fallline
from fallline.arturo.arturo import PUBLISHED
from fallline.bench.common.files import fill
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.tasks import get_task

HERE = Path(__file__).parent
SOLVERS: dict[str, dict[str, Any]] = {
    "default (newton_iters=0)": {},
    "newton_iters=4": {"newton_iters": 4},
    "bisect": {"solver": "bisect", "curvature_floor": -torch.inf},
    "eta_min=0.25": {"eta_min": 0.25},
}
DRAWN = "cifar10-resnet34"
EPOCHS, STEPS, MILESTONES, CUT = 60, 16, (30, 45), 0.006
SEED = 0
COLOURS = dict(zip(SOLVERS, ("#5a50d0", "#7d8590", "#d55e00", "#009e73"), strict=True))
INK, GRID = "#757f8a", "#7d859033"  # to be read on a light and on a dark ground
NO_ETA = 0.02  # where the logarithmic axis shows a multiplier of 0


def train(experiment: str, solver: str) -> dict[str, Tensor]:
    """One run: KL / epsilon, of the mean and whole, and eta of every step; accuracy and the slopes at the end."""
    task = get_task("digits")
    batches = task.batches(generator(SEED, "order"))
    seed_torch(SEED, "init")
    model = task.model()
    optimizer = fallline.ArTuRO(model.parameters(), **fallline.ArTuRO.published(experiment), **SOLVERS[solver])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, MILESTONES, CUT)
    ratios, wholes, etas = [], [], []
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            optimizer.zero_grad()
            task.losses(model, next(batches)).mean().backward()
            before = precisions(optimizer)
            optimizer.step()
            by = before / precisions(optimizer)
            epsilon = optimizer.param_groups[0]["lr"]
            ratios.append(optimizer.kl / epsilon)
            wholes.append((optimizer.kl + (by - 1 - by.log()).sum() / 2) / epsilon)
            etas.append(optimizer.eta)
        scheduler.step()
    with torch.no_grad():
        accuracy = task.evaluate(model, "validation")["accuracy"]
    slopes = torch.cat([optimizer.state[p]["slope"].flatten() for p in model.parameters()])
    steps = {"ratio": torch.stack(ratios), "whole": torch.stack(wholes), "eta": torch.stack(etas)}
    return {**steps, "accuracy": torch.tensor(accuracy), "slope": slopes}


def precisions(optimizer: fallline.ArTuRO) -> Tensor:
    """Of all weights; in float64, for what is asked of them are small changes."""
    return torch.cat([state["precision"].flatten() for state in optimizer.state.values()]).double()


def distinct() -> dict[tuple[str, ...], dict[str, float]]:
    """The published settings, under the names of all experiments that share them."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for name, settings in PUBLISHED.items():
        names = next((names for names, known in found.items() if known == settings), ())
        found.pop(names, None)
        found[(*names, name)] = settings
    return found


def settings_table() -> str:
    """What `ArTuRO.published` holds (the rest are defaults), and what eta = 0.25 leaves of a Newton step."""
    keys = list(fallline.ArTuRO.published(DRAWN))
    rows = [["name", *(f"`{key}`" for key in keys), "κ/(κ + 0.25)"]]
    for names, settings in distinct().items():
        kappa = settings["reg_weight"]
        values = [f"{settings[key]:.7g}" for key in keys]
        rows.append([", ".join(f"`{name}`" for name in names), *values, f"{kappa / (kappa + 0.25):.2f}"])
    return markdown(rows)


def results_table(runs: dict[tuple[str, str], dict[str, Tensor]]) -> str:
    """KL / epsilon, multiplier and accuracy of every run."""
    bound = ["KL/ε: median", "largest", "least if active", "steps above 1.1"]
    rows = [["settings", "solver", *bound, "smallest η", "inactive", "accuracy"]]
    for (experiment, solver), run in runs.items():
        ratio, eta = run["ratio"], run["eta"]
        least = SOLVERS[solver].get("eta_min", 0.0)
        inactive = f"{100 * (eta <= least).double().mean():.0f} %"
        above = f"{100 * (ratio > 1.1).double().mean():.0f} %"
        active = "" if solver == "bisect" else f"{ratio[eta > least].min():.4f}"
        row = [f"`{experiment}`", solver, f"{ratio.median():.2f}", f"{ratio.max():#.3g}", active, above]
        rows.append([*row, f"{eta.min():.2g}", inactive, f"{100 * run['accuracy']:.1f} %"])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def figure(runs: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """KL / epsilon above, the multiplier below, against steps."""
    data, last = [], EPOCHS * STEPS
    for solver, run in runs.items():
        line = {"color": COLOURS[solver], "width": 1.5}
        look = {"name": solver, "mode": "lines", "line": line, "x": list(range(1, last + 1))}
        data.append({**look, "y": run["ratio"].tolist(), "yaxis": "y2"})
        data.append({**look, "y": run["eta"].clamp_min(NO_ETA).tolist(), "showlegend": False})
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "tickfont": {"size": 14}}
    logarithmic = {**axis, "type": "log"}
    ticks = [0.1, 1, 10, 100, 1000, 10000]
    marks = [
        {"type": "line", "x0": at * STEPS, "x1": at * STEPS, "yref": "paper", "y0": 0, "y1": 1}
        | {"line": {"color": INK, "width": 1, "dash": "dot"}}
        for at in MILESTONES
    ]
    notes = [
        {"x": at * STEPS, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 4}
        | {"text": f"ε × {CUT}", "showarrow": False, "font": {"size": 14, "color": INK}}
        for at in MILESTONES
    ]
    layout = {
        "paper_bgcolor": "#00000000",
        "plot_bgcolor": "#00000000",
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 15, "color": INK},
        "margin": {"l": 70, "r": 12, "t": 8, "b": 52},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "#00000000"},
        "xaxis": {**axis, "title": {"text": "steps"}, "range": [0, last], "anchor": "y"},
        "yaxis": {**logarithmic, "domain": [0, 0.45], "title": {"text": "multiplier η"}}
        | {"tickvals": [NO_ETA, *ticks], "ticktext": ["0", *(f"{tick:g}" for tick in ticks)]},
        "yaxis2": {**logarithmic, "domain": [0.55, 1], "title": {"text": "KL / ε"}, "anchor": "x"}
        | {"tickvals": [0.01, *ticks], "ticktext": [f"{tick:g}" for tick in (0.01, *ticks)]},
        "shapes": marks,
        "annotations": notes,
    }
    return {"data": data, "layout": layout}


def main() -> None:
    """Train, print, write, draw."""
    torch.set_num_threads(1)
    runs = {(names[0], solver): train(names[0], solver) for names in distinct() for solver in SOLVERS}
    slopes = torch.stack([torch.stack([run["slope"].min(), run["slope"].max()]) for run in runs.values()])
    fill(HERE / "arturo.md", "settings", settings_table())
    fill(HERE / "arturo.md", "results", results_table(runs))
    print(results_table(runs))
    print(f"slopes at the end, of all runs: {slopes.min():.3f} to {slopes.max():.3f}")
    for (experiment, solver), run in runs.items():
        if not SOLVERS[solver]:
            middle, most = run["whole"].median(), run["whole"].max()
            print(f"{experiment}: KL/ε with the precision's part: median {middle:#.3g}, largest {most:,.0f}")
    shown = [solver for solver in SOLVERS if "newton_iters" not in SOLVERS[solver]]  # which the default hides
    drawn = figure({solver: runs[DRAWN, solver] for solver in shown})
    go.Figure(drawn).write_image(HERE / "arturo.svg", width=800, height=520)


if __name__ == "__main__":
    main()
