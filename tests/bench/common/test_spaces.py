"""Search spaces, and the contenders that declare them."""

import json
import math
from pathlib import Path

import pytest
import torch
import typer
from torch import nn

import fallline
from fallline.arturo.arturo import PUBLISHED
from fallline.bench.cli.options import plain_spaces
from fallline.bench.common.spaces import Choice, Range, as_plain, dimension, edge, extended, read_spaces, trials
from fallline.bench.contenders import ANY_LR, CONTENDERS, Team, entered, get_contender
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


def test_a_distance_to_one_is_at_most_one():
    assert Range(0.05, 1.0, "one minus log").at(1.0) == 0.0
    with pytest.raises(ValueError, match="distances to one under 'one minus log', hence at most 1"):
        Range(0.05, 1.5, "one minus log")


# --- edges ---

RANGES = [
    Range(1e-4, 1.0),
    Range(0.1, 3.0),
    Range(1.0, 3.0, "linear"),
    Range(0.01, 0.5, "one minus log"),
    Range(1e-3, 1.0, "one minus log"),
]


@pytest.mark.parametrize("space", RANGES, ids=str)
def test_an_edge_is_a_twentieth_of_the_range_on_its_own_scale(space):
    first, last = ("low", "high") if space.scale != "one minus log" else ("high", "low")
    assert {u: edge(space, space.at(u)) for u in (0.0, 0.03, 0.07, 0.5, 0.93, 0.97, 1.0)} == {
        0.0: first,
        0.03: first,
        0.07: None,
        0.5: None,
        0.93: None,
        0.97: last,
        1.0: last,
    }


def test_an_edge_by_hand():
    assert edge(Range(1e-4, 1.0), 1e-4 * 10**0.19) == "low"  # 0.2 of the four decades
    assert edge(Range(1e-4, 1.0), 1e-4 * 10**0.21) is None
    assert edge(Range(1.0, 3.0, "linear"), 2.91) == "high"
    assert edge(Range(1.0, 3.0, "linear"), 2.89) is None
    assert edge(Range(0.01, 0.5, "one minus log"), 0.99) == "high"  # named by the momentum, not by its distance to one
    assert edge(Range(0.01, 0.5, "one minus log"), 0.5) == "low"


def test_values_beyond_a_range_lie_at_its_edge_and_only_ranges_have_edges():
    assert [edge(Range(0.1, 1.0), value) for value in (-1.0, 0, 0.05, 2, 1e300)] == ["low"] * 3 + ["high"] * 2
    momentum = Range(0.01, 0.5, "one minus log")
    assert [edge(momentum, value) for value in (0.0, 0.999, 1.0, 1.5)] == ["low", "high", "high", "high"]
    assert edge(Range(0.1, 1.0), True) is None
    assert edge(Range(0.1, 1.0), "auto") is None
    assert edge(Choice((0.1, 1.0)), 0.1) is None
    assert edge(0.1, 0.1) is None


@pytest.mark.parametrize("space", RANGES, ids=str)
@pytest.mark.parametrize("side", ["low", "high"])
def test_an_extended_range_holds_the_old_one_and_goes_on_beyond_the_edge(space, side):
    longer = extended(space, side)
    if longer is None:
        assert (space.scale, space.high, side) == ("one minus log", 1.0, "low")
        return
    values, old = sorted((longer.at(0.0), longer.at(1.0))), sorted((space.at(0.0), space.at(1.0)))
    assert longer.scale == space.scale
    assert values[0] < old[0] if side == "low" else values[0] == old[0]
    assert values[1] > old[1] if side == "high" else values[1] == old[1]
    assert edge(longer, old[0] if side == "low" else old[1]) is None  # what was an edge is one no more


def test_how_far_a_range_is_extended():
    assert extended(Range(1e-4, 1.0), "low") == Range(1e-5, 1.0)
    assert extended(Range(0.7, 7.0), "low") == Range(0.07, 7.0)
    assert extended(Range(1e-4, 3.0), "high") == Range(1e-4, 30.0)
    assert extended(Range(1.0, 3.0, "linear"), "high") == Range(1.0, 4.0, "linear")
    assert extended(Range(2.0, 3.0, "linear"), "low") == Range(1.5, 3.0, "linear")
    assert extended(Range(1.0, 3.0, "linear"), "low") == Range(0.1, 3.0, "linear")  # nothing below zero
    assert extended(Range(0.01, 0.5, "one minus log"), "high") == Range(0.001, 0.5, "one minus log")  # 0.99 to 0.999
    assert extended(Range(0.01, 0.05, "one minus log"), "low") == Range(0.01, 0.5, "one minus log")
    assert extended(Range(0.01, 0.5, "one minus log"), "low") == Range(0.01, 1.0, "one minus log")  # down to 0
    assert extended(Range(0.01, 1.0, "one minus log"), "low") is None
    finest = Range(1e-10, 0.5, "one minus log")
    assert extended(finest, "high") is None
    assert finest.at(0.0) < 1


