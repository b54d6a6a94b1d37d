"""What a race costs, on costs that are made up; and the largest that fits."""

import dataclasses
import itertools
import math

import pytest
import torch
from rich.console import Console

from fallline.bench.contenders import names as contenders
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.stats import smallest_p
from fallline.bench.race import plan as timing
from fallline.bench.race.plan import (
    SLACK,
    Excused,
    asks,
    busy,
    ladder,
    makespan,
    measure,
    measure_all,
    parse_budget,
    plan_table,
    plan_words,
    propose,
    runs_each,
    staying,
    wall_seconds,
)

TEAM = ("sgd", "adamw", "koala-m", "lodo")
COSTS = {("digits", "sgd"): 0.2, ("digits", "adamw"): 0.3, ("digits", "koala-m"): 0.6, ("digits", "lodo"): 6.0}
ASKED = Design(tasks=("digits",), optimizers=TEAM)
BASELINES = ("sgd", "adamw")


def fits(budget, jobs=2, asked=ASKED, costs=COSTS, **more):
    return propose(asked, costs, budget, jobs, **({"baselines": BASELINES} | more))


def printed(thing):
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


# --- how long a race takes ---


def test_one_worker_takes_the_sum_of_all_runs():
    assert makespan([(2.0, [20, 9, 10]), (0.5, [20, 9, 10])], 1) == pytest.approx(39 * 2.5)


def test_workers_without_end_take_the_longest_chain_of_stages():
    assert makespan([(2.0, [20, 9, 10]), (0.5, [20, 9, 10]), (3.0, [10])], 1000) == pytest.approx(3 * 2.0)


def test_equal_runs_come_in_waves():
    assert makespan([(1.0, [5, 3, 4])], 2) == pytest.approx(3 + 2 + 2)
    assert makespan([(1.0, [5]), (1.0, [4])], 4) == pytest.approx(math.ceil(9 / 4))


def test_a_stage_waits_for_the_last_and_not_for_other_lanes():
    # One worker is busy with the long lane; the other does both stages of the short one meanwhile.
    assert makespan([(10.0, [1]), (1.0, [4, 4])], 2) == pytest.approx(10.0)
    assert makespan([(1.0, [0, 2, 0, 3])], 3) == pytest.approx(2.0)  # stages without runs hold nobody up
    assert makespan([], 2) == 0.0


def test_a_makespan_lies_between_its_bounds():
    generator = torch.Generator().manual_seed(0)
    for jobs, lanes in itertools.product((1, 2, 3, 7), (1, 2, 5)):
        times = torch.rand(lanes, generator=generator).tolist()
        counts = torch.randint(0, 12, (lanes, 3), generator=generator).tolist()
        total = sum(time * sum(count) for time, count in zip(times, counts, strict=True))
        chain = max(time * sum(one > 0 for one in count) for time, count in zip(times, counts, strict=True))
        takes = makespan(list(zip(times, counts, strict=True)), jobs)
        assert max(total / jobs, chain) <= takes + 1e-9
        if lanes == 1:
            assert takes == pytest.approx(times[0] * sum(math.ceil(count / jobs) for count in counts[0]))


def test_the_runs_counted_are_the_runs_of_the_race(store, referee):
    tracks = ("tuned", "defaults")
    design = {"trials": 5, "finalists": 3, "reruns": 2, "seeds": 2, "tracks": tracks}
    race = referee.race("sgd", "adamw", **design)
    planned = dataclasses.replace(ASKED, **design)
    assert len(list(store.runs(race.id))) == 2 * runs_each(planned)
    alone = dataclasses.replace(planned, finalists=1)
    assert runs_each(alone) == runs_each(planned) - 3 * 2


def test_seconds_have_slack_and_the_start():
    design = dataclasses.replace(ASKED, optimizers=("sgd", "adamw"), trials=2, finalists=1, seeds=1)
    assert wall_seconds(design, COSTS, 1, start_up=5.0) == pytest.approx(5 + SLACK * 3 * 0.5)
    without = {pair: seconds for pair, seconds in COSTS.items() if pair[1] != "adamw"}
    assert wall_seconds(design, without, 1) == pytest.approx(SLACK * 3 * 0.2)


# --- what fits ---


@pytest.mark.parametrize("budget", [3, 10, 40, 90, 200, 400, 1000, 3000])
@pytest.mark.parametrize("jobs", [1, 2, 16])
def test_the_largest_that_fits_is_proposed(budget, jobs):
    plan = fits(budget, jobs)
    if plan.design is None:
        assert plan.seconds > budget
        return
    assert plan.seconds == pytest.approx(wall_seconds(plan.design, COSTS, jobs))
    assert plan.seconds <= budget
    same = [design for design in ladder(plan.design) if wall_seconds(design, COSTS, jobs) <= budget]
    assert runs_each(plan.design) == max(map(runs_each, same))
    if plan.larger:
        assert plan.larger[1] > budget
        assert runs_each(plan.larger[0]) >= runs_each(plan.design)


