"""LODO's noisy bowl: does a network that only sees losses and gradients learn the inverse Hessian?

Liao, Dangovski, Foerster and Soljačić, Learning to Optimize Quasi-Newton Methods, TMLR 2023. The minimum of a quadratic
takes a random step before every evaluation, so nothing converges: an optimizer follows well or badly.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fallline import LODO
from fallline.bench.common.numbers import describe, number, plural
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.stats import Interval
from fallline.bench.report.looks import COLOURS, SPARE_COLOURS, Figure
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks.bowl import DIMENSION, EIGENVALUES, FLOOR, Bowl, Landscape
from fallline.papers.experiments._experiment import Case, Design, Done, mean
from fallline.papers.experiments._problem import (
    MAKERS,
    Problem,
    ProblemPage,
    entry,
    estimated,
    optimizer_of,
    settings_of,
)
from fallline.papers.experiments.lodo_mnist import PAPER
from fallline.papers.experiments.page import (
    Line,
    Page,
    Plot,
    Row,
    Section,
    Table,
    band_traces,
    digits,
    layout,
    level,
    log_axis,
    lost_of,
    value_axis,
)
from fallline.papers.records import Record

POINTS = 48
"""Windows, even over the logarithm of the step, that a run's losses are averaged over."""

TUNED: Mapping[str, Setting] = {"lr": 0.270, "meta_lr": 0.00096, "beta": 0.195}
"""The triple of the authors' program for this task."""

FIRST = ((1000, 15.9), (2000, 12.5), (3000, 11.6), (4000, 11.3))
"""Of LODO, the mean loss over the thousand steps up to a step, in the reference run; seeds differ by 0.3."""

THEIRS = "the authors’ program"
ABLATION = "LODO’s, this one thing changed"
GRID = "lr and meta_lr the best of nine pairs: 0.27, 1, 2 with 1e-4, 1e-3, 1e-2; one seed, 10,000 steps"
ENTRIES = (
    entry(Line("lodo", "LODO", COLOURS["lodo"], width=3), TUNED, THEIRS),
    entry(
        Line("lodo-residuals", "LODO-Residuals", COLOURS["koala-v"]),
        {"lr": 1.0, "meta_lr": 3e-3, "beta": 0.195, "preconditioner": "residual", "depth": 64},
        "lr and meta_lr the best of a grid: lr 0.03 … 2, meta_lr 1e-4 … 1e-2; one seed, 3,000 steps",
        quick=False,
    ),
    entry(
        Line("lodo-no-momentum", "LODO-No-Momentum", COLOURS["coolmomentum"]),
        {**TUNED, "beta": 0.0},
        ABLATION,
        quick=False,
    ),
    entry(
        Line("lodo-sgd", "LODO-SGD", COLOURS["koala-pp"]),
        {**TUNED, "meta_optimizer": "sgd", "meta_lr": 5e-3},
        "the best meta_lr of four in the reference run: 1e-5, 1e-4, 1e-3, 5e-3",
        quick=False,
    ),
    entry(
        Line("lodo-defaults", "LODO, defaults", SPARE_COLOURS[2], dash="dot"),
        {"lr": 1.0, "meta_lr": 1e-3, "beta": 0.9},
        "LODO’s defaults, which suit no noise of this size",
        quick=False,
    ),
    entry(Line("lodo-depth-4", "LODO, depth 4", SPARE_COLOURS[1]), {**TUNED, "depth": 4}, ABLATION, quick=False),
    entry(
        Line("lodo-diagonal", "LODO-Diagonal", COLOURS["koala-m"]),
        {"lr": 2.0, "meta_lr": 1e-4, "beta": 0.195, "preconditioner": "diagonal"},
        GRID,
    ),
    entry(
        Line("lodo-global", "LODO-Global", SPARE_COLOURS[0]),
        {"lr": 2.0, "meta_lr": 1e-4, "beta": 0.195, "preconditioner": "global"},
        GRID,
        quick=False,
    ),
    entry(
        Line("adam", "Adam", COLOURS["adamw"], dash="dash", ours=False),
        {"lr": 1.25, "beta1": 0.4, "beta2": 0.999},
        "the best of a grid: lr 1 … 3, beta1 0 … 0.7, beta2 0.99 … 0.9999; two seeds, 10,000 steps",
    ),
    entry(
        Line("momentum", "SGD, momentum", COLOURS["sgd"], dash="dashdot", ours=False),
        {"lr": 2.0, "momentum": 0.4},
        "the best of a grid: lr 1 … 2.5, momentum 0 … 0.7, dampened or not; two seeds, 10,000 steps",
    ),
    entry(
        Line("newton", "Newton, exact H", ("#1d2127", "#e8eaed", "#757f8a"), dash="longdash", ours=False),
        {},
        "it is told H",
    ),
)
REFERENCE = {
    "lodo": ("8.891 ± 0.024", "0.739 ± 0.013"),
    "lodo-no-momentum": ("9.20 ± 0.04", "0.717"),
    "lodo-sgd": ("9.17 ± 0.02", "0.704"),
    "lodo-defaults": ("44.3 ± 0.4", "0.855"),
    "lodo-depth-4": ("12.42 ± 0.28", "0.878"),
    "lodo-diagonal": ("17.33 ± 0.29 (50,000 steps)", "0.845"),
    "lodo-global": ("17.44 ± 0.11 (50,000 steps)", "0.845"),
    "adam": ("15.43 ± 0.07", "–"),
    "momentum": ("16.18 ± 0.08", "–"),
    "newton": ("7.408 ± 0.018", "0"),
}
"""Loss and Hessian error of the reference run: 8 seeds, 100,000 steps, ± deviation over seeds."""

