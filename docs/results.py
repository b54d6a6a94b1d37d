"""What results.md shows, from the records under benchmarks/records: `python docs/results.py`.

Nothing is run. `make records` makes the records; an experiment without one is listed as not run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fallline.bench.common.files import fill, markdown
from fallline.bench.protocol.stats import Interval
from fallline.papers.experiments import EXPERIMENTS, Experiment, get_experiment
from fallline.papers.experiments._case_page import figures
from fallline.papers.records import Record, how, measured, stem_of

HERE = Path(__file__).parent
RECORDS = HERE.parent / "benchmarks" / "records"
UNRUN = "no machine for it was at hand"


def kept(folder: Path = RECORDS) -> dict[str, dict[str, Record]]:
    """Records by experiment and by scale, `cpu` or `full`."""
    found: dict[str, dict[str, Record]] = {name: {} for name in EXPERIMENTS}
    for name in EXPERIMENTS:
        for scale in ("cpu", "full"):
            path = folder / f"{stem_of(name, scale)}.json"
            if path.exists():
                found[name][scale] = json.loads(path.read_text(encoding="utf-8"))
    return found


def overview(found: Mapping[str, Mapping[str, Record]]) -> str:
    """One row for each case of each preset that has a record: everybody's mean, the best first, ours in bold."""
    rows = []
    for name, records in found.items():
        for record in records.values():
            for case in record["results"].get("cases", []):
                done = [entry for entry in case["entries"] if entry["result"]]
                done.sort(key=lambda entry: entry["result"]["mean"], reverse=case["measure"] == "accuracy")
                lost = [entry["label"] for entry in case["entries"] if not entry["result"]]
                summary = [
                    f"{bold(entry)} {figures(Interval(**entry['result']), case['measure']).partition(' ')[0]}"
                    for entry in done
                ]
                summary += [f"{label} lost" for label in lost]
                unit = f", {case['unit']}" if case["unit"] else ""
                rows.append([name, case["name"], f"{case['measure']}{unit}", ", ".join(summary)])
    if not rows:
        return "There are no records yet."
    return markdown(["Experiment", "Case", "On the test set", "Best first"], rows)


def bold(entry: Mapping[str, Any]) -> str:
    """A label, in bold where it is one of ours."""
    return f"**{entry['label']}**" if entry["ours"] else str(entry["label"])


def results(found: Mapping[str, Mapping[str, Record]]) -> str:
    """A heading, a few sentences and the tables for every record."""
    return "\n\n".join(part(record) for records in found.values() for record in records.values())


def part(record: Record) -> str:
    """One record."""
    summary = f"`{record['command']}`: {how(record)}, {len(record['runs'])} runs, {measured(record)}."
    parts = [f"### {record['experiment']}, {how(record)}", *record["lead"], summary]
    for table in record["tables"]:
        if len(record["tables"]) > 1 or table["title"] != "Result":
            parts.append(f"**{table['title']}**")
        parts.append(markdown(table["head"], table["rows"]))
    deviations = record["results"].get("deviations")
    if deviations:
        parts.append("Differs from the paper:\n\n" + "\n".join(f"- {sentence}" for sentence in deviations))
    return "\n\n".join(parts)


def unrun(found: Mapping[str, Mapping[str, Record]]) -> str:
    """What has no record, with the reason and what it would take."""
    rows = []
    for name, records in found.items():
        experiment = get_experiment(name)
        if not experiment.scaled:
            if not records:
                rows.append([name, "", "not run", reason(experiment, "cpu"), ""])
            continue
        for scale, label in (("cpu", "CPU scale"), ("full", "full scale")):
            has_it = bool(experiment.full if scale == "full" else experiment.cpu)
            if scale in records or not has_it:
                continue
            cost = f"CPU: {experiment.cpu_time}; GPU: {experiment.gpu_time}" if scale == "full" else ""
            rows.append([name, label, "not run", reason(experiment, scale), cost])
    if not rows:
        return "Everything has a record."
    return markdown(["Experiment", "Scale", "", "Why", "It takes"], rows)


def reason(experiment: Experiment, scale: str) -> str:
    """Why there is no record."""
    if experiment.not_run:
        return experiment.not_run
    return UNRUN if scale == "full" else "`make records` has not come to it"


def main() -> None:
    """Fill the page."""
    found = kept()
    fill(HERE / "results.md", "overview", overview(found))
    fill(HERE / "results.md", "results", results(found) or "There are no records yet.")
    fill(HERE / "results.md", "not run", unrun(found))


if __name__ == "__main__":
    main()
