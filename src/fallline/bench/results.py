"""A race's records as numbers: what the table at its end and the report print. Nothing here trains."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from fallline.bench.record import Race, Store
from fallline.bench.spaces import Setting
from fallline.bench.stats import Interval, interval
from fallline.bench.train import Outcome, best_trial


@dataclass
class Result:
    """What one optimizer did in a race."""

    name: str
    about: dict[str, Any]
    """`label`, `ours`, `space`, `fixed`, `schedule`, `source`: see `Contender.describe`."""

    trials: dict[int, tuple[dict[str, Setting], Outcome]] = field(default_factory=dict)
    seeds: dict[int, Outcome] = field(default_factory=dict)
    chosen: dict[str, Setting] | None = None
    against_baseline: Interval | None = None
    """Loss minus that of the best baseline, over the seeds which both finished."""

    relative_cpu: float | None = None
    """CPU time per step, as a multiple of SGD's."""

    @property
    def label(self) -> str:
        """The name to print."""
        return str(self.about["label"])

    @property
    def ours(self) -> bool:
        """Whether it is a method of this library."""
        return bool(self.about["ours"])

    @property
    def best_trial(self) -> int | None:
        """The trial whose settings were confirmed."""
        return best_trial({number: outcome for number, (_, outcome) in self.trials.items()})

    @property
    def lost_trials(self) -> int:
        """Trials that diverged or failed."""
        return sum(outcome.lost for _, outcome in self.trials.values())

    @property
    def lost_seeds(self) -> int:
        """Seeds that diverged or failed."""
        return sum(outcome.lost for outcome in self.seeds.values())

    @property
    def finished(self) -> dict[int, Outcome]:
        """The seeds that reached the end."""
        return {number: outcome for number, outcome in self.seeds.items() if not outcome.lost}

    def measure(self, name: str) -> Interval | None:
        """The interval of a final measure over the seeds that finished; None where there is nothing to measure."""
        return interval([outcome.result[name] for outcome in self.finished.values() if name in outcome.result])

    @property
    def step_seconds(self) -> float | None:
        """Median CPU seconds of a training step, forward and backward included."""
        return statistics.median(o.cpu_seconds / o.steps for o in self.finished.values()) if self.finished else None

    @property
    def state_bytes(self) -> int | None:
        """Bytes of optimizer state."""
        return next((outcome.state_bytes for outcome in self.finished.values()), None)


@dataclass
class Results:
    """A race and what came of it, best first; who lost seeds comes after who lost none."""

    race: Race
    entries: list[Result]
    baseline: Result | None
    """The best that is not ours."""

    @property
    def scale(self) -> float | None:
        """The size of the losses that differences are taken from: the best baseline's."""
        loss = self.baseline.measure("loss") if self.baseline else None
        return loss.mean if loss else None

    @property
    def missing(self) -> int:
        """Runs that the race still lacks."""
        design = self.race.design
        wanted: int = sum(
            design["trials"]
            + (0 if len(entry.trials) == design["trials"] and entry.chosen is None else design["seeds"])
            for entry in self.entries
        )
        return wanted - sum(len(entry.trials) + len(entry.seeds) for entry in self.entries)


def results(store: Store, race: Race) -> Results:
    """Read a race, finished or not."""
    entries = {name: Result(name, about) for name, about in race.setting["contenders"].items()}
    for place, run, outcome in store.runs(race.id):
        entry = entries[place.optimizer]
        if place.stage == "trial":
            entry.trials[place.number] = (run.settings, outcome)
        else:
            entry.seeds[place.number] = outcome
    for entry in entries.values():
        if entry.best_trial is not None:
            entry.chosen = entry.trials[entry.best_trial][0]
    ranked = sorted(entries.values(), key=_rank)
    baseline = next((entry for entry in ranked if not entry.ours and entry.finished), None)
    _compare(ranked, baseline)
    return Results(race, ranked, baseline)


def _rank(entry: Result) -> tuple[bool, int, float]:
    loss = entry.measure("loss")
    return loss is None, entry.lost_seeds, loss.mean if loss else 0.0


def _compare(entries: list[Result], baseline: Result | None) -> None:
    sgd = next((entry.step_seconds for entry in entries if entry.name == "sgd"), None)
    for entry in entries:
        if sgd and entry.step_seconds:
            entry.relative_cpu = entry.step_seconds / sgd
        if baseline and entry is not baseline:
            mine, theirs = entry.finished, baseline.finished
            pairs = sorted(mine.keys() & theirs.keys())
            entry.against_baseline = interval([mine[i].result["loss"] - theirs[i].result["loss"] for i in pairs])
