"""What a run costs: a few steps of every optimizer on every task, timed with real settings on one thread."""

import itertools
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.contenders.contender import entered
from fallline.bench.protocol.design import Design
from fallline.bench.race.overhead import one_thread
from fallline.bench.runs.loop import Gradients, evaluate, to_device
from fallline.bench.tasks import get_task

TIMED_SECONDS = 0.3
"""For so long the steps of a pair are timed; one step at least."""

Pair = tuple[str, str]
"""A task and an optimizer."""


@dataclass(frozen=True)
class Cost:
    """What one optimizer takes on one task, in CPU seconds; on an accelerator, in wall seconds."""

    step: float
    """A gradient evaluation with its share of a step."""

    evaluation: float
    """One look at held-out data."""

    run: float
    """A run to its horizon: a run that diverges takes less."""

    first: float = 0.0
    """What the first run in a process takes beyond that: it reads the data, and torch imports its rest."""

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
    except Exception as error:  # whatever an optimizer or a task of somebody's own may raise
        raise ValueError(f"{optimizer_name} cannot run on {task_name}: {type(error).__name__}: {error}") from error
    looks = task.evaluations + 2  # before the first step, and in confirming runs on the test set
    run = warm + task.steps * seconds + looks * evaluation
    return Cost(seconds, evaluation, run, first=max(0.0, cold - warm), wall_per_cpu=wall_per_cpu)


def measure_all(asked: Design) -> tuple[dict[Pair, Cost], dict[Pair, str], float]:
    """Time everyone on every task; to be called as the first work of a process.

    Returns:
        The costs; who is excused, and why; and the seconds until the first run of a race.

    Raises:
        ValueError: somebody cannot run at all, and why.
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