# --- in TOML, and in JSON ---


def spaces(text: str, folder: Path):
    path = folder / "spaces.toml"
    path.write_text(text, encoding="utf-8")
    return read_spaces(path)


def test_a_space_in_a_few_lines_of_toml(tmp_path):
    text = """
    ["my_module:MyOptimizer"]
    lr = [1e-4, 1]
    momentum = { low = 0.01, high = 0.5, scale = "one minus log" }
    width = { low = 1, high = 3, scale = "linear" }
    weight_decay = 0.01
    nesterov = { one_of = [true, false] }
    steps = 5
    solver = "newton"
    [sgd]
    momentum = { low = 0.01, high = 0.5 }
    """
    read = spaces(text, tmp_path)
    assert read == {
        "my_module:MyOptimizer": {
            "lr": Range(1e-4, 1.0),
            "momentum": Range(0.01, 0.5, "one minus log"),
            "width": Range(1.0, 3.0, "linear"),
            "weight_decay": 0.01,
            "nesterov": Choice((True, False)),
            "steps": 5,
            "solver": "newton",
        },
        "sgd": {"momentum": Range(0.01, 0.5, "log")},
    }
    assert list(read["my_module:MyOptimizer"]) == [
        "lr",
        "momentum",
        "width",
        "weight_decay",
        "nesterov",
        "steps",
        "solver",
    ]
    assert isinstance(read["my_module:MyOptimizer"]["steps"], int)
    assert {point["nesterov"] for point in trials({"nesterov": Choice((True, False))}, 4, seed=0)} == {True, False}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr = [1, 0.1]", r"a range needs 0 < low < high, got \[1, 0\.1\]"),
        ("lr = [0, 0.1]", r"a range needs 0 < low < high, got \[0, 0\.1\]"),
        ("lr = [0.1, nan]", "a range needs 0 < low < high"),
        ("lr = [0.1, inf]", "a range needs 0 < low < high"),
        ("lr = [0.1, 0.2, 0.3]", r"two numbers, \[low, high\]; .* write { one_of = \[0\.1, 0\.2, 0\.3\] }"),
        ("lr = [0.1]", r"two numbers.* write { one_of = \[0\.1\] }"),
        ("lr = []", "two numbers"),
        ("lr = [true, false]", r"write { one_of = \[true, false\] }"),
        ('lr = ["a", "b"]', r'write { one_of = \["a", "b"\] }'),
        ("lr = { one_of = 3 }", "one_of takes a list of values"),
        ("lr = { one_of = [] }", "one_of takes a list of values"),
        ("lr = { one_of = [[1, 2], 3] }", "one_of takes a list of values"),
        ("lr = { one_of = [1, 2], low = 1 }", "nothing beside it"),
        ("lr = { low = 1 }", r"a table is { low = .*, got { low = 1 }"),
        ('lr = { low = "1", high = 2 }', r'a table is .*, got { low = "1", high = 2 }'),
        ("lr = { low = 1, high = 2, step = 1 }", "a table is .*step = 1"),
        ("lr = { low = 1, high = 2, scale = 'lin' }", "there is no scale 'lin'; did you mean linear"),
        ("lr = { low = 0.5, high = 2, scale = 'one minus log' }", "distances to one"),
        ("lr = {}", "a table is"),
        ("lr = inf", "a value must be finite, got inf"),
        ("lr = 2020-01-01", "a setting is a number, a string or true or false, got 2020-01-01"),
    ],
)
def test_a_mistake_in_a_space_is_told_with_file_table_and_key(line, message, tmp_path):
    with pytest.raises(ValueError, match=rf"spaces\.toml: \[my_module:MyOptimizer\] lr: .*{message}"):
        spaces(f'["my_module:MyOptimizer"]\n{line}\n', tmp_path)