def test_a_larger_budget_never_buys_less():
    sizes = []
    for budget in torch.logspace(0, 3.5, 60).tolist():
        plan = fits(budget)
        sizes.append((0, 0) if plan.design is None else (len(plan.design.optimizers), runs_each(plan.design)))
    assert sizes == sorted(sizes)
    assert sizes[0] == (0, 0)
    assert sizes[-1] == (4, 75 + 9 + 10)
    assert len(set(sizes)) > 10


def test_more_workers_never_buy_less():
    for budget in (20, 100, 500):
        plans = [fits(budget, jobs) for jobs in (1, 2, 4, 8)]
        sizes = [(len(p.design.optimizers), runs_each(p.design)) if p.design else (0, 0) for p in plans]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("optimizers", [2, 3, 5, 9, 30])
def test_no_design_has_fewer_seeds_than_a_verdict_needs(optimizers):
    asked = dataclasses.replace(ASKED, optimizers=tuple(f"m:O{i}" for i in range(optimizers)))
    seeds = [design.seeds for design in ladder(asked)]
    assert smallest_p(min(seeds)) * (optimizers - 1) <= 0.05
    assert smallest_p(min(seeds) - 1) * (optimizers - 1) > 0.05
    assert max(seeds) == max(10, min(seeds))


def test_designs_are_smaller_rung_by_rung_and_the_first_is_the_protocol_s():
    designs = ladder(ASKED)
    sizes = list(map(runs_each, designs))
    assert sizes == sorted(sizes, reverse=True)
    assert (designs[0].trials, designs[0].finalists, designs[0].reruns, designs[0].seeds) == (75, 3, 3, 10)
    assert {"trials": 20, "finalists": 3, "seeds": 10}.items() <= max(
        (vars(d) for d in designs if d.trials == 20), key=lambda d: d["seeds"]
    ).items()
    assert all(design.finalists <= design.trials for design in designs)


def test_seeds_that_are_asked_for_stay():
    assert {design.seeds for design in ladder(ASKED, seeds=4)} == {4}
    assert fits(1000, seeds=25).design.seeds == 25


def test_with_shipped_settings_alone_only_seeds_are_left_to_choose():
    designs = ladder(dataclasses.replace(ASKED, tracks=("defaults",)))
    assert [runs_each(design) for design in designs] == [10, 9, 8, 7]
    both = ladder(dataclasses.replace(ASKED, tracks=("defaults", "tuned")))
    assert runs_each(both[0]) == 75 + 9 + 10 + 10


def test_whoever_costs_most_stays_out_first_and_baselines_last():
    everyone = fits(1e6).everyone
    assert everyone == pytest.approx(wall_seconds(ladder(ASKED)[-1], COSTS, 2))
    plan = fits(0.9 * everyone)
    assert plan.without_optimizers == ("lodo",)
    assert plan.design.optimizers == ("sgd", "adamw", "koala-m")
    assert plan.without_tasks == ()
    # The dear baseline goes before the last rival does: a race needs both kinds.
    dear = COSTS | {("digits", "koala-m"): 0.3, ("digits", "adamw"): 5.0}
    assert fits(8, costs=dear).design.optimizers == ("sgd", "koala-m")
    assert staying(ASKED, dear, BASELINES) == ["sgd", "koala-m", "adamw", "lodo"]
    # and the one that is asked for stays, whatever it costs.
    asked = dataclasses.replace(ASKED, baseline="adamw")
    assert staying(asked, dear, BASELINES) == ["adamw", "koala-m", "sgd", "lodo"]
    assert staying(ASKED, dear, ()) == ["sgd", "koala-m", "adamw", "lodo"]


def test_a_task_that_is_out_of_reach_stays_out_with_everyone_racing_on_the_other():
    costs = COSTS | {("imagenet", name): 1e5 for name in TEAM}
    asked = dataclasses.replace(ASKED, tasks=("imagenet", "digits"))
    plan = fits(300, costs=costs, asked=asked)
    assert plan.without_tasks == ("imagenet",)
    assert plan.without_optimizers == ()
    assert plan.design.tasks == ("digits",)
    assert plan.design.optimizers == TEAM
    assert plan.everyone > 1e5


def test_the_most_pairs_are_kept_of_tasks_and_optimizers():
    # One dear optimizer on both tasks: without it both tasks fit, without a task it would be one alone.
    costs = {(task, name): COSTS["digits", name] for task in ("digits", "bowl") for name in TEAM}
    asked = dataclasses.replace(ASKED, tasks=("digits", "bowl"))
    plan = fits(50, costs=costs, asked=asked)
    assert plan.design.tasks == ("digits", "bowl")
    assert plan.design.optimizers == ("sgd", "adamw", "koala-m")


def test_what_is_asked_for_besides_stays_as_it_is():
    asked = dataclasses.replace(ASKED, seed=7, spaces={"sgd": {"momentum": 0.9}}, baseline="sgd", device="cuda")
    design = fits(500, asked=asked).design
    assert (design.seed, design.spaces, design.baseline, design.device) == (7, asked.spaces, "sgd", "cuda")


