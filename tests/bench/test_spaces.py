"""Search spaces, and the contenders that declare them."""

import pytest
import torch
from torch import nn

import fallline
from fallline.arturo import PUBLISHED
from fallline.bench.contenders import CONTENDERS, Team, get_contender
from fallline.bench.spaces import Choice, Range, trials
from fallline.bench.tasks import get_task

SPACE = {
    "lr": Range(1e-4, 1e-1),
    "momentum": Range(0.01, 0.5, "one minus log"),
    "width": Range(1.0, 3.0, "linear"),
    "kind": Choice(("a", "b")),
}


def test_trials_fill_the_space_evenly():
    points = trials(SPACE, 64, seed=1)
    assert len(points) == 64
    for share in range(4):  # a Sobol sequence puts exactly a quarter of a power of two into each quarter
        low, high = 1e-4 * 1000 ** (share / 4), 1e-4 * 1000 ** ((share + 1) / 4)
        assert sum(low * 0.995 <= point["lr"] < high * 1.005 for point in points) in (16, 17)
    assert all(0.5 <= point["momentum"] <= 0.99 for point in points)
    assert sum(point["momentum"] > 1 - 0.5**0.5 * 0.1 for point in points) in (31, 32, 33)  # half beyond the middle
    assert all(1 <= point["width"] <= 3 for point in points)
    assert sum(point["kind"] == "a" for point in points) == 32


def test_fewer_trials_are_the_first_of_more_and_seeds_differ():
    assert trials(SPACE, 20, seed=1) == trials(SPACE, 75, seed=1)[:20]
    assert trials(SPACE, 20, seed=1) != trials(SPACE, 20, seed=2)
    assert [len(trials(SPACE, count, seed=1)) for count in (1, 2, 3, 20, 32, 33)] == [1, 2, 3, 20, 32, 33]
    assert trials({}, 3, seed=1) == [{}, {}, {}]


def test_what_is_printed_is_what_ran():
    for point in trials(SPACE, 20, seed=1):
        assert point["lr"] == float(f"{point['lr']:.3g}")
        assert 1 - point["momentum"] == pytest.approx(float(f"{1 - point['momentum']:.3g}"), abs=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 1), (-1, 1), (1, 1)])
def test_a_range_that_is_none(low, high):
    with pytest.raises(ValueError, match="low < high"):
        Range(low, high)


@pytest.mark.parametrize("name", [*CONTENDERS, "radam", "torch.optim:NAdam"])
def test_every_contender_learns_something(name):
    contender = get_contender(name).on(get_task("digits"))
    assert 1 <= len(contender.space) <= 4
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    # The middle of the space must be no place to fail.
    settings = {**contender.fixed, **{name: dimension.at(0.5) for name, dimension in contender.space.items()}}
    optimizer = contender.make(model.parameters(), settings, 50)
    points = torch.randn(64, 4)
    labels = (points[:, 0] > 0).long()
    losses = []
    for _ in range(50):
        each = nn.functional.cross_entropy(model(points), labels, reduction="none")
        optimizer.zero_grad()
        each.mean().backward()
        if isinstance(optimizer, fallline.Optimizer):
            optimizer.step(loss=each.detach())
        else:
            optimizer.step()
        losses.append(each.mean().item())
    assert losses[-1] < 0.9 * losses[0]


def test_arturo_searches_around_every_published_setting():
    with pytest.raises(ValueError, match="one of") as known:
        fallline.ArTuRO.published("nothing")
    assert str(known.value).partition("one of ")[2].split(", ") == list(PUBLISHED)
    contender = get_contender("arturo")
    assert contender.fixed == {"measurement_noise": 1.0}  # so that process_noise is the ratio of the two
    for name in PUBLISHED:
        settings = fallline.ArTuRO.published(name)
        settings["process_noise"] /= settings["measurement_noise"]
        for setting, dimension in contender.space.items():
            assert 2.8 * dimension.low < settings[setting] < dimension.high / 2.8, (name, setting)


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    settings = {"lr": 0.02, "weight_decay": 0.01, "adamw_lr": 0.003, "momentum": 0.9}
    team = get_contender("muon").make(model.parameters(), settings, 10)
    assert isinstance(team, Team)
    muon, adamw = team.param_groups
    assert [p.ndim for p in muon["params"]] == [2, 2]
    assert [p.ndim for p in adamw["params"]] == [1, 1]
    assert (muon["lr"], adamw["lr"]) == (0.02, 0.003)
    for group in team.param_groups:  # what the loop sets must reach the members
        group["lr"] = 0.5
    assert [member.param_groups[0]["lr"] for member in team.members] == [0.5, 0.5]


def test_muon_is_excused_where_there_are_no_matrices():
    assert "matrices" in get_contender("muon").excuse(get_task("bowl").model())
    assert get_contender("muon").excuse(get_task("digits").model()) is None
    assert get_contender("sgd").excuse(get_task("bowl").model()) is None


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean koala-"):
        get_contender("koala")
    with pytest.raises(ValueError, match="did you mean digits"):
        get_task("digit")
    with pytest.raises(ValueError, match="known: bowl, digits"):
        get_task("zzz")
    with pytest.raises(ValueError, match="cannot be imported"):
        get_task("nowhere_at_all:Task")
    with pytest.raises(ValueError, match="no task: it must be a subclass"):
        get_task("pathlib:Path")
