"""The training loop, from the seed to the result. Everything a run does is in `train`, top to bottom."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

import fallline
from fallline.bench.contenders import AnyOptimizer, get_contender
from fallline.bench.seeds import generator, seed_torch
from fallline.bench.spaces import Setting
from fallline.bench.tasks import Schedule, Split, Task, get_task

WARM_UP = 0.05
"""Share of the horizon over which the common schedule rises."""

RUNAWAY = 1e3
"""A training loss this many times the first one is called divergence, even while it is still a number."""

Curve = dict[str, list[float | None]]
"""`step`, `train loss` (mean since the last point), `validation loss`, ...: one number a measurement."""


@dataclass(frozen=True)
class Run:
    """What identifies a run, apart from the code: enough to repeat it."""

    task: str
    optimizer: str
    settings: dict[str, Setting]
    seed: int
    test: bool = False
    """Whether the test set is looked at, once, at the end: in confirmed runs only."""


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

    gradient_evaluations: int = 0
    cpu_seconds: float = 0.0
    """Of training; the clock stands still during evaluation."""

    state_bytes: int = 0
    """The optimizer's tensors, parameters apart."""

    @property
    def lost(self) -> bool:
        """Whether it diverged or failed."""
        return self.status != "finished"


def best_trial(trials: Mapping[int, Outcome]) -> int | None:
    """The number of the trial with the lowest score; None if none has finished.

    Of equals it is the earliest, so that the choice does not depend on who came first.
    """
    scores = {number: outcome.score for number, outcome in trials.items() if outcome.score is not None}
    return min(scores, key=lambda number: (scores[number], number), default=None)


def train(run: Run) -> Outcome:
    """Train once."""
    # Settings
    task = get_task(run.task)
    contender = get_contender(run.optimizer).on(task)
    steps = task.steps
    measure_at = {round(steps * i / task.evaluations) for i in range(task.evaluations + 1)}

    # Data, model, optimizer: each draws from its own stream of the run's seed
    batches = task.batches(generator(run.seed, "order"))
    seed_torch(run.seed, "init")
    model = task.model()
    seed_torch(run.seed, "noise")
    optimizer = contender.make(model.parameters(), run.settings, task.horizon)
    rates = [(group, name, group[name]) for group in optimizer.param_groups for name in contender.rates]

    # Loop
    outcome = Outcome("finished", steps=0)
    train_losses = torch.zeros(steps)
    measured = 0
    record(outcome.curve, 0, evaluate(task, model, optimizer, "validation"))
    clock = time.process_time()
    for step in range(1, steps + 1):
        for group, name, rate in rates:
            group[name] = rate * lr_factor(contender.schedule, step, steps)

        losses = task.losses(model, next(batches))
        optimizer.zero_grad()
        losses.mean().backward()
        outcome.gradient_evaluations += 1
        losses = losses.detach()
        step_with(optimizer, losses)
        train_losses[step - 1] = losses.mean()

        if step in measure_at:  # only here does the loop read a value: on an accelerator it would wait for it
            outcome.cpu_seconds += time.process_time() - clock
            outcome.steps = step
            since = train_losses[measured:step].mean().item()
            measured = step
            measures = {"train loss": since, **evaluate(task, model, optimizer, "validation")}
            record(outcome.curve, step, measures)
            if trouble := divergence(train_losses[:step], measures):
                outcome.status, (outcome.steps, outcome.reason) = "diverged", trouble
                return outcome
            clock = time.process_time()

    # Result
    outcome.state_bytes = state_bytes(optimizer)
    tail = {"loss": train_losses[-(steps // 10) :].mean().item()}
    outcome.score = outcome.curve["validation loss"][-1] if task.held_out else tail["loss"]
    if run.test:
        outcome.result = evaluate(task, model, optimizer, "test") if task.held_out else tail
    return outcome


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What multiplies the learning rate at `step` = 1 ... `steps`: linear warm-up, then a cosine to just over 0."""
    if schedule == "constant":
        return 1.0
    warm_up = max(1, round(WARM_UP * steps))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up + 1)))


def step_with(optimizer: AnyOptimizer, losses: Tensor) -> None:
    """One step; ours are told the losses, shape (examples,), which some of them filter."""
    if isinstance(optimizer, fallline.Optimizer):
        optimizer.step(loss=losses)
    else:
        optimizer.step()


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, optimizer: AnyOptimizer, split: Split) -> dict[str, float]:
    """Measure on held-out data, at the point that the optimizer holds for the best, if it knows of one.

    Names are `loss`, `accuracy` on the test set, `validation loss`, ... on the validation set.
    """
    if not task.held_out:
        return {}
    model.eval()
    switches = all(callable(getattr(optimizer, mode, None)) for mode in ("eval", "train"))
    if switches:
        optimizer.eval()  # type: ignore[union-attr]
    measures = task.evaluate(model, split)
    if switches:
        optimizer.train()  # type: ignore[union-attr]
    model.train()
    return measures if split == "test" else {f"validation {name}": value for name, value in measures.items()}


def record(curve: Curve, step: int, measures: Mapping[str, float]) -> None:
    """Add a point to the curve; what is not a finite number is None, as JSON has no other word for it."""
    for name, value in {"step": float(step), "train loss": math.nan, **measures}.items():
        curve.setdefault(name, []).append(value if math.isfinite(value) else None)


def divergence(train_losses: Tensor, measures: Mapping[str, float]) -> tuple[int, str] | None:
    """The step at which a run got lost, and how; None if all is well.

    Args:
        train_losses: the batches' mean losses so far, shape (steps,).
        measures: what has just been measured, with the training loss since the last time.
    """
    broken = (~train_losses.isfinite()).nonzero()
    if len(broken):
        return int(broken[0]) + 1, "the training loss is not finite"
    if not math.isfinite(measures.get("validation loss", 0.0)):
        return len(train_losses), "the validation loss is not finite"
    if measures["train loss"] > RUNAWAY * train_losses[0].item():
        return len(train_losses), f"the training loss is over {RUNAWAY:g} times the first one"
    return None


def state_bytes(optimizer: AnyOptimizer) -> int:
    """Bytes in the optimizer's own tensors: per parameter and, once each, those that its groups share."""
    per_parameter = [value for state in optimizer.state.values() for value in state.values()]
    shared = [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    tensors = {id(value): value for value in per_parameter + shared if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())
