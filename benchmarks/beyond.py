"""Ours against the baselines on six tasks of different kinds, by `fallline race` at size M: `make beyond`.

    python benchmarks/beyond.py --estimate                       # what it would take; nothing is raced
    python benchmarks/beyond.py [--minutes 90] [--only bowl,mnist-lstm] [--jobs 2] [--size m] [--seeds 10]

Each task is a race of its own, the one that the command in its record makes, in one database under runs/beyond:
`fallline report TASK --out runs/beyond` shows it. What has run is never run again: the same command goes on where it
was stopped, also by its own budget of minutes, which is that of one call and leaves no run half done. Tasks come one
after another, so that a stop leaves complete ones behind. Of each complete task a record is put under
benchmarks/records; docs/beyond.py makes its tables from these. `--minutes 0` trains nothing, and writes the records of
what is complete: after a change of the roles below, say.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from fallline.bench.cli.options import command_line, plain_spaces
from fallline.bench.cli.race import TRIALS, Size
from fallline.bench.cli.terminal import DATABASE
from fallline.bench.common.files import put, stem
from fallline.bench.common.numbers import duration
from fallline.bench.contenders import get_contender
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.design import TRACKS, Design
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.protocol.records import Race
from fallline.bench.protocol.stats import Interval
from fallline.bench.protocol.verdict import Pairs, Verdict, judge
from fallline.bench.race.coordinator import RaceError, race
from fallline.bench.race.plan import BUSY, Cost, Excused, busy, measure, wall_seconds
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.race.workers import available_cores, local_pool
from fallline.bench.report.display import Display
from fallline.bench.runs.environment import environment
from fallline.bench.tasks import get_task, make_sure


@dataclass(frozen=True)
class Entrant:
    """Who races, and as what."""

    name: str
    """As for `get_contender`."""

    role: Literal["ours", "baseline", "control"]
    """Ours are compared with the best baseline; a control tells what a part of ours does by itself."""


@dataclass(frozen=True)
class Parts:
    """One of ours beside its parts; each is an entrant's name."""

    both: str
    direction: str
    """The direction without the filter."""

    filter: str
    """The filter without the direction."""


TASKS = (
    "fmnist-softmax",
    "bowl",
    "mnist-autoencoder",
    "mnist-lstm",
    "cifar10-cnn-bn",
    "shakespeare-gpt-small",
)
"""As for `get_task`; in this order, so the cheapest should come first."""

ENTRANTS = (
    Entrant("koala-orthogonal", "ours"),
    Entrant("arturo-second-moment", "ours"),
    Entrant("sgd", "baseline"),
    Entrant("adamw", "baseline"),
    Entrant("muon", "baseline"),
    Entrant("schedulefree-adamw", "baseline"),
    Entrant("koala-orthogonal-unmeasured", "control"),
    Entrant("koala-gradient", "control"),
)

PARTS = (Parts("koala-orthogonal", direction="koala-orthogonal-unmeasured", filter="koala-gradient"),)

REFERENCE = "adamw"
"""Whose tuned loss the shipped settings of all are measured by."""

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
WORK = ROOT / "runs" / "beyond"

SPACES = Path(__file__).with_suffix(".toml")
"""What is fixed for some."""

console = Console(highlight=False)

Record = dict[str, Any]
"""What is kept of a race, ready for JSON: see `record_of`."""


# --- a race that stops when its time is over ---


class OutOfTime(Exception):
    """The budget is spent."""


