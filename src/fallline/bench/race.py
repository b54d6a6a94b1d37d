"""The race: the same number of trials for everyone, the best on validation, then fresh seeds that all share.

`race` decides what runs next and writes down what came of it. Where the runs run is the matter of an executor: any
`concurrent.futures.Executor` will do; `local_pool` of `pool.py` makes the usual one.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any, TypeVar

from fallline.bench.contenders import Contender, get_contender
from fallline.bench.record import Entry, Race, Store, fingerprint, now, race_id, run_key
from fallline.bench.seeds import derive, generator, seed_torch
from fallline.bench.spaces import Setting, trials
from fallline.bench.tasks import get_task
from fallline.bench.train import Outcome, Run, best_trial, step_with, train

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Design:
    """What is asked for. The same design on the same code is the same race."""

    task: str
    optimizers: tuple[str, ...]
    trials: int = 20
    seeds: int = 10
    seed: int = 0


class RaceError(Exception):
    """Something keeps the race from going on, in words for its user."""


@dataclasses.dataclass
class Lane:
    """How far one optimizer has come."""

    contender: Contender
    plan: list[dict[str, Setting]]
    """The settings of its trials."""

    code: str
    """The fingerprint of the code behind its runs."""

    trials: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    seeds: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    best: int | None = None
    """The trial with the lowest score so far."""

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Take in what came of a run."""
        (self.trials if entry.stage == "trial" else self.seeds)[entry.number] = outcome
        self.best = best_trial(self.trials)


@dataclasses.dataclass
class Progress:
    """The state of the race, for whoever watches."""

    design: Design
    lanes: dict[str, Lane]
    left_out: dict[str, str]
    reused: int = 0
    """Runs that were in the records already."""

    ran: int = 0

    @property
    def total(self) -> int:
        """Runs in the race, as far as can be known: an optimizer whose trials all fail gets no seeds."""
        lost = sum(len(lane.trials) == self.design.trials and lane.best is None for lane in self.lanes.values())
        return len(self.lanes) * (self.design.trials + self.design.seeds) - lost * self.design.seeds

    @property
    def done(self) -> int:
        """Runs whose outcome is known."""
        return self.reused + self.ran


Watch = Callable[[Progress], None]


def race(design: Design, store: Store, executor: Executor, *, ahead: int, about: dict[str, Any], watch: Watch) -> Race:
    """Run what the records do not hold, and return the race as written down.

    Args:
        design: what is asked for.
        store: the records, written by this process alone.
        executor: where the runs run.
        ahead: runs to hand to the executor at a time; more than it has workers, so that none waits.
        about: what to remember with the race, for its report: command, machine.
        watch: called with the progress, after each run at least.

    Raises:
        RaceError: an optimizer cannot run on this task at all, or a worker died.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    progress = line_up(design)
    written = write_down(design, store, progress, about)
    queue = deque(
        Entry(name, "trial", number) for number, name in itertools.product(range(design.trials), progress.lanes)
    )

    def plan(entry: Entry) -> tuple[Run, str]:
        lane = progress.lanes[entry.optimizer]
        run = plan_run(design, entry, lane)
        return run, run_key(run, lane.code)

    def settle(entry: Entry, run: Run, key: str, outcome: Outcome, known: bool) -> None:
        progress.reused += known
        progress.ran += not known
        lane = progress.lanes[entry.optimizer]
        store.enter(written.id, entry, key)
        lane.settle(entry, outcome)
        if entry.stage == "trial" and len(lane.trials) == design.trials and lane.best is not None:
            queue.extend(Entry(entry.optimizer, "seed", number) for number in range(design.seeds))

    work_off(
        queue, plan, lambda run: executor.submit(attempt, run), store, settle, lambda: watch(progress), ahead=ahead
    )
    return written


def work_off(
    queue: deque[T],
    plan: Callable[[T], tuple[Run, str]],
    submit: Callable[[Run], Future[Outcome]],
    store: Store,
    settle: Callable[[T, Run, str, Outcome, bool], None],
    tick: Callable[[], None],
    *,
    ahead: int,
) -> None:
    """Run all that a queue holds and that the records do not; what has run once is never run again.

    Args:
        queue: what to do; `settle` may add to it.
        plan: the run that an item asks for, and its key.
        submit: hands a run to a worker.
        store: the records, written by this process alone.
        settle: is told what came of an item, and whether the records knew it.
        tick: called after each run at least.
        ahead: runs to hand out at a time.

    Raises:
        RaceError: a worker died.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    pending: dict[Future[Outcome], tuple[T, Run, str]] = {}

    def collect(futures: set[Future[Outcome]]) -> None:
        for future in futures:
            item, run, key = pending.pop(future)
            store.add(key, run, future.result())
            settle(item, run, key, future.result(), False)

    try:
        while queue or pending:
            while queue and len(pending) < ahead:
                item = queue.popleft()
                run, key = plan(item)
                if known := store.find(key):
                    settle(item, run, key, known, True)
                else:
                    pending[submit(run)] = item, run, key
            tick()
            if pending:
                collect(wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).done)
    except BrokenExecutor as error:
        raise RaceError(
            "a worker process died, perhaps for want of memory. What had finished is kept; "
            "the same command goes on from there, with --jobs 1 if need be"
        ) from error
    finally:
        collect({future for future in pending if future.done() and not future.cancelled() and not future.exception()})
    tick()