def test_nothing_may_fit():
    plan = fits(0.5)
    assert plan.design is None
    assert plan.seconds == pytest.approx(
        wall_seconds(ladder(dataclasses.replace(ASKED, optimizers=("sgd", "koala-m")))[-1], COSTS, 2)
    )
    assert plan.larger is None
    (said,) = plan_words(plan)
    assert said.startswith("Nothing fits")
    assert "left out" in printed(plan_table(plan))


def test_who_has_no_cost_does_not_race_and_a_race_of_nobody_is_none():
    costs = {pair: seconds for pair, seconds in COSTS.items() if pair[1] != "lodo"}
    plan = fits(1e6, costs=costs)
    assert plan.design.optimizers == ("sgd", "adamw", "koala-m")
    assert plan.without_optimizers == ()  # it was never in
    with pytest.raises(ValueError, match="no optimizer is left"):
        fits(10, costs={})


def test_a_single_optimizer_can_be_planned():
    plan = fits(1000, asked=dataclasses.replace(ASKED, optimizers=("koala-m",)), costs={("digits", "koala-m"): 0.5})
    assert plan.design.optimizers == ("koala-m",)


def test_the_words_say_what_fits_what_stays_out_and_what_it_would_take():
    plan = fits(40)
    said = " ".join(plan_words(plan))
    assert asks(plan.design) in said
    assert "LODO stays out" in said
    assert "The next larger one" in said
    assert "is busy" not in said
    assert "The machine is busy (2.5 s of wall time per CPU second)" in " ".join(plan_words(plan, busy=2.5))
    few = dataclasses.replace(plan, design=dataclasses.replace(plan.design, trials=19))
    enough = dataclasses.replace(plan, design=dataclasses.replace(plan.design, trials=20))
    assert "Fewer than 20 trials" in " ".join(plan_words(few))
    assert "Fewer than 20 trials" not in " ".join(plan_words(enough))
    table = printed(plan_table(plan))
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert "left out" in rows["LODO"]
    shares = [COSTS["digits", name] / (0.2 + 0.3 + 0.6) for name in ("sgd", "adamw", "koala-m")]
    for label, share in zip(("SGD", "AdamW", "KOALA-M"), shares, strict=True):
        assert rows[label].split()[-2:] == [str(runs_each(plan.design)), f"{share:.0%}"]


# --- what a run costs ---


def test_steps_are_taken_until_there_is_enough_to_measure(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing, "_clock", lambda device: lambda: 0.01 * next(ticks))  # 10 ms pass between two looks
    cost = measure("sprint:Sprint", "sgd", {})
    # One look a step, until one sees 0.3 s; a further one reads the sum.
    assert cost.step == pytest.approx(0.01, rel=0.1)
    assert cost.evaluation == pytest.approx(0.01)
    assert cost.run == pytest.approx(0.01 + 40 * cost.step + 6 * 0.01)
    assert cost.first == pytest.approx(0.0, abs=1e-9)


def test_the_threads_of_torch_are_as_they_were_before():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert measure("sprint:Sprint", "lbfgs", {}).run > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_costs_are_taken_with_the_spaces_of_the_race(monkeypatch):
    made = []
    contender = contenders.get_contender("sgd")
    spying = dataclasses.replace(contender, make=lambda p, s, h: made.append(dict(s)) or contender.make(p, s, h))
    monkeypatch.setattr(contenders, "get_contender", lambda name: spying)
    measure("sprint:Sprint", "sgd", {"sgd": {"momentum": 0.5, "lr": {"low": 0.01, "high": 1.0, "scale": "log"}}})
    assert made[-1]["momentum"] == 0.5  # what comes before looks at the class alone
    assert made[-1]["lr"] == pytest.approx(0.1)
    assert set(made[-1]) == {"lr", "momentum", "weight_decay"}


def test_who_has_nothing_to_do_is_excused_and_who_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.0)
    with pytest.raises(Excused, match="orthogonalises"):
        measure("bowl", "muon", {})
    with pytest.raises(ValueError, match=r"sprint:Stubborn cannot run on sprint:Sprint: TypeError: a closure"):
        measure("sprint:Sprint", "sprint:Stubborn", {})
    asked = Design(tasks=("bowl",), optimizers=("sgd", "muon"))
    found, excused, start_up = measure_all(asked)
    assert set(found) == {("bowl", "sgd")}
    assert set(excused) == {("bowl", "muon")}
    assert start_up > 0
    assert busy(found.values()) > 0
    slow = [dataclasses.replace(cost, wall_per_cpu=3.0) for cost in found.values()]
    assert busy(slow) == 3.0


# --- budgets ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1.5h", 5400), ("600", 600), ("1h30m", 5400), (" .5 M ", 30), ("2d", 172800)],
)
def test_a_budget_is_read(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "ten", "-3", "0", "0m", "5x", "1m2", "1e3", "inf", "nan", "10m or so"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="a budget is a time"):
        parse_budget(text)