class Until(Executor):
    """Hands runs on until a deadline; the next one then waits for those that run already, and raises `OutOfTime`.

    Whoever asked finds what has finished meanwhile in the futures that it holds, as the race does.

    Args:
        inner: runs them.
        deadline: of `time.monotonic`.
    """

    def __init__(self, inner: Executor, deadline: float) -> None:
        self.inner = inner
        self.deadline = deadline
        self.in_hand: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the executor inside does it."""
        if time.monotonic() > self.deadline:
            for future in self.in_hand:
                future.cancel()  # those that only queue
            wait(self.in_hand)
            raise OutOfTime
        future = self.inner.submit(fn, *args, **kwargs)
        self.in_hand = {one for one in self.in_hand if not one.done()} | {future}
        return future


class Watch:
    """Shows the race's progress and, once everyone has run, what a run of each has cost."""

    def __init__(self, show: Callable[[RaceProgress], None]) -> None:
        self.show = show
        self.last: RaceProgress | None = None
        self.told = False

    def __call__(self, progress: RaceProgress) -> None:
        """Look at the progress."""
        self.show(progress)
        self.last = progress
        firsts = {
            name: next((outcome for result in results for outcome in result.runs), None)
            for _, name, results in progress.contenders()
        }
        if not self.told and progress.ran and all(firsts.values()):
            self.told = True
            spent = {name: one.cpu_seconds for name, one in firsts.items() if one}
            told = ", ".join(f"{name} {seconds:.2g}" for name, seconds in spent.items())
            console.print(f"  seconds of training in a run: {told}", soft_wrap=True)


def design_of(task: str, trials: int, seeds: int) -> Design:
    """The race on a task."""
    who = tuple(entrant.name for entrant in ENTRANTS)
    spaces = {name: changes for name, changes in plain_spaces(SPACES).items() if name in who}
    return Design(tasks=(task,), optimizers=who, tracks=TRACKS, trials=trials, seeds=seeds, spaces=spaces)


def command_of(design: Design) -> str:
    """What makes the same race by hand."""
    return f"{command_line(design)} --out runs/beyond".replace("FILE.toml", "benchmarks/beyond.toml")


def record(design: Design, store: Store, pool: Executor, deadline: float, jobs: int) -> str | None:
    """Hold the race on a task, as far as its runs are not in the store, and keep its record; else why there is none.

    Args:
        design: of one task.
        store: where runs lie.
        pool: where they run.
        deadline: of `time.monotonic`; what has not begun then is left for another call.
        jobs: runs at a time.

    Raises:
        OutOfTime: it has come; says how far the race is.
    """
    about = {"command": command_of(design), "environment": environment(jobs)}
    try:
        make_sure(get_task(design.tasks[0]))
        with Display(console) as shown:
            watch = Watch(shown)
            until = Until(pool, deadline)
            try:
                written = race(design, store, until, max_pending=2 * jobs, about=about, on_progress=watch)
            except OutOfTime:
                far = f"{watch.last.done} of {watch.last.total} runs are done" if watch.last else "it has only begun"
                raise OutOfTime(f"no time was left: {far}") from None
        held = next(one for one in store.races() if one.id == written.id)  # which knows when it first began
        found = record_of(results(store, with_roles(held)))
    except (RaceError, ValueError) as error:
        return str(error)
    path = RECORDS / f"{name_of(design.tasks[0])}.json"
    if path.exists() and watch.last and not watch.last.ran:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["race"] == found["race"]:  # whose runs were made there, not here
            found["environment"] = before["environment"]
    put(path, json.dumps(found, allow_nan=False) + "\n")
    return None


def name_of(task: str) -> str:
    """What the record of a task is called."""
    return f"beyond-{stem((task,))}"


# --- what is kept ---


def with_roles(written: Race) -> Race:
    """The race with the roles of here: the baseline is then the best that is neither ours nor a control."""
    roles = {entrant.name: entrant.role for entrant in ENTRANTS}
    contenders = {
        task: {name: {**about, "ours": roles[name] != "baseline"} for name, about in there.items()}
        for task, there in written.setting["contenders"].items()
    }
    return replace(written, setting={**written.setting, "contenders": contenders})


