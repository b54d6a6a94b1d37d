"""Differences from an earlier race: for a report against another database."""

from dataclasses import dataclass
from typing import Any

from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.design import Design, title
from fallline.bench.protocol.stats import Interval, stratified_interval
from fallline.bench.protocol.verdict import Pairs, Verdict, judge


@dataclass(frozen=True)
class Change:
    """What became of one optimizer since an earlier race, in one comparison."""

    name: str
    label: str
    old: ContenderResult | None
    new: ContenderResult | None
    """None where it did not take part."""

    paired: bool
    """Whether seeds of the same number began alike in both races."""

    verdict: Verdict | None
    """The verdict on now against then, where seeds are paired."""

    difference: Interval | None
    """The loss now minus the loss then, with its interval."""

    same: bool
    """Whether every seed ended at the very same loss."""

    @property
    def settings(self) -> list[tuple[str, Any, Any]]:
        """(setting, then, now) of chosen settings that differ; None where it was not set."""
        if self.old is None or self.new is None:
            return []
        then, now = self.old.chosen or {}, self.new.chosen or {}
        return [(name, then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)]


@dataclass(frozen=True)
class ComparisonChange:
    """One comparison beside the same one of an earlier race."""

    title: str
    then: Comparison | None
    now: Comparison | None
    entries: list[Change]


@dataclass(frozen=True)
class Changes:
    """A race beside an earlier one."""

    before: Results
    parts: list[ComparisonChange]
    design: list[tuple[str, Any, Any]]
    """(field, then, now) of what was asked for otherwise."""

    environment: list[tuple[str, str, str]]
    """(name, then, now) of what the machine has otherwise."""


def changes(results: Results, before: Results) -> Changes:
    """Set a race beside an earlier one."""
    then = {(part.task, part.track): part for part in before.parts}
    now = {(part.task, part.track): part for part in results.parts}
    tracks = {*results.design.tracks, *before.design.tracks}
    parts = []
    for place in {**now, **then}:
        mine, theirs = now.get(place), then.get(place)
        paired = results.design.seed == before.design.seed
        entries = changed(mine, theirs, paired) if mine and theirs else []
        parts.append(ComparisonChange(title(*place, tracks), theirs, mine, entries))
    asked = [(name.replace("_", " "), old, new) for name, old, new in _differing(before.design, results.design)]
    environments = [race.setting.get("environment", {}) for race in (before.race, results.race)]
    names = dict.fromkeys(name for one in environments for name in one)
    seen = [(name, *(str(one.get(name, "–")) for one in environments)) for name in names]
    return Changes(before, parts, asked, [row for row in seen if row[1] != row[2]])


def _differing(then: Design, now: Design) -> list[tuple[str, Any, Any]]:
    fields = ("tasks", "optimizers", "tracks", "trials", "finalists", "reruns", "seeds", "seed", "baseline", "device")

    def plain(value: Any) -> Any:
        return ", ".join(value) if isinstance(value, tuple) else "–" if value is None else value

    return [
        (name, plain(getattr(then, name)), plain(getattr(now, name)))
        for name in (*fields, "until_decided", "extend", "spaces")
        if getattr(then, name) != getattr(now, name)
    ]


def changed(now: Comparison, then: Comparison, paired: bool) -> list[Change]:
    """Everyone now beside themselves then: seed by seed where the seeds are the same, else mean against mean.

    Args:
        now: the later race's comparison.
        then: the earlier one's, of the same task and track.
        paired: whether seeds of the same number stand for the same weights and batches.
    """
    mine, theirs = ({entry.name: entry for entry in part.entries} for part in (now, then))
    both = [name for name in mine if name in theirs and mine[name].seeds and theirs[name].seeds]
    pairs = {
        name: Pairs(mine[name].losses, theirs[name].losses)
        for name in both
        if paired and mine[name].seeds.keys() == theirs[name].seeds.keys()
    }
    judged = judge(pairs, now.margin)
    found = []
    for name in {**mine, **theirs}:
        new, old = mine.get(name), theirs.get(name)
        entry = new or old
        assert entry is not None  # one of the two has it
        verdict = judged.get(name)
        gap = verdict.difference if verdict else unpaired(new, old) if name in both else None
        same = verdict is not None and pairs[name].mine == pairs[name].theirs
        found.append(Change(name, entry.label, old, new, name in pairs, verdict, gap, same))
    return found


def unpaired(new: ContenderResult | None, old: ContenderResult | None) -> Interval | None:
    """The difference of the mean losses of two sets of seeds, each resampled by itself."""
    samples = [[o.result["loss"] for o in entry.finished.values()] for entry in (new, old) if entry]
    if len(samples) < 2 or not all(samples):
        return None
    return stratified_interval(samples, lambda both: both[0].mean(-1) - both[1].mean(-1))
