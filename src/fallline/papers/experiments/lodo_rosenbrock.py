"""LODO on Rosenbrock's valley: 200 steps, no noise, every optimizer tuned here with the same number of trials.

Liao, Dangovski, Foerster and Soljačić, Learning to Optimize Quasi-Newton Methods, TMLR 2023. Nothing is random but the
trials and LODO's network. So each seed stands for a search of its own, and an interval over seeds tells how much of a
result is luck of the search.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fallline.bench.common.numbers import describe, number, plural, spread
from fallline.bench.common.seeds import derive, generator
from fallline.bench.common.spaces import Range
from fallline.bench.protocol.stats import Interval
from fallline.bench.report.looks import COLOURS, Figure
from fallline.bench.runs.run import Outcome, Run
from fallline.papers.experiments._experiment import Case, Design, Done, Tuned, Tuning, estimate
from fallline.papers.experiments._problem import (
    MAKERS,
    Problem,
    ProblemPage,
    entry,
    optimizer_of,
    settings_of,
)
from fallline.papers.experiments.lodo_mnist import PAPER
from fallline.papers.experiments.page import Line, Page, Plot, Row, Section, Table, layout, log_axis
from fallline.papers.records import Record

START = (-0.5, 2.0)
MINIMUM = (1.0, 1.0)
TAIL = 20
"""The score is the mean loss over the last this many steps, as in the authors' tuner."""

LOWEST = 1e-16
"""Where the figure of the losses ends."""


def valley(x: Any, y: Any) -> Any:
    """0.01 (1 - x)² + (y - x²)²; of numbers, arrays or tensors."""
    return 0.01 * (1 - x) ** 2 + (y - x**2) ** 2


RATES = Range(1e-3, 10.0)
"""The learning rates, the same for all. The valley's curvatures at the minimum are 10 and 0.004."""

MOMENTUM = Range(0.01, 1.0, "one minus log")

ENTRIES = (
    entry(
        Line("lodo", "LODO", COLOURS["lodo"], width=3),
        search={"lr": RATES, "meta_lr": Range(1e-4, 1e-1), "beta": MOMENTUM},
    ),
    entry(
        Line("adam", "Adam", COLOURS["adamw"], dash="dash", ours=False),
        search={"lr": RATES, "beta1": MOMENTUM, "beta2": Range(1e-4, 1.0, "one minus log")},
    ),
    entry(
        Line("momentum", "SGD, momentum", COLOURS["sgd"], dash="dashdot", ours=False),
        search={"lr": RATES, "momentum": MOMENTUM},
    ),
    entry(
        Line("rmsprop", "RMSprop", COLOURS["muon"], dash="dot", ours=False),
        search={"lr": RATES, "alpha": Range(1e-3, 1.0, "one minus log"), "momentum": MOMENTUM},
    ),
)


