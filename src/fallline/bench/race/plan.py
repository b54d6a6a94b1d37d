"""What a run costs, how long a race takes, and the largest balanced race that fits a budget.

A few steps of every optimizer on every task are timed, with real settings and on one thread. From the seconds of a run
follows how long a race takes on so many workers: its queue is played through. Balanced means that everyone gets as many
trials and seeds as everyone else; where even the smallest such race takes too long, an optimizer or a task has to stay
out.
"""

import contextlib
import dataclasses
import itertools
import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import torch
from rich.table import Table

from fallline.bench.common.numbers import duration, listed
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.contenders import entered, get_contender
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.stats import ALPHA, fewest_seeds
from fallline.bench.runs.loop import Gradients, evaluate, to_device
from fallline.bench.tasks import get_task

TIMED_SECONDS = 0.3
"""Seconds for which the steps of a pair are timed; one step at least."""

SLACK = 1.2
"""A run in a race takes longer than its steps alone: workers share caches and memory, the loop measures, the
coordinator writes. On digits races took 1.1 to 1.3 times the CPU time that was timed."""

BUSY = 1.3
"""Wall seconds per CPU second from which on the machine counts as busy."""

LADDER = ((75, 3), (50, 3), (20, 3), (10, 3), (10, 1), (5, 1), (3, 1))
"""Trials, and how many of them are rerun; with 1 none is, the best is confirmed as it is."""

FAIR = Design.trials
"""Trials below which it is mostly luck who wins: docs/race.md has the measurement."""

MOST_SEEDS = 10

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

# --- what a run costs ---

Pair = tuple[str, str]
"""A task and an optimizer."""


@dataclass(frozen=True)
class Cost:
    """The cost of one optimizer on one task, in CPU seconds; on an accelerator, in wall seconds."""

    step: float
    """A gradient evaluation with its share of a step."""

    evaluation: float
    """One look at held-out data."""

    run: float
    """A run to its horizon: a run that diverges takes less."""

    first: float = 0.0
    """The further cost of the first run in a process: it reads the data, and torch imports its rest."""

    wall_per_cpu: float = 1.0
    """Wall seconds that a CPU second took while steps were timed."""


class Excused(ValueError):
    """It has nothing to do on this task, and the race goes on without it."""


def measure(task_name: str, optimizer_name: str, spaces: Mapping[str, Mapping[str, Any]], device: str = "cpu") -> Cost:
    """Time a few steps with the settings in the middle of the search space, on one thread.

    Args:
        task_name: as for `get_task`.
        optimizer_name: as for `get_contender`.
        spaces: changes to search spaces, as plain values: see `Design.spaces`.
        device: where the model trains.

    Raises:
        Excused: see there.
        ValueError: it cannot run on this task, and why.
    """
    task = get_task(task_name)
    contender = entered(optimizer_name, task, spaces)
    middle = {name: there.at(0.5) for name, there in contender.space.items()}
    settings = {**contender.variant, **contender.fixed, **middle}
    now = _clock(device)

    def begin() -> tuple[float, Callable[[], object], Gradients]:
        """The seconds until its first step is taken, what takes the next, and who counts."""
        start = now()
        batches = task.batches(generator(0, "plan"))
        seed_torch(0, "plan")
        model = task.model().to(device)
        if excuse := contender.excuse(model):
            raise Excused(excuse)
        gradients = Gradients(task, model, contender.make(model.parameters(), settings, task.horizon))

        def step() -> object:
            return gradients.step(to_device(next(batches), device))

        step()
        return now() - start, step, gradients

    try:
        with one_thread():
            cold, *_ = begin()
            warm, step, gradients = begin()
            step()
            before, start = gradients.count, now()
            wall, cpu = time.perf_counter(), time.process_time()
            while gradients.count == before or now() - start < TIMED_SECONDS:
                step()
            seconds = (now() - start) / (gradients.count - before)
            wall_per_cpu = (time.perf_counter() - wall) / (time.process_time() - cpu)
            evaluate(task, gradients.model, gradients.optimizer, "validation")
            start = now()
            evaluate(task, gradients.model, gradients.optimizer, "validation")
            evaluation = now() - start
    except Excused:
        raise
    except Exception as error:  # an optimizer or a task of one's own may raise anything
        raise ValueError(f"{optimizer_name} cannot run on {task_name}: {type(error).__name__}: {error}") from error
    looks = task.evaluations + 2  # before the first step, and in confirming runs on the test set
    run = warm + task.steps * seconds + looks * evaluation
    return Cost(seconds, evaluation, run, first=max(0.0, cold - warm), wall_per_cpu=wall_per_cpu)


