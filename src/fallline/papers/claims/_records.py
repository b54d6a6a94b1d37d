"""Claims about training that takes hours are read from records of `fallline repro`, where there are any."""

from collections.abc import Mapping, Sequence
from typing import Any

from fallline.bench.common.plain import read
from fallline.papers.claims._claim import Effort, Measured, mean_of
from fallline.papers.records import Record, how, stem_of


def record_of(effort: Effort, experiment: str) -> Record | None:
    """The record at the published size, else the small one; None without either."""
    for scale in ("full", "cpu"):
        path = effort.records / f"{stem_of(experiment, scale)}.json" if effort.records else None
        if path and path.is_file():
            record: Record = read(path, dict[str, Any])
            return record
    return None


def missing(experiment: str) -> Measured:
    """Nothing to read, and what would make it."""
    return Measured(undecided=f"there is no record: `fallline repro {experiment}` makes it, `--records DIR` finds it")


def differences(effort: Effort, experiment: str, ours: str, others: Sequence[str], *, only_whole: str = "") -> Measured:
    """Of each case, our values less theirs with the same seeds, with Student's interval.

    Args:
        effort: has the folder.
        experiment: a preset of `fallline repro`.
        ours: a label.
        others: labels, each compared with.
        only_whole: why a record at CPU scale cannot decide, if it cannot.
    """
    record = record_of(effort, experiment)
    if record is None:
        return missing(experiment)
    readings, lost = [], []
    for case in record["results"]["cases"]:
        entries = {entry["label"]: entry for entry in case["entries"]}
        for other in others:
            pair = [entries.get(label) for label in (ours, other)]
            if any(entry is None or entry["lost seeds"] or len(entry["values"]) < 2 for entry in pair):
                lost.append(f"{other}, {case['name']}")
                continue
            mine, theirs = (entry["values"] for entry in pair if entry)
            change = [a - b for a, b in zip(mine, theirs, strict=True)]
            readings.append(mean_of(f"{ours} − {other}, {case['name']}", change))
    undecided = only_whole if how(record) != "full scale" else ""
    if lost and not undecided:
        undecided = f"seeds were lost, or are too few: {'; '.join(lost)}"
    return Measured(readings, provenance(record), undecided)


def by_seed(record: Record, measure: str) -> dict[str, dict[int, float]]:
    """A measure of the confirming runs that finished, by seed, and by label or, of an own problem, optimizer."""
    labels = {
        (entry["optimizer"], str(entry["chosen"])): entry["label"]
        for case in record["results"].get("cases", ())
        for entry in case["entries"]
    }
    found: dict[str, dict[int, float]] = {}
    for one in record["runs"]:
        run, outcome = one["run"], one["outcome"]
        if run["test"] and outcome["status"] == "finished":
            label = labels.get((run["optimizer"], str(run["settings"])), run["optimizer"])
            found.setdefault(label, {})[run["seed"]] = outcome[measure]
    return found


def paired(values: Mapping[str, Mapping[int, float]], ours: str, other: str) -> list[tuple[float, float]]:
    """The values of two optimizers with the same seeds, by seed."""
    mine, theirs = values.get(ours, {}), values.get(other, {})
    return [(mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]


def provenance(record: Record) -> dict[str, Any]:
    """Where the numbers are from."""
    return {"record": record["command"], "scale": how(record), "made": record["started_at"][:10]}
