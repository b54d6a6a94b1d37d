"""The rule that stops a race and the report on it are one judgement: whoever gets more seeds has no verdict yet."""

import pytest
from twins import TASK, Valley

from fallline.bench.protocol.comparison import ContenderResult
from fallline.bench.protocol.design import CONFIRMATION
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.protocol.search import Search
from fallline.bench.protocol.studies import studies
from fallline.bench.protocol.verdict import SETTLED
from fallline.bench.race.coordinator import undecided
from fallline.bench.race.results import results
from fallline.bench.runs.run import Outcome, Run

OPTIMIZERS = ("sgd", "adamw", "sgd#2", "koala-m")
SEEDS = 4


def lost_now_and_then(place):
    return place.optimizer == "sgd#2" and place.number % 3 == 0


def lost_by_the_baseline(place):
    return place.optimizer == "sgd"


CASES = {
    "alike": (Valley(), lambda place: False),
    "one worse": (Valley(worse={"adamw": 0.2}, curvature=0.01), lambda place: False),
    "within the margin": (Valley(common=0.5, noise=1e-4, fixed_lr=0.1), lambda place: False),
    "seeds lost": (Valley(curvature=0.01), lost_now_and_then),
    "a baseline that lost all": (Valley(curvature=0.01), lost_by_the_baseline),
}


@pytest.mark.parametrize("asked", [None, "adamw"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_who_gets_more_seeds_has_no_verdict_in_the_report(store, case, asked, seed):
    valley, lost = CASES[case]
    design, race = valley.race(seed, *OPTIMIZERS, until_decided=True, seeds=SEEDS, baseline=asked)
    race.setting["tasks"][TASK]["equivalence"] = None
    every, _ = valley.race(seed, *OPTIMIZERS, seeds=max(design.looks))
    runs = {place: (settings, outcome) for place, settings, outcome in valley.runs(every)}
    search = {"count": design.trials, "top": design.finalists, "repeats": design.reruns_each}
    abouts = race.setting["contenders"][TASK]
    entries = {n: ContenderResult(n, abouts[n], search=Search(**search), seeds_wanted=SEEDS) for n in OPTIMIZERS}
    progress = RaceProgress(design, {TASK: race.setting["tasks"][TASK]}, {(TASK, "tuned"): entries})
    store.open_race(race)
    due = [place for place in runs if place.stage != CONFIRMATION or place.number < SEEDS]
    looks = []
    while due:
        for place in due:
            settings, outcome = runs[place]
            if place.stage == CONFIRMATION and lost(place):
                outcome = Outcome("diverged", 1, "lost", curve=outcome.curve, times=outcome.times)
            progress.result(place).add(place.stage, place.number, place.repeat, settings, outcome)
            store.add(str(place), Run(TASK, place.optimizer, settings, place.number), outcome)
            store.enter(race.id, place, str(place))
        at = {name: len(entry.seeds) for name, entry in entries.items()}
        due = undecided(progress, TASK)
        found = results(store, race)
        part = found.parts[0]
        looks.append(max(at.values()))
        if looks[-1] < max(design.looks):  # else nobody is asked any more
            said = {entry.name: entry.verdict for entry in part.entries}
            assert said == {name: entry.verdict for name, entry in entries.items()}
            still_open = {n for n, one in said.items() if one and one.word not in SETTLED and at[n] == looks[-1]}
            more = {place.optimizer for place in due}
            assert more == (still_open | {part.baseline.name} if still_open else set())
        rows = {row.label: row for row in studies([found])}
        for entry in part.entries:
            if entry.verdict:
                assert rows[entry.label].words == {entry.verdict.word: 1}
    assert looks in ([4], [4, 8], [4, 8, 16])