def test_a_file_that_is_no_toml_says_where_and_why(tmp_path):
    with pytest.raises(
        ValueError, match=r"spaces\.toml: .*at line 2, column \d+\); .*needs quotes, \[\"module:Class\"\]"
    ):
        spaces("\n[my_module:MyOptimizer]\nlr = [1e-4, 1.0]\n", tmp_path)
    with pytest.raises(ValueError, match=r"spaces\.toml: Invalid value \(at line 2, column \d+\)$"):
        spaces("[sgd]\nlr = one\n", tmp_path)
    with pytest.raises(ValueError, match=r"spaces\.toml: lr: no optimizer stands above it, as \[sgd\]"):
        spaces("lr = [1e-4, 1.0]\n", tmp_path)
    with pytest.raises(ValueError, match=r"spaces\.toml: No such file"):
        read_spaces(tmp_path / "folder" / "spaces.toml")
    (tmp_path / "spaces.toml").write_bytes(b"[sgd]\nname = '\xe9'\n")
    with pytest.raises(ValueError, match=r"spaces\.toml: .*utf-8"):
        read_spaces(tmp_path / "spaces.toml")


def test_at_most_four_settings_are_tuned(tmp_path):
    lines = [f"{name} = [0.1, 1]" for name in "abcd"]
    assert len(spaces("\n".join(["[sgd]", *lines, "e = 1", "f = 'x'"]), tmp_path)["sgd"]) == 6
    with pytest.raises(ValueError, match=r"spaces\.toml: \[sgd\] tunes 5 settings, a, b, c, d, e; at most 4"):
        spaces("\n".join(["[sgd]", *lines, "e = { one_of = [1, 2] }"]), tmp_path)


@pytest.mark.parametrize(
    "value", [*RANGES, Choice((True, False)), Choice((1, 2.5, "a")), Choice(("a",)), 0.1, 3, True, "a"]
)
def test_a_space_survives_json(value):
    again = dimension(json.loads(json.dumps(as_plain(value), allow_nan=False)))
    assert again == value
    assert type(again) is type(value)  # True is not 1


def test_the_declared_spaces_survive_json():
    declared = [value for contender in CONTENDERS.values() for value in {**contender.space, **contender.fixed}.values()]
    assert len(declared) > len(CONTENDERS)
    for value in declared:
        assert dimension(json.loads(json.dumps(as_plain(value)))) == value


def test_a_share_is_where_a_range_gives_the_value():
    for space in RANGES:
        for u in (0.0, 0.2, 0.5, 0.9, 1.0):
            assert space.share(space.at(u)) == pytest.approx(u, abs=3e-3)  # of three digits
    assert Range(0.1, 1.0).share(10.0) == pytest.approx(2.0)
    assert Range(0.1, 1.0).share(0.0) == -math.inf


# --- the contenders ---


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
    # Without an entry the middle is the class's own default, which may be slow.
    assert losses[-1] < (0.9 if name in CONTENDERS else 0.99) * losses[0]


def test_arturo_searches_around_every_published_setting():
    with pytest.raises(ValueError, match="one of") as known:
        fallline.ArTuRO.published("nothing")
    assert str(known.value).partition("one of ")[2].split(", ") == list(PUBLISHED)
    contender = get_contender("arturo")
    assert contender.fixed == {"measurement_noise": 1.0}  # so that process_noise is the ratio of the two
    for name in PUBLISHED:
        settings = fallline.ArTuRO.published(name)
        settings["process_noise"] /= settings["measurement_noise"]
        for setting, space in contender.space.items():
            assert 2.8 * space.low < settings[setting] < space.high / 2.8, (name, setting)


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
    with pytest.raises(ValueError, match=r"known: bowl, cifar10-cnn, .*, digits, "):
        get_task("zzz")
    with pytest.raises(ValueError, match="cannot be imported"):
        get_task("nowhere_at_all:Task")
    with pytest.raises(ValueError, match="no task: it must be a subclass"):
        get_task("pathlib:Path")


