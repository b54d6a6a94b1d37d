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
from fallline.bench.common.spaces import Range, Setting, as_plain, extended, trials
from fallline.bench.contenders.contender import Contender, entered, get_contender
from fallline.bench.protocol import design as decide
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.verdict import SETTLED, judge
from fallline.bench.race.store import Entry, Race, Store, now
from fallline.bench.runs.checkpoint import Checkpoint, discard
from fallline.bench.runs.identity import checksum, fingerprint, race_id, run_key
from fallline.bench.runs.loop import Gradients, Outcome, Run, train
from fallline.bench.tasks import Task, get_task

T = TypeVar("T")

DEATHS = 3
"""How often a run may take its worker along without having come any further, before it is given up as failed."""

CHECKPOINT_EVERY = 30.0
"""Seconds of a run between two checkpoints; most runs are over before."""


class RaceError(Exception):
    """Something keeps the race from going on, in words for its user."""


@dataclasses.dataclass
class Lane:
    """How far one optimizer has come on one task."""

    task: Task
    contender: Contender
    plan: list[dict[str, Setting]]
    """The settings of its trials."""

    code: str
    """The fingerprint of the code and the data behind its runs."""

    design: Design
    seeds_wanted: int = 0
    trials: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    reruns: dict[int, dict[int, Outcome]] = dataclasses.field(default_factory=dict)
    """Of each finalist, by their numbers."""

    seeds: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    defaults: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    extensions: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Ranges, as plain values, that were opened beyond an edge."""

    excuse: str = ""
    """Why it has no track of shipped settings, if so."""

    @property
    def finalists(self) -> list[int]:
        """The trials to rerun, best first; known when all trials are."""
        return decide.finalists(self.trials, self.design.finalists)

    @property
    def chosen(self) -> int | None:
        """The trial whose settings go on, as far as is known by now."""
        reruns = {number: list(outcomes.values()) for number, outcomes in self.reruns.items()}
        return decide.chosen(self.trials, reruns, self.design.finalists)

    @property
    def choice(self) -> list[Outcome]:
        """The outcomes by which its settings were chosen."""
        if self.chosen is None:
            return []
        return list(self.reruns.get(self.chosen, {}).values()) or [self.trials[self.chosen]]

    @property
    def tuned(self) -> bool:
        """Whether it has all trials."""
        return len(self.trials) == len(self.plan)

    @property
    def rerun(self) -> bool:
        """Whether the finalists have all reruns."""
        wanted = len(self.finalists) * self.design.reruns_each
        return self.tuned and sum(map(len, self.reruns.values())) == wanted

    @property
    def wanted(self) -> int:
        """Runs in all, as far as can be known."""
        total = self.design.seeds if self.has_defaults else 0
        if self.plan:
            lost = sum(outcome.lost for outcome in self.trials.values())
            total += self.design.runs_wanted(len(self.trials), lost, self.seeds_wanted)
        return total

    @property
    def has_defaults(self) -> bool:
        """Whether it runs with its shipped settings too."""
        return "defaults" in self.design.tracks and not self.excuse

    @property
    def runs(self) -> int:
        """Runs whose outcome is known."""
        return len(self.outcomes)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all runs so far."""
        reruns = [outcome for some in self.reruns.values() for outcome in some.values()]
        return [*self.trials.values(), *reruns, *self.seeds.values(), *self.defaults.values()]

    def settings(self, entry: Entry) -> dict[str, Setting]:
        """Of an entry's run."""
        if entry.stage == "default":
            return dict(self.contender.variant)
        number = self.chosen if entry.stage == "seed" else entry.number
        assert number is not None  # seeds are queued only once settings are chosen
        return self.plan[number]

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Take in what came of a run."""
        if entry.stage == "choice":
            self.reruns.setdefault(entry.number, {})[entry.repeat] = outcome
        else:
            {"trial": self.trials, "seed": self.seeds, "default": self.defaults}[entry.stage][entry.number] = outcome

    def extend(self) -> None:
        """Turn the trials kept back to what lies beyond the edges, where the best of the others lies at one."""
        best = next(iter(decide.finalists(self.trials, 1)), None)
        if best is None:
            return
        space = dict(self.contender.space)
        for name, there in self.contender.space.items():
            side = decide.edge_of_search(name, there, self.plan[best][name])
            if not isinstance(there, Range) or side is None or (wider := extended(there, side)) is None:
                continue
            low_side = wider.low != there.low
            low, high = (wider.low, there.low) if low_side else (there.high, wider.high)
            space[name] = Range(low, high, there.scale)
            self.extensions[name] = as_plain(wider)
        if self.extensions:
            first = self.design.first_trials
            search = derive(self.design.seed, "extension", self.contender.name)
            beyond = trials(space, len(self.plan) - first, search)
            self.plan[first:] = [{**self.contender.variant, **self.contender.fixed, **point} for point in beyond]


@dataclasses.dataclass
class Progress:
    """The state of the race, for whoever watches."""

    design: Design
    lanes: dict[tuple[str, str], Lane]
    """By task and optimizer."""

    left_out: dict[str, dict[str, str]]
    """By task: who does not take part, and why."""

    reused: int = 0
    """Runs that were in the records already."""

    ran: int = 0

    @property
    def total(self) -> int:
        """Runs in the race, as far as can be known."""
        return sum(lane.wanted for lane in self.lanes.values())

    @property
    def done(self) -> int:
        """Runs whose outcome is known."""
        return self.reused + self.ran


Watch = Callable[[Progress], None]
Heard = Callable[[Race, Entry, Run, Outcome], None]


def race(
    design: Design,
    store: Store,
    executor: Executor,
    *,
    ahead: int,
    about: dict[str, Any],
    watch: Watch,
    heard: Heard = lambda *_: None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Race:
    """Run what the records do not hold, and return the race as written down.

    Args:
        design: what is asked for.
        store: the records.
        executor: where the runs run.
        ahead: runs to hand to the executor at a time; more than it has workers, so that none waits.
        about: what to remember with the race, for its report: command, machine.
        watch: called with the progress, after each run at least.
        heard: told of each run that was run, and not of those found in the records.
        checkpoint_every: seconds of a run between two checkpoints.

    Raises:
        RaceError: an optimizer cannot run on a task at all, or workers die whatever they run.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    progress = line_up(design)
    written = write_down(design, store, progress, about)
    folder = store.path.resolve().parent / "checkpoints"  # workers may be at home elsewhere
    shipped = [place for place, lane in progress.lanes.items() if lane.has_defaults]
    tuned = [place for place, lane in progress.lanes.items() if lane.plan]
    queue = deque(Entry(*place, "default", number) for number in range(design.seeds) for place in shipped)
    queue.extend(Entry(*place, "trial", number) for number in range(design.first_trials) for place in tuned)

    def plan(entry: Entry) -> tuple[Run, str]:
        lane = progress.lanes[entry.task, entry.optimizer]
        run = plan_run(design, entry, lane)
        return run, run_key(run, lane.code)

    def settle(entry: Entry, run: Run, key: str, outcome: Outcome, known: bool) -> None:
        progress.reused += known
        progress.ran += not known
        lane = progress.lanes[entry.task, entry.optimizer]
        store.enter(written.id, entry, key)
        lane.settle(entry, outcome)
        if not known:
            heard(written, entry, run, outcome)
        if following := follow(lane, entry):
            withdraw(store, written.id, lane, following[0])
            queue.extend(following)
        if lane.extensions and entry.stage == "trial":
            write_down(design, store, progress, about)  # so that its report knows of them
        if entry.stage == "seed" and design.until_decided:
            queue.extend(undecided(progress, entry.task))

    def submit(run: Run, key: str) -> Future[Outcome]:
        lane = progress.lanes[run.task, run.optimizer]
        return executor.submit(attempt, run, lane.code, Checkpoint(folder / f"{key}.pt", checkpoint_every))

    def stored(key: str) -> None:
        for leftover in folder.glob(f"{key}*"):
            leftover.unlink(missing_ok=True)

    def reached(key: str) -> int | None:
        with contextlib.suppress(OSError):
            return (folder / f"{key}.pt").stat().st_mtime_ns
        return None

    for key in {leftover.name.partition(".")[0] for leftover in folder.glob("*.pt*")}:
        if store.find(key):  # a coordinator was killed before it had cleared up
            stored(key)
    work_off(queue, plan, submit, store, settle, lambda: watch(progress), ahead=ahead, stored=stored, reached=reached)
    with contextlib.suppress(OSError):
        folder.rmdir()  # unless something is in it
    return written


