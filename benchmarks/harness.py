"""What the harness itself costs: CPU time of `train` over a bare loop that makes the very same steps.

The bare loop is the floor: it keeps no loss, looks for no divergence, counts nothing, reads no clock. The two run in
turns on one core, a step each, so that whatever else the machine does meets both; evaluations count for neither. The
weights and losses in which they end must agree to the bit: else they did not make the same steps.
"""

import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Setting
from fallline.bench.contenders import get_contender, lr_factor
from fallline.bench.runs.checkpoint import Checkpoint
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Run
from fallline.bench.tasks import Split, get_task
from fallline.bench.tasks.digits import Digits, Images
from speed.run import threads

AIM = 0.03
"""The share of a bare loop's time that the harness may cost."""

Settings = Mapping[str, Setting]

CASES: Mapping[str, Settings] = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "adamw": {"lr": 0.01, "weight_decay": 0.01},
}
"""torch's two, with settings that train well: the cheaper the step, the larger the share of what surrounds it."""

REPETITIONS = 11
RESAMPLES = 500
SEED = 0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class End:
    """Where a loop ended, and what it took."""

    weights: tuple[Tensor, ...]
    validation_losses: tuple[float | None, ...]
    """At every evaluation, the first before the first step."""

    test_loss: float
    seconds: Array
    """CPU time without that of the evaluations, from batch to batch: shape (steps + 1,)."""

    def agrees(self, other: "End") -> bool:
        """Whether both made the same numbers, to the bit."""
        numbers = (self.validation_losses, self.test_loss) == (other.validation_losses, other.test_loss)
        return numbers and all(map(torch.equal, self.weights, other.weights))


@dataclass(frozen=True)
class Overhead:
    """What the harness cost with one optimizer."""

    label: str
    bare: Array
    """CPU seconds of the bare loop from batch to batch, shape (repetitions, steps + 1)."""

    harness: Array
    """The same of `train`."""

    @property
    def share(self) -> float:
        """What the harness cost beyond the bare loop, as a share of it."""
        return float(typical(self.harness) / typical(self.bare) - 1)

    @property
    def spread(self) -> tuple[float, float]:
        """The 95 % percentile interval of the share, resampling repetitions."""
        picks = np.random.default_rng(0).integers(len(self.bare), size=(RESAMPLES, len(self.bare)))
        shares = [typical(self.harness[pick]) / typical(self.bare[pick]) - 1 for pick in picks]
        low, high = np.percentile(shares, [2.5, 97.5])
        return float(low), float(high)


def typical(seconds: Array) -> float:
    """A run's CPU seconds: of each step the median over repetitions, summed. What disturbs one step does not count."""
    return float(np.median(seconds, axis=0).sum())


class Stopwatch:
    """CPU seconds of one of two loops that take turns, each in a thread of its own."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.other: Stopwatch | None = None
        """Who runs while this one waits; None when there is nobody any more."""

        self.seconds: list[float] = [0.0]
        """Between hand-overs; the last is not complete."""

    def start(self) -> None:
        """Let it run."""
        self.since = time.thread_time()

    def stop(self) -> None:
        """Let it stand."""
        self.seconds[-1] += time.thread_time() - self.since

    def hand_over(self) -> None:
        """Let the other loop run until it does the same."""
        self.stop()
        self.seconds.append(0.0)
        if self.other:
            self.other.turn.release()
            self.turn.acquire()
        self.start()

    def leave(self) -> None:
        """Let the other loop go on alone."""
        if self.other:
            self.other.other = None
            self.other.turn.release()


class Watched(Digits):
    """Digits as they are, but that before every step it is the other loop's turn."""

    name = "watched digits"

    def __init__(self) -> None:
        self.mine = threading.local()
        """Of the loop in this thread: its `watch` and its `network`."""

    def model(self) -> nn.Module:
        """As ever, and remembered."""
        self.mine.network = super().model()
        return self.mine.network  # type: ignore[no-any-return]

    def batches(self, order: torch.Generator) -> Iterator[Images]:
        """As ever, in turns."""
        for batch in super().batches(order):
            self.mine.watch.hand_over()
            yield batch

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """As ever, while the watch stands."""
        self.mine.watch.stop()
        measures = super().evaluate(model, split)
        self.mine.watch.start()
        return measures


TASK = f"{__name__}:Watched"
Losses = tuple[tuple[float | None, ...], float]
"""On validation data, at every evaluation; on test data, at the end."""