class Wanting(torch.optim.Optimizer):
    """SGD that has to be told its rate."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})


class Rateless(torch.optim.Optimizer):
    """An optimizer without a learning rate."""

    def __init__(self, params, power=1.0):
        super().__init__(params, {"power": power})


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("adadelta", {"lr": Range(0.01, 100.0)}),
        ("lbfgs", {"lr": Range(0.01, 100.0)}),
        ("torch.optim:Adam", {"lr": Range(1e-5, 0.1)}),
        ("test_spaces:Wanting", {"lr": ANY_LR}),
        ("test_spaces:Rateless", {}),
        ("no_such_module:Optimizer", {"lr": ANY_LR}),
    ],
)
def test_the_space_of_an_optimizer_without_an_entry_is_centred_on_its_own_default(name, space):
    assert get_contender(name).space == space


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("adamw", {"betas": 0.9}, "betas of adamw is 2 finite numbers"),
        ("adamw", {"betas": (0.9,)}, "2 finite numbers"),
        ("adamw", {"betas": (0.9, math.nan)}, "2 finite numbers"),
        ("adamw", {"beta1": "abc"}, "beta1 of adamw is a finite number"),
        ("sgd", {"momentum": "abc"}, "momentum of sgd is a finite number"),
        ("sgd", {"dampening": None}, "dampening of sgd is a finite number"),
        ("sgd", {"lr": math.inf}, "lr of sgd is a finite number"),
        ("sgd", {"nesterov": "maybe"}, "nesterov of sgd is True or False"),
        ("sgd", {"momentun": 0.9}, "did you mean momentum"),
        ("torch.optim:NAdam", {"betas": "abc"}, "2 finite numbers"),
    ],
)
def test_a_setting_of_another_kind_than_its_default_is_refused_in_words(name, settings, told):
    with pytest.raises(ValueError, match=told):
        get_contender(name).check(settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adamw", {"betas": (0.9, 0.95), "eps": 1e-6, "amsgrad": True, "foreach": None}),
        ("adamw", {"betas": [0.9, 0.95]}),
        ("sgd", {"momentum": 0, "nesterov": 0}),
        ("koala-m", {"r": None}),
        ("coolmomentum", {"cool_steps": 5}),
    ],
)
def test_settings_of_the_right_kind_make_an_optimizer(name, settings):
    contender = get_contender(name)
    contender.check(settings)
    contender.build([nn.Parameter(torch.zeros(2, 2))], settings, 10)


def test_what_a_class_raises_names_the_optimizer_and_two_ways_to_say_one_thing_are_refused():
    weights = [nn.Parameter(torch.zeros(2, 2))]
    made = get_contender("adamw").build(weights, {"betas": (0.8, 0.95)}, 10)
    assert made.param_groups[0]["betas"] == (0.8, 0.95)
    made = get_contender("adamw").build(weights, {"beta2": 0.95}, 10)
    assert made.param_groups[0]["betas"] == (0.9, 0.95)
    with pytest.raises(ValueError, match="betas and beta1 say the same"):
        get_contender("adamw").build(weights, {"betas": (0.8, 0.95), "beta1": 0.9}, 10)
    with pytest.raises(ValueError, match=r"lodo cannot be made with .*AttributeError"):
        get_contender("lodo").build(weights, {"generator": 3}, 10)


def test_a_race_refuses_a_space_of_settings_that_are_not_there_or_of_another_kind():
    task = get_task("bowl")
    for changes, told in (
        ({"momentun": 0.9}, "did you mean momentum"),
        ({"momentum": "abc"}, "a finite number"),
        ({"lr": {"one_of": ["a", 0.1]}}, "a finite number"),
    ):
        with pytest.raises(ValueError, match=told):
            entered("sgd", task, {"sgd": changes})
    with pytest.raises(ValueError, match="2 finite numbers"):
        entered("adamw", task, {"adamw": {"betas": [0.9, 0.95]}})
    assert entered("sgd", task, {"sgd": {"nesterov": True, "momentum": 0.9}}).fixed["momentum"] == 0.9


def test_names_that_are_known_stand_once():
    with pytest.raises(ValueError, match="known:") as refused:
        get_contender("zzzzz")
    names = str(refused.value).partition("known: ")[2].rstrip(".").split(", ")
    assert len(names) == len(set(names))


def test_a_table_of_spaces_is_named_as_an_optimizer_may_be_typed_and_none_is_lost(tmp_path):
    path = tmp_path / "spaces.toml"
    path.write_text("[AdamW]\nweight_decay = 0.1\n", encoding="utf-8")
    assert plain_spaces(path) == {"adamw": {"weight_decay": 0.1}}
    for text, told in (
        ("[sgx]\nlr = 0.1\n", "did you mean sgd"),
        ("[SGD]\nlr = 0.1\n[sgd]\nlr = 0.2\n", "changes sgd, which another table has changed"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(typer.BadParameter, match=told):
            plain_spaces(path)
