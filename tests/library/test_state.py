"""State is loaded as a whole or not at all, and follows its parameters; settings that go bad move nothing."""

import copy
import io
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bits import assert_bits, everything
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import fallline
from fallline._settings import intervals

METHODS: dict[str, Callable[..., Any]] = {
    "koala-v": lambda ps, **more: fallline.VanillaKOALA(ps, **{"sigma": 0.1, **more}),
    "koala-m": fallline.MomentumKOALA,
    "koala-pp": lambda ps, **more: fallline.KOALAPlusPlus(ps, **{"sigma": 0.1, "q": 0.1, **more}),
    "koala-metric": fallline.MetricKOALA,
    "koala-orthogonal": fallline.OrthogonalKOALA,
    "arturo": fallline.ArTuRO,
    "arturo, second moment": lambda ps, **more: fallline.ArTuRO(ps, curvature="second-moment", **more),
    "lodo": lambda ps, **more: fallline.LODO(ps, **{"lr": 0.1, "depth": 3, "bucket_size": 12, **more}),
    "cool": lambda ps, **more: fallline.CoolMomentum(ps, cool_steps=50, **more),
}
every_method = pytest.mark.parametrize("method", METHODS)


def net(dtype: torch.dtype = torch.double) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for t in steps:
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(t), dtype=torch.double)
        optimizer.zero_grad()
        loss = (model(x.to(next(model.parameters()).dtype)) - 1).square().mean()
        loss.backward()
        optimizer.step(**({"loss": loss.detach()} if hasattr(optimizer, "observe") else {}))
    optimizer.zero_grad()


def trained(method: str, steps: int = 3, **more: Any) -> tuple[nn.Sequential, Any]:
    model = net()
    optimizer = METHODS[method](model.parameters(), **more)
    train(model, optimizer, range(steps))
    return model, optimizer


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# -- what does not fit is refused, and nothing has changed -----------------------------------------------------------


@every_method
def test_state_of_another_shape_names_the_parameter(method: str) -> None:
    """As many numbers in another shape, or more rows: fused kernels would write beyond its end."""
    if method in ("koala-v", "lodo"):
        pytest.skip("has no state of a parameter's shape")
    for shape, other in (((8, 10), (10, 8)), ((100, 8), (110, 8))):
        p, q = (nn.Parameter(torch.ones(s)) for s in (shape, other))
        old, new = METHODS[method]([("a.weight", p)]), METHODS[method]([("a.weight", q)])
        p.grad = torch.ones_like(p)
        old.step(lambda: 1.0)
        before = everything(new)
        with pytest.raises(ValueError, match=r"0 of group 0 \(a\.weight\) has the shape .*should have"):
            new.load_state_dict(old.state_dict())
        assert_bits(before, everything(new))


@pytest.mark.parametrize("other", [*METHODS, "SGD", "AdamW", "RMSprop", "Adagrad"])
@every_method
def test_a_foreign_checkpoint_says_whose_it_is(method: str, other: str) -> None:
    theirs = net()
    if other in METHODS:
        stranger = METHODS[other](theirs.parameters())
    else:
        stranger = getattr(torch.optim, other)(theirs.parameters(), lr=0.1)
    train(theirs, stranger, range(2))
    model, optimizer = trained(method)
    twin, untouched = copy.deepcopy((model, optimizer))
    before = everything(optimizer)
    name = type(stranger).__name__
    alike = {"koala-metric", "koala-orthogonal"}
    if method == other or {method, other} <= alike:
        optimizer.load_state_dict(stranger.state_dict())
        return
    if {method, other} <= {"arturo", "arturo, second moment"}:
        optimizer.load_state_dict(stranger.state_dict())  # one class: the settings come along
        train(model, optimizer, range(3, 5))
        return
    with pytest.raises(ValueError, match=rf"looks like that of .*{name}"):
        optimizer.load_state_dict(stranger.state_dict())
    assert_bits(before, everything(optimizer))
    train(model, optimizer, range(3, 6))
    train(twin, untouched, range(3, 6))
    assert same(model, twin)


