"""A method against itself, on records whose distribution is known; and the same race over several studies."""

import dataclasses
import json
import math
import statistics

import pytest
from rich.console import Console
from scipy.stats import binomtest
from twins import Valley

from fallline.bench.protocol import analysis as module
from fallline.bench.protocol import stats
from fallline.bench.protocol.aa import aa_results
from fallline.bench.protocol.studies import studies
from fallline.bench.protocol.verdict import CLAIMS
from fallline.bench.race.results import results
from fallline.bench.report.luck import aa_line, aa_table, aa_words, studies_table, studies_words, write_aa

RACES = 150


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch):
    """Bounds from fewer resamples, and no matrix: what is claimed is for the exact test to say, which stays."""
    monkeypatch.setattr(stats, "RESAMPLES", 499)
    monkeypatch.setattr(stats, "BAND_RESAMPLES", 20)
    monkeypatch.setattr(module, "matrix", lambda *_: {})


def printed(thing):
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def test_without_luck_of_the_search_twins_are_told_apart_no_oftener_than_the_test_allows():
    found = [Valley(fixed_lr=0.1).results(seed) for seed in range(RACES)]
    (aa,) = aa_results(found)
    called = sum(aa.words[word] for word in CLAIMS)
    assert binomtest(called, RACES, 0.05, alternative="greater").pvalue > 0.01
    assert called > 0  # a rule that never speaks would pass, too
    # All of the spread between the two is then the seeds', up to the error of its estimate.
    assert aa.searches == pytest.approx(aa.seeds, rel=0.15)
    assert aa.luck < 0.25
    assert aa.share(*CLAIMS).low <= 0.05