def measure_all(asked: Design) -> tuple[dict[Pair, Cost], dict[Pair, str], float]:
    """Time everyone on every task; to be called as the first work of a process.

    Returns:
        The costs; who is excused, and why; and the seconds until the first run of a race.

    Raises:
        ValueError: an optimizer cannot run at all, and why.
    """
    imports = time.process_time()  # the interpreter's start, and what it imported up to here
    costs: dict[Pair, Cost] = {}
    excused = {}
    for task, name in itertools.product(asked.tasks, asked.optimizers):
        try:
            costs[task, name] = measure(task, name, asked.spaces, asked.device)
        except Excused as excuse:
            excused[task, name] = str(excuse)
    # The coordinator, and after it all workers together, start as this process did.
    return costs, excused, 2 * imports + sum(cost.first for cost in costs.values())


def busy(costs: Collection[Cost]) -> float:
    """Wall seconds that a CPU second took, median; far more than 1 where others are at work on this machine."""
    return statistics.median(cost.wall_per_cpu for cost in costs) if costs else 1.0


def _clock(device: str) -> Callable[[], float]:
    """CPU seconds, which do not mind what else the machine does; wall seconds where another device computes."""
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as in the race's workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- what a race takes ---


def makespan(lanes: Sequence[tuple[float, Sequence[int]]], jobs: int) -> float:
    """Seconds until all is done: the race's queue, played through.

    Args:
        lanes: the seconds of a run, and how many runs there are in each stage; one stage begins when the last is over.
        jobs: runs at a time.
    """
    stages = [deque(count for count in counts if count) for _, counts in lanes]
    left = [counts.popleft() if counts else 0 for counts in stages]
    # As in the race: everyone's first run, everyone's second; later stages queue up as they come.
    queue = deque(lane for number in range(max(left, default=0)) for lane, count in enumerate(left) if number < count)
    running: list[tuple[float, int]] = []
    now = 0.0
    while queue or running:
        while queue and len(running) < jobs:
            lane = queue.popleft()
            heappush(running, (now + lanes[lane][0], lane))
        now, lane = heappop(running)
        left[lane] -= 1
        if not left[lane] and stages[lane]:
            left[lane] = stages[lane].popleft()
            queue.extend([lane] * left[lane])
    return now


def stages(design: Design) -> list[list[int]]:
    """The number of runs of an optimizer on a task, by stage, in each chain of stages that wait for each other."""
    chains = [[design.seeds]] if "defaults" in design.tracks else []
    if "tuned" in design.tracks:
        chains.append([design.trials, min(design.finalists, design.trials) * design.reruns_each, design.seeds])
    return chains


def runs_each(design: Design) -> int:
    """The number of runs of an optimizer on a task."""
    return sum(map(sum, stages(design)))


def wall_seconds(design: Design, costs: Mapping[Pair, float], jobs: int, start_up: float = 0.0) -> float:
    """The seconds that a race takes from the command to its verdict.

    Args:
        design: the race; who has no cost on a task does not take part in it.
        costs: the seconds of a run.
        jobs: runs at a time.
        start_up: seconds before the first run.
    """
    seconds = [costs[task, name] for task in design.tasks for name in design.optimizers if (task, name) in costs]
    lanes = [(one, chain) for chain in stages(design) for one in seconds]
    return start_up + SLACK * makespan(lanes, jobs)


# --- the largest race that fits ---