def line_up(design: Design) -> Progress:
    """Make the lanes, after one rehearsed step of each optimizer: what cannot run says so before the race."""
    task = get_task(design.task)
    progress = Progress(design, {}, {})
    for name in design.optimizers:
        contender = get_contender(name).on(task)
        seed_torch(0, "rehearsal")
        model = task.model()
        if excuse := contender.excuse(model):
            progress.left_out[name] = excuse
            continue
        plan = [
            {**contender.fixed, **point}
            for point in trials(contender.space, design.trials, derive(design.seed, "search", name))
        ]
        try:
            optimizer = contender.make(model.parameters(), plan[0], task.horizon)
            losses = task.losses(model, next(task.batches(generator(0, "rehearsal"))))
            losses.mean().backward()
            step_with(optimizer, losses.detach())
        except Exception as error:
            raise RaceError(f"{name} cannot run on {design.task}: {type(error).__name__}: {error}") from error
        progress.lanes[name] = Lane(contender, plan, fingerprint(task, optimizer, contender.make))
    if not progress.lanes:
        raise RaceError("nobody is left to race: " + "; ".join(progress.left_out.values()))
    return progress


def write_down(design: Design, store: Store, progress: Progress, about: dict[str, Any]) -> Race:
    """Enter the race in the records."""
    lanes = progress.lanes
    setting = {
        **about,
        "left_out": progress.left_out,
        "contenders": {name: lane.contender.describe() for name, lane in lanes.items()},
    }
    asked = dataclasses.asdict(design)
    written = Race(
        race_id(asked, {name: lane.code for name, lane in lanes.items()}), design.task, asked, setting, now()
    )
    store.open_race(written)
    return written


def plan_run(design: Design, entry: Entry, lane: Lane) -> Run:
    """The run of an entry. Its seed does not depend on the optimizer: that makes pairs."""
    number = entry.number if entry.stage == "trial" else lane.best
    assert number is not None  # seeds are queued only once a trial is chosen
    seed = derive(design.seed, entry.stage, entry.number)
    return Run(design.task, entry.optimizer, lane.plan[number], seed, test=entry.stage == "seed")


def attempt(run: Run) -> Outcome:
    """Train; whatever an optimizer may raise is its result, and the race goes on."""
    try:
        return train(run)
    except Exception as error:
        return Outcome("failed", steps=0, reason=f"{type(error).__name__}: {error}")