def withdraw(store: Store, race_id: str, lane: Lane, first: Entry) -> None:
    """Take back entries of a stage, about to begin, that stem from a choice which this race no longer makes.

    A run that failed is tried again when the race goes on; if it does well then, other settings may be chosen.
    """
    for entry, key in store.entered(race_id, first.task, first.optimizer, first.stage):
        stale = entry.stage == "choice" and entry.number not in lane.finalists
        if stale or run_key(plan_run(lane.design, entry, lane), lane.code) != key:
            store.withdraw(race_id, entry)


def follow(lane: Lane, entry: Entry) -> list[Entry]:
    """What a lane runs next, once a run of it has come in."""
    design, task, name = lane.design, entry.task, entry.optimizer
    if entry.stage == "trial" and not lane.tuned and len(lane.trials) == design.first_trials:
        lane.extend()
        return [Entry(task, name, "trial", number) for number in range(design.first_trials, design.trials)]
    if entry.stage == "trial" and lane.tuned and design.reruns_each:
        numbers = itertools.product(lane.finalists, range(design.reruns_each))
        return [Entry(task, name, "choice", number, repeat) for number, repeat in numbers]
    if entry.stage in ("trial", "choice") and lane.rerun and lane.chosen is not None:
        return [Entry(task, name, "seed", number) for number in range(lane.seeds_wanted)]
    return []


