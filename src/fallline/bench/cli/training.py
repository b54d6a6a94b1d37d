"""A process of a training run, from its start to its exit code."""

import json
import signal
import types
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from fallline.bench.cli.screen import Screen, View, told
from fallline.bench.common.files import append, complaint, put
from fallline.bench.common.numbers import clock
from fallline.bench.runs.checkpoint import NAME, Checkpoint
from fallline.bench.runs.environment import environment
from fallline.bench.runs.loggers import Logs, keep_until, open_logs
from fallline.bench.runs.loop import Ended, Listener, carry_out
from fallline.bench.runs.plan import Plan, command, contender_of, identity, task_of
from fallline.bench.runs.processes import joined
from fallline.bench.runs.run import Outcome
from fallline.bench.tasks import Task

METRICS, RESULT = "metrics.jsonl", "result.json"
INTERRUPTED = 130
"""The exit code of a run that was asked to stop, as shells have it for Ctrl-C."""


def run(plan: Plan) -> int:
    """Train as one process of the plan's; the first one prints and writes. Returns the exit code."""
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    with joined(plan.device) as processes, Stop() as stop:
        try:
            refuse_another(plan)
            checkpoint = Checkpoint(plan.out / NAME, plan.save_every, plan.resume)
            processes.wait()  # all have looked before the first one writes
            if not processes.leads:
                code = exit_code(carry_out(plan, checkpoint, processes, asked=stop.asked))
            else:
                with Reporter(plan, console, errors) as reporter:
                    ended = carry_out(plan, checkpoint, processes, reporter, stop.asked)
                write_result(plan, ended)
                report(plan, ended, console, errors)
                code = exit_code(ended)
        except (ValueError, OSError) as error:
            if processes.leads:
                said = complaint(error) if isinstance(error, OSError) else str(error)
                errors.print(Text.assemble(("Error: ", "bold red"), said), soft_wrap=True)
            return 1
        processes.wait()  # who has started them ends all when one has gone: the first one has something to write
    return code


def exit_code(ended: Ended) -> int:
    """0 for a run that came to its end."""
    return INTERRUPTED if ended.interrupted else int(ended.outcome.lost)


def refuse_another(plan: Plan) -> None:
    """`ValueError` if the folder already holds a run, and this one does not go on with it."""
    there = [name for name in (NAME, METRICS, RESULT) if (plan.out / name).exists()]
    if there and not plan.resume:
        raise ValueError(
            f"{plan.out} already holds a run ({', '.join(there)}): --resume goes on with it, --out names another folder"
        )