def record_of(found: Results) -> Record:
    """All that the page needs of a finished race on one task, whose entries have the roles of here.

    Losses are by seed, None where it was lost, and the same seeds in both tracks. Intervals are `[mean, low, high]`.
    """
    assert not found.missing
    tuned, shipped = found.part(found.design.tasks[0]), found.part(found.design.tasks[0], "defaults")
    setting, design = found.race.setting, found.design
    return {
        "task": tuned.task,
        "summary": tuned.about["summary"],
        "loss": tuned.loss_name,
        "score": tuned.score_name,
        "race": found.race.id,
        "started": found.race.started_at,
        "command": setting["command"],
        "environment": setting["environment"],
        "design": {name: getattr(design, name) for name in ("trials", "finalists", "reruns", "seeds", "seed")},
        "runs": sum(len(entry.runs) for part in found.parts for entry in part.entries),
        "cpu seconds": round(sum(entry.cpu_seconds for part in found.parts for entry in part.entries)),
        "tasks": [*TASKS],
        "entrants": [{"name": one.name, "label": get_contender(one.name).label, "role": one.role} for one in ENTRANTS],
        "reference": REFERENCE,
        "tracks": {"tuned": part_of(tuned), "defaults": part_of(shipped)},
        "shipped": {entry.name: bounds(beside(entry, tuned)) for entry in shipped.entries},
        "parts": [parts_of(tuned, parts) for parts in PARTS if has(tuned, parts.both)],
    }


def part_of(part: Comparison) -> Record:
    """A track: everyone, best first."""
    return {
        "baseline": part.baseline.name if part.baseline else None,
        "band": rounded(part.margin),
        "initial": rounded(part.initial),
        "left out": part.left_out,
        "entries": [entry_of(part, entry) for entry in part.entries],
    }


def entry_of(part: Comparison, entry: ContenderResult) -> Record:
    """One of a track. `best of` is the expected score of the best of K = 1, 2, ... trials."""
    accuracy = entry.measure("accuracy")
    told: Record = {
        "name": entry.name,
        "loss": bounds(entry.measure("loss")),
        "losses": [rounded(entry.losses[number]) for number in sorted(entry.losses)],
        "accuracy": rounded(accuracy.mean) if accuracy else None,
        "verdict": verdict_of(entry.verdict),
        "state bytes": entry.state_bytes,
        "cpu by sgd": rounded(entry.relative_cpu, 3),
        "alarms": [alarm.text for alarm in entry.alarms],
    }
    if part.track == "tuned":
        told |= {
            "settings": entry.chosen,
            "scores": [rounded(entry.trials[number][1].score, 5) for number in sorted(entry.trials)],
            "lost trials": entry.failed_trials,
            "best of": [rounded(float(mean), 5) for mean in entry.best_of.mean] if entry.best_of else None,
        }
    return told


def verdict_of(verdict: Verdict | None) -> Record | None:
    """A verdict in the race's words; `p` is after Holm's adjustment."""
    if verdict is None:
        return None
    difference = bounds(verdict.difference)
    return {"word": verdict.word, "difference": difference, "p": rounded(verdict.adjusted, 3), "why": verdict.why}


def beside(entry: ContenderResult, tuned: Comparison) -> Interval | None:
    """By how many per cent of its loss an entry with shipped settings lies above the tuned reference, over seeds."""
    return entry.above(tuned.get(REFERENCE)) if has(tuned, REFERENCE) else None


def parts_of(part: Comparison, parts: Parts) -> Record:
    """The verdicts on the whole against each of its parts that took part, Holm over these."""
    alone = {kind: name for kind, name in (("direction", parts.direction), ("filter", parts.filter)) if has(part, name)}
    mine = part.get(parts.both).losses
    rivals = {kind: Pairs(mine, part.get(name).losses) for kind, name in alone.items()}
    verdicts = judge(rivals, part.margin)
    named = {"both": parts.both, "direction": parts.direction, "filter": parts.filter}
    return {**named, "against": {kind: verdict_of(verdict) for kind, verdict in verdicts.items()}}


def has(part: Comparison, name: str) -> bool:
    """Whether somebody took part and came to the confirming seeds."""
    return any(entry.name == name and entry.seeds for entry in part.entries)