def undecided(progress: Progress, task: str) -> list[Entry]:
    """More seeds for those whom a task's seeds have not told from the baseline, and for the baseline."""
    design = progress.design
    lanes = {name: lane for (where, name), lane in progress.lanes.items() if where == task and lane.chosen is not None}
    if any(not lane.rerun or len(lane.seeds) < lane.seeds_wanted for lane in lanes.values()):
        return []
    candidates = [(name, lane.contender.ours, lane.choice) for name, lane in lanes.items()]
    against = decide.baseline(design.baseline, candidates)
    at = max((lane.seeds_wanted for lane in lanes.values()), default=0)
    further = next((look for look in design.looks if look > at), None)
    if against is None or further is None:
        return []
    losses = {
        name: {number: outcome.result.get("loss") for number, outcome in lane.seeds.items()}
        for name, lane in lanes.items()
    }
    confirmed = [list(lane.seeds.values()) for lane in lanes.values()]
    on = lanes[against].task
    initial = decide.initial_loss(itertools.chain(*confirmed), on.held_out)
    band = decide.equivalence(on.equivalence, initial, decide.best_loss(confirmed))
    verdicts = judge(decide.pairs(losses, against), band, looks=len(design.looks))
    open_ones = [
        name for name, verdict in verdicts.items() if verdict.word not in SETTLED and lanes[name].seeds_wanted == at
    ]
    more = []
    for name in [against, *open_ones] if open_ones else []:
        more += [Entry(task, name, "seed", number) for number in range(lanes[name].seeds_wanted, further)]
        lanes[name].seeds_wanted = further
    return more