def test_the_luck_of_the_search_is_seen_and_has_the_size_that_it_has():
    valley = Valley()
    found = [valley.results(seed) for seed in range(RACES // 2)]
    (aa,) = aa_results(found)
    gaps = []
    for held in found:
        mine, theirs = (held.parts[0].get(name).chosen["lr"] for name in ("sgd#2", "sgd"))
        gaps.append(valley.truth("sgd#2", mine) - valley.truth("sgd", theirs))
    truly = math.sqrt(statistics.fmean(gap**2 for gap in gaps))
    assert math.sqrt(aa.searches**2 - aa.seeds**2) == pytest.approx(truly, rel=0.15)
    assert aa.luck == pytest.approx(1 - (aa.seeds / aa.searches) ** 2)
    # The claims are true of the settings, which the words must say, and far more than 5 %.
    assert aa.share(*CLAIMS).low > 0.05
    right = [
        (gap < 0) == (duel.word == "better") for gap, duel in zip(gaps, aa.duels, strict=True) if duel.word in CLAIMS
    ]
    assert statistics.fmean(right) > 0.9


def test_the_rate_reported_is_what_the_verdicts_say():
    found = [Valley(seeds=seeds).results(seed) for seed, seeds in enumerate((10,) * 12 + (3,) * 4)]
    words = [held.parts[0].get("sgd#2").verdict.word for held in found]
    (aa,) = aa_results(found)
    assert {word: count for word, count in aa.words.items() if count} == {word: words.count(word) for word in words}
    assert aa.words["too few seeds"] == 4
    called = sum(word in ("better", "worse") for word in words)
    share = aa.share("better", "worse")
    assert (share.mean, share.count) == (called / 16, 16)
    exact = binomtest(called, 16).proportion_ci(0.95, method="exact")
    assert (share.low, share.high) == pytest.approx((exact.low, exact.high))
    table = printed(aa_table(aa))
    assert f"called different {called} {share.mean:.0%}" in " ".join(table.split())


def test_races_read_from_records_say_the_same(store):
    written = [Valley().recorded(store, seed) for seed in range(3)]
    read = [results(store, race) for race in written]
    assert aa_results(read) == aa_results([Valley().results(seed) for seed in range(3)])


def test_claims_within_the_band_are_counted_as_trifles():
    (aa,) = aa_results([Valley().results(seed) for seed in range(20)])
    claims = [abs(duel.difference) for duel in aa.duels if duel.called]
    assert aa.trifles == 0
    banded = [dataclasses.replace(duel, margin=statistics.median(claims)) for duel in aa.duels]
    assert dataclasses.replace(aa, duels=tuple(banded)).trifles == sum(
        claim <= statistics.median(claims) for claim in claims
    )


def test_wall_times_that_differ_between_twins_are_not_to_be_trusted():
    def walls(ratios):
        races = [Valley(wall={"sgd#2": ratio}).results(seed) for seed, ratio in enumerate(ratios)]
        return aa_results(races)[0]

    calm = walls([1.02, 0.97, 1.05])
    assert calm.walls == pytest.approx(0.05)
    assert calm.steady
    wild = walls([1.02, 1 / 1.3, 1.05])  # too quick is as suspect as too slow
    assert wild.walls == pytest.approx(0.3)
    assert not wild.steady
    assert "cannot be trusted" in aa_words(wild)[-1]
    # One of twenty-one races may be an accident.
    assert walls([1.02] * 20 + [2.0]).steady


def test_a_race_of_twins_that_came_to_nothing_is_told_as_that():
    held = Valley().results(0)
    twin = held.parts[0].get("sgd#2")
    twin.seeds, twin.verdict = {}, None
    (aa,) = aa_results([held])
    assert aa.judged == []
    assert (aa.share(*CLAIMS), aa.searches, aa.luck) == (None, None, None)
    assert aa_words(aa) == ["No race has come to a verdict."]
    assert "no verdict" in aa_line(held)
    assert "called different" in printed(aa_table(aa))


def test_twins_without_a_search_are_refused():
    held = Valley().results(0)
    held.design = dataclasses.replace(held.design, tracks=("defaults",))
    with pytest.raises(ValueError, match="the very same runs"):
        aa_results([held])


def test_the_words_are_plain_about_what_a_claim_is():
    (aa,) = aa_results([Valley().results(seed) for seed in range(8)])
    said = " ".join(aa_words(aa))
    called = sum(aa.words[word] for word in CLAIMS)
    assert called > 0
    assert f"SGD was called different from itself in {called} of 8 races" in said
    assert "need be no mistake of the test" in said
    assert "--studies" in said
    (quiet,) = aa_results([Valley(fixed_lr=0.1).results(0)])
    assert not any(duel.called for duel in quiet.duels)
    assert "no mistake" not in " ".join(aa_words(quiet))


def test_the_numbers_are_written_beside_the_records(tmp_path):
    found = aa_results([Valley().results(seed) for seed in range(3)])
    path = write_aa(found, tmp_path / "runs", {"torch": "2"})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "runs" / "aa.json"
    (task,) = written["tasks"]
    assert [race["word"] for race in task["races"]] == [duel.word for duel in found[0].duels]
    assert [race["seed"] for race in task["races"]] == [0, 1, 2]
    assert task["rms_difference"] == found[0].searches
    assert task["words"] == found[0].words


def test_studies_judge_over_searches_and_not_over_seeds():
    valley = Valley(worse={"adamw": 0.05}, curvature=0.01)
    found = [valley.results(seed, "sgd", "adamw", "sgd#2") for seed in range(9)]
    rows = {row.label: row for row in studies(found)}
    adamw, twin = rows["AdamW"], rows["SGD no. 2"]
    means = []
    for held in found:
        mine, theirs = (held.parts[0].get(name).measure("loss").mean for name in ("adamw", "sgd"))
        means.append(mine - theirs)
    assert adamw.differences == pytest.approx(means)
    assert adamw.over_studies == stats.interval(adamw.differences)
    assert not adamw.over_studies.descriptive
    assert adamw.word == "worse"
    assert adamw.adjusted == pytest.approx(2 * 2**-8)  # all nine to one side, and Holm for two rivals
    assert twin.word == "no evidence"
    words = [held.parts[0].get("sgd#2").verdict.word for held in found]
    assert twin.words == {word: words.count(word) for word in words}
    said = " ".join(studies_words(list(rows.values())))
    assert "AdamW is worse than SGD over studies" in said
    assert "SGD no. 2" in printed(studies_table(list(rows.values())))


def test_few_studies_only_describe():
    found = [Valley(worse={"adamw": 0.3}).results(seed, "sgd", "adamw") for seed in range(3)]
    (row,) = studies(found)
    assert row.over_studies.descriptive
    assert row.over_studies.excludes_zero
    assert (row.word, row.adjusted) == ("too few seeds", None)
    assert any("3 studies are too few to tell any optimizer from SGD; 6 can" in said for said in studies_words([row]))


def test_one_baseline_serves_all_studies():
    # In each study another twin is the best in choice; what is compared must not change with it.
    found = [Valley().results(seed, "sgd", "adamw", baseline=None) for seed in range(8)]
    assert len({held.parts[0].baseline.name for held in found}) == 2
    (row,) = studies(found)
    (against,) = {"SGD", "AdamW"} - {row.label}
    assert row.against == against
    assert sum(row.words.values()) == 8
    names = {"SGD": "sgd", "AdamW": "adamw"}
    choices = {
        label: statistics.fmean(o.score for held in found for o in held.parts[0].get(name).choice)
        for label, name in names.items()
    }
    assert against == min(choices, key=choices.__getitem__)


def test_a_study_in_which_every_seed_was_lost_leaves_no_claim():
    found = [Valley(worse={"adamw": -0.1}).results(seed, "sgd", "adamw") for seed in range(7)]
    assert studies(found)[0].word == "better"
    lost = found[3].parts[0].get("adamw")
    for outcome in lost.seeds.values():
        outcome.status, outcome.result = "diverged", {}
    (row,) = studies(found)
    assert row.differences[3] is None
    assert row.word == "no evidence"


def test_studies_without_a_common_baseline_say_so():
    held = Valley().results(0)
    for entry in held.parts[0].entries:
        entry.seeds = {}
    assert studies([held]) == []
    assert studies_words([]) == ["No optimizer has a baseline to compare with in every study."]