def overhead(repetitions: int = REPETITIONS, cases: Mapping[str, Settings] = CASES) -> list[Overhead]:
    """Run both loops side by side, several times with each optimizer; about 20 seconds.

    Raises:
        AssertionError: they did not make the same steps.
    """
    found = []
    with threads(1):
        for name, settings in cases.items():
            pairs = [side_by_side(name, settings, bare_first=i % 2 == 0) for i in range(-1, repetitions)]
            for bare, harness in pairs:
                assert bare.agrees(harness), f"{name}: the two loops do not make the same steps"
            bare_times, harness_times = zip(*((b.seconds, h.seconds) for b, h in pairs[1:]), strict=True)  # warm by now
            found.append(Overhead(get_contender(name).label, np.array(bare_times), np.array(harness_times)))
    return found


def side_by_side(name: str, settings: Settings, bare_first: bool = True) -> tuple[End, End]:
    """One run of the bare loop and one of `train`, in turns."""
    task = get_task(TASK)
    assert isinstance(task, Watched)
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    watches = bare, harness = Stopwatch(), Stopwatch()
    bare.other, harness.other = harness, bare

    def follow(watch: Stopwatch, loop: Callable[[str, Settings], Losses]) -> End:
        task.mine.watch = watch
        if hasattr(os, "sched_setaffinity"):  # of this thread: two cores need not be equally fast at the same time
            os.sched_setaffinity(0, {core})
        watch.turn.acquire()
        watch.start()
        try:
            losses = loop(name, settings)
            watch.stop()
            ended = tuple(p.detach().clone() for p in task.mine.network.parameters())
        finally:
            watch.leave()
        return End(ended, *losses, np.array(watch.seconds))

    gc.collect()
    with ThreadPoolExecutor(2) as pool:
        loops = [pool.submit(follow, bare, bare_loop), pool.submit(follow, harness, harness_loop)]
        watches[0 if bare_first else 1].turn.release()
        mine, theirs = (loop.result() for loop in loops)
    return mine, theirs


def harness_loop(name: str, settings: Settings) -> Losses:
    """A run of a race, all that belongs to it included but a checkpoint, which in so short a run is never due."""
    outcome = train(Run(TASK, name, dict(settings), SEED, test=True), Checkpoint(Path("never.pt"), every=math.inf))
    return tuple(outcome.curve["validation loss"]), outcome.result["loss"]


def bare_loop(name: str, settings: Settings) -> Losses:
    """What one would write by hand for an optimizer of torch, the schedule too."""
    task = get_task(TASK)
    contender = get_contender(name).on(task)
    batches = task.batches(generator(SEED, "order"))
    seed_torch(SEED, "init")
    model = task.model()
    optimizer = contender.make(model.parameters(), settings, task.horizon)

    @torch.no_grad()
    def evaluate(split: Split) -> float:
        model.eval()
        loss = task.evaluate(model, split)["loss"]
        model.train()
        return loss

    lr = optimizer.param_groups[0]["lr"]
    losses = [evaluate("validation")]
    for step in range(1, task.steps + 1):
        optimizer.param_groups[0]["lr"] = lr * lr_factor(contender.schedule, step, task.steps)
        optimizer.zero_grad()
        task.losses(model, next(batches)).mean().backward()
        optimizer.step()
        if step % (task.steps // task.evaluations) == 0:
            losses.append(evaluate("validation"))
    return tuple(losses), evaluate("test")


def overhead_table(found: Sequence[Overhead]) -> Table:
    """One row an optimizer."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "bare loop", "harness", "costs [95 % interval]"):
        table.add_column(heading, justify="right" if heading in ("bare loop", "harness") else "left")
    for one in found:
        steps = one.bare.shape[1] - 1
        times = [f"{1e6 * typical(seconds) / steps:.0f} µs a step" for seconds in (one.bare, one.harness)]
        low, high = one.spread
        table.add_row(one.label, *times, f"{one.share:+.1%} [{low:+.1%}, {high:+.1%}]")
    return table


def overhead_words(found: Sequence[Overhead]) -> list[str]:
    """What was compared, and whether the harness keeps to its aim."""
    kept = all(one.share < AIM for one in found)
    return [
        f"The harness {'keeps to' if kept else 'misses'} its aim of less than {AIM:.0%} over a bare loop, which is the "
        "floor: the same weights, batches, rates and evaluations, but no loss kept, nothing counted, nothing checked.",
        f"CPU time without evaluations, one thread; {len(found[0].bare)} runs of each, which took turns step by step "
        "and ended in the same weights to the bit.",
    ]


def main() -> None:
    """Measure, and print the table and what was compared."""
    console = Console(highlight=False)
    found = overhead()
    console.print(overhead_table(found))
    console.print()
    for sentence in overhead_words(found):
        console.print(sentence)


if __name__ == "__main__":
    main()