OTHERS = ("lodo", "lodo-defaults", "adam", "momentum", "newton")
"""The optimizers of the first figure: LODO among others. The second figure's are LODO's ablations."""


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


class Chase:
    """An optimizer that follows the minimum. Basis and steps of the minimum come from the seed alone: all see the same.

    Iterate over it to follow; it yields the number of every step.
    """

    def __init__(self, run: Run, optimizer: str) -> None:
        settings: dict[str, Any] = dict(run.settings)
        self.steps = int(settings.pop("steps"))
        self.minima = Bowl().batches(generator(run.seed, "order"))
        seed_torch(run.seed, "init")
        self.model = Landscape()
        self.optimizer = (
            Newton(self.model)
            if optimizer == "newton"
            else optimizer_of(optimizer, self.model.parameters(), settings, generator(run.seed, "network"))
        )
        self.losses = torch.zeros(self.steps, dtype=torch.float64)

    def __iter__(self) -> Iterator[int]:
        for step in range(1, self.steps + 1):
            loss = self.model(next(self.minima)).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses[step - 1] = loss.detach()
            yield step

    @property
    def score(self) -> float:
        """The mean loss over the last tenth of the steps."""
        return self.losses[-max(1, self.steps // 10) :].mean().item()


class LodoBowl(Problem):
    """LODO's noisy bowl, its ablations, Adam, momentum and Newton."""

    name: ClassVar[str] = "lodo-bowl"
    summary: ClassVar[str] = (
        "a quadratic in 100 dimensions, Hessian eigenvalues 0.001 … 1, whose minimum takes a random step before every "
        "evaluation: LODO and its ablations, Adam, momentum, exact Newton; 100,000 steps (hours), with --quick 3,000"
    )
    paper: ClassVar[str] = PAPER
    cpu: ClassVar[tuple[Case, ...]] = (Case("the noisy bowl", "repro:lodo-bowl", ENTRIES, "loss"),)
    steps: ClassVar[int] = 100_000
    quick_steps: ClassVar[int] = 3000
    deviations: ClassVar[tuple[str, ...]] = (
        "They compute in float64, here in float32.",
        "They tune every optimizer by 10 generations of 32 runs; here LODO has the triple which their program "
        "holds, its ablations the same but for one thing, or the best of a small grid, as Adam and SGD.",
        "They run Momentum, RMSprop, Adam, Yogi, L-BFGS, O-LBFGS, BFGS and Levenberg–Marquardt, also against "
        "a time limit of 300 s; here Adam, SGD with momentum and the exact Newton step.",
        "In the released tuning table the names LODO-Global and LODO-No-Momentum stand for other classes; here "
        "they are what they are called.",
        "They estimate ‖I − GH‖ from 100 random vectors; here it is computed from the whole matrix.",
        "A step here ends where one of theirs begins: the points at which losses are taken are the same.",
    )

    def run(self, run: Run) -> Outcome:
        """Follow the minimum."""
        chase = Chase(run, run.optimizer)
        steps, losses, optimizer, hessian = chase.steps, chase.losses, chase.optimizer, chase.model.hessian
        look_at = set(marks(steps))
        outcome = Outcome("finished", steps)
        looked = 0
        for step in chase:
            if step in look_at:
                measures = {"step": float(step), "loss": losses[looked:step].mean().item()}
                looked = step
                if isinstance(optimizer, LODO):
                    measures["Hessian error"] = hessian_error(optimizer.networks[0].dense(), hessian)
                if not all(map(math.isfinite, measures.values())):
                    return Outcome("diverged", step, "the loss or the preconditioner is not finite")
                for measure, value in measures.items():
                    outcome.curve.setdefault(measure, []).append(value)
        outcome.score = chase.score
        outcome.result = {"loss": outcome.score}
        if isinstance(optimizer, LODO):
            outcome.result["Hessian error"] = measures["Hessian error"]
            inside = in_eigenbasis(optimizer.networks[0].dense(), hessian)
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
        return (Bowl, Landscape, Newton, Chase, *MAKERS.values(), LodoBowl.run, marks, hessian_error, in_eigenbasis)

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By contender: intervals over seeds, CPU time, how many were lost."""
        table: dict[str, Any] = {}
        for one in self.tuned(design, done):
            measures = dict.fromkeys(measure for outcome in one.kept for measure in outcome.result)
            table[one.entry.label] = {
                "settings": settings_of(one),
                "lost": one.lost,
                "seconds": mean([outcome.cpu_seconds for outcome in one.kept]),
                "measures": {measure: one.measure(measure) for measure in measures},
            }
        return {"steps": self.length(design), "floor": FLOOR, "contenders": table}

    def page(self, record: Record) -> Page:
        """Result, curves, what the network has learned, settings, differences."""
        return BowlPage(LodoBowl, record).page()


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
    """Values with the digits that drawing needs, for the records."""
    return [float(f"{value:.3g}") for value in values.tolist()]


class BowlPage(ProblemPage):
    """Builds the page from the record."""

    title: ClassVar[str] = "LODO on the noisy bowl"
    colours: ClassVar[Mapping[str, tuple[str, str, str]]] = {"cold": COLOURS["coolmomentum"]}
    settings_head: ClassVar[tuple[str, str]] = ("Settings", "From")
    settings_note: ClassVar[str] = (
        "What is not named is at its default. Pilot runs that chose between settings had seeds of their own."
    )

    def measure(self, name: str, measure: str) -> Interval | None:
        """A contender's interval."""
        return estimated(self.entries[name]["measures"].get(measure))

    def listed(self) -> list[str]:
        """The optimizers that took part, in the order of the entries."""
        return [name for name in self.lines if name in self.entries]

    def setting(self, name: str) -> tuple[str, str]:
        """The settings, and where they are from."""
        return describe(self.entries[name]["settings"]) or "–", self.problem.entries()[name].source

    def lead(self) -> list[str]:
        """The problem, and what was run."""
        return [
            "A quadratic in 100 dimensions, its Hessian’s eigenvalues even over their logarithm from 0.001 to 1 in "
            "a random basis. The minimum takes a standard normal step before every evaluation, so whoever follows "
            "it must know the curvature: the exact Newton step has an expected loss of ½ tr H = "
            f"{FLOOR:.3f}. LODO sees gradients alone, and learns its preconditioner on the way.",
            f"Run here: {self.steps:,} steps, {plural(self.seeds, 'seed')}, float32, "
            f"{self.steps * self.seeds:,} steps in all for each optimizer. A seed draws the basis, the minimum’s steps "
            "and LODO’s network; the first two are the same for all optimizers.",
        ]

    def sections(self) -> list[Section]:
        """The table, the curves, what was learned, and the first steps beside the reference run's."""
        found = [self.result(), self.losses(), self.learned(), self.thousands()]
        return [section for section in found if section]

    def result(self) -> Section:
        """The table."""
        about = (
            "The reference columns are no published numbers, which were not to be had: they are those of an earlier, "
            "independent program of ours, 8 seeds of 100,000 steps, ± the deviation over seeds; its Adam "
            "had lr 1.5 and beta1 0.5, its SGD lr 1.5 and momentum 0.5."
        )
        if self.steps != LodoBowl.steps:
            about += f" This run had {self.steps:,} steps: it has not come as far, and the columns need not agree."

        def rank(name: str) -> float:
            loss = self.measure(name, "loss")
            return loss.mean if loss and loss.mean else math.inf

        rows = []
        for name in sorted(self.listed(), key=rank):
            found, line = self.entries[name], self.lines[name]
            loss = digits(self.measure(name, "loss")) + lost_of(found["lost"], self.seeds)
            time = f"{number(1e3 * found['seconds'] / self.steps)} ms" if found["seconds"] else "–"
            error = digits(self.measure(name, "Hessian error"))
            rows.append(Row([line.label, loss, error, *REFERENCE.get(name, ("–", "–")), time], line))
        error_head = "‖I − GH‖ / √n"
        head = ["Optimizer", "Mean loss, last tenth", error_head, "Loss, reference run", f"{error_head}, reference run"]
        table = Table("result", [*head, "CPU time a step"], rows)
        return Section("Result", f"Means with 95 % bootstrap intervals over seeds. {about}", table)

    def losses(self) -> Section:
        """Loss against step, twice: LODO among others, and among its ablations."""
        among = [name for name in self.names if name in OTHERS]
        alike = [name for name in self.names if name == "lodo" or (learns(name) and name not in OTHERS)]
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

    def bands(
        self, names: Sequence[str], measure: str, at: ArrayLike | None = None, what: str = ""
    ) -> tuple[list[Figure], float, float]:
        """A measure of these optimizers with its bands over seeds, bands first; its lowest and its highest value.

        Args:
            names: the optimizers.
            measure: a curve of their runs.
            at: where its values lie; None: at the windows of steps.
            what: its name on hovering.
        """
        data: list[Figure] = []
        low, high = math.inf, -math.inf
        for name in names:
            curves = list(self.curves_of(name).values())
            ends = np.array(curves[0]["step"])
            starts = np.concatenate([[1.0], ends[:-1] + 1])
            places = at if at is not None else np.sqrt(starts * ends) if measure == "loss" else ends
            traces, least, most = band_traces(
                self.lines[name], places, [curve[measure] for curve in curves], what or measure
            )
            data += traces
            low, high = min(low, least), max(high, most)
        return sorted(data, key=lambda trace: "fill" not in trace), low, high

    def curve(self, names: Sequence[str], measure: str) -> Figure:
        """A measure against steps, both axes logarithmic where they span much."""
        data, low, high = self.bands(names, measure)
        drawn = layout("step", "loss" if measure == "loss" else "‖I − GH‖ / √n", log_x=(1, self.steps))
        if measure == "loss":
            drawn["yaxis"] |= value_axis(max(low, 0.7 * FLOOR), high)  # the first windows are a step or two long: noise
            drawn |= level(FLOOR, f"½ tr H = {FLOOR:.2f}, exact Newton", log=drawn["yaxis"]["type"] == "log")
        else:
            drawn["yaxis"] |= {"type": "linear", "range": [0, 1.08 * max(high, 1.0)]}
        return {"data": data, "layout": drawn}

    def learned(self) -> Section | None:
        """The Hessian error, and the learned preconditioner beside the inverse Hessian."""
        learners = [name for name in self.names if learns(name)]
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
        first = next((curve for curve in self.curves_of("lodo").values() if "whitened" in curve), None)
        if first:
            about = (
                "In the eigenbasis of H, seed 0. For G = H⁻¹ this would be the identity: ones on the diagonal, "
                "nothing beside it. Soft directions at the top and on the left."
            )
            shown = self.whitened(first["whitened"])
            goal = self.whitened(torch.eye(DIMENSION).flatten().tolist())
            plots.append(Plot("whitened", "What LODO has learned: H½ G H½", shown, about, height=430))
            plots.append(Plot("true", "The same of the true inverse", goal, "H½ H⁻¹ H½: the goal.", height=430))
        return Section("What the network has learned", self.reach(), plots=plots)

    def reach(self) -> str:
        """How many directions have been learned, in a sentence."""
        text = (
            "The error counts every direction alike, the loss each by its curvature: the last to be learned are the "
            "soft directions, whose gradients are small and which add little to the loss. "
        )
        eigenvalues = EIGENVALUES.numpy()
        ratios = [np.array(curve["curvature"]) * eigenvalues for curve in self.curves_of("lodo").values()]
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
        data = self.bands(learners, "curvature", eigenvalues, "vᵀGv")[0]
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
        drawn["annotations"] = [{**where, "text": "1/λ", "showarrow": False, "font": {"size": 13, "color": "@text"}}]
        return {"data": data, "layout": drawn}

    @staticmethod
    def whitened(entries: Sequence[float]) -> Figure:
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
        if "lodo" not in self.entries:
            return None
        reference = {end: value for end, value in FIRST if self.measure("lodo", f"loss to {end}")}
        if not reference:
            return None
        head = ["LODO, steps", *(f"{end - 999:,} to {end:,}" for end in reference)]
        here = [digits(self.measure("lodo", f"loss to {end}")) for end in reference]
        rows = [Row(["here", *here]), Row(["reference run", *(f"{value:g}" for value in reference.values())])]
        note = "Mean loss of LODO with the tuned triple; in the reference run seeds differed by about 0.3."
        return Section("The first thousands", note, Table("thousands", head, rows))


def learns(name: str) -> bool:
    """Whether an optimizer has a preconditioner to look at."""
    return name.startswith("lodo")
