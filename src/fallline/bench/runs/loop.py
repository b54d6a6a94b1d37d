"""The training loop, from the seed to the result. Everything a run does is in `train`, top to bottom."""

import bisect
import contextlib
import dataclasses
import inspect
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fallline
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Setting
from fallline.bench.contenders.contender import DROPS, WARM_UP, AnyOptimizer, Drops, get_contender
from fallline.bench.runs.checkpoint import Checkpoint, Unsaved, discard, load, restore, save
from fallline.bench.tasks import Batch, Schedule, Split, Task, alone, get_task
from fallline.bench.tasks._task import measure, through, without_gradients

RUNAWAY = 1e3
"""A training loss this many times the first one is called divergence, even while it is still a number: see `runaway`
for what that is where losses are negative."""

STATISTICS = 20
"""Batches of which batch norm's statistics are taken anew: as many as its running means, whose momentum is 0.1, tell
of."""

Curve = dict[str, list[float | None]]
"""`step`, `gradient evaluations`, `train loss` (mean since the last point), `validation loss`, ...: one number a
measurement."""


@dataclass(frozen=True)
class Run:
    """What identifies a run, apart from code and data: enough to repeat it."""

    task: str
    optimizer: str
    settings: dict[str, Setting]
    seed: int
    test: bool = False
    """Whether the test set is looked at, once, at the end: in confirmed runs only."""

    device: str = "cpu"


@dataclass
class Outcome:
    """What came of a run. Divergence and failure are outcomes, with a step and a reason, never gaps."""

    status: Literal["finished", "diverged", "failed"]
    steps: int
    reason: str = ""
    score: float | None = None
    """What the search minimises: the last validation loss, or without held-out data the mean training loss over the
    last tenth of the run. None unless finished."""

    result: dict[str, float] = field(default_factory=dict)
    """Measured once at the end: `loss` (and `accuracy`) on the test set."""

    curve: Curve = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    """`cpu seconds` and `wall seconds` of training, at the points of the curve."""

    gradient_evaluations: int = 0
    cpu_seconds: float = 0.0
    """Of training; the clock stands still during evaluation and while a checkpoint is written."""

    wall_seconds: float = 0.0
    state_bytes: int = 0
    """The optimizer's tensors, parameters apart."""

    @property
    def lost(self) -> bool:
        """Whether it diverged or failed."""
        return self.status != "finished"


