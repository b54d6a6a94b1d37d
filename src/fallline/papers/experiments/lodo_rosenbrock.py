"""LODO on Rosenbrock's valley: 200 steps, no noise, every optimizer tuned here with the same number of trials.

Liao, Dangovski, Foerster and Soljačić, Learning to Optimize Quasi-Newton Methods, TMLR 2023. Nothing is random but the
trials and LODO's network. So each seed stands for a search of its own, and an interval over seeds tells how much of a
result is luck of the search.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fallline import LODO
from fallline.bench.common.numbers import describe, number, spread
from fallline.bench.common.seeds import derive, generator
from fallline.bench.common.spaces import Range, Setting, Space, trials
from fallline.bench.protocol.search import finalists
from fallline.bench.protocol.stats import Interval, interval
from fallline.bench.report.looks import COLOURS, Figure
from fallline.bench.runs.run import Outcome, Run
from fallline.papers.experiments._experiment import Design, Done, Experiment, Record, Stages
from fallline.papers.experiments.page import Line, Page, Plot, Row, Section, Table, layout, log_axis

START = (-0.5, 2.0)
MINIMUM = (1.0, 1.0)
TAIL = 20
"""The score is the mean loss over the last this many steps, as in the authors' tuner."""

LOWEST = 1e-16
"""Where the figure of the losses ends."""


def valley(x: Any, y: Any) -> Any:
    """0.01 (1 - x)² + (y - x²)²; of numbers, arrays or tensors."""
    return 0.01 * (1 - x) ** 2 + (y - x**2) ** 2


Make = Callable[[list[Tensor], Mapping[str, Any], torch.Generator], torch.optim.Optimizer]