def spoiled(state_dict: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A valid checkpoint with something replaced, dropped, added or listed twice."""
    spoilt = copy.deepcopy(state_dict)
    junk: list[Any] = [
        None, "text", 3, -1.5, math.nan, True, [], {}, (), b"x", torch.ones(7), torch.ones(()), torch.ones(2, 2).long(),
        torch.ones(3, 4), torch.zeros(0), torch.ones(2, dtype=torch.complex64), torch.ones(2, 2).to_sparse(),
        np.float32(2),
    ]  # fmt: skip
    where = rng.choice(["state", "entry", "entry", "entry", "group", "group", "params", "top", "number"])
    states, groups = spoilt["state"], spoilt["param_groups"]
    if where == "state" and states:
        key = rng.choice(list(states))
        rng.choice(
            [
                lambda: states.pop(key),
                lambda: states.update({key: rng.choice(junk)}),
                lambda: states.update({99: states[key]}),
                lambda: states.update({key: states[rng.choice(list(states))]}),
            ]
        )()
    elif where == "entry" and any(states.values()):
        entry = states[rng.choice([key for key in states if states[key]])]
        name = rng.choice(list(entry))
        value = entry[name]
        rng.choice(
            [
                lambda: entry.pop(name),
                lambda: entry.update({name: rng.choice(junk)}),
                lambda: entry.update({rng.choice(["other", 3, None]): value}),
                lambda: entry.update({name: value.reshape(-1)[:-1]}),
                lambda: entry.update({name: torch.stack([value, value])}),
                lambda: entry.update({name: value.long() if value.is_floating_point() else value.double()}),
                lambda: entry.update({name: value.float() if value.is_floating_point() else value}),
            ]
        )()
    elif where in ("group", "number"):
        group = rng.choice(groups)
        name = rng.choice([name for name in group if name != "params"])
        group.pop(name) if rng.random() < 0.2 else group.update({name: rng.choice(junk)})
    elif where == "params":
        group = rng.choice(groups)
        rng.choice(
            [
                lambda: group["params"].append(group["params"][0]),
                lambda: group["params"].pop(),
                lambda: group.update(params=group["params"][::-1]),
                lambda: group.update(params=[group["params"][0]] * len(group["params"])),
                lambda: group.update(params=rng.choice(junk)),
                lambda: group["params"].__setitem__(0, rng.choice(junk)),
                lambda: groups.append(copy.deepcopy(group)),
                lambda: groups.pop(),
            ]
        )()
    else:
        key = rng.choice(["state", "param_groups"])
        spoilt.pop(key) if rng.random() < 0.3 else spoilt.update({key: rng.choice(junk)})
    return spoilt


@every_method
@settings(max_examples=60, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_garbage_is_loaded_as_a_valid_optimizer_or_refused_as_a_whole(method: str, seed: int) -> None:
    model, optimizer = trained(method)
    twin, untouched = copy.deepcopy((model, optimizer))
    before = everything(optimizer)
    refused = ""
    try:
        optimizer.load_state_dict(spoiled(optimizer.state_dict(), random.Random(seed)))
    except ValueError as error:
        refused = str(error)
    if refused:
        assert "Nothing was loaded" in refused
        assert_bits(before, everything(optimizer))
        train(twin, untouched, range(3, 5))
        train(model, optimizer, range(3, 5))
        assert same(model, twin)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if hasattr(optimizer, "train"):
                optimizer.train()  # from the filtered point, if the checkpoint says that it was saved there
            train(model, optimizer, range(3, 5))


@pytest.mark.parametrize("when", ["before", "after", "midway"])
@every_method
def test_whatever_is_raised_while_loading_leaves_it_as_it_was(
    method: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained(method)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 5))
    twin, untouched = copy.deepcopy((model, optimizer))
    before = everything(optimizer)

    def fail(*args: Any) -> None:
        raise MemoryError("no memory is left")

    if when == "midway":
        monkeypatch.setattr(optimizer, "_move", fail)
    elif when == "before":
        optimizer.register_load_state_dict_pre_hook(fail)
    else:
        optimizer.register_load_state_dict_post_hook(fail)
    with pytest.raises(MemoryError):
        optimizer.load_state_dict(saved)
    assert_bits(before, everything(optimizer))
    train(model, optimizer, range(5, 8))
    train(twin, untouched, range(5, 8))
    assert same(model, twin)


@every_method
def test_a_checkpoint_of_before_loads(method: str) -> None:
    """Without settings and shared numbers that are newer than it: they keep the constructor's."""
    model, optimizer = trained(method)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for name in ("lowest", "loss_mean", "loss_variance", "skip_nonfinite"):
            group.pop(name, None)
    other = copy.deepcopy(model)
    again = METHODS[method](other.parameters())
    again.load_state_dict(saved)
    train(model, optimizer, range(3, 6))
    train(other, again, range(3, 6))
    assert same(model, other)


# -- state follows its parameters --------------------------------------------------------------------------------------


@every_method
def test_names_decide_where_parameters_come_in_another_order(method: str) -> None:
    """By torch.distributed.checkpoint, and by optimizers that were given names."""
    for way in ("distributed", "named"):
        model = net()
        optimizer = METHODS[method](model.named_parameters() if way == "named" else model.parameters())
        train(model, optimizer, range(4))
        other = copy.deepcopy(model)
        order = sorted(other.named_parameters(), key=lambda pair: pair[1].dim())  # biases first
        again = METHODS[method](order if way == "named" else [p for _, p in order])
        if way == "named":
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        else:
            set_optimizer_state_dict(other, again, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
        train(model, optimizer, range(4, 8))
        train(other, again, range(4, 8))
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_a_network_of_lodo_as_version_0_1_wrote_it_loads() -> None:
    """It named its parameters by their places in the group."""
    model, optimizer = trained("lodo")
    saved = optimizer.state_dict()
    buckets: dict[int, list[tuple[int, int]]] = {}
    for i, state in saved["state"].items():
        state = saved["state"][i] = dict(state)
        buckets.setdefault(int(state.pop("bucket")), []).append((int(state.pop("place")), i))
    for members in buckets.values():
        ids = [i for _, i in sorted(members)]
        saved["state"][ids[0]]["members"] = torch.tensor(ids)
    assert len(buckets) > 1
    other = copy.deepcopy(model)
    again = METHODS["lodo"](other.parameters())
    again.load_state_dict(saved)
    train(model, optimizer, range(3, 6))
    train(other, again, range(3, 6))
    assert same(model, other)


def test_parts_of_a_network_of_lodo_in_two_groups_are_refused() -> None:
    model, optimizer = trained("lodo", bucket_size=1000)
    other = copy.deepcopy(model)
    ps = list(other.parameters())
    again = METHODS["lodo"]([{"params": ps[:2]}, {"params": ps[2:]}], bucket_size=1000)
    saved = optimizer.state_dict()
    one = saved["param_groups"][0]
    saved["param_groups"] = [{**one, "params": one["params"][:2]}, {**one, "params": one["params"][2:]}]
    with pytest.raises(ValueError, match="another group"):
        again.load_state_dict(saved)


def test_one_place_of_a_network_of_lodo_for_two_parameters_is_refused() -> None:
    _, optimizer = trained("lodo", bucket_size=1000)
    before, saved = everything(optimizer), optimizer.state_dict()
    saved["state"][2] = dict(saved["state"][1])
    with pytest.raises(ValueError, match="parameter 2 of group 0 has the place of parameter 1 of group 0"):
        optimizer.load_state_dict(saved)
    assert_bits(before, everything(optimizer))


def test_a_point_that_a_method_does_not_have_is_refused() -> None:
    """Only KOALA-M's checkpoint may say that it was saved at the filtered point."""
    for method in ("koala-v", "koala-pp", "koala-metric", "koala-orthogonal"):
        _, optimizer = trained(method)
        saved = optimizer.state_dict()
        saved["param_groups"][0]["evaluating"] = True
        with pytest.raises(ValueError, match="evaluating is True"):
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.half, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", [torch.float, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [0, 2])
@every_method
def test_state_is_of_the_type_that_the_parameters_have_become(
    method: str, steps: int, first: torch.dtype, dtype: torch.dtype
) -> None:
    """Double for double, float32 for all others: as if the optimizer had been made afterwards."""
    model = net(first)
    optimizer = METHODS[method](model.parameters())
    train(model, optimizer, range(steps))
    model.to(dtype)
    other = copy.deepcopy(model)
    again = METHODS[method](other.parameters())
    train(model, optimizer, range(steps, steps + 2))
    train(other, again, range(steps, steps + 2))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        types = {name: t.dtype for name, t in again.state[q].items()}
        assert {name: t.dtype for name, t in optimizer.state[p].items()} == types
    assert all(p.isfinite().all() for p in model.parameters())
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    if steps == 0 and first == torch.float:
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6 if dtype.itemsize > 2 else 0.02, atol=1e-6)


@every_method
def test_parameters_and_groups_come_and_go(method: str) -> None:
    model = net()
    ps = list(model.parameters())
    optimizer = METHODS[method]([{"params": ps[:2]}, {"params": ps[2:]}])
    train(model, optimizer, range(2))
    gone = optimizer.param_groups[1]["params"].pop()  # stays where it is
    rest = gone.detach().clone()
    train(model, optimizer, range(2, 4))
    assert torch.equal(gone, rest)
    model[0].bias = optimizer.param_groups[0]["params"][1] = nn.Parameter(
        torch.zeros(4).double()
    )  # another in its place
    train(model, optimizer, range(4, 6))
    assert model[0].bias.any()
    del optimizer.param_groups[0]
    kept = model[0].weight.detach().clone()
    train(model, optimizer, range(6, 8))
    assert torch.equal(model[0].weight, kept)
    optimizer.add_param_group({"params": [model[0].weight]})
    train(model, optimizer, range(8, 10))
    assert not torch.equal(model[0].weight, kept)
    assert all(p.isfinite().all() for p in model.parameters())


@every_method
def test_a_parameter_that_is_listed_twice_counts_once(method: str) -> None:
    def ends(listed: Callable[[list[nn.Parameter]], list[nn.Parameter]]) -> nn.Module:
        model = net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's
            optimizer = METHODS[method](listed(list(model.parameters())))
        train(model, optimizer, range(4))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer, range(4, 6))
        if hasattr(optimizer, "posterior"):
            with optimizer.posterior():
                return copy.deepcopy(model)
        return model

    assert same(ends(lambda ps: ps), ends(lambda ps: [*ps, ps[0]]))