def train(run: Run, checkpoint: Checkpoint | None = None) -> Outcome:
    """Train once; with a checkpoint that is there, go on from it, to the very same numbers."""
    # Settings
    task = get_task(run.task)
    contender = get_contender(run.optimizer).on(task)
    horizon = task.steps
    grid = sorted({max(1, round(horizon * i / task.evaluations)) for i in range(1, task.evaluations + 1)})

    # Data, model, optimizer: each draws from its own stream of the run's seed
    batches = task.batches(generator(run.seed, "order"))
    seed_torch(run.seed, "init")
    model = task.model().to(run.device)
    seed_torch(run.seed, "optimizer")
    optimizer = contender.make(model.parameters(), run.settings, task.horizon)
    seed_torch(run.seed, "dropout")
    rates = [
        (i, name, group[name])
        for i, group in enumerate(optimizer.param_groups)
        for name in contender.rates
        if name in group
    ]

    # Loop: the horizon is counted in gradient evaluations, so that a step which takes several pays for them
    gradients = Gradients(task, model, optimizer)
    outcome = Outcome("finished", steps=0)
    train_losses = torch.zeros(horizon)
    fresh: list[Tensor] = []  # since the last measurement: written down one by one, losses cost 3 % of a small step
    unsaved = Unsaved(optimizer, model)
    if checkpoint and (saved := load(checkpoint, dataclasses.asdict(run))):
        outcome = Outcome(**saved["outcome"])
        if not restore(saved, model, optimizer, batches, drawn=outcome.steps):
            return train(run, discard(checkpoint))
        gradients.count = outcome.gradient_evaluations
        train_losses[: outcome.steps] = saved["train_losses"]
    else:
        record(outcome, evaluate(task, model, optimizer, "validation"))
    step, due = outcome.steps, grid[len(outcome.curve["step"]) - 1]
    clock = Clock(outcome, run.device)
    while gradients.count < horizon:
        for i, name, rate in rates:
            optimizer.param_groups[i][name] = rate * lr_factor(
                contender.schedule, gradients.count + 1, horizon, contender.drops
            )
        fresh.append(gradients.step(to_device(next(batches), run.device)))

        if gradients.count >= due:  # only here does the loop read a value: an accelerator would wait
            clock.stop()
            step, passed = step + len(fresh), bisect.bisect_right(grid, gradients.count)
            outcome.steps, outcome.gradient_evaluations = step, gradients.count
            stretch = torch.stack(fresh).cpu()
            train_losses[step - len(fresh) : step] = stretch
            fresh.clear()
            measures = {"train loss": stretch.mean().item()}
            measures |= evaluate(task, model, optimizer, "validation")
            while len(outcome.curve["step"]) <= passed:  # several points at once, if a step took many evaluations
                record(outcome, measures)
            if trouble := divergence(train_losses[:step], measures):
                outcome.status, (outcome.steps, outcome.reason) = "diverged", trouble
                return outcome
            if checkpoint and gradients.count < horizon and clock.due(checkpoint.every) and not unsaved.changed():
                so_far = train_losses[:step].clone()  # a view would take the whole horizon along
                plain = {"run": dataclasses.asdict(run), "outcome": dataclasses.asdict(outcome)}
                save(checkpoint, model, optimizer, **plain, train_losses=so_far)
            due = grid[min(passed, len(grid) - 1)]
            clock.start()

    # Result
    outcome.state_bytes = state_bytes(optimizer)
    tail = {"loss": train_losses[step - max(1, step // 10) : step].mean().item()}
    outcome.score = outcome.curve["validation loss"][-1] if task.held_out else tail["loss"]
    if run.test:
        measures = evaluate(task, model, optimizer, "test") if task.held_out else tail
        outcome.result = {name: value for name, value in measures.items() if math.isfinite(value)}
        if "loss" not in outcome.result:
            return dataclasses.replace(
                outcome, status="diverged", reason="the test loss is not finite", score=None, result={}
            )
    return outcome


def lr_factor(schedule: Schedule, step: int, steps: int, drops: Drops = DROPS) -> float:
    """What multiplies the learning rate at `step` = 1 ... `steps`.

    `cosine` and `linear`: a linear warm-up, then down to just over 0. `step`: a factor at each of the drops, and from
    the start at the full rate. `constant`: 1.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        factor, shares = drops
        return float(factor ** sum(step > round(share * steps) for share in shares))
    warm_up = max(1, round(WARM_UP * steps))
    if step <= warm_up:
        return step / warm_up
    gone = (step - warm_up) / (steps - warm_up + 1)
    return 1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, optimizer: AnyOptimizer, split: Split) -> dict[str, float]:
    """Measure on held-out data, at the point that the optimizer holds for the best, if it knows of one.

    Names are `loss`, `accuracy` on the test set, `validation loss`, ... on the validation set.
    """
    if not task.held_out:
        return {}
    model.eval()
    elsewhere = switches(optimizer)
    if elsewhere:
        optimizer.eval()  # type: ignore[union-attr]
    # Ours move by one step at most. Before the first step there is one point, and everyone is measured alike.
    far = elsewhere and not isinstance(optimizer, fallline.Optimizer) and any(optimizer.state.values())
    with statistics_anew(task, model) if far else contextlib.nullcontext():
        measures = {str(name): float(value) for name, value in measure(task, model, split).items()}
    if elsewhere:
        optimizer.train()  # type: ignore[union-attr]
    model.train()
    return measures if split == "test" else {f"validation {name}": value for name, value in measures.items()}


def switches(optimizer: AnyOptimizer) -> bool:
    """Whether it has one point to train at and another to be measured at."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("eval", "train"))


@contextlib.contextmanager
def statistics_anew(task: Task, model: nn.Module) -> Iterator[None]:
    """Within, batch norms have the statistics of the weights as they are now; afterwards those that they had.

    Running statistics tell of the weights that gradients were taken at. At Schedule-Free's average they are wrong, and
    its loss with them may be a multiple of what it should be; its authors say to take them anew. Here they are the
    plain mean over `STATISTICS` training batches, the same in every measurement of every run, from a stream of their
    own. All other layers stay as they are in evaluation, so nothing is dropped out; nor does training notice: buffers
    and the random state are put back, and its batches are not touched.
    """
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        yield
        return
    device = next(model.parameters()).device
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for batch in islice(task.batches(generator(0, "statistics")), STATISTICS):
            there = to_device(batch, str(device))
            without_gradients(partial(task.losses, model, there))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    yield
    for buffer, before in kept:
        buffer.copy_(before)


def record(outcome: Outcome, measures: Mapping[str, float]) -> None:
    """Add a point to the curve; what is not a finite number is None, as JSON has no other word for it.

    All columns stay as long as each other: a measure that appears late, or is missing for once, is None elsewhere.
    """
    before = len(outcome.curve.get("step", ()))
    counts = {"step": float(outcome.steps), "gradient evaluations": float(outcome.gradient_evaluations)}
    for name, value in {**counts, "train loss": math.nan, **measures}.items():
        outcome.curve.setdefault(name, [None] * before).append(value if math.isfinite(value) else None)
    for column in outcome.curve.values():
        column.extend([None] * (before + 1 - len(column)))
    for name, value in {"cpu seconds": outcome.cpu_seconds, "wall seconds": outcome.wall_seconds}.items():
        outcome.times.setdefault(name, []).append(round(value, 6))


def divergence(train_losses: Tensor, measures: Mapping[str, float]) -> tuple[int, str] | None:
    """The step at which a run got lost, and how; None if all is well.

    Args:
        train_losses: the batches' mean losses so far, shape (steps,).
        measures: what has just been measured, with the training loss since the last time.
    """
    if not math.isfinite(measures["train loss"]) and len(broken := (~train_losses.isfinite()).nonzero()):
        return int(broken[0]) + 1, "the training loss is not finite"
    if not math.isfinite(measures.get("validation loss", 0.0)):
        return len(train_losses), "the validation loss is not finite"
    first, lowest = train_losses[0].item(), train_losses.min().item()
    if measures["train loss"] > runaway(first, lowest, RUNAWAY):
        told = "the first one" if lowest > 0 else "as far above the first one as that is from 0 or from the lowest"
        return len(train_losses), f"the training loss is over {RUNAWAY:g} times {told}"
    return None


def runaway(first: float, lowest: float, times: float) -> float:
    """The loss that is so many times the first one, which has a meaning for losses of any sign.

    It lies above the first one by `times` - 1 times the size of the first one, or what the loss has fallen by where
    that is more. Of positive losses it is `times` the first one and nothing else. A loss that begins at -92 and falls
    to -94 may rise to 91,816 before it is 1,000 times the first one; one that begins at 0 may rise to 999 times what it
    has fallen by, and without bound before it has fallen.

    Args:
        first: the loss at the start.
        lowest: the lowest loss since, the first one included.
        times: more than 1.
    """
    if lowest > 0:
        return times * first
    return first + (times - 1) * (max(abs(first), first - lowest) or math.inf)


def state_bytes(optimizer: AnyOptimizer) -> int:
    """Bytes in the optimizer's own tensors: per parameter and, once each, those that its groups share."""
    per_parameter = [value for state in optimizer.state.values() for value in state.values()]
    shared = [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    tensors = {id(value): value for value in per_parameter + shared if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


class Gradients:
    """Losses and gradients of one batch after another, counted, and the steps made from them."""

    def __init__(self, task: Task, model: nn.Module, optimizer: AnyOptimizer) -> None:
        self.task, self.model, self.optimizer = task, model, optimizer
        self.process = os.getpid()
        self.count = 0
        """Gradient evaluations so far."""

        if switches(optimizer):
            optimizer.train()  # type: ignore[union-attr]  # Schedule-Free refuses to step before it has been told

        step = inspect.signature(optimizer.step).parameters
        self.needs_closure = "closure" in step and step["closure"].default is inspect.Parameter.empty

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step on a batch; returns the mean loss before it, a 0-D tensor.

        Ours are told the losses of the examples, which some of them filter. An optimizer whose `step` demands a closure
        (`torch.optim.LBFGS`) evaluates as often as it likes.
        """
        if self.needs_closure:
            first: list[Tensor] = []

            def closure() -> Tensor:
                first.append(self.backward(batch)[1])
                return first[-1]

            self.optimizer.step(closure)  # type: ignore[call-arg, arg-type]
            return first[0]
        losses, loss = self.backward(batch)
        if isinstance(self.optimizer, fallline.Optimizer):
            self.optimizer.step(loss=losses.detach().reshape(-1))
        else:
            self.optimizer.step()
        return loss

    def backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Leave the gradients of a batch; returns the losses of its examples with their graph, and the mean without."""
        self.optimizer.zero_grad()
        losses = self.task.losses(self.model, batch)
        alone(self.process)
        loss = losses.mean()
        loss.backward()
        self.count += 1
        return losses, loss.detach()


class Clock:
    """Adds the time of training to an outcome: this process's CPU seconds, and wall seconds."""

    def __init__(self, outcome: Outcome, device: str) -> None:
        self.outcome, self.device = outcome, device
        self.saved = time.monotonic()
        self.start()

    def start(self) -> None:
        """Let it run."""
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """Let it stand."""
        if self.device != "cpu":
            torch.accelerator.synchronize()
        self.outcome.cpu_seconds += time.process_time() - self.cpu
        self.outcome.wall_seconds += time.perf_counter() - self.wall

    def due(self, every: float) -> bool:
        """Whether that many seconds have passed since it last was so, or since the start."""
        now = time.monotonic()
        if now - self.saved < every:
            return False
        self.saved = now
        return True


def to_device(batch: Batch, device: str) -> Batch:
    """A batch with its tensors on a device, through tuples, lists, dictionaries and data classes.

    What has a method `to` of its own is moved by that.
    """
    if device == "cpu":
        return batch

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return value.to(device) if callable(getattr(value, "to", None)) else value

    return through(batch, move)
