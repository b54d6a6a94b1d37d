"""The search: what is planned, who is rerun, what is chosen, and what lies beyond an edge."""

import pytest

from fallline.bench.common.spaces import Choice, Range, trials
from fallline.bench.protocol.search import Search
from fallline.bench.runs.run import Outcome

SPACE = {"lr": Range(1e-6, 1e-5), "nesterov": Choice((True, False))}


def scored(score):
    return Outcome("diverged" if score is None else "finished", steps=1, score=score)


def ran(scores, **settings):
    search = Search(**settings)
    for number, score in enumerate(scores):
        search.add(number, scored(score), {"lr": float(number + 1)})
    return search


def test_a_plan_is_the_first_points_with_what_all_share():
    plan = Search.drawn(SPACE, 4, 7, shared={"momentum": 0.9}).plan
    assert plan == [{"momentum": 0.9, **point} for point in trials(SPACE, 4, 7)]
    assert Search.drawn(SPACE, 3, 7, shared={"momentum": 0.9}).plan == plan[:3]
    published = {"lr": 1.0, "nesterov": True}
    assert Search.drawn(SPACE, 4, 7, first=published).plan == [published, *trials(SPACE, 3, 7)]
    assert Search.drawn(SPACE, 1, 7, first=published).plan == [published]


def test_the_choice_can_overrule_the_luckiest_trial():
    search = ran((0.1, 0.2, 0.3, 0.05, None), top=3)
    assert search.finalists == [3, 0, 1]
    assert search.failed == 1
    assert (search.chosen_trial, search.chosen) == (3, {"lr": 4.0})
    assert search.deciding(3) == [scored(0.05)]
    for number, scores in {3: (0.5, 0.4), 0: (0.2, 0.2), 1: (0.1, None)}.items():
        search.reruns[number] = {repeat: scored(score) for repeat, score in enumerate(scores)}
    assert search.chosen_trial == 0  # number 3 was lucky, and number 1 lost a rerun
    assert search.deciding(0) == [scored(0.2), scored(0.2)]


def test_nothing_is_chosen_where_every_trial_was_lost():
    for search in (ran((None, None), top=3), Search()):
        assert (search.finalists, search.chosen_trial, search.chosen) == ([], None, None)
        assert search.deciding(search.chosen_trial) == []


def test_a_search_is_done_when_all_finalists_are_rerun():
    search = Search.drawn(SPACE, 3, 0, top=2, repeats=2)
    for number, score in enumerate((0.3, 0.2, None)):
        assert not search.tried
        search.add(number, scored(score))
    assert search.tried
    for place in ((1, 0), (1, 1), (0, 0), (0, 1)):
        assert not search.done
        search.reruns.setdefault(place[0], {})[place[1]] = scored(0.1)
    assert search.done


@pytest.mark.parametrize(("best", "low", "high"), [(1e-5, 1e-5, 1e-4), (1e-6, 1e-7, 1e-6)])
def test_the_trials_that_are_left_go_beyond_the_edge_of_the_best(best, low, high):
    search = Search.drawn(SPACE, 8, 0, shared={"momentum": 0.9})
    search.plan[2]["lr"] = best
    for number in range(6):
        search.add(number, scored(0.1 if number == 2 else 0.5))
    before = search.plan[:6]
    wider = search.extend(1)
    assert wider == {"lr": Range(min(low, 1e-6), max(high, 1e-5))}
    assert search.plan[:6] == before
    assert len(search.plan) == 8
    assert all(low <= settings["lr"] <= high and settings["momentum"] == 0.9 for settings in search.plan[6:])


def test_nothing_is_moved_where_the_best_lies_within():
    search = Search.drawn(SPACE, 8, 0)
    search.plan[2]["lr"] = 3e-6
    before = list(search.plan)
    assert search.extend(1) == {}
    for number in range(6):
        search.add(number, scored(0.1 if number == 2 else 0.5))
    assert search.extend(1) == {}
    assert search.plan == before
