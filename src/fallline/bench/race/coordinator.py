"""The race: the same number of trials for everyone, the best on validation, then fresh seeds that all share.

`race` decides what runs next and writes down what came of it. Where the runs run is the matter of an executor: any
`concurrent.futures.Executor` will do; `local_pool` of `pool.py` makes the usual one.
"""

import contextlib
import dataclasses
import importlib
import itertools
import platform
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from typing import Any, TypeVar

from fallline.bench.common.seeds import derive, generator, seed_torch
from fallline.bench.common.spaces import Setting, as_plain
from fallline.bench.contenders import Contender, entered, get_contender
from fallline.bench.protocol.comparison import ContenderResult, compare
from fallline.bench.protocol.design import (
    CONFIRMATION,
    CONFIRMING,
    DEFAULTS,
    SELECTION,
    STAGES,
    TRIAL,
    Design,
    run_seed,
)
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.protocol.records import Place, Race
from fallline.bench.protocol.search import Search
from fallline.bench.protocol.verdict import SETTLED
from fallline.bench.race.store import Store, now
from fallline.bench.runs.checkpoint import Checkpoint, discard
from fallline.bench.runs.identity import checksum, fingerprint, race_id, run_key
from fallline.bench.runs.loop import Gradients, train
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks import Task, get_task

T = TypeVar("T")

DEATHS = 3
"""A run that kills its worker so many times without progress is recorded as failed."""

CHECKPOINT_EVERY = 30.0
"""Seconds of a run between two checkpoints; most runs are over before."""


class RaceError(Exception):
    """Something keeps the race from going on, in words for its user."""


@dataclasses.dataclass(frozen=True)
class Entrant:
    """An optimizer that takes part on a task, and the code behind its runs."""

    contender: Contender
    code: str
    """The fingerprint of the code and the data behind its runs."""


Entrants = dict[tuple[str, str], Entrant]
"""The entrants by task and optimizer."""

OnProgress = Callable[[RaceProgress], None]
OnRun = Callable[[Race, Place, Run, Outcome], None]