@every_method
def test_lazy_parameters_get_their_state_when_they_have_a_shape(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = METHODS[method](model.parameters())
    train(model, optimizer, range(2))
    torch.manual_seed(0)
    other = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2)).double()
    other(torch.ones(1, 3).double())
    with torch.no_grad():
        other.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    assert all(p in optimizer.state or method == "koala-v" for p in model.parameters())
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@every_method
def test_a_default_device_is_no_matter(method: str, fused: bool) -> None:
    plain = net()
    train(plain, METHODS[method](plain.parameters(), fused=fused), range(2))
    model = net()
    with torch.device("meta"):
        optimizer = METHODS[method](model.parameters(), fused=fused)
        for t in range(2):
            x = torch.randn(16, 3, generator=torch.Generator().manual_seed(t), dtype=torch.double, device="cpu")
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step(**({"loss": loss.detach()} if hasattr(optimizer, "observe") else {}))
        optimizer.load_state_dict(optimizer.state_dict())
    assert same(plain, model)


# -- settings ----------------------------------------------------------------------------------------------------------

BAD = [-1e-3, math.nan, math.inf, -math.inf, None, "0.1", [0.1], True, np.float32(-1), torch.ones(2)]


@pytest.mark.parametrize("lr", BAD, ids=repr)
@every_method
def test_a_learning_rate_that_went_bad_is_refused_before_anything_moves(method: str, lr: Any) -> None:
    model, optimizer = trained(method)
    twin, untouched = copy.deepcopy((model, optimizer))
    good = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = lr
    before = weights(model)
    with pytest.raises(ValueError, match=r"group 0: lr=.*range.*schedule"):
        train(model, optimizer, range(3, 4))
    assert all(map(torch.equal, before, weights(model)))
    optimizer.param_groups[0]["lr"] = good
    train(model, optimizer, range(3, 5))
    train(twin, untouched, range(3, 5))
    assert same(model, twin)