@dataclass(frozen=True)
class Proposal:
    """The largest race that fits a budget."""

    design: Design | None
    """None if nothing does."""

    seconds: float
    """The seconds that it takes; if nothing fits, those of the smallest race of all."""

    budget: float
    jobs: int
    costs: Mapping[Pair, float]
    """The seconds of a run, of those left out too."""

    without_optimizers: tuple[str, ...]
    """The optimizers left out, most expensive first."""

    without_tasks: tuple[str, ...]
    everyone: float
    """The seconds that the smallest race with all takes."""

    larger: tuple[Design, float] | None
    """The next larger race of the same, and how long it takes; None if there is none."""


def propose(
    asked: Design,
    costs: Mapping[Pair, float],
    budget: float,
    jobs: int,
    *,
    baselines: Collection[str] = (),
    seeds: int | None = None,
    start_up: float = 0.0,
) -> Proposal:
    """The race with the most runs for each that fits.

    Args:
        asked: tasks, optimizers, tracks; trials, finalists and seeds are what is looked for.
        costs: the seconds of a run, by task and optimizer; a pair that is missing does not race.
        budget: wall seconds.
        jobs: runs at a time.
        baselines: names among the optimizers to compare the others with. They stay the longest.
        seeds: how many it shall be; None for 10, or fewer, down to what a verdict needs against so many rivals.
        start_up: seconds before the first run.

    Raises:
        ValueError: there is no cost of any of them.
    """
    asked = dataclasses.replace(
        asked,
        tasks=tuple(task for task in asked.tasks if any(where == task for where, _ in costs)),
        optimizers=tuple(name for name in asked.optimizers if any(who == name for _, who in costs)),
    )
    if not asked.tasks:
        raise ValueError("no optimizer is left to race")

    def takes(design: Design) -> float:
        return wall_seconds(design, costs, jobs, start_up)

    tasks = sorted(asked.tasks, key=lambda task: sum(seconds for (where, _), seconds in costs.items() if where == task))
    best: tuple[int, int, Design] | None = None
    for k in range(len(tasks), 0, -1):
        kept = tuple(task for task in asked.tasks if task in tasks[:k])
        order = staying(asked, {pair: s for pair, s in costs.items() if pair[0] in kept}, baselines)
        for m in range(len(order), min(2, len(order)) - 1, -1):
            if best and (k * m, m) <= best[:2]:
                break
            names = tuple(name for name in asked.optimizers if name in order[:m])
            smallest = ladder(dataclasses.replace(asked, tasks=kept, optimizers=names), seeds)[-1]
            if takes(smallest) <= budget:
                best = k * m, m, smallest
                break
    everyone = takes(ladder(asked, seeds)[-1])
    if best is None:
        order = staying(asked, {pair: s for pair, s in costs.items() if pair[0] == tasks[0]}, baselines)
        two = dataclasses.replace(asked, tasks=tuple(tasks[:1]), optimizers=tuple(order[:2]))
        return Proposal(None, takes(ladder(two, seeds)[-1]), budget, jobs, costs, (), (), everyone, None)
    larger = None
    for design in ladder(best[2], seeds):
        if (seconds := takes(design)) <= budget:
            break
        larger = design, seconds
    order = staying(asked, costs, baselines)
    without = tuple(name for name in reversed(order) if name not in design.optimizers)
    return Proposal(
        design,
        seconds,
        budget,
        jobs,
        costs,
        without,
        tuple(task for task in reversed(tasks) if task not in design.tasks),
        everyone,
        larger,
    )


def ladder(asked: Design, seeds: int | None = None) -> list[Design]:
    """Balanced designs for these tasks and optimizers, most runs first."""
    fewest = max(2, fewest_seeds(ALPHA, max(1, len(asked.optimizers) - 1)))
    counts = range(fewest, max(MOST_SEEDS, fewest) + 1) if seeds is None else (seeds,)
    searches = LADDER if "tuned" in asked.tracks else ((asked.trials, asked.finalists),)
    designs = [
        dataclasses.replace(asked, trials=trials, finalists=finalists, seeds=count)
        for trials, finalists in searches
        for count in counts
    ]
    return sorted(designs, key=lambda design: (runs_each(design), design.trials), reverse=True)