def lodo(parameters: list[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """LODO; its network comes from the generator."""
    return LODO(parameters, generator=draw, **settings)


def adam(parameters: list[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's Adam."""
    return torch.optim.Adam(parameters, settings["lr"], betas=(settings["beta1"], settings["beta2"]))


def momentum(parameters: list[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's SGD, its momentum undampened."""
    return torch.optim.SGD(parameters, **settings)


def rmsprop(parameters: list[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's RMSprop."""
    return torch.optim.RMSprop(parameters, **settings)


@dataclass(frozen=True)
class Contender:
    """Who takes part, and the space of its trials."""

    line: Line
    make: Make
    space: Space


RATES = Range(1e-3, 10.0)
"""Of all alike. The valley's curvatures at the minimum are 10 and 0.004."""

CONTENDERS = {
    contender.line.name: contender
    for contender in (
        Contender(
            Line("lodo", "LODO", COLOURS["lodo"], width=3),
            lodo,
            {"lr": RATES, "meta_lr": Range(1e-4, 1e-1), "beta": Range(0.01, 1.0, "one minus log")},
        ),
        Contender(
            Line("adam", "Adam", COLOURS["adamw"], dash="dash", ours=False),
            adam,
            {
                "lr": RATES,
                "beta1": Range(0.01, 1.0, "one minus log"),
                "beta2": Range(1e-4, 1.0, "one minus log"),
            },
        ),
        Contender(
            Line("momentum", "SGD, momentum", COLOURS["sgd"], dash="dashdot", ours=False),
            momentum,
            {"lr": RATES, "momentum": Range(0.01, 1.0, "one minus log")},
        ),
        Contender(
            Line("rmsprop", "RMSprop", COLOURS["muon"], dash="dot", ours=False),
            rmsprop,
            {"lr": RATES, "alpha": Range(1e-3, 1.0, "one minus log"), "momentum": Range(0.01, 1.0, "one minus log")},
        ),
    )
}


class LodoRosenbrock(Experiment):
    """LODO, Adam, momentum and RMSprop in Rosenbrock's valley."""

    name: ClassVar[str] = "lodo-rosenbrock"
    summary: ClassVar[str] = (
        "0.01 (1 − x)² + (y − x²)² from (−0.5, 2), 200 steps without noise: LODO, Adam, momentum and RMSprop, each "
        "tuned anew for every seed with 200 trials, with --quick 32"
    )
    steps: ClassVar[int] = 200
    trials: ClassVar[int] = 200
    contenders: ClassVar[tuple[str, ...]] = tuple(CONTENDERS)
    quick_trials: ClassVar[int] = 32
    quick_seeds: ClassVar[int] = 3

    def stages(self, design: Design) -> Stages:
        """The trials of every search; then the best of each once more, LODO's with another network."""
        count = self.quick_trials if design.quick else self.trials

        def planned(name: str, settings: Mapping[str, Setting], seed: int, *, test: bool) -> Run:
            return Run(f"repro:{self.name}", name, {**settings, "steps": self.steps}, seed, test)

        done = yield [
            planned(name, settings, seed, test=False)
            for name, contender in CONTENDERS.items()
            if name in (design.optimizers or CONTENDERS)
            for seed in range(design.seeds)
            for settings in trials(contender.space, count, derive("search", name, seed))
        ]
        searches: dict[tuple[str, int], list[Done]] = defaultdict(list)
        for run, outcome in done:
            searches[run.optimizer, run.seed].append((run, outcome))
        chosen = []
        for (name, seed), tried in searches.items():
            best = next(iter(finalists({i: outcome for i, (_, outcome) in enumerate(tried)}, 1)), None)
            if best is not None:
                settings = {key: value for key, value in tried[best][0].settings.items() if key != "steps"}
                chosen.append(planned(name, settings, seed, test=True))
        yield chosen

    def run(self, run: Run) -> Outcome:
        """Go down the valley, in float64; the curve holds the way, one point a step."""
        settings = dict(run.settings)
        steps = int(settings.pop("steps"))
        point = torch.tensor(START, dtype=torch.float64, requires_grad=True)
        network = generator(run.seed, "network" if run.test else "network of the trials")
        optimizer = CONTENDERS[run.optimizer].make([point], settings, network)
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
        return (valley, lodo, adam, momentum, rmsprop, LodoRosenbrock.run)

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By contender: intervals over searches, trials lost, and the settings of every search."""
        table: dict[str, Any] = {}
        for name in dict.fromkeys(run.optimizer for run, _ in done):
            tried = [(run, outcome) for run, outcome in done if run.optimizer == name and not run.test]
            final = sorted(
                ((run, outcome) for run, outcome in done if run.optimizer == name and run.test),
                key=lambda pair: pair[0].seed,
            )
            kept = [(run, outcome) for run, outcome in final if outcome.score is not None]
            found = interval([outcome.result["loss"] for _, outcome in kept])
            powers = interval([math.log10(max(outcome.result["loss"], 1e-300)) for _, outcome in kept])
            table[name] = {
                "trials": len(tried),
                "lost": sum(outcome.lost for _, outcome in tried),
                "lost seeds": design.seeds - len(kept),
                "loss": vars(found) if found else None,
                "log10 loss": vars(powers) if powers else None,
                "chosen": {
                    str(run.seed): {key: value for key, value in run.settings.items() if key != "steps"}
                    for run, _ in kept
                },
                "final": {str(run.seed): outcome.result["loss"] for run, outcome in kept},
            }
        count = self.quick_trials if design.quick else self.trials
        return {"steps": self.steps, "trials": count, "contenders": table}

    def page(self, record: Record) -> Page:
        """Result, losses, ways, settings, differences."""
        return ValleyPage(record).page()


class ValleyPage:
    """Builds the page from the record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.results = record["results"]
        self.entries: dict[str, Any] = self.results["contenders"]
        self.names = [name for name in CONTENDERS if self.entries.get(name, {}).get("final")]

    def typical(self, name: str) -> str:
        """The seed whose loss is the median (of an even number, the better of the two in the middle)."""
        final: dict[str, float] = self.entries[name]["final"]
        return sorted(final, key=lambda seed: final[seed])[(len(final) - 1) // 2]

    def curve(self, name: str, seed: str) -> dict[str, list[float]]:
        """Losses and way of a chosen run."""
        for one in self.record["runs"]:
            run = one["run"]
            if run["test"] and run["optimizer"] == name and str(run["seed"]) == seed:
                curve: dict[str, list[float]] = one["outcome"]["curve"]
                return curve
        raise KeyError(seed)

    def page(self) -> Page:
        """All of it."""
        seeds, count = self.record["design"]["seeds"], self.results["trials"]
        return Page(
            "LODO in Rosenbrock’s valley",
            [
                "0.01 (1 − x)² + (y − x²)², from (−0.5, 2): a steep fall onto the valley’s floor, then a long way "
                "along it to the minimum at (1, 1), where one direction is 2,500 times flatter than the other.",
                f"Run here: {self.results['steps']} steps in float64, without noise. The authors’ settings for this "
                f"task were not found, so each optimizer is tuned here, with {count} trials, by the mean loss over the "
                f"last {TAIL} steps; and that {seeds} time{'s' if seeds != 1 else ''} over, with other trials (and "
                "other networks for LODO), as nothing else is random.",
            ],
            [self.result(), self.descent(), self.settings(), self.differences()],
            [CONTENDERS[name].line for name in self.names],
        )

    def result(self) -> Section:
        """The table."""
        rows = []
        ranked = sorted(self.names, key=lambda name: self.entries[name]["log10 loss"]["mean"])
        for name in [*ranked, *(name for name in self.entries if name not in self.names)]:
            entry, line = self.entries[name], CONTENDERS[name].line
            cells = ["every search lost", "–"]
            if entry["final"]:
                powers = Interval(**entry["log10 loss"])
                typical = number(entry["final"][self.typical(name)])
                cells = [geometric(powers), typical]
                if entry["lost seeds"]:
                    cells[0] += f" ({entry['lost seeds']} of {self.record['design']['seeds']} searches lost)"
            worst = number(max(entry["final"].values())) if entry["final"] else "–"
            rows.append(Row([line.label, *cells, worst, f"{entry['lost']} of {entry['trials']}"], line))
        head = ["Optimizer", f"Mean loss, last {TAIL} steps", "Median search", "Worst search", "Lost trials"]
        return Section(
            "Result",
            "Geometric mean over the searches with its 95 % bootstrap interval, as the losses differ by powers of ten. "
            "LODO’s chosen settings were run with a network that they were not chosen on.",
            Table("result", head, rows),
        )

    def descent(self) -> Section:
        """Losses against steps, and ways on the contour lines."""
        return Section(
            "The way down",
            "Strong lines: the search whose loss is the median. Thin lines: the other searches.",
            plots=[
                Plot("loss", "Loss", self.losses(), "The curves end at 1e-16." if self.ends() else "", height=430),
                Plot(
                    "ways",
                    "Ways",
                    self.ways(),
                    "On the contour lines of the loss, three to a power of ten. Star: the minimum. Each way is that of "
                    "the median search.",
                    height=430,
                ),
            ],
        )

    def ends(self) -> bool:
        """Whether a loss falls out of the figure."""
        return any(min(self.curve(name, seed)["loss"]) < LOWEST for name in self.names for seed in self.final(name))

    def final(self, name: str) -> list[str]:
        """The seeds of a contender, the typical one last, so that it is drawn over the others."""
        return sorted(self.entries[name]["final"], key=lambda seed: seed == self.typical(name))

    def losses(self) -> Figure:
        """Every search's chosen run."""
        data: list[Figure] = []
        lowest = highest = valley(*START)
        for name in self.names:
            line = CONTENDERS[name].line
            for seed in self.final(name):
                losses = np.maximum(self.curve(name, seed)["loss"], LOWEST)
                strong = seed == self.typical(name)
                lowest, highest = min(lowest, losses.min()), max(highest, losses.max())
                thin = {"color": f"@{name}/45", "width": 1, "dash": "solid"}
                data.append(
                    {
                        "x": list(range(len(losses))),
                        "y": [float(f"{value:.4g}") for value in losses],
                        "name": line.label,
                        "mode": "lines",
                        "line": line.style if strong else thin,
                        "hovertemplate": f"<b>{line.label}</b><br>search {seed}, step %{{x}}: %{{y:.3g}}"
                        "<extra></extra>",
                        "meta": name,
                    }
                )
        data.sort(key=lambda trace: trace["line"]["width"] > 1)
        drawn = layout("step", "loss")
        drawn["xaxis"] |= {"range": [0, self.results["steps"]]}
        drawn["yaxis"] |= log_axis(float(lowest), float(min(highest, 1e3)))
        return {"data": data, "layout": drawn}

    def ways(self) -> Figure:
        """The typical runs on the contour lines."""
        curves = {name: self.curve(name, self.typical(name)) for name in self.names}
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
        for name, curve in curves.items():
            line = CONTENDERS[name].line
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

    def settings(self) -> Section:
        """Spaces, and what the typical search chose."""
        rows = []
        for name in self.names:
            contender = CONTENDERS[name]
            space = "; ".join(f"{setting} {dimension}" for setting, dimension in contender.space.items())
            rows.append(
                Row(
                    [contender.line.label, describe(self.entries[name]["chosen"][self.typical(name)]), space],
                    contender.line,
                )
            )
        return Section(
            "Settings and spaces",
            "Trials are the first points of a scrambled Sobol sequence over the space, another for every search. What "
            "every search has chosen is in the JSON file.",
            Table("settings", ["Optimizer", "Chosen by the median search", "Space"], rows),
        )

    def differences(self) -> Section:
        """How the paper's experiment differs, as far as is known."""
        return Section(
            "How this differs from the paper",
            "As far as is known: the authors’ program could be read, the body of the paper could not.",
            points=[
                "They search by 10 generations of 32 runs around the better half of the last, here trials do not learn "
                "from each other; the number of trials and the spaces are ours.",
                "They compare with Momentum, RMSprop, Adam and Yogi, which torch lacks, and within 3 s.",
                "They tune once, then run 8 times; here each seed is a tuning of its own.",
                "No published number is known to compare with.",
            ],
        )


def geometric(powers: Interval) -> str:
    """Mean and interval of a logarithm, as numbers."""
    if powers.low is None or powers.high is None:
        return number(10**powers.mean)
    return spread(Interval(10**powers.mean, 10**powers.low, 10**powers.high, powers.count))