@pytest.mark.parametrize("lr", [-1e-3, math.nan, math.inf])
@every_method
def test_a_tensor_that_went_bad_counts_as_zero(method: str, lr: float) -> None:
    """Its value is not read on the host; nothing turns into NaN, and good rates go on."""
    ends = []
    for bad in (lr, 0.0):
        model = net()
        optimizer = METHODS[method](model.parameters(), lr=torch.tensor(0.1))
        for t, value in enumerate((0.1, bad, bad, 0.1)):
            optimizer.param_groups[0]["lr"].fill_(value)
            train(model, optimizer, range(t, t + 1))
        ends.append(model)
    assert same(*ends)
    assert all(p.isfinite().all() for p in ends[0].parameters())


@every_method
def test_other_settings_are_looked_at_again_too(method: str) -> None:
    model, optimizer = trained(method)
    before = weights(model)
    changed = 0
    for name, interval in intervals(type(optimizer)).items():
        if not interval.startswith(("[0", "(0")) or optimizer.param_groups[0][name] is None:
            continue
        good = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = -1.0
        with pytest.raises(ValueError, match=rf"group 0: .*{name}"):
            train(model, optimizer, range(3, 4))
        optimizer.param_groups[0][name] = good
        changed += 1
    assert changed >= 2
    assert all(map(torch.equal, before, weights(model)))


