"""LODO's noisy bowl: does a network that only sees losses and gradients learn the inverse Hessian?

Liao, Dangovski, Foerster and Soljačić, Learning to Optimize Quasi-Newton Methods, TMLR 2023. The minimum of a quadratic
takes a random step before every evaluation, so nothing converges: an optimizer follows well or badly.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fallline import LODO
from fallline.bench.common.numbers import describe, number
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.stats import Interval, interval
from fallline.bench.report.looks import COLOURS, SPARE_COLOURS, Figure
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks.bowl import DIMENSION, EIGENVALUES, FLOOR, Bowl, Landscape
from fallline.papers.experiments._experiment import Design, Done, Experiment, Record, Stages
from fallline.papers.experiments.page import (
    Line,
    Page,
    Plot,
    Row,
    Section,
    Table,
    band_traces,
    layout,
    level,
    log_axis,
    value_axis,
)

POINTS = 48
"""Windows, even over the logarithm of the step, that a run's losses are averaged over."""

TUNED: Mapping[str, Setting] = {"lr": 0.270, "meta_lr": 0.00096, "beta": 0.195}
"""The triple of the authors' program for this task."""

FIRST = ((1000, 15.9), (2000, 12.5), (3000, 11.6), (4000, 11.3))
"""Of LODO, the mean loss over the thousand steps up to a step, in the reference run; seeds differ by 0.3."""


class Newton(torch.optim.Optimizer):
    """x <- x - H⁻¹ g with the exact Hessian H: what LODO would do had it learned all."""

    def __init__(self, model: Landscape) -> None:
        super().__init__(model.parameters(), {"lr": 1.0})
        self.inverse = torch.linalg.inv(model.hessian.double())

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, which ends where the minimum was."""
        for x in self.param_groups[0]["params"]:
            x.sub_((self.inverse @ x.grad.double()).to(x.dtype))


Make = Callable[[Landscape, Mapping[str, Any], torch.Generator], torch.optim.Optimizer]


def lodo(model: Landscape, settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """LODO and its ablations; the network is drawn from the run's seed."""
    return LODO(model.parameters(), generator=draw, **settings)