def race(
    design: Design,
    store: Store,
    executor: Executor,
    *,
    max_pending: int,
    about: dict[str, Any],
    on_progress: OnProgress,
    on_run: OnRun = lambda *_: None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Race:
    """Run what the records do not hold, and return the race as written down.

    Args:
        design: the design of the race.
        store: the records.
        executor: where the runs run.
        max_pending: runs to hand to the executor at a time; more than it has workers, so that none waits.
        about: what to remember with the race, for its report: command, machine.
        on_progress: called with the progress, after each run at least.
        on_run: called with each run that was run, and not with those found in the records.
        checkpoint_every: seconds of a run between two checkpoints.

    Raises:
        RaceError: an optimizer cannot run on a task at all, or workers die whatever they run.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    progress, entrants = line_up(design)
    written = write_down(design, store, progress, entrants, about)
    queue = deque(
        Place(task, name, stage, number)
        for track, stage, count in (("defaults", DEFAULTS, design.seeds), ("tuned", TRIAL, design.first_trials))
        for number in range(count)
        for task, name in entrants
        if name in progress.results.get((task, track), ())
    )

    def planned(place: Place) -> tuple[Run, str]:
        entrant = entrants[place.task, place.optimizer]
        run = plan_run(design, place, entrant, progress.result(place))
        return run, run_key(run, entrant.code)

    def record(place: Place, run: Run, key: str, outcome: Outcome, known: bool) -> None:
        progress.reused += known
        progress.ran += not known
        store.enter(written.id, place, key)
        result = progress.result(place)
        result.add(place.stage, place.number, place.repeat, run.settings, outcome)
        if not known:
            on_run(written, place, run, outcome)
        if following := follow(design, place, result):
            withdraw(following[0])
            queue.extend(following)
        if result.about["extended"] and place.stage == TRIAL:
            write_down(design, store, progress, entrants, about)  # so that its report knows of them
        if place.stage == CONFIRMATION and design.until_decided:
            queue.extend(undecided(progress, place.task))

    def withdraw(first: Place) -> None:
        """Take back places of a stage, about to begin, that stem from a choice which this race no longer makes.

        A run that failed is tried again when the race goes on; if it does well then, other settings may be chosen.
        """
        for place, key in store.entered(written.id, first.task, first.optimizer, first.stage):
            stale = place.stage == SELECTION and place.number not in progress.result(place).search.finalists
            if stale or planned(place)[1] != key:
                store.withdraw(written.id, place)

    def submit(run: Run, checkpoint: Checkpoint) -> Future[Outcome]:
        return executor.submit(attempt, run, entrants[run.task, run.optimizer].code, checkpoint)

    checkpoints = Checkpoints(store, checkpoint_every)
    work_off(queue, planned, submit, store, record, lambda: on_progress(progress), checkpoints, max_pending=max_pending)
    return written


def follow(design: Design, place: Place, result: ContenderResult) -> list[Place]:
    """The places that come next for a contender, once a run of it has come in."""
    search, stage = result.search, place.stage

    def places(stage: str, numbers: range | list[int], repeats: int = 1) -> list[Place]:
        return [Place(place.task, place.optimizer, stage, *one) for one in itertools.product(numbers, range(repeats))]

    if stage == TRIAL and not search.tried and len(search.trials) == design.first_trials:
        opened = search.extend(derive(design.seed, "extension", place.optimizer))
        result.about["extended"].update({name: as_plain(wider) for name, wider in opened.items()})
        return places(TRIAL, range(design.first_trials, design.trials))
    if stage == TRIAL and search.tried and search.repeats:
        return places(SELECTION, search.finalists, search.repeats)
    if stage in (TRIAL, SELECTION) and search.done and search.hopeful:
        return places(CONFIRMATION, range(result.seeds_wanted))
    return []


def undecided(progress: RaceProgress, task: str) -> list[Place]:
    """The places of more seeds for those who have no verdict against a task's baseline yet, and for the baseline."""
    design = progress.design
    results = [one for one in progress.results[task, "tuned"].values() if one.search.hopeful]
    at = max(one.seeds_wanted for one in results)
    further = next((look for look in design.looks if look > at), None)
    if further is None or any(not one.search.done or len(one.seeds) < one.seeds_wanted for one in results):
        return []
    found = compare(design, task, "tuned", progress.tasks[task], results)
    still_open = [one for one in results if one.verdict and one.verdict.word not in SETTLED and one.seeds_wanted == at]
    more = []
    for one in [found.baseline, *still_open] if found.baseline and still_open else []:
        more += [Place(task, one.name, CONFIRMATION, number) for number in range(one.seeds_wanted, further)]
        one.seeds_wanted = further
    return more


class Checkpoints:
    """The checkpoints of the runs in hand, in a folder beside the records. Those of runs that are recorded go."""

    def __init__(self, store: Store, every: float = CHECKPOINT_EVERY) -> None:
        self.every = every
        self.folder = store.path.resolve().parent / "checkpoints"  # workers may be at home elsewhere
        for key in {leftover.name.strip(".").partition(".")[0] for leftover in self.folder.glob("*.pt*")}:
            if store.find(key):  # a coordinator was killed before it had cleared up
                self.drop(key)

    def of(self, key: str) -> Checkpoint:
        """The checkpoint of a run."""
        return Checkpoint(self.folder / f"{key}.pt", self.every)

    def reached(self, key: str) -> int | None:
        """How far a run has come, as a number that changes with each checkpoint; None where there is none."""
        with contextlib.suppress(OSError):
            return self.of(key).path.stat().st_mtime_ns
        return None

    def drop(self, key: str) -> None:
        """Delete what a run has left."""
        for leftover in self.folder.glob(f"*{key}*"):  # of a worker that was killed as it wrote, too
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder, unless something is in it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def work_off(
    queue: deque[T],
    plan: Callable[[T], tuple[Run, str]],
    submit: Callable[[Run, Checkpoint], Future[Outcome]],
    store: Store,
    record: Callable[[T, Run, str, Outcome, bool], None],
    on_tick: Callable[[], None],
    checkpoints: Checkpoints,
    *,
    max_pending: int,
) -> None:
    """Run all that a queue holds and that the records do not; what has run once is never run again.

    When a pool breaks, any of the runs in hand may have killed its worker: each of them runs again, alone. A run that
    kills its worker `DEATHS` times without progress is recorded as failed. So is a run that the executor itself
    reports several times as one that it could not run; such a run need not be alone.

    Args:
        queue: what to do; `record` may add to it.
        plan: the run that an item asks for, and its key.
        submit: hands a run, and where it keeps its checkpoint, to a worker.
        store: the records.
        record: called with what came of an item, and whether the records knew it.
        on_tick: called after each run at least.
        checkpoints: the checkpoints of the runs.
        max_pending: runs to hand out at a time.

    Raises:
        RaceError: run after run dies with its worker, or a worker raised it.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    pending: dict[Future[Outcome], tuple[T, Run, str]] = {}
    suspects: deque[tuple[T, Run, str]] = deque()
    alone = False
    """Whether the run in hand is a suspect, which runs alone."""

    deaths: Counter[str] = Counter()
    last_reached: dict[str, int | None] = {}
    given_up = 0

    def finish(item: T, run: Run, key: str, outcome: Outcome) -> None:
        outcome = store.add(key, run, outcome)
        checkpoints.drop(key)
        record(item, run, key, outcome, False)

    def collect(futures: set[Future[Outcome]]) -> None:
        nonlocal given_up
        for future in futures:
            work = pending.pop(future)
            key = work[2]
            error = CancelledError("lost") if future.cancelled() else future.exception()
            if error is None:
                finish(*work, future.result())
                given_up = 0
                continue
            if isinstance(error, RaceError):
                raise error
            blamed = not isinstance(error, BrokenExecutor | CancelledError)
            if alone or blamed:
                reached = checkpoints.reached(key)
                deaths[key] = 1 if reached != last_reached.get(key) else deaths[key] + 1
                last_reached[key] = reached
            if deaths[key] < DEATHS:
                if blamed:
                    queue.append(work[0])
                else:
                    suspects.append(work)
                continue
            given_up += 1
            cause = str(error) or type(error).__name__
            if given_up == DEATHS:
                raise RaceError(
                    "worker processes die one after another, perhaps for want of memory. What had finished is kept; "
                    f"the same command goes on from there, with --jobs 1 if need be ({cause})"
                ) from error
            why = "no worker could run it" if blamed else f"its worker process died {DEATHS} times"
            finish(*work, Outcome("failed", steps=0, reason=f"{why}: {cause}"))

    def hand_out(item: T, run: Run, key: str) -> None:
        pending[submit(run, checkpoints.of(key))] = item, run, key

    def fill() -> None:
        while queue and len(pending) < max_pending:
            item = queue.popleft()
            run, key = plan(item)
            if known := store.find(key, run):
                record(item, run, key, known, True)
            elif any(key == other for _, _, other in pending.values()):
                queue.append(item)  # one run in two places; soon it will be known
                return
            else:
                hand_out(item, run, key)

    try:
        while queue or pending or suspects:
            if not pending:
                alone = bool(suspects)
                if alone:
                    hand_out(*suspects.popleft())
            if not suspects and not alone:
                fill()
            on_tick()
            if pending:
                collect(wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).done)
    finally:
        for future, work in pending.items():
            if future.done() and not future.cancelled() and not future.exception():
                finish(*work, future.result())
    on_tick()
    checkpoints.close()


def line_up(design: Design) -> tuple[RaceProgress, Entrants]:
    """Line everyone up, after one rehearsed step of each optimizer: what cannot run says so before the race."""
    progress = RaceProgress(design, {name: get_task(name).describe() for name in design.tasks})
    entrants: Entrants = {}
    for where, name in itertools.product(design.tasks, design.optimizers):
        task = get_task(where)
        contender = entered(name, task, design.spaces)
        seed_torch(0, "rehearsal")
        if excuse := contender.excuse(task.model()):
            progress.left_out.setdefault(where, {})[name] = excuse
            continue
        about = {**contender.describe(), "extended": {}, "excuse": ""}
        results = {track: ContenderResult(name, about, track, seeds_wanted=design.seeds) for track in design.tracks}
        shipped = dict(contender.variant)
        first = shipped
        if "tuned" in results:
            results["tuned"].search = Search.drawn(
                contender.space,
                design.trials,
                derive(design.seed, "search", name),
                shared={**contender.variant, **contender.fixed},
                top=design.finalists,
                repeats=design.reruns_each,
            )
            first = results["tuned"].search.plan[0]
        try:
            entrants[where, name] = Entrant(contender, rehearse(task, contender, first))
        except Exception as error:
            raise RaceError(f"{name} cannot run on {where}: {type(error).__name__}: {error}") from error
        if len(results) > 1:
            try:
                rehearse(task, contender, shipped)
            except Exception as error:
                about["excuse"] = f"{contender.label} has no settings of its own to run with ({error})"
                del results["defaults"]
        for track, result in results.items():
            progress.results.setdefault((where, track), {})[name] = result
    for where in design.tasks:
        if not any(task == where for task, _ in entrants):
            raise RaceError(f"no optimizer can race on {where}: " + "; ".join(progress.left_out[where].values()))
    seeds = [run_seed(design, stage, n) for stage in STAGES[1:] for n in range(max(design.looks))]
    assert len(set(seeds)) == len(seeds)  # two runs of one seed would count twice
    return progress, entrants


def rehearse(task: Task, contender: Contender, settings: dict[str, Setting]) -> str:
    """Take one step, and return the fingerprint of what took part."""
    seed_torch(0, "rehearsal")
    model = task.model()
    optimizer = contender.make(model.parameters(), settings, task.horizon)
    Gradients(task, model, optimizer).step(next(task.batches(generator(0, "rehearsal"))))
    return fingerprint(task, optimizer, contender.make, rundown(contender))


def rundown(contender: Contender) -> tuple[Any, ...]:
    """The parts of a contender that make its schedule; a contender is not hashed as a whole."""
    return contender.schedule, contender.drops, contender.rates


_codes: dict[tuple[Task, str], str] = {}


def code_behind(run: Run) -> str:
    """The fingerprint of a run here and now; worked out once, unless its task's file changes."""
    task = get_task(run.task)
    if (task, run.optimizer) not in _codes:
        contender = get_contender(run.optimizer).on(task)
        optimizer = contender.make(task.model().parameters(), run.settings, task.horizon)
        _codes[task, run.optimizer] = fingerprint(task, optimizer, contender.make, rundown(contender))
    return _codes[task, run.optimizer]


def write_down(design: Design, store: Store, progress: RaceProgress, entrants: Entrants, about: dict[str, Any]) -> Race:
    """Enter the race in the records."""
    asked = dataclasses.asdict(design)
    codes = {" ".join(place): entrant.code for place, entrant in entrants.items()}
    described = {" ".join(place): entrant.contender.describe() for place, entrant in entrants.items()}
    setting = {
        **about,
        "left_out": progress.left_out,
        "tasks": progress.tasks,
        "contenders": {
            where: {name: results[0].about for task, name, results in progress.contenders() if task == where}
            for where in design.tasks
        },
    }
    written = Race(race_id(asked, codes, described), asked, setting, now())
    store.open_race(written)
    return written


def plan_run(design: Design, place: Place, entrant: Entrant, result: ContenderResult) -> Run:
    """The run of a place. Its seed does not depend on the optimizer: that makes pairs."""
    seed = run_seed(design, place.stage, place.repeat if place.stage == SELECTION else place.number)
    settings: dict[str, Setting] | None = dict(entrant.contender.variant)
    if place.stage != DEFAULTS:
        settings = result.search.chosen if place.stage == CONFIRMATION else result.search.plan[place.number]
    assert settings is not None  # seeds are queued only once settings are chosen
    test = place.stage in CONFIRMING
    return Run(place.task, place.optimizer, settings, seed, test=test, device=design.device)


def attempt(run: Run, code: str, checkpoint: Checkpoint | None = None) -> Outcome:
    """Train, on a worker; whatever an optimizer may raise is its result, and the race goes on.

    Raises:
        RaceError: this worker has not the code and the data of which the coordinator made the run's key. Files may have
            been edited since, and another machine may lack them.
    """
    where = f"a worker on {platform.node() or 'some machine'}"
    try:
        checksum(get_task(run.task))
        get_contender(run.optimizer)
        module, colon, name = run.optimizer.partition(":")
        if colon:
            getattr(importlib.import_module(module), name.partition("@")[0].partition("#")[0])
    except Exception as error:
        raise RaceError(f"{where} cannot run {run.optimizer} on {run.task}: {error}") from error
    try:
        if code_behind(run) != code:
            raise RaceError(
                f"{where} has other code or data for {run.optimizer} on {run.task} than this race began with. What had "
                "finished is kept; the same command begins anew what has changed"
            )
        outcome = train(run, checkpoint)
    except RaceError:
        raise
    except (Exception, SystemExit) as error:
        return Outcome("failed", steps=0, reason=f"{type(error).__name__}: {error}")
    if checkpoint:
        discard(checkpoint)  # the coordinator may not see this machine's disk
    return outcome