def staying(asked: Design, costs: Mapping[Pair, float], baselines: Collection[str]) -> list[str]:
    """The optimizers, who stays the longest first: a baseline and a rival, then the other baselines, then the rest.

    Of each kind the cheapest first, but the baseline that is asked for before all.
    """
    spent = dict.fromkeys(asked.optimizers, 0.0)
    for (_, name), seconds in costs.items():
        spent[name] += seconds
    cheap = sorted(spent, key=lambda name: (name != asked.baseline, spent[name]))
    them = [name for name in cheap if name in baselines or name == asked.baseline]
    others = [name for name in cheap if name not in them]
    return [*them[:1], *others[:1], *them[1:], *others[1:]]


# --- in words ---


def parse_budget(text: str) -> float:
    """Seconds, from "90s", "10m", "1.5h", "1h30m", "2d" or a bare number of them; `ValueError` for anything else."""
    found = re.findall(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd]?)", text.strip().lower())
    whole = re.fullmatch(r"((\d+(\.\d*)?|\.\d+)\s*[smhd]\s*)+|\d+(\.\d*)?|\.\d+", text.strip().lower())
    seconds = sum(float(number) * UNITS[unit] for number, unit in found) if whole else math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"a budget is a time such as 90s, 10m or 1.5h, not {text!r}")
    return seconds


def plan_table(plan: Proposal) -> Table:
    """One row for each optimizer on each task: seconds a run, runs, and its share of the race."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    several = len({task for task, _ in plan.costs}) > 1
    for heading in ["", "", "a run", "runs", "share"] if several else ["", "a run", "runs", "share"]:
        table.add_column(heading, justify="right" if heading else "left")
    design = plan.design
    runs = runs_each(design) if design else 0
    chosen = {pair for pair in plan.costs if design and pair[0] in design.tasks and pair[1] in design.optimizers}
    total = sum(plan.costs[pair] for pair in chosen)
    for (task, name), seconds in plan.costs.items():
        row = [task] if several else []
        row += [get_contender(name).label, f"{seconds:#.3g} s".replace(". ", " ")]
        row += [str(runs), f"{seconds / total:.0%}"] if (task, name) in chosen else ["–", "left out"]
        table.add_row(*row, style="" if (task, name) in chosen else "dim")
    return table


def plan_words(plan: Proposal, busy: float = 1.0) -> list[str]:
    """Say what fits, what does not, and what it would take; `busy` is the value of the function `busy`."""
    return [*_fitting(plan), *([_busy(busy)] if busy > BUSY else [])]


def _busy(busy: float) -> str:
    return f"The machine is busy ({busy:.1f} s of wall time per CPU second); these estimates assume it is idle."


def _fitting(plan: Proposal) -> list[str]:
    budget, workers = duration(plan.budget), f"{plan.jobs} worker{'s' if plan.jobs > 1 else ''}"
    if plan.design is None:
        told = f"Nothing fits {budget} on {workers}: the smallest race of two takes about {duration(plan.seconds)}"
        return [told + ("." if plan.everyone <= plan.seconds else f", with all {duration(plan.everyone)}.")]
    takes = f"takes about {duration(plan.seconds)}"
    words = [f"The largest race that fits {budget} on {workers} {takes}: {asks(plan.design)}."]
    out = [get_contender(name).label for name in plan.without_optimizers]
    out += [f"the task {task}" for task in plan.without_tasks]
    if out:
        verb = "stays" if len(out) == 1 else "stay"
        words.append(f"{listed(out)} {verb} out: with all, the smallest race takes about {duration(plan.everyone)}.")
    if "tuned" in plan.design.tracks and plan.design.trials < FAIR:
        words.append(f"Fewer than {FAIR} trials: who wins is mostly luck of the search.")
    if plan.larger:
        words.append(f"The next larger one takes about {duration(plan.larger[1])}: {asks(plan.larger[0])}.")
    return words


def asks(design: Design) -> str:
    """The runs that each optimizer makes on each task, in words."""
    seeds = f"{design.seeds} seeds"
    if "tuned" not in design.tracks:
        return f"{seeds} with default settings"
    told = [f"{design.trials} trials"]
    if design.reruns_each:
        told.append(f"{design.reruns} reruns of the best {min(design.finalists, design.trials)}")
    told.append(seeds)
    return listed(told) + (f", and {seeds} with default settings" if "defaults" in design.tracks else "")