@every_method
def test_numbers_of_numpy_are_numbers(method: str) -> None:
    plain, model = net(), net()
    one = METHODS[method](plain.parameters(), lr=0.125, maximize=False, skip_nonfinite=True)
    group = {"params": list(model.parameters()), "lr": np.array(0.125)}
    other = METHODS[method]([group], lr=np.float32(0.5), maximize=np.bool_(False), skip_nonfinite=np.True_)
    train(plain, one, range(2))
    train(model, other, range(2))
    one.param_groups[0]["lr"], other.param_groups[0]["lr"] = 0.25, np.float32(0.25)
    train(plain, one, range(2, 4))
    train(model, other, range(2, 4))
    assert same(plain, model)
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))


def test_whole_numbers_and_pairs_of_numpy() -> None:
    p = nn.Parameter(torch.ones(4, 3))
    assert fallline.CoolMomentum([p], cool_steps=np.int64(100)).param_groups[0]["cool_steps"] == 100
    lodo = fallline.LODO([p], depth=np.int64(4), meta_betas=(np.float32(0.5), np.float64(0.25)))
    assert lodo.param_groups[0]["meta_betas"] == (0.5, 0.25)
    assert fallline.VanillaKOALA([p], target=np.float32(0.5)).param_groups[0]["target"] == 0.5


@every_method
def test_a_switch_is_true_or_false(method: str) -> None:
    for value in ("no", 0, 1.0, None):
        with pytest.raises(ValueError, match=r"maximize=.*True or False"):
            METHODS[method]([nn.Parameter(torch.ones(2, 2))], maximize=value)