class Stop:
    """Whether somebody has pressed Ctrl-C, or asked for an end with SIGTERM. The second time ends it at once."""

    def __init__(self) -> None:
        self.signalled = False
        self.before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        """Whether to stop after this step."""
        return self.signalled

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Note it, and have the next one interrupt."""
        self.signalled = True
        for one in self.before:
            signal.signal(one, signal.default_int_handler)

    def __enter__(self) -> Self:
        for one in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[one] = signal.signal(one, self.hear)
            except ValueError:  # not in the main thread: who runs this there stops it otherwise
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        for one, handler in self.before.items():
            signal.signal(one, handler)


class Reporter(Listener):
    """Shows a run, and writes its metrics and logs. A context manager."""

    def __init__(self, plan: Plan, console: Console, errors: Console) -> None:
        self.plan, self.console, self.errors = plan, console, errors
        self.held = ExitStack()
        self.screen: Screen | None = None
        self.logs: Logs | None = None
        self.epoch: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.held.close()

    def begins(self, task: Task, start: int, outcome: Outcome) -> None:
        """Open the files, and begin to show."""
        contender = contender_of(self.plan, task)
        view = View(
            f"{task.name}, {contender.label}, seed {self.plan.seed}", task.steps, task.epoch, start=start, done=start
        )
        self.epoch = task.epoch
        self.console.print(Text(task.summary, style="dim"), soft_wrap=True)
        if start:
            self.console.print(f"Going on from step {outcome.steps}.")
        settings = identity(self.plan, task.steps)
        self.logs = open_logs(self.plan.log, self.plan.out, settings, start, self.warn)
        self.held.callback(self.logs.close)
        self.plan.out.mkdir(parents=True, exist_ok=True)
        keep_until(self.plan.out / METRICS, start)
        if not start:
            self.write(0, {name: values[0] for name, values in outcome.curve.items() if name.startswith("validation")})
        self.screen = self.held.enter_context(Screen(self.console, view))

    def step(self, done: int) -> None:
        """Move the bar."""
        assert self.screen is not None
        self.screen.view.done = done
        self.screen.step()

    def look(self, done: int, scalars: Mapping[str, float], measures: Mapping[str, float] | None) -> None:
        """Show the numbers, log them, and write down what was measured."""
        assert self.screen is not None
        assert self.logs is not None
        self.screen.view.done, self.screen.view.scalars = done, dict(scalars)
        if measures is not None:
            self.screen.view.measures = {name: value for name, value in measures.items() if name != "train loss"}
            others = {name: value for name, value in scalars.items() if name != "loss"}
            self.write(done, {**measures, **others})
        self.screen.look(measures is not None)
        self.logs.write(done, {**scalars, **(measures or {})})

    def write(self, done: int, values: Mapping[str, float | None]) -> None:
        """A line of metrics; what is not finite is null."""
        place = {"step": done} | ({"epoch": done / self.epoch} if self.epoch else {})
        finite = {name: value if value is None or abs(value) < float("inf") else None for name, value in values.items()}
        append(self.plan.out / METRICS, json.dumps({**place, **finite}))

    def warn(self, sentence: str) -> None:
        """Say it, above what is shown."""
        console = self.screen.live.console if self.screen and self.screen.live else self.errors
        console.print(Text.assemble(("Warning: ", "yellow"), sentence), soft_wrap=True)


def write_result(plan: Plan, ended: Ended) -> Path:
    """All that came of the run, as one JSON file."""
    outcome = ended.outcome
    machine = {name: value for name, value in environment(plan.processes).items() if name != "workers"}
    content = {
        "command": command(plan),
        "settings": identity(plan, task_of(plan).steps),
        "environment": machine,
        "status": "interrupted" if ended.interrupted else outcome.status,
        "reason": outcome.reason,
        "steps": outcome.steps,
        "score": outcome.score,
        "validation": {name: values[-1] for name, values in outcome.curve.items() if name.startswith("validation")},
        "test": outcome.result,
        "seconds": round(outcome.wall_seconds, 3),
        "cpu seconds": round(outcome.cpu_seconds, 3),
        "state bytes": outcome.state_bytes,
    }
    return put(plan.out / RESULT, json.dumps(content, indent=1, allow_nan=False) + "\n")


def report(plan: Plan, ended: Ended, console: Console, errors: Console) -> None:
    """Say how it ended, and where things are."""
    outcome = ended.outcome
    if ended.unsaved:
        errors.print(
            Text.assemble(("Error: ", "bold red"), f"the last checkpoint could not be saved: {ended.unsaved}"),
            soft_wrap=True,
        )
    if ended.interrupted:
        console.print(f"Stopped after step {outcome.steps}.", "" if ended.unsaved else "To go on:")
        if not ended.unsaved:
            console.print(Text(command(plan, resume=True), style="bold"), soft_wrap=True)
        return
    if outcome.lost:
        last = " The last checkpoint from before is kept." if (plan.out / NAME).exists() else ""
        words = f"{outcome.reason}, at step {outcome.steps}.{last}"
        errors.print(Text.assemble(("Diverged: ", "bold red"), words), soft_wrap=True)
        return
    if outcome.result:
        split = "test" if task_of(plan).held_out else "last tenth of the run, mean"
        console.print(Text(f"{split} {told(outcome.result)}", style="bold"))
    else:
        measured = {name: values[-1] for name, values in outcome.curve.items() if name.startswith("validation")}
        console.print(Text(told({name: value for name, value in measured.items() if value is not None}), style="bold"))
    speed = f", {ended.examples / ended.seconds:,.0f} {ended.unit}/s" if ended.seconds > 0 else ""
    console.print(f"{outcome.steps} steps, {clock(outcome.wall_seconds)} of training{speed}")
    console.print(f"{plan.out}: {RESULT}, {METRICS}, {NAME}", soft_wrap=True)
