"""The training loop, from the seed to the result: of a race's runs and of `fallline train`, on one process or on many.

Everything a run does is in `carry_out`, top to bottom. A run that goes on from a checkpoint comes to the very same
numbers.
"""

import bisect
import contextlib
import dataclasses
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fallline
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.contenders import AnyOptimizer, lr_factor
from fallline.bench.runs.checkpoint import HIDDEN, Checkpoint, Unsaved, discard, load, restore, save
from fallline.bench.runs.plan import Plan, contender_of, differences, identity, plan_of, task_of
from fallline.bench.runs.processes import Processes
from fallline.bench.runs.readings import readings
from fallline.bench.runs.run import Outcome, Run, divergence, record
from fallline.bench.tasks import Batch, Split, Task, alone
from fallline.bench.tasks._task import measure, through, without_gradients

STATISTICS = 20
"""Batches of which batch norm's statistics are taken anew: as many as its running means, whose momentum is 0.1, tell
of."""


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


def train(run: Run, checkpoint: Checkpoint | None = None) -> Outcome:
    """Train once, as a race does; with a checkpoint that is there, go on from it, to the very same numbers."""
    return carry_out(plan_of(run), checkpoint).outcome


def carry_out(
    plan: Plan,
    checkpoint: Checkpoint | None = None,
    processes: Processes | None = None,
    listener: Listener | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> Ended:
    """Train until the end, or until `asked()` says to stop; every process of a run calls it.

    Args:
        plan: what is asked for.
        checkpoint: where to go on from, and to save.
        processes: of the run; None: this one alone.
        listener: is told what happens.
        asked: whether to stop after this step.

    Raises:
        ValueError: there is no such task or optimizer, or the checkpoint is not this run's.
    """
    # Settings
    processes, listener = processes or Processes(device=plan.device), listener or Listener()
    task = task_of(plan)
    contender = contender_of(plan, task)
    horizon, device = task.steps, processes.device
    grid = sorted({max(1, round(horizon * i / task.evaluations)) for i in range(1, task.evaluations + 1)})
    about = identity(plan, horizon)
    saved = found(checkpoint, about, plan.out) if checkpoint else None
    watched = checkpoint is not None and checkpoint.resume is not None  # by somebody who may go on from its end

    # Data, model, optimizer: each draws from its own stream of the run's seed
    batches = task.shares(generator(plan.seed, "order"), processes.rank, processes.ranks)
    seed_torch(plan.seed, "init")
    model = fitted(task.model().to(device), plan)
    spread = processes.spread(model, plan.fsdp)
    seed_torch(plan.seed, "optimizer")
    if excuse := contender.excuse(model):
        raise ValueError(excuse)
    settings = plan.settings if plan.complete else {**contender.variant, **plan.settings}
    optimizer = contender.build(model.parameters(), settings, task.horizon)
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
        if checkpoint is None:
            return None
        if unsaved.changed():
            return HIDDEN
        more = {"plan": about, "outcome": dataclasses.asdict(outcome), "losses": losses[: outcome.steps].clone()}
        return save(checkpoint.path, processes, model, optimizer, more)

    # Loop: the horizon is counted in gradient evaluations, so that a step which takes several pays for them
    gradients = Gradients(task, spread, optimizer, plan, device)
    unsaved = Unsaved(optimizer, model)
    outcome, losses = Outcome("finished", steps=0), torch.zeros(horizon)
    if saved:
        try:
            restore(saved, processes, model, optimizer, batches)
        except ValueError:
            if checkpoint is None or checkpoint.resume:
                raise
            return carry_out(plan, discard(checkpoint), processes, listener, asked)
        outcome = Outcome(**saved["outcome"])
        gradients.count = outcome.gradient_evaluations
        losses[: outcome.steps] = saved["losses"]
    else:
        record(outcome, measured("validation"))
        if watched and (trouble := keep()):  # at once: better known now than in the morning
            listener.warn(f"no checkpoint can be saved: {trouble}")
    step, since = outcome.steps, int(outcome.curve["step"][-1] or 0)
    due = grid[min(len(outcome.curve["step"]) - 1, len(grid) - 1)]
    listener.begins(task, gradients.count, outcome)
    fresh: list[Tensor] = []  # not read yet: written down one by one, losses cost 3 % of a small step
    ended, seen, before = Ended(outcome), 0, outcome.wall_seconds
    clock = Clock(outcome, device)
    while gradients.count < horizon:
        for i, name, rate in rates:
            optimizer.param_groups[i][name] = rate * lr_factor(
                contender.schedule, gradients.count + 1, horizon, contender.drops, plan.warm_up
            )
        fresh.append(gradients.step(to_device(next(batches), device)))

        last, measuring = gradients.count >= horizon, gradients.count >= due
        old = checkpoint is not None and processes.leads and clock.due(checkpoint.every)
        stopping, saving = processes.any(asked(), old)
        looking = bool(plan.log_every) and (step + len(fresh)) % plan.log_every == 0
        listener.step(gradients.count)
        if not (measuring or stopping or saving or looking):
            continue

        clock.stop()  # only here does the loop read a value: an accelerator would wait
        stretch = processes.mean(torch.stack(fresh)).cpu()
        losses[step : step + len(fresh)] = stretch
        step, examples = step + len(fresh), gradients.over(processes.ranks)
        fresh.clear()
        outcome.steps, outcome.gradient_evaluations = step, gradients.count
        measures = None
        if measuring:
            passed = bisect.bisect_right(grid, gradients.count)
            measures = {"train loss": losses[since:step].mean().item(), **measured("validation")}
            while len(outcome.curve["step"]) <= passed:  # several points at once, if a step took many evaluations
                record(outcome, measures)
            since, due = step, grid[min(passed, len(grid) - 1)]
        asked_of = measures or {}
        if plan.log_every:
            speed = (examples - seen) / max(outcome.wall_seconds - before, 1e-9)
            seen, before = examples, outcome.wall_seconds
            rate = float(optimizer.param_groups[0].get("lr", 0))
            scalars = {"loss": stretch.mean().item(), "lr": rate, f"{gradients.unit}/s": speed}
            scalars |= readings(optimizer, contender.readings)
            listener.look(gradients.count, scalars, measures)
            if not math.isfinite(scalars["loss"]):  # whether it has run away is asked where everybody is measured
                asked_of = measures or {"train loss": scalars["loss"]}
        if asked_of and (lost := divergence(losses[:step], asked_of)):
            outcome.status, (outcome.steps, outcome.reason) = "diverged", lost
            break
        if stopping or (saving and not last) or (last and watched):
            ended.unsaved = keep()
            if saving and ended.unsaved:
                listener.warn(f"the checkpoint could not be saved, and the run goes on: {ended.unsaved}")
        if stopping and not last:
            ended.interrupted = True
            break
        clock.start()

    # Result
    ended.unit, ended.examples = gradients.unit, gradients.over(processes.ranks)
    ended.seconds = outcome.wall_seconds - (saved["outcome"]["wall_seconds"] if saved else 0.0)
    outcome.state_bytes = state_bytes(optimizer)
    if ended.interrupted or outcome.lost:
        return ended
    tail = {"loss": losses[step - max(1, step // 10) : step].mean().item()}
    outcome.score = outcome.curve["validation loss"][-1] if task.held_out else tail["loss"]
    if plan.test:
        measures = measured("test") if task.held_out else tail
        outcome.result = {name: value for name, value in measures.items() if math.isfinite(value)}
        if "loss" not in outcome.result:
            outcome.status, outcome.reason = "diverged", "the test loss is not finite"
            outcome.score, outcome.result = None, {}
    return ended


def found(checkpoint: Checkpoint, about: Mapping[str, Any], out: os.PathLike[str]) -> dict[str, Any] | None:
    """What there is to go on from.

    Raises:
        ValueError: there must be something, and there is not, or it is of another run.
    """
    if checkpoint.resume is False or (checkpoint.resume is None and not checkpoint.path.exists()):
        return None
    try:
        saved = load(checkpoint.path)
        if different := differences(saved["plan"], about):
            raise ValueError(f"--resume goes on with the run in {out} as it was: {'; '.join(different)}")
    except ValueError:
        if checkpoint.resume:
            raise
        return None
    return saved


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


def state_bytes(optimizer: AnyOptimizer) -> int:
    """Bytes in the optimizer's own tensors: per parameter and, once each, those that its groups share."""
    per_parameter = [value for state in optimizer.state.values() for value in state.values()]
    shared = [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    tensors = {id(value): value for value in per_parameter + shared if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


class Gradients:
    """Losses and gradients of one batch after another, counted, and the steps made from them."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: AnyOptimizer,
        plan: Plan | None = None,
        device: str = "cpu",
    ) -> None:
        self.task, self.model, self.optimizer, self.plan, self.device = task, model, optimizer, plan, device
        self.process = os.getpid()
        self.count = 0
        """Gradient evaluations so far."""

        self.examples, self.unit = 0, "examples"
        """Losses so far; steps on a task whose losses are one number for a batch."""

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

    def over(self, ranks: int) -> int:
        """Examples of all processes, which see as many each; steps they make together."""
        return self.examples * ranks if self.unit == "examples" else self.examples

    def backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Leave the gradients of a batch; returns the losses of its examples with their graph, and the mean without."""
        self.optimizer.zero_grad()
        with autocast(self.plan, self.device):
            losses = self.task.losses(self.model, batch)
        alone(self.process)
        loss = losses.mean()
        loss.backward()
        if self.plan is not None and self.plan.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.count += 1
        self.examples += losses.numel()
        if losses.ndim == 0:
            self.unit = "steps"
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


def autocast(plan: Plan | None, device: str) -> contextlib.AbstractContextManager[Any]:
    """Where forward passes compute what they may in bfloat16, if the plan says so."""
    if plan is None or not plan.amp:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


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
