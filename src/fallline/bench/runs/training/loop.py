"""The loop of one run, on one process or on several, with checkpoints that it goes on from to the very same numbers.

On one process in float32 it computes what `runs.loop.train` does for the same task, optimizer, settings and
seed; all else here is about watching, stopping, saving and sharing.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.contenders.contender import AnyOptimizer
from fallline.bench.runs.checkpoint import Unsaved
from fallline.bench.runs.loop import Clock, Gradients, Outcome, divergence, evaluate, record, state_bytes, to_device
from fallline.bench.runs.training.plan import Plan, contender_of, differences, factor, identity, task_of
from fallline.bench.runs.training.processes import Processes
from fallline.bench.runs.training.readings import readings
from fallline.bench.runs.training.saving import NAME, load, restore, save
from fallline.bench.tasks import Batch, Split, Task, alone

HIDDEN = "optimizer or model keep something outside of state_dict: the run could not go on to the same numbers"


class Listener:
    """Who is told what happens; this one makes nothing of it."""

    def begins(self, task: Task, start: int, outcome: Outcome) -> None:
        """All is made, and so many gradient evaluations lie behind; the curve has the measurements so far."""

    def step(self, done: int) -> None:
        """A step was made: gradient evaluations so far."""

    def look(self, done: int, scalars: Mapping[str, float], measures: Mapping[str, float] | None) -> None:
        """Losses and readings were read, and at some of the times `measures` on held-out data."""

    def warn(self, sentence: str) -> None:
        """Something did not work that the run can do without."""


@dataclass
class Ended:
    """How a run ended."""

    outcome: Outcome
    interrupted: bool = False
    """Whether it was asked to stop, and did."""

    unsaved: str | None = None
    """Why the last checkpoint could not be written, if so."""

    unit: str = "examples"
    """What `examples` counts; `steps` on a task whose losses are one number for a batch."""

    examples: int = 0
    """Losses that this command has taken gradients of, over all processes."""

    seconds: float = 0.0
    """Of training in this command, without measurements and checkpoints."""


def train(plan: Plan, processes: Processes, listener: Listener, asked: Callable[[], bool]) -> Ended:
    """Train until the end, or until `asked()` says to stop; every process of a run calls it.

    Raises:
        ValueError: there is no such task or optimizer, or the checkpoint is not this run's.
    """
    # Settings
    task = task_of(plan)
    contender = contender_of(plan, task)
    horizon, device = task.steps, processes.device
    grid = sorted({max(1, round(horizon * i / task.evaluations)) for i in range(1, task.evaluations + 1)})
    path, about = plan.out / NAME, identity(plan, horizon)
    saved = load(path) if plan.resume else None
    if saved and (different := differences(saved["plan"], about)):
        raise ValueError(f"--resume goes on with the run in {plan.out} as it was: {'; '.join(different)}")

    # Data, model, optimizer: each draws from its own stream of the run's seed
    batches = task.shares(generator(plan.seed, "order"), processes.rank, processes.ranks)
    seed_torch(plan.seed, "init")
    model = fitted(task.model().to(device), plan)
    spread = processes.spread(model, plan.fsdp)
    seed_torch(plan.seed, "optimizer")
    if excuse := contender.excuse(model):
        raise ValueError(excuse)
    optimizer = contender.build(model.parameters(), {**contender.variant, **plan.settings}, task.horizon)
    seed_torch(plan.seed, "dropout" if processes.leads else f"dropout {processes.rank}")
    rates = [
        (i, name, group[name])
        for i, group in enumerate(optimizer.param_groups)
        for name in contender.rates
        if name in group
    ]

    def measured(split: Split) -> dict[str, float]:
        """By every process, on the same data: what is sharded cannot be evaluated by one alone."""
        with autocast(plan, device):
            return evaluate(task, model, optimizer, split)

    def keep() -> str | None:
        """Save; why not, if so."""
        if unsaved.changed():
            return HIDDEN
        more = {"plan": about, "outcome": dataclasses.asdict(outcome), "losses": losses[: outcome.steps].clone()}
        return save(path, processes, model, optimizer, more)

    # Loop: the horizon is counted in gradient evaluations, so that a step which takes several pays for them
    gradients = SharedGradients(task, spread, optimizer, plan, device)
    unsaved = Unsaved(optimizer, model)
    outcome, losses = Outcome("finished", steps=0), torch.zeros(horizon)
    if saved:
        outcome = Outcome(**saved["outcome"])
        next(islice(batches, outcome.steps, outcome.steps), None)
        restore(saved, processes, model, optimizer)
        gradients.count = outcome.gradient_evaluations
        losses[: outcome.steps] = saved["losses"]
    else:
        record(outcome, measured("validation"))
        if trouble := keep():  # at once: that it cannot be is better known now than in the morning
            listener.warn(f"no checkpoint can be saved: {trouble}")
    step, since = outcome.steps, int(outcome.curve["step"][-1] or 0)
    due = grid[min(len(outcome.curve["step"]) - 1, len(grid) - 1)]
    listener.begins(task, gradients.count, outcome)
    fresh: list[Tensor] = []  # losses that have not been read
    ended, seen, before = Ended(outcome), 0, outcome.wall_seconds
    clock = Clock(outcome, device)
    while gradients.count < horizon:
        for i, name, rate in rates:
            optimizer.param_groups[i][name] = rate * factor(contender, plan.warm_up, gradients.count + 1, horizon)
        fresh.append(gradients.step(to_device(next(batches), device)))

        last, measuring = gradients.count >= horizon, gradients.count >= due
        old = processes.leads and clock.due(plan.save_every)
        stopping, saving = processes.any(asked(), old)
        listener.step(gradients.count)
        if not (measuring or stopping or saving or (step + len(fresh)) % plan.log_every == 0):
            continue

        clock.stop()  # only here does the loop read a value: an accelerator would wait
        stretch = processes.mean(torch.stack(fresh)).cpu()
        losses[step : step + len(fresh)] = stretch
        step, examples = step + len(fresh), gradients.over(processes.ranks)
        fresh.clear()
        outcome.steps, outcome.gradient_evaluations = step, gradients.count
        speed = (examples - seen) / max(outcome.wall_seconds - before, 1e-9)
        seen, before = examples, outcome.wall_seconds
        rate = float(optimizer.param_groups[0].get("lr", 0))
        scalars = {
            "loss": stretch.mean().item(),
            "lr": rate,
            f"{gradients.unit}/s": speed,
        }
        scalars |= readings(optimizer)
        measures = None
        if measuring:
            passed = bisect.bisect_right(grid, gradients.count)
            measures = {"train loss": losses[since:step].mean().item(), **measured("validation")}
            while len(outcome.curve["step"]) <= passed:  # several points at once, if a step took many evaluations
                record(outcome, measures)
            since, due = step, grid[min(passed, len(grid) - 1)]
        listener.look(gradients.count, scalars, measures)
        # Whether it has run away is asked where everybody is measured; whether it is a number, at every look.
        asked_of = measures or ({} if math.isfinite(scalars["loss"]) else {"train loss": scalars["loss"]})
        if asked_of and (lost := divergence(losses[:step], asked_of)):
            outcome.status, (outcome.steps, outcome.reason) = "diverged", lost
            break
        if saving or stopping or last:
            ended.unsaved = keep()
            if saving and ended.unsaved:
                listener.warn(f"the checkpoint could not be saved, and the run goes on: {ended.unsaved}")
        if stopping and not last:
            ended.interrupted = True
            break
        clock.start()

    # Result
    ended.unit, ended.examples = gradients.unit, gradients.over(processes.ranks)
    ended.seconds = outcome.wall_seconds - first(saved)
    outcome.state_bytes = state_bytes(optimizer)
    if ended.interrupted or outcome.lost:
        return ended
    tail = {"loss": losses[step - max(1, step // 10) : step].mean().item()}
    outcome.score = outcome.curve["validation loss"][-1] if task.held_out else tail["loss"]
    if plan.test:
        measures = measured("test") if task.held_out else tail
        outcome.result = {name: value for name, value in measures.items() if math.isfinite(value)}
        if "loss" not in outcome.result:
            outcome.status, outcome.reason, outcome.result = "diverged", "the test loss is not finite", {}
    return ended


def first(saved: Mapping[str, Any] | None) -> float:
    """Seconds of training that lay behind when this command began."""
    return float(saved["outcome"]["wall_seconds"]) if saved else 0.0


class SharedGradients(Gradients):
    """Losses and gradients of this process's share of each batch, as the plan computes them; examples are counted."""

    def __init__(self, task: Task, model: nn.Module, optimizer: AnyOptimizer, plan: Plan, device: str) -> None:
        super().__init__(task, model, optimizer)
        self.plan, self.device = plan, device
        self.examples, self.unit = 0, "examples"

    def over(self, ranks: int) -> int:
        """Examples of all processes, which see as many each; steps they make together."""
        return self.examples * ranks if self.unit == "examples" else self.examples

    def backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        self.optimizer.zero_grad()
        with autocast(self.plan, self.device):
            losses = self.task.losses(self.model, batch)
        alone(self.process)
        loss = losses.mean()
        loss.backward()
        if self.plan.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.count += 1
        self.examples += losses.numel()
        if losses.ndim == 0:
            self.unit = "steps"
        return losses, loss.detach()


def autocast(plan: Plan, device: str) -> torch.autocast:
    """Where forward passes compute what they may in bfloat16, if the plan says so."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=plan.amp)


def fitted(model: nn.Module, plan: Plan) -> nn.Module:
    """A model in the precision and the layout of the plan, compiled if it says so; its inputs follow, in hooks.

    What it returns is float32 again, so that losses are.
    """
    dtype = getattr(torch, plan.dtype)
    layout = torch.channels_last if plan.channels_last else torch.preserve_format

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        def fit(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.to(dtype) if value.is_floating_point() else value
            return value.contiguous(memory_format=layout) if plan.channels_last and value.ndim == 4 else value

        return tuple(map(fit, inputs))

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return output.float() if isinstance(output, Tensor) else output

    model.to(dtype)
    if plan.channels_last and not plan.fsdp:  # FSDP2 cuts weights along their first dimension, which must be outermost
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype is not torch.float32 or plan.channels_last:
        model.register_forward_pre_hook(enter)
    if dtype is not torch.float32:
        model.register_forward_hook(leave)
    if plan.compile:
        model.compile()
    return model
