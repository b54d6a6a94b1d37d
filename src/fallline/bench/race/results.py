"""A race's records as numbers, for the table at its end and the report."""

from typing import Any

from fallline.bench.protocol.analysis import Results, analyse, over_tasks
from fallline.bench.protocol.comparison import ContenderResult, compare
from fallline.bench.protocol.design import DEFAULTS, TRACKS, Design
from fallline.bench.protocol.records import Race
from fallline.bench.protocol.search import Search
from fallline.bench.race.store import Store

UNKNOWN_TASK: dict[str, Any] = {"summary": "", "steps": 0, "held_out": True, "floor": None}


def results(store: Store, race: Race) -> Results:
    """Read a race, finished or not."""
    design = Design.read(race.design)
    found: dict[tuple[str, str], dict[str, ContenderResult]] = {}
    left_out: dict[tuple[str, str], dict[str, str]] = {}
    for task in design.tasks:
        for track in design.tracks:
            entered, out = race.setting["contenders"][task], dict(race.setting["left_out"].get(task, {}))
            if track == "defaults":
                out |= {name: about["excuse"] for name, about in entered.items() if about.get("excuse")}
            left_out[task, track] = out
            found[task, track] = {
                name: ContenderResult(name, about, track, _search(design, track), design.seeds)
                for name, about in entered.items()
                if track == "tuned" or name not in out
            }
    for place, run, outcome in store.runs(race.id):
        track = "defaults" if place.stage == DEFAULTS else "tuned"
        if result := found[place.task, track].get(place.optimizer):
            result.add(place.stage, place.number, place.repeat, run.settings, outcome)
    for result in (result for results in found.values() for result in results.values()):
        reruns = result.search.reruns
        result.search.reruns = {number: some for number, some in reruns.items() if number in result.trials}
        result.seeds_wanted = max(design.seeds, len(result.seeds))
    parts = [
        analyse(
            design,
            compare(
                design,
                task,
                track,
                race.setting.get("tasks", {}).get(task) or UNKNOWN_TASK,
                list(found[task, track].values()),
                left_out[task, track],
            ),
        )
        for track in sorted(design.tracks, key=TRACKS.index)
        for task in design.tasks
    ]
    across = [both for track in design.tracks if (both := over_tasks([p for p in parts if p.track == track]))]
    missing = sum(entry.runs_wanted - len(entry.runs) for part in parts for entry in part.entries)
    return Results(race, design, parts, across, missing)


def _search(design: Design, track: str) -> Search:
    if track == "defaults":
        return Search()
    return Search(count=design.trials, top=design.finalists, repeats=design.reruns_each)