def bounds(found: Interval | None) -> list[float | None] | None:
    """Mean and bounds."""
    return None if found is None else [rounded(one) for one in (found.mean, found.low, found.high)]


def rounded(value: float | None, digits: int = 6) -> float | None:
    """To so many digits; None too for what is not finite, which JSON cannot say."""
    return None if value is None or not abs(value) < float("inf") else float(f"{value:.{digits}g}")


# --- what it takes ---


def estimate(designs: Sequence[Design], pool: Executor, jobs: int) -> None:
    """Time a few steps of everyone on every task, and say how long the races take if nothing has run yet."""
    asked = {(d.tasks[0], name): pool.submit(measure, d.tasks[0], name, {}) for d in designs for name in d.optimizers}
    costs: dict[tuple[str, str], Cost] = {}
    for pair, future in asked.items():
        try:
            costs[pair] = future.result()
        except Excused:
            continue
        except ValueError as error:
            console.print(f"{pair[0]}: {error}", soft_wrap=True)
    runs = {pair: cost.run for pair, cost in costs.items()}
    whole = {design.tasks[0]: wall_seconds(design, runs, jobs) for design in designs}
    console.print(estimate_table(runs, whole))
    console.print(f"All: {duration(sum(whole.values()))}.")
    if (slower := busy(costs.values())) > BUSY:
        console.print(
            f"The machine is busy ({slower:.1f} s of wall time per CPU second); these estimates assume it is idle."
        )


def estimate_table(runs: Mapping[tuple[str, str], float], whole: Mapping[str, float]) -> Table:
    """Seconds of a run, one row an optimizer and one column a task; the last row is the whole race."""
    table = Table(title="Seconds of a run", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", *whole):
        table.add_column(heading, justify="right" if heading else "left")
    for name in dict.fromkeys(name for _, name in runs):
        table.add_row(name, *(f"{runs[task, name]:.2g}" if (task, name) in runs else "–" for task in whole))
    table.add_row("the race", *(duration(seconds) for seconds in whole.values()), style="bold")
    return table


def all_of(designs: Iterable[Design], store: Store, pool: Executor, deadline: float, jobs: int) -> dict[str, str]:
    """Race on one task after another until the deadline; return by task why it has no record."""
    missing: dict[str, str] = {}
    over = False
    for design in designs:
        (task,) = design.tasks
        if over:
            missing[task] = "its turn has not come"
            continue
        console.print(f"{task} ...", style="bold")
        start = time.monotonic()
        try:
            reason = record(design, store, pool, deadline, jobs)
        except OutOfTime as far:
            reason, over = str(far), True
        if reason:
            missing[task] = reason
        else:
            console.print(f"  recorded after {duration(time.monotonic() - start)}")
    return missing


def main() -> None:
    """Race and record, and say what was not recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90, help="what this call may take")
    parser.add_argument("--only", default=",".join(TASKS), metavar="TASK,...", help="these tasks alone")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="runs at a time")
    parser.add_argument("--size", type=str.lower, choices=["s", "m", "l"], default="m", help="20, 50 or 75 trials")
    parser.add_argument("--seeds", type=int, default=10, help="fresh seeds on which settings are confirmed")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, and leave")
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    tasks = re.split(r",(?!\w+=)", asked.only)  # a task's options have commas between them too
    designs = [design_of(task, TRIALS[Size(asked.size.upper())], asked.seeds) for task in tasks]
    try:
        with Store(WORK / DATABASE) as store, local_pool(asked.jobs) as pool:
            if asked.estimate:
                estimate(designs, pool, asked.jobs)
                return
            missing = all_of(designs, store, pool, deadline, asked.jobs)
    except KeyboardInterrupt:
        raise SystemExit("Stopped. What has finished is kept; the same command goes on from there.") from None
    for task, reason in missing.items():
        console.print(f"not recorded: {task}: {reason}", soft_wrap=True)


if __name__ == "__main__":
    main()