def adam(model: Landscape, settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's Adam."""
    return torch.optim.Adam(model.parameters(), settings["lr"], betas=(settings["beta1"], settings["beta2"]))


def momentum(model: Landscape, settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's SGD, its momentum undampened."""
    return torch.optim.SGD(model.parameters(), **settings)


def newton(model: Landscape, settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """The exact stepper."""
    return Newton(model)


@dataclass(frozen=True)
class Contender:
    """Who takes part, with which settings and why."""

    line: Line
    make: Make
    settings: Mapping[str, Setting] = field(default_factory=dict)
    source: str = ""
    """Where the settings come from."""

    reference: tuple[str, str] = ("–", "–")
    """Loss and Hessian error of the reference run: 8 seeds, 100,000 steps, ± deviation over seeds."""

    quick: bool = False
    """Whether it takes part in the quick run."""

    @property
    def learns(self) -> bool:
        """Whether it has a preconditioner to look at."""
        return self.make is lodo


THEIRS = "the authors’ program"
ABLATION = "LODO’s, this one thing changed"
GRID = "lr and meta_lr the best of nine pairs: 0.27, 1, 2 with 1e-4, 1e-3, 1e-2; one seed, 10,000 steps"
CONTENDERS = {
    contender.line.name: contender
    for contender in (
        Contender(
            Line("lodo", "LODO", COLOURS["lodo"], width=3),
            lodo,
            TUNED,
            THEIRS,
            ("8.891 ± 0.024", "0.739 ± 0.013"),
            quick=True,
        ),
        Contender(
            Line("lodo-residuals", "LODO-Residuals", COLOURS["koala-v"]),
            lodo,
            {"lr": 1.0, "meta_lr": 3e-3, "beta": 0.195, "preconditioner": "residual", "depth": 64},
            "lr and meta_lr the best of a grid: lr 0.03 … 2, meta_lr 1e-4 … 1e-2; one seed, 3,000 steps",
        ),
        Contender(
            Line("lodo-no-momentum", "LODO-No-Momentum", COLOURS["coolmomentum"]),
            lodo,
            {**TUNED, "beta": 0.0},
            ABLATION,
            ("9.20 ± 0.04", "0.717"),
        ),
        Contender(
            Line("lodo-sgd", "LODO-SGD", COLOURS["koala-pp"]),
            lodo,
            {**TUNED, "meta_optimizer": "sgd", "meta_lr": 5e-3},
            "the best meta_lr of four in the reference run: 1e-5, 1e-4, 1e-3, 5e-3",
            ("9.17 ± 0.02", "0.704"),
        ),
        Contender(
            Line("lodo-defaults", "LODO, defaults", SPARE_COLOURS[2], dash="dot"),
            lodo,
            {"lr": 1.0, "meta_lr": 1e-3, "beta": 0.9},
            "LODO’s defaults, which suit no noise of this size",
            ("44.3 ± 0.4", "0.855"),
        ),
        Contender(
            Line("lodo-depth-4", "LODO, depth 4", SPARE_COLOURS[1]),
            lodo,
            {**TUNED, "depth": 4},
            ABLATION,
            ("12.42 ± 0.28", "0.878"),
        ),
        Contender(
            Line("lodo-diagonal", "LODO-Diagonal", COLOURS["koala-m"]),
            lodo,
            {"lr": 2.0, "meta_lr": 1e-4, "beta": 0.195, "preconditioner": "diagonal"},
            GRID,
            ("17.33 ± 0.29 (50,000 steps)", "0.845"),
            quick=True,
        ),
        Contender(
            Line("lodo-global", "LODO-Global", SPARE_COLOURS[0]),
            lodo,
            {"lr": 2.0, "meta_lr": 1e-4, "beta": 0.195, "preconditioner": "global"},
            GRID,
            ("17.44 ± 0.11 (50,000 steps)", "0.845"),
        ),
        Contender(
            Line("adam", "Adam", COLOURS["adamw"], dash="dash", ours=False),
            adam,
            {"lr": 1.25, "beta1": 0.4, "beta2": 0.999},
            "the best of a grid: lr 1 … 3, beta1 0 … 0.7, beta2 0.99 … 0.9999; two seeds, 10,000 steps",
            ("15.43 ± 0.07", "–"),
            quick=True,
        ),
        Contender(
            Line("momentum", "SGD, momentum", COLOURS["sgd"], dash="dashdot", ours=False),
            momentum,
            {"lr": 2.0, "momentum": 0.4},
            "the best of a grid: lr 1 … 2.5, momentum 0 … 0.7, dampened or not; two seeds, 10,000 steps",
            ("16.18 ± 0.08", "–"),
            quick=True,
        ),
        Contender(
            Line("newton", "Newton, exact H", ("#1d2127", "#e8eaed", "#757f8a"), dash="longdash", ours=False),
            newton,
            {},
            "it is told H",
            ("7.408 ± 0.018", "0"),
            quick=True,
        ),
    )
}
OTHERS = ("lodo", "lodo-defaults", "adam", "momentum", "newton")
"""The first figure's: LODO among other optimizers. The second's are LODO's ablations."""


class LodoBowl(Experiment):
    """LODO's noisy bowl, its ablations, Adam, momentum and Newton."""

    name: ClassVar[str] = "lodo-bowl"
    summary: ClassVar[str] = (
        "a quadratic in 100 dimensions, Hessian eigenvalues 0.001 … 1, whose minimum takes a random step before every "
        "evaluation: LODO and its ablations, Adam, momentum, exact Newton; 100,000 steps (hours), with --quick 3,000"
    )
    contenders: ClassVar[tuple[str, ...]] = tuple(CONTENDERS)
    steps: ClassVar[int] = 100_000
    quick_steps: ClassVar[int] = 3000

    def stages(self, design: Design) -> Stages:
        """One: every contender on the same bowls."""
        steps = self.quick_steps if design.quick else self.steps
        yield [
            Run(f"repro:{self.name}", name, {**contender.settings, "steps": steps}, seed, test=True)
            for name, contender in CONTENDERS.items()
            if (name in design.optimizers if design.optimizers else contender.quick or not design.quick)
            for seed in range(design.seeds)
        ]

    def run(self, run: Run) -> Outcome:
        """Follow the minimum. Basis and steps of the minimum come from the seed alone, so all see the same."""
        settings = dict(run.settings)
        steps = int(settings.pop("steps"))
        minima = Bowl().batches(generator(run.seed, "order"))
        seed_torch(run.seed, "init")
        model = Landscape()
        optimizer = CONTENDERS[run.optimizer].make(model, settings, generator(run.seed, "network"))
        look_at = set(marks(steps))
        outcome = Outcome("finished", steps)
        losses = torch.zeros(steps, dtype=torch.float64)
        looked = 0
        for step in range(1, steps + 1):
            loss = model(next(minima)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[step - 1] = loss.detach()
            if step in look_at:
                since = losses[looked:step].mean().item()
                looked = step
                measures = {"step": float(step), "loss": since}
                if isinstance(optimizer, LODO):
                    measures["Hessian error"] = hessian_error(optimizer.networks[0].dense(), model.hessian)
                if not all(map(math.isfinite, measures.values())):
                    return Outcome("diverged", step, "the loss or the preconditioner is not finite")
                for measure, value in measures.items():
                    outcome.curve.setdefault(measure, []).append(value)
        outcome.score = losses[-max(1, steps // 10) :].mean().item()
        outcome.result = {"loss": outcome.score}
        if isinstance(optimizer, LODO):
            outcome.result["Hessian error"] = measures["Hessian error"]
            inside = in_eigenbasis(optimizer.networks[0].dense(), model.hessian)
            outcome.curve["curvature"] = three_digits(inside.diagonal())
            if run.seed == 0 and run.optimizer == "lodo":
                root = EIGENVALUES.sqrt()
                outcome.curve["whitened"] = three_digits((root[:, None] * inside * root).flatten())
        for end, _ in FIRST:
            if end <= steps:
                outcome.result[f"loss to {end}"] = losses[end - 1000 : end].mean().item()
        return outcome

    def code(self) -> Sequence[Any]:
        """What makes a run's numbers."""
        return (
            Bowl,
            Landscape,
            Newton,
            lodo,
            adam,
            momentum,
            newton,
            LodoBowl.run,
            marks,
            hessian_error,
            in_eigenbasis,
        )

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By contender: intervals over seeds, CPU time, how many were lost."""
        table: dict[str, Any] = {}
        for name in dict.fromkeys(run.optimizer for run, _ in done):
            runs = sorted(((run, out) for run, out in done if run.optimizer == name), key=lambda pair: pair[0].seed)
            kept = [out for _, out in runs if not out.lost]
            measures = dict.fromkeys(measure for out in kept for measure in out.result)
            table[name] = {
                "settings": {key: value for key, value in runs[0][0].settings.items() if key != "steps"},
                "lost": len(runs) - len(kept),
                "seconds": sum(out.cpu_seconds for out in kept) / len(kept) if kept else None,
                "measures": {
                    measure: vars(found)
                    for measure in measures
                    if (found := interval([out.result[measure] for out in kept if measure in out.result]))
                },
            }
        return {"steps": int(done[0][0].settings["steps"]), "floor": FLOOR, "contenders": table}

    def page(self, record: Record) -> Page:
        """Result, curves, what the network has learned, settings, differences."""
        return BowlPage(record).page()


def marks(steps: int) -> list[int]:
    """The last steps of the windows."""
    return sorted({round(mark) for mark in np.geomspace(1, steps, POINTS)})


def hessian_error(G: Tensor, H: Tensor) -> float:
    """|I - G H|, Frobenius, divided by the square root of n."""
    eye = torch.eye(len(H), dtype=torch.float64)
    error: Tensor = (eye - G.double() @ H.double()).norm() / len(H) ** 0.5
    return error.item()


def in_eigenbasis(G: Tensor, H: Tensor) -> Tensor:
    """G in the basis of H's eigenvectors, soft directions first."""
    basis: Tensor = torch.linalg.eigh(H.double()).eigenvectors
    return basis.T @ G.double() @ basis


def three_digits(values: Tensor) -> list[float | None]:
    """For the records: enough to draw."""
    return [float(f"{value:.3g}") for value in values.tolist()]


class BowlPage:
    """Builds the page from the record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.results = record["results"]
        self.steps: int = self.results["steps"]
        self.names = [name for name in CONTENDERS if name in self.results["contenders"]]
        self.ranked = sorted(self.names, key=lambda name: self.loss(name) or math.inf)
        self.full = self.steps == LodoBowl.steps

    def loss(self, name: str) -> float | None:
        """A contender's mean loss."""
        found = self.measure(name, "loss")
        return found.mean if found else None

    def measure(self, name: str, measure: str) -> Interval | None:
        """A contender's interval."""
        found = self.results["contenders"][name]["measures"].get(measure)
        return Interval(**found) if found else None

    def outcomes(self, name: str) -> list[dict[str, Any]]:
        """A contender's finished runs, by seed."""
        runs = [one for one in self.record["runs"] if one["run"]["optimizer"] == name]
        runs = [one for one in runs if one["outcome"]["status"] == "finished"]
        return [one["outcome"] for one in sorted(runs, key=lambda one: one["run"]["seed"])]

    def page(self) -> Page:
        """All of it."""
        seeds = self.record["design"]["seeds"]
        drawn = [name for name in self.names if self.outcomes(name)]
        learners = [name for name in drawn if CONTENDERS[name].learns]
        sections = [self.result(), self.curves(drawn), self.learned(learners), self.thousands()]
        sections += [self.settings(), self.differences()]
        return Page(
            "LODO on the noisy bowl",
            [
                "A quadratic in 100 dimensions, its Hessian’s eigenvalues even over their logarithm from 0.001 to 1 in "
                "a random basis. The minimum takes a standard normal step before every evaluation, so whoever follows "
                "it must know the curvature: the exact Newton step has an expected loss of ½ tr H = "
                f"{FLOOR:.3f}. LODO sees gradients alone, and learns its preconditioner on the way.",
                f"Run here: {self.steps:,} steps, {seeds} seed{'s' if seeds != 1 else ''}, float32, "
                f"{self.steps * seeds:,} steps in all for each optimizer. A seed draws the basis, the minimum’s steps "
                "and LODO’s network; the first two are the same for all optimizers.",
            ],
            [section for section in sections if section],
            [CONTENDERS[name].line for name in drawn],
            {"cold": COLOURS["coolmomentum"]},
        )

    def result(self) -> Section:
        """The table."""
        about = (
            "The reference columns are no published numbers, which were not to be had: they are those of an earlier, "
            "independent program of ours, 8 seeds of 100,000 steps, ± the deviation over seeds; its Adam "
            "had lr 1.5 and beta1 0.5, its SGD lr 1.5 and momentum 0.5."
        )
        if not self.full:
            about += f" This run had {self.steps:,} steps: it has not come as far, and the columns need not agree."
        rows = []
        for name in self.ranked:
            contender, entry = CONTENDERS[name], self.results["contenders"][name]
            loss, error = self.measure(name, "loss"), self.measure(name, "Hessian error")
            told = digits(loss) if loss else "–"
            if entry["lost"]:
                told += f" ({entry['lost']} of {self.record['design']['seeds']} seeds lost)"
            time = f"{number(1e3 * entry['seconds'] / self.steps)} ms" if entry["seconds"] else "–"
            rows.append(
                Row(
                    [contender.line.label, told, digits(error), contender.reference[0], contender.reference[1], time],
                    contender.line,
                )
            )
        head = [
            "Optimizer",
            "Mean loss, last tenth",
            "‖I − GH‖ / √n",
            "Loss, reference run",
            "‖I − GH‖ / √n, reference run",
        ]
        return Section(
            "Result",
            "Means with 95 % bootstrap intervals over seeds. " + about,
            Table("result", [*head, "CPU time a step"], rows),
        )

    def curves(self, drawn: Sequence[str]) -> Section:
        """Loss against step, twice: among others, and among its like."""
        among = [name for name in drawn if name in OTHERS]
        alike = [name for name in drawn if name == "lodo" or (CONTENDERS[name].learns and name not in OTHERS)]
        plots = [Plot("loss", "LODO and other optimizers", self.curve(among, "loss"))]
        if len(alike) > 1:
            plots.append(Plot("ablations", "LODO and its ablations", self.curve(alike, "loss")))
        return Section(
            "Loss",
            f"Mean loss over {len(marks(self.steps))} windows of steps, even over the logarithm; "
            "mean over seeds with its 95 % band. All start at the minimum’s first place, so the loss rises before an "
            "optimizer has caught up.",
            plots=plots,
        )

    def curve(self, names: Sequence[str], measure: str) -> Figure:
        """A measure against steps, both axes logarithmic where they span much."""
        data: list[Figure] = []
        low, high = math.inf, -math.inf
        for name in names:
            outcomes = self.outcomes(name)
            ends = np.array(outcomes[0]["curve"]["step"])
            starts = np.concatenate([[1.0], ends[:-1] + 1])
            at = np.sqrt(starts * ends) if measure == "loss" else ends
            curves = [outcome["curve"][measure] for outcome in outcomes]
            traces, least, most = band_traces(CONTENDERS[name].line, at, curves, measure)
            data += traces
            low, high = min(low, least), max(high, most)
        data.sort(key=lambda trace: "fill" not in trace)
        drawn = layout("step", "loss" if measure == "loss" else "‖I − GH‖ / √n", log_x=(1, self.steps))
        if measure == "loss":
            drawn["yaxis"] |= value_axis(max(low, 0.7 * FLOOR), high)  # the first windows are a step or two long: noise
            drawn |= level(FLOOR, f"½ tr H = {FLOOR:.2f}, exact Newton", log=drawn["yaxis"]["type"] == "log")
        else:
            drawn["yaxis"] |= {"type": "linear", "range": [0, 1.08 * max(high, 1.0)]}
        return {"data": data, "layout": drawn}

    def learned(self, learners: Sequence[str]) -> Section | None:
        """The Hessian error, and the learned preconditioner beside the inverse Hessian."""
        if not learners:
            return None
        plots = [
            Plot(
                "error",
                "Distance to the inverse Hessian",
                self.curve(learners, "Hessian error"),
                "0: G = H⁻¹. 1: no better than G = 0.",
            ),
            Plot(
                "curvature",
                "G along the eigenvectors of H",
                self.curvature(learners),
                "vᵀGv for every eigenvector v of H at the end, mean over seeds with its band, against the eigenvalue "
                "λ. A learned inverse lies on the line 1/λ.",
            ),
        ]
        first = next((one["curve"] for one in self.outcomes("lodo") if "whitened" in one["curve"]), None)
        if "lodo" in learners and first:
            plots.append(
                Plot(
                    "whitened",
                    "What LODO has learned: H½ G H½",
                    self.whitened(first["whitened"]),
                    "In the eigenbasis of H, seed 0. For G = H⁻¹ this would be the identity: ones on the diagonal, "
                    "nothing beside it. Soft directions at the top and on the left.",
                    height=430,
                )
            )
            plots.append(
                Plot(
                    "true",
                    "The same of the true inverse",
                    self.whitened(torch.eye(DIMENSION).flatten().tolist()),
                    "H½ H⁻¹ H½: the goal.",
                    height=430,
                )
            )
        return Section("What the network has learned", self.reach(), plots=plots)

    def reach(self) -> str:
        """How many directions have been learned, in a sentence."""
        text = (
            "The error counts every direction alike, the loss each by its curvature: the last to be learned are the "
            "soft directions, whose gradients are small and which add little to the loss. "
        )
        eigenvalues = EIGENVALUES.numpy()
        ratios = [np.array(one["curve"]["curvature"]) * eigenvalues for one in self.outcomes("lodo")]
        if ratios:
            near = np.array([(ratio > 0.5) & (ratio < 2) for ratio in ratios]).mean(axis=0)
            weight = (near * eigenvalues).sum() / eigenvalues.sum()
            text += (
                f"Here LODO’s G is within a factor of two of 1/λ along {100 * near.mean():.0f} % of H’s eigenvectors, "
                f"which carry {100 * weight:.0f} % of tr H."
            )
        return text

    def curvature(self, learners: Sequence[str]) -> Figure:
        """vᵀGv against λ, with 1/λ."""
        eigenvalues = EIGENVALUES.numpy()
        data: list[Figure] = []
        for name in learners:
            curves = np.array([outcome["curve"]["curvature"] for outcome in self.outcomes(name)])
            data += band_traces(CONTENDERS[name].line, eigenvalues, curves, "vᵀGv")[0]
        data.sort(key=lambda trace: "fill" not in trace)
        data.append(
            {
                "x": [eigenvalues[0], eigenvalues[-1]],
                "y": [1 / eigenvalues[0], 1 / eigenvalues[-1]],
                "mode": "lines",
                "line": {"color": "@text", "width": 1.5, "dash": "dot"},
                "hoverinfo": "skip",
            }
        )
        drawn = layout("eigenvalue λ of H", "vᵀ G v", log_x=(eigenvalues[0], eigenvalues[-1]))
        lowest = min(min(trace["y"]) for trace in data)
        drawn["yaxis"] |= log_axis(min(0.5, max(lowest, 1e-2)), 1 / eigenvalues[0])
        where = {"x": math.log10(0.004), "y": math.log10(250), "xanchor": "left", "yanchor": "bottom", "xshift": 4}
        drawn["annotations"] = [
            {**where, "text": "1/λ", "showarrow": False, "font": {"size": 13, "color": "@text"}},
        ]
        return {"data": data, "layout": drawn}

    def whitened(self, entries: Sequence[float]) -> Figure:
        """H½ G H½ as a heat map."""
        matrix = np.array(entries).reshape(DIMENSION, DIMENSION)
        labels = [f"{value:.2g}" for value in EIGENVALUES.tolist()]
        data = {
            "type": "heatmap",
            "z": [[float(f"{value:.3g}") for value in row] for row in matrix],
            "zmin": -1,
            "zmax": 1,
            "colorscale": [[0, "@cold"], [0.5, "@paper"], [1, "@lodo"]],
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickvals": [-1, 0, 1], "tickfont": {"color": "@muted"}},
            "customdata": [labels] * DIMENSION,
            "text": [[label] * DIMENSION for label in labels],
            "hovertemplate": "λ %{text}, λ %{customdata}: %{z:.2f}<extra></extra>",
        }
        drawn = layout("eigenvalue λ of H", "")
        ticks = {
            "tickvals": [0, (DIMENSION - 1) / 3, 2 * (DIMENSION - 1) / 3, DIMENSION - 1],
            "ticktext": ["0.001", "0.01", "0.1", "1"],
            "showgrid": False,
            "constrain": "domain",
        }
        drawn["xaxis"] |= ticks
        drawn["yaxis"] |= {**ticks, "autorange": "reversed", "scaleanchor": "x"}
        return {"data": [data], "layout": drawn}

    def thousands(self) -> Section | None:
        """LODO's first 4,000 steps beside the reference run's."""
        if "lodo" not in self.names:
            return None
        reference = {end: value for end, value in FIRST if self.measure("lodo", f"loss to {end}")}
        if not reference:
            return None
        head = ["LODO, steps", *(f"{end - 999:,} to {end:,}" for end in reference)]
        ours = [digits(self.measure("lodo", f"loss to {end}")) for end in reference]
        theirs = [f"{value:g}" for value in reference.values()]
        rows = [Row(["here", *ours]), Row(["reference run", *theirs])]
        return Section(
            "The first thousands",
            "Mean loss of LODO with the tuned triple; in the reference run seeds differed by about 0.3.",
            Table("thousands", head, rows),
        )

    def settings(self) -> Section:
        """Who ran with what, and why."""
        rows = []
        for name in self.names:
            contender = CONTENDERS[name]
            settings = describe(self.results["contenders"][name]["settings"]) or "–"
            rows.append(Row([contender.line.label, settings, contender.source], contender.line))
        return Section(
            "Settings",
            "What is not named is at its default. Pilot runs that chose between settings had seeds of their own.",
            Table("settings", ["Optimizer", "Settings", "From"], rows),
        )

    def differences(self) -> Section:
        """How the paper's experiment differs, as far as is known."""
        return Section(
            "How this differs from the paper",
            "As far as is known: the authors’ program could be read, the body of the paper could not.",
            points=[
                "They compute in float64, here in float32.",
                "They tune every optimizer by 10 generations of 32 runs; here LODO has the triple which their program "
                "holds, its ablations the same but for one thing, or the best of a small grid, as Adam and SGD.",
                "They run Momentum, RMSprop, Adam, Yogi, L-BFGS, O-LBFGS, BFGS and Levenberg–Marquardt, also against "
                "a time limit of 300 s; here Adam, SGD with momentum and the exact Newton step.",
                "In the released tuning table the names LODO-Global and LODO-No-Momentum stand for other classes; here "
                "they are what they are called.",
                "They estimate ‖I − GH‖ from 100 random vectors; here it is computed from the whole matrix.",
                "A step here ends where one of theirs begins: the points at which losses are taken are the same.",
            ],
        )


def digits(value: Interval | None) -> str:
    """`mean [low, high]` with as many decimals as the interval is worth."""
    if value is None:
        return "–"
    if value.low is None or value.high is None or value.high <= value.low:
        return f"{value.mean:#.4g}"
    places = max(0, min(4, 1 - math.floor(math.log10(value.high - value.low))))
    return f"{value.mean:.{places}f} [{value.low:.{places}f}, {value.high:.{places}f}]"