def work_off(
    queue: deque[T],
    plan: Callable[[T], tuple[Run, str]],
    submit: Callable[[Run, str], Future[Outcome]],
    store: Store,
    settle: Callable[[T, Run, str, Outcome, bool], None],
    tick: Callable[[], None],
    *,
    ahead: int,
    stored: Callable[[str], None] = lambda key: None,
    reached: Callable[[str], Any] = lambda key: None,
) -> None:
    """Run all that a queue holds and that the records do not; what has run once is never run again.

    When a pool breaks, nobody knows which of the runs in hand killed its worker: each of them runs again, alone. One
    that dies alone several times and comes no further is given up, as failed. So is one of which the executor itself
    says several times that it could not be run; such a one needs not be alone.

    Args:
        queue: what to do; `settle` may add to it.
        plan: the run that an item asks for, and its key.
        submit: hands a run, and its key, to a worker.
        store: the records.
        settle: is told what came of an item, and whether the records knew it.
        tick: called after each run at least.
        ahead: runs to hand out at a time.
        stored: told the key of a run that is written down.
        reached: how far the run of a key has come, if that can be told.

    Raises:
        RaceError: run after run dies with its worker, or a worker raised it.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    pending: dict[Future[Outcome], tuple[T, Run, str]] = {}
    suspects: deque[tuple[T, Run, str]] = deque()
    alone = False
    """Whether what is in hand is a suspect."""

    deaths: Counter[str] = Counter()
    last_seen: dict[str, Any] = {}
    given_up = 0

    def finish(item: T, run: Run, key: str, outcome: Outcome) -> None:
        outcome = store.add(key, run, outcome)
        stored(key)
        settle(item, run, key, outcome, False)

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
                further = reached(key) != last_seen.get(key)
                deaths[key], last_seen[key] = 1 if further else deaths[key] + 1, reached(key)
            if deaths[key] < DEATHS:
                if blamed:
                    queue.append(work[0])
                else:
                    suspects.append(work)
                continue
            given_up += 1
            told = str(error) or type(error).__name__
            if given_up == DEATHS:
                raise RaceError(
                    "worker processes die one after another, perhaps for want of memory. What had finished is kept; "
                    f"the same command goes on from there, with --jobs 1 if need be ({told})"
                ) from error
            why = "no worker could run it" if blamed else f"its worker process died {DEATHS} times"
            finish(*work, Outcome("failed", steps=0, reason=f"{why}: {told}"))

    def hand_out(item: T, run: Run, key: str) -> None:
        pending[submit(run, key)] = item, run, key

    def fill() -> None:
        while queue and len(pending) < ahead:
            item = queue.popleft()
            run, key = plan(item)
            if known := store.find(key, run):
                settle(item, run, key, known, True)
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
            tick()
            if pending:
                collect(wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).done)
    finally:
        for future, work in pending.items():
            if future.done() and not future.cancelled() and not future.exception():
                finish(*work, future.result())
    tick()


def line_up(design: Design) -> Progress:
    """Make the lanes, after one rehearsed step of each optimizer: what cannot run says so before the race."""
    progress = Progress(design, {}, {})
    for where, name in itertools.product(design.tasks, design.optimizers):
        task = get_task(where)
        contender = entered(name, task, design.spaces)
        seed_torch(0, "rehearsal")
        if excuse := contender.excuse(task.model()):
            progress.left_out.setdefault(where, {})[name] = excuse
            continue
        points = trials(contender.space, design.trials, derive(design.seed, "search", name))
        known = {**contender.variant, **contender.fixed}
        plan = [{**known, **point} for point in points] if "tuned" in design.tracks else []
        lane = Lane(task, contender, plan, "", design, seeds_wanted=design.seeds if plan else 0)
        try:
            lane.code = rehearse(task, contender, plan[0] if plan else dict(contender.variant))
        except Exception as error:
            raise RaceError(f"{name} cannot run on {where}: {type(error).__name__}: {error}") from error
        if "defaults" in design.tracks and plan:
            try:
                rehearse(task, contender, dict(contender.variant))
            except Exception as error:
                lane.excuse = f"{contender.label} has no settings of its own to run with ({error})"
        progress.lanes[where, name] = lane
    for where in design.tasks:
        if not any(task == where for task, _ in progress.lanes):
            raise RaceError(f"nobody is left to race on {where}: " + "; ".join(progress.left_out[where].values()))
    seeds = [decide.run_seed(design, stage, n) for stage in decide.STAGES[1:] for n in range(max(design.looks))]
    assert len(set(seeds)) == len(seeds)  # two runs of one seed would count twice
    return progress


def rehearse(task: Task, contender: Contender, settings: dict[str, Setting]) -> str:
    """Take one step, and return the fingerprint of what took part."""
    seed_torch(0, "rehearsal")
    model = task.model()
    optimizer = contender.make(model.parameters(), settings, task.horizon)
    Gradients(task, model, optimizer).step(next(task.batches(generator(0, "rehearsal"))))
    return fingerprint(task, optimizer, contender.make, rundown(contender))


def rundown(contender: Contender) -> tuple[Any, ...]:
    """What makes its schedule, of an entry that is not hashed as a whole."""
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


def write_down(design: Design, store: Store, progress: Progress, about: dict[str, Any]) -> Race:
    """Enter the race in the records."""
    asked = dataclasses.asdict(design)
    codes = {" ".join(place): lane.code for place, lane in progress.lanes.items()}
    entered = {" ".join(place): lane.contender.describe() for place, lane in progress.lanes.items()}
    setting = {
        **about,
        "left_out": progress.left_out,
        "tasks": {name: get_task(name).describe() for name in design.tasks},
        "contenders": {
            where: {
                name: {**lane.contender.describe(), "extended": lane.extensions, "excuse": lane.excuse}
                for (task, name), lane in progress.lanes.items()
                if task == where
            }
            for where in design.tasks
        },
    }
    written = Race(race_id(asked, codes, entered), asked, setting, now())
    store.open_race(written)
    return written


def plan_run(design: Design, entry: Entry, lane: Lane) -> Run:
    """The run of an entry. Its seed does not depend on the optimizer: that makes pairs."""
    seed = decide.run_seed(design, entry.stage, entry.repeat if entry.stage == "choice" else entry.number)
    test = entry.stage in decide.CONFIRMING
    return Run(entry.task, entry.optimizer, lane.settings(entry), seed, test=test, device=design.device)


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