class LodoRosenbrock(Problem):
    """LODO, Adam, momentum and RMSprop in Rosenbrock's valley."""

    name: ClassVar[str] = "lodo-rosenbrock"
    summary: ClassVar[str] = (
        "0.01 (1 − x)² + (y − x²)² from (−0.5, 2), 200 steps without noise: LODO, Adam, momentum and RMSprop, each "
        "tuned anew for every seed with 200 trials, with --quick 32"
    )
    paper: ClassVar[str] = PAPER
    cpu: ClassVar[tuple[Case, ...]] = (Case("Rosenbrock's valley", "repro:lodo-rosenbrock", ENTRIES, "loss"),)
    steps: ClassVar[int] = 200
    trials: ClassVar[int] = 200
    quick_trials: ClassVar[int] = 32
    quick_seeds: ClassVar[int] = 3
    deviations: ClassVar[tuple[str, ...]] = (
        "They search by 10 generations of 32 runs around the better half of the last, here trials do not learn "
        "from each other; the number of trials and the spaces are ours.",
        "They compare with Momentum, RMSprop, Adam and Yogi, which torch lacks, and within 3 s.",
        "They tune once, then run 8 times; here each seed is a tuning of its own.",
        "No published number is known to compare with.",
    )

    def tunings(self, design: Design) -> list[Tuning]:
        """A search for every optimizer and seed; the best runs once more, LODO's with another network."""
        found, count = [], self.tries(design)
        for case in self.cases(design):
            for one in case.entries:
                for seed in range(design.seeds):
                    tried = one.candidates(count, derive("search", one.label, seed))
                    runs = [Run(case.task, one.optimizer, {**some, "steps": self.steps}, seed) for some in tried]
                    found.append(Tuning(case, one, runs, [seed]))
        return found

    def run(self, run: Run) -> Outcome:
        """Go down the valley, in float64; the curve holds the way, one point a step."""
        settings = dict(run.settings)
        steps = int(settings.pop("steps"))
        point = torch.tensor(START, dtype=torch.float64, requires_grad=True)
        network = generator(run.seed, "network" if run.test else "network of the trials")
        optimizer = optimizer_of(run.optimizer, [point], settings, network)
        losses: list[float] = []
        way = [list(START)]
        for step in range(1, steps + 1):
            loss = valley(*point.unbind())
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return Outcome("diverged", step, "the loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            way.append(point.tolist())
        score = sum(losses[-TAIL:]) / len(losses[-TAIL:])
        if not math.isfinite(score):
            return Outcome("diverged", steps, "the score is not finite")
        outcome = Outcome("finished", steps, score=score, result={"loss": score})
        if run.test:
            xs, ys = zip(*way[:-1], strict=True)
            outcome.curve = {"loss": list(losses), "x": list(xs), "y": list(ys)}
        return outcome

    def code(self) -> Sequence[Any]:
        """What makes a run's numbers."""
        return (valley, *MAKERS.values(), LodoRosenbrock.run)

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By contender: intervals over searches, trials lost, and the settings of every search."""
        searches: dict[str, list[Tuned]] = defaultdict(list)
        for one in self.tuned(design, done):
            searches[one.entry.label].append(one)
        table: dict[str, Any] = {}
        for name, mine in searches.items():
            kept = {str(one.final[0][0].seed): one for one in mine if one.kept}
            final = {seed: one.kept[0].result["loss"] for seed, one in kept.items()}
            table[name] = {
                "trials": sum(len(one.tried) for one in mine),
                "lost": sum(one.lost_trials for one in mine),
                "lost seeds": len(mine) - len(kept),
                "loss": estimate([*final.values()]),
                "log10 loss": estimate([math.log10(max(loss, 1e-300)) for loss in final.values()]),
                "chosen": {seed: settings_of(one) for seed, one in kept.items()},
                "final": final,
            }
        return {"steps": self.steps, "trials": self.tries(design), "contenders": table}

    def page(self, record: Record) -> Page:
        """Result, losses, ways, settings, differences."""
        return ValleyPage(LodoRosenbrock, record).page()


class ValleyPage(ProblemPage):
    """Builds the page from the record."""

    title: ClassVar[str] = "LODO in Rosenbrock’s valley"
    settings_title: ClassVar[str] = "Settings and spaces"
    settings_head: ClassVar[tuple[str, str]] = ("Chosen by the median search", "Space")
    settings_note: ClassVar[str] = (
        "Trials are the first points of a scrambled Sobol sequence over the space, another for every search. What "
        "every search has chosen is in the JSON file."
    )

    def typical(self, name: str) -> str:
        """The seed whose loss is the median (of an even number, the better of the two in the middle)."""
        final: dict[str, float] = self.entries[name]["final"]
        return sorted(final, key=lambda seed: final[seed])[(len(final) - 1) // 2]

    def setting(self, name: str) -> tuple[str, str]:
        """What the typical search chose, and the space."""
        space = self.problem.entries()[name].space
        shown = "; ".join(f"{setting} {dimension}" for setting, dimension in space.items())
        return describe(self.entries[name]["chosen"][self.typical(name)]), shown

    def lead(self) -> list[str]:
        """The problem, and what was run."""
        return [
            "0.01 (1 − x)² + (y − x²)², from (−0.5, 2): a steep fall onto the valley’s floor, then a long way "
            "along it to the minimum at (1, 1), where one direction is 2,500 times flatter than the other.",
            f"Run here: {self.steps} steps in float64, without noise. The authors’ settings for this "
            f"task were not found, so each optimizer is tuned here, with {self.results['trials']} trials, by the mean "
            f"loss over the last {TAIL} steps; and that {plural(self.seeds, 'time')} over, with other trials (and "
            "other networks for LODO), as nothing else is random.",
        ]

    def sections(self) -> list[Section]:
        """The table; losses against steps, and ways on the contour lines."""
        ends = "The curves end at 1e-16." if self.ends() else ""
        ways = (
            "On the contour lines of the loss, three to a power of ten. Star: the minimum. Each way is that of "
            "the median search."
        )
        down = Section(
            "The way down",
            "Strong lines: the search whose loss is the median. Thin lines: the other searches.",
            plots=[
                Plot("loss", "Loss", self.losses(), ends, height=430),
                Plot("ways", "Ways", self.ways(), ways, height=430),
            ],
        )
        return [self.result(), down]

    def result(self) -> Section:
        """The table."""
        rows = []
        ranked = sorted(self.names, key=lambda name: self.entries[name]["log10 loss"]["mean"])
        for name in [*ranked, *(name for name in self.entries if name not in self.names)]:
            found, line = self.entries[name], self.lines[name]
            cells = ["every search lost", "–", "–"]
            if final := found["final"]:
                lost = f" ({found['lost seeds']} of {self.seeds} searches lost)" if found["lost seeds"] else ""
                mean = geometric(Interval(**found["log10 loss"])) + lost
                cells = [mean, number(final[self.typical(name)]), number(max(final.values()))]
            rows.append(Row([line.label, *cells, f"{found['lost']} of {found['trials']}"], line))
        head = ["Optimizer", f"Mean loss, last {TAIL} steps", "Median search", "Worst search", "Lost trials"]
        note = (
            "Geometric mean over the searches with its 95 % bootstrap interval, as the losses differ by powers of ten. "
            "LODO’s chosen settings were run with a network that they were not chosen on."
        )
        return Section("Result", note, Table("result", head, rows))

    def ends(self) -> bool:
        """Whether a loss falls out of the figure."""
        return any(min(curve["loss"]) < LOWEST for name in self.names for curve in self.curves_of(name).values())

    def losses(self) -> Figure:
        """The chosen run of every search; the typical one is drawn over the others."""
        data: list[Figure] = []
        lowest = highest = valley(*START)
        for name in self.names:
            line, typical = self.lines[name], self.typical(name)
            for seed, curve in sorted(self.curves_of(name).items(), key=lambda one: one[0] == typical):
                losses = np.maximum(curve["loss"], LOWEST)
                lowest, highest = min(lowest, losses.min()), max(highest, losses.max())
                thin = {"color": f"@{name}/45", "width": 1, "dash": "solid"}
                data.append(
                    {
                        "x": list(range(len(losses))),
                        "y": [float(f"{value:.4g}") for value in losses],
                        "name": line.label,
                        "mode": "lines",
                        "line": line.style if seed == typical else thin,
                        "hovertemplate": f"<b>{line.label}</b><br>search {seed}, step %{{x}}: %{{y:.3g}}"
                        "<extra></extra>",
                        "meta": name,
                    }
                )
        data.sort(key=lambda trace: trace["line"]["width"] > 1)
        drawn = layout("step", "loss")
        drawn["xaxis"] |= {"range": [0, self.steps]}
        drawn["yaxis"] |= log_axis(float(lowest), float(min(highest, 1e3)))
        return {"data": data, "layout": drawn}

    def ways(self) -> Figure:
        """The typical runs on the contour lines."""
        low_x, high_x, low_y, high_y = -1.8, 1.7, -0.6, 2.5
        x, y = np.linspace(low_x, high_x, 161), np.linspace(low_y, high_y, 161)
        heights = np.log10(valley(x[None, :], y[:, None]) + 1e-12)
        data: list[Figure] = [
            {
                "type": "contour",
                "x": [float(f"{value:.4g}") for value in x],
                "y": [float(f"{value:.4g}") for value in y],
                "z": [[float(f"{value:.3f}") for value in row] for row in heights],
                "contours": {"coloring": "none", "start": -3, "end": 1.34, "size": 1 / 3},
                "line": {"color": "@muted/45", "width": 1, "smoothing": 1},
                "showscale": False,
                "hoverinfo": "skip",
            }
        ]
        for name in self.names:
            curve, line = self.curves_of(name)[self.typical(name)], self.lines[name]
            data.append(
                {
                    "x": [float(f"{value:.4g}") for value in curve["x"]],
                    "y": [float(f"{value:.4g}") for value in curve["y"]],
                    "mode": "lines+markers",
                    "line": line.style,
                    "marker": {"size": 3, "color": f"@{name}"},
                    "customdata": list(range(len(curve["x"]))),
                    "hovertemplate": f"<b>{line.label}</b><br>step %{{customdata}}<extra></extra>",
                    "meta": name,
                }
            )
        data.append(
            {
                "x": [MINIMUM[0]],
                "y": [MINIMUM[1]],
                "mode": "markers",
                "marker": {"symbol": "star", "size": 15, "color": "@paper", "line": {"color": "@text", "width": 2}},
                "hovertemplate": "the minimum<extra></extra>",
            }
        )
        drawn = layout("x", "y")
        drawn["xaxis"] |= {"range": [low_x, high_x], "showgrid": False}
        drawn["yaxis"] |= {"range": [low_y, high_y], "showgrid": False}
        return {"data": data, "layout": drawn}


def geometric(powers: Interval) -> str:
    """Mean and interval of a logarithm, as numbers."""
    if powers.low is None or powers.high is None:
        return number(10**powers.mean)
    return spread(Interval(10**powers.mean, 10**powers.low, 10**powers.high, powers.count))
