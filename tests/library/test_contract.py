"""The promises that our optimizers keep beyond those of `fallline check`.

One table of optimizers, in `tests/helpers/methods.py`, times one test a promise. `tests/bench/check/test_table.py` puts
the same table to the promises of `fallline check`.
"""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bits import assert_bits, reloaded
from methods import GUARDED, METHODS, TABLE, close, everything, losses, make, net, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fallline
from fallline._settings import choices, intervals

Make = Callable[..., fallline.Optimizer]


@pytest.fixture(params=list(TABLE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- training ---------------------------------------------------------------------------------------------------


def test_it_learns(name: str) -> None:
    model = net()
    before = losses(model, 0).mean().item()
    train(model, make(name, model.parameters()), range(60))
    assert losses(model, 0).mean().item() < 0.9 * before


def test_step_takes_a_closure_and_returns_its_value(name: str) -> None:
    one, two = net(), net()
    opt = make(name, one.parameters())
    for i in range(3):

        def closure(i: int = i) -> Tensor:
            opt.zero_grad()
            assert torch.is_grad_enabled()
            each = losses(one, i)
            each.mean().backward()
            return each.detach()

        with torch.no_grad():
            value = opt.step(closure)
        assert value.shape == (8,)
    train(two, make(name, two.parameters()), range(3))
    assert_bits(list(one.parameters()), list(two.parameters()))


def test_maximize_is_minimize_of_the_negative(name: str) -> None:
    target = {"target": -1.0} if "koala" in name else {}
    up, down = net(torch.float64), net(torch.float64)
    opt = make(name, up.parameters(), maximize=True, **target)
    train(up, opt, range(5), sign=-1.0)
    train(down, make(name, down.parameters(), **{k: -v for k, v in target.items()}), range(5))
    close(up, down, 1e-12)


# -- gradients --------------------------------------------------------------------------------------------------


def test_a_subclass_may_pass_settings_on(name: str) -> None:
    """Also those whose default is None, which the subclass's own signature does not name."""
    cls, settings = TABLE[name]

    class Mine(cls):
        def __init__(self, params: Any, **more: Any) -> None:
            super().__init__(params, **more)

    unset = {one.name: None for one in inspect.signature(cls).parameters.values() if one.default is None}
    model = net()
    train(model, Mine(model.parameters(), **{**unset, **settings}), range(1))


def test_a_parameter_without_gradient_is_untouched(name: str) -> None:
    model = net()
    opt = make(name, model.parameters())
    train(model, opt, range(3))
    idle = model[0].weight

    def own() -> list[Any]:
        state = copy.deepcopy(dict(opt.state[idle]))
        if name.startswith("lodo"):  # it keeps the network of all, and only this is the parameter's own
            state = {"momentum": state["momentum"][: idle.numel()]}
        return [idle.detach().clone(), state]

    before = own()
    for i in range(3, 6):
        opt.zero_grad()
        each = losses(model, i)
        each.mean().backward()
        idle.grad = None
        opt.step(loss=each.detach())
    assert_bits(before, own())


def test_no_gradient_at_all_does_nothing(name: str) -> None:
    model = net()
    opt = make(name, model.parameters())
    before = everything(model, opt)
    opt.step()
    assert_bits(before, everything(model, opt))


def test_a_sparse_gradient_is_refused_before_anything_moves(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 3, sparse=True))
    opt = make(name, model.parameters())
    loss = model[0](model[1](torch.tensor([1, 2]))).square().mean()
    loss.backward()
    before = everything(model, opt)
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step(loss=loss)
    assert_bits(before, everything(model, opt))


def test_pieces_of_fsdp_s_first_version_are_refused_where_a_step_couples_tensors(name: str) -> None:
    """It marks them; that they lie in pieces is nothing that can be seen."""
    whole, piece = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    piece._fsdp_flattened = True  # type: ignore[attr-defined]
    opt = make(name, [whole])
    if name.startswith("cool") and not opt.defaults["skip_nonfinite"]:
        opt.add_param_group({"params": [piece]})
        return
    with pytest.raises(RuntimeError, match="fully_shard"):
        opt.add_param_group({"params": [piece]})
    assert len(opt.param_groups) == 1


def test_parameters_on_two_devices_are_refused_before_anything_moves(name: str) -> None:
    ps = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))]
    opt = make(name, ps)
    for p in ps:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="one device, and finds them on cpu and meta"):
        opt.step(loss=1.0)
    assert torch.equal(ps[0].detach(), torch.ones(2))


def test_a_loss_in_place_of_the_closure_is_answered(name: str) -> None:
    model = net()
    opt = make(name, model.parameters())
    loss = losses(model, 0).mean()
    loss.backward()
    with pytest.raises(TypeError, match=r"step\(loss=loss\)"):
        opt.step(loss)


def test_empty_and_scalar_and_strided_parameters(name: str) -> None:
    torch.manual_seed(0)
    ps = [
        nn.Parameter(t) for t in (torch.zeros(0, 3), torch.tensor(2.0), torch.randn(3, 4).t(), torch.randn(1, 2, 3, 3))
    ]
    ps[3].data = ps[3].data.to(memory_format=torch.channels_last)
    plain = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in ps[1:]]
    runs = [(ps, make(name, ps)), (plain, make(name, plain))]
    for params, opt in runs:
        for _ in range(3):
            opt.zero_grad()
            loss = sum((p - 0.5).square().sum() for p in params)
            loss.backward()
            opt.step(loss=loss.detach())
    for p, q in zip(ps[1:], plain, strict=True):
        torch.testing.assert_close(p, q)


# -- precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_arithmetic_rounded_to_nearest(name: str, half: torch.dtype) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(40).to(half))
    q = nn.Parameter(p.detach().float())
    low, high = make(name, [p]), make(name, [q])
    for i in range(4):
        g = torch.randn(40, generator=torch.Generator().manual_seed(i)).to(half)
        with torch.no_grad():
            q.copy_(p)  # the rounding is all that may differ
        p.grad, q.grad = g, g.float()
        low.step(loss=1.5)
        high.step(loss=1.5)
        assert torch.equal(p.detach(), q.detach().to(half))
        assert all(t.dtype == torch.float32 for t in low.state[p].values() if t.is_floating_point())
        for key, value in low.state[p].items():
            assert torch.equal(value, high.state[q][key])


def test_shared_scalars_are_device_tensors_common_to_all_groups(name: str) -> None:
    model = net(torch.bfloat16)
    *first, last = model.parameters()
    opt = make(name, [{"params": [p]} for p in first])
    train(model, opt, range(2))
    assert_shared(opt)
    opt.add_param_group({"params": [last], "lr": 0.01})
    train(model, opt, range(2, 4))
    assert_shared(opt)


def assert_shared(opt: fallline.Optimizer) -> None:
    first = opt.param_groups[0]
    tensors = [key for key, value in first.items() if isinstance(value, Tensor)]
    assert "skipped" in tensors
    for group in opt.param_groups:
        for key in tensors:
            assert group[key] is first[key]
            assert group[key].dim() == 0
            assert group[key].dtype == (torch.int64 if key == "skipped" else torch.float64)


# -- saving, loading, copying -----------------------------------------------------------------------------------


def through_torch_save(opt: fallline.Optimizer, fresh: fallline.Optimizer) -> fallline.Optimizer:
    fresh.load_state_dict(reloaded(opt.state_dict()))
    return fresh


def through_memory(opt: fallline.Optimizer, fresh: fallline.Optimizer) -> fallline.Optimizer:
    fresh.load_state_dict(opt.state_dict())
    return fresh


@pytest.mark.parametrize(
    ("dtype", "through"),
    [(torch.float32, through_memory), (torch.bfloat16, through_torch_save), (torch.float64, through_torch_save)],
)
def test_resume_equals_never_stopped_to_the_bit(name: str, through: Callable[..., Any], dtype: torch.dtype) -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        ps = list(model.parameters())
        return [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.02}]

    model = net(dtype)
    opt = make(name, groups(model))
    train(model, opt, range(5))
    other = net(dtype, seed=1)
    other.load_state_dict(model.state_dict())
    resumed = through(opt, make(name, groups(other), lr=7.0))
    assert_shared(resumed)
    assert_bits(everything(model, opt), everything(other, resumed))
    train(model, opt, range(5, 10))
    train(other, resumed, range(5, 10))
    assert_bits(everything(model, opt), everything(other, resumed))


def test_a_load_shares_nothing_with_its_source(name: str) -> None:
    model = net()
    opt = make(name, model.parameters())
    train(model, opt, range(2))
    state_dict = opt.state_dict()
    kept = copy.deepcopy(state_dict)
    other = net()
    train(other, through_memory(opt, make(name, other.parameters())), range(3))
    assert_bits(kept, state_dict)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original(name: str, copied: Callable[..., Any]) -> None:
    model = net()
    opt = make(name, [{"params": [p]} for p in model.parameters()])
    train(model, opt, range(3))
    model2, opt2 = copied((model, opt))
    assert_shared(opt2)
    train(model, opt, range(3, 6))
    train(model2, opt2, range(3, 6))
    assert_bits(everything(model, opt), everything(model2, opt2))


@pytest.mark.parametrize(("flat", "steps"), [(False, 0), (True, 3)])
def test_distributed_checkpoint(name: str, flat: bool, steps: int, tmp_path: Any) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as sd

    options = sd.StateDictOptions(flatten_optimizer_state_dict=flat)

    def build(seed: int) -> tuple[nn.Module, fallline.Optimizer]:
        model = net(torch.bfloat16, seed)
        ps = list(model.parameters())
        return model, make(name, [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.02}])

    model, opt = build(0)
    train(model, opt, range(steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about a single process
        whole = sd.get_optimizer_state_dict(model, opt, options=options)
        dcp.save({"model": model.state_dict(), "opt": whole}, checkpoint_id=tmp_path / "c", no_dist=True)
        other, opt2 = build(1)
        empty = {"model": other.state_dict(), "opt": sd.get_optimizer_state_dict(other, opt2, options=options)}
        dcp.load(empty, checkpoint_id=tmp_path / "c", no_dist=True)
        other.load_state_dict(empty["model"])
        sd.set_optimizer_state_dict(other, opt2, empty["opt"], options=options)
    assert_shared(opt2)
    train(model, opt, range(steps, steps + 3))
    train(other, opt2, range(steps, steps + 3))
    assert_bits(everything(model, opt), everything(other, opt2))


# -- the guard --------------------------------------------------------------------------------------------------

BAD = {
    "nan gradient": lambda g, loss: (torch.full_like(g, torch.nan), loss),
    "inf gradient": lambda g, loss: (torch.where(torch.arange(g.numel()).reshape(g.shape) == 0, torch.inf, g), loss),
    "overflowing norm": lambda g, loss: (torch.full_like(g, 1e30), loss),
    "nan loss": lambda g, loss: (g, torch.full_like(loss, torch.nan)),
    "inf loss": lambda g, loss: (g, torch.where(torch.arange(8) == 3, torch.inf, loss)),
}


@pytest.mark.parametrize("first", [True, False], ids=["first step", "mid-run"])
@pytest.mark.parametrize(
    ("name", "bad"), [(n, bad) for n in GUARDED for bad in BAD if "gradient" in bad or "norm" in bad or "koala" in n]
)
def test_a_nonfinite_step_changes_nothing(name: str, bad: str, first: bool) -> None:
    model, clear = net(), net()
    opt, opt2 = make(name, model.parameters()), make(name, clear.parameters())
    steps = 0 if first else 3
    train(model, opt, range(steps))
    train(clear, opt2, range(steps))
    opt.zero_grad()
    each = losses(model, 50)
    each.mean().backward()
    weight = model[2].weight
    weight.grad, each = BAD[bad](weight.grad, each.detach())
    before = everything(model, opt)
    opt.step(loss=each)  # warnings are errors here
    after = everything(model, opt)
    for group in after[2]:
        assert group.pop("skipped").item() == 1
    for group in before[2]:
        group.pop("skipped")
    assert_bits(before, after)
    train(model, opt, range(steps, steps + 3))
    train(clear, opt2, range(steps, steps + 3))
    assert_bits([p.detach() for p in model.parameters()], [p.detach() for p in clear.parameters()])
    assert opt.skipped.item() == 1


@pytest.mark.parametrize(
    "name",
    [
        "cool",
        "koala-v-unguarded",
        "koala-m-unguarded",
        "koala-pp-vanilla",
        "koala-metric-identity",
        "arturo-tensor",
        "lodo-unguarded",
    ],
)
def test_without_the_guard_a_nan_is_seen(name: str) -> None:
    model = net()
    opt = make(name, model.parameters())
    opt.zero_grad()
    losses(model, 0).mean().backward()
    model[0].weight.grad.fill_(torch.nan)
    opt.step(loss=1.0)
    assert model[0].weight.isnan().any()


# -- how it runs ------------------------------------------------------------------------------------------------


class NoSync(TorchDispatchMode):
    """Fails on whatever reads a tensor's value on the host."""

    forbidden = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.forbidden:
            raise AssertionError(f"{func} reads a value on the host")
        return func(*args, **(kwargs or {}))


def test_the_sync_test_can_fail() -> None:
    with pytest.raises(AssertionError, match="reads a value"), NoSync():
        float(torch.ones(()))


def test_step_reads_nothing_on_the_host(name: str) -> None:
    model = net()
    opt = make(name, model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5)
    for i in range(3):
        opt.zero_grad()
        each = losses(model, i)
        each.mean().backward()
        with NoSync():
            opt.step(loss=each.detach())
        scheduler.step()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fused_equals_eager_and_a_changing_lr_recompiles_nothing(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    eager, fused = net(dtype), net(dtype)
    runs = [
        (eager, make(name, eager.parameters())),
        (fused, make(name, fused.parameters(), fused=True, skip_nonfinite=True)),
    ]
    for model, opt in runs:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
        train(model, opt, range(2))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for i in range(2, 6):
                train(model, opt, range(i, i + 1))
                scheduler.step()
    close(eager, fused, 1e-12 if dtype == torch.float64 else 1e-2)
    assert runs[1][1].skipped.item() == 0


@pytest.mark.parametrize("name", METHODS)
def test_fused_writes_scalar_parameters(name: str) -> None:
    """Which have no dimension to run over, and stand beside state that has none either."""
    ends = []
    for fused in (False, True):
        ps = [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (2.0, [1.0, 3.0])]
        opt = make(name, ps, fused=fused)
        for _ in range(3):
            opt.zero_grad()
            loss = sum((p - 0.5).square().sum() for p in ps)
            loss.backward()
            opt.step(loss=loss.detach())
        ends.append([*ps, *(value for p in ps for value in opt.state[p].values())])
    for eager, compiled in zip(*ends, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fused", [False, True])
def test_step_under_torch_compile(name: str, fused: bool) -> None:
    torch._dynamo.reset()
    one, two = net(torch.float64), net(torch.float64)
    train(one, make(name, one.parameters()), range(4))
    opt = make(name, two.parameters(), fused=fused)

    compiled = torch.compile(opt.step, backend="aot_eager")  # a user's; torch 2.13 would lose the shared scalars
    for i in range(4):
        opt.zero_grad()
        each = losses(two, i)
        each.mean().backward()
        compiled(loss=each.detach())
    close(one, two, 1e-12)


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, _ in TABLE.values()), ids=lambda cls: cls.__name__)
def test_a_signature_names_every_setting_with_its_default(cls: type[fallline.Optimizer]) -> None:
    shown = inspect.signature(cls).parameters
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())
    settings = {name: one.default for name, one in shown.items() if name not in ("params", "generator")}
    assert settings == cls([nn.Parameter(torch.zeros(2))]).defaults
    assert list(shown)[-4:] == ["skip_nonfinite", "maximize", "stochastic_rounding", "fused"]


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, _ in TABLE.values()), ids=lambda cls: cls.__name__)
def test_bad_arguments_are_named_with_value_and_range(cls: type[fallline.Optimizer]) -> None:
    w = nn.Parameter(torch.zeros(2))
    assert intervals(cls).keys() | choices(cls).keys() <= cls([w]).defaults.keys()
    for name, interval in intervals(cls).items():
        for value in (float("nan"), "fast", True, -1.0 if interval[1] == "0" else float("inf")):
            with pytest.raises(ValueError, match=rf"^{name}=.*{value!r}.*range") as caught:
                cls([w], **{name: value})
            assert interval in str(caught.value)
    for name in choices(cls):
        with pytest.raises(ValueError, match=rf"^{name}='nonsense' is unknown: one of "):
            cls([w], **{name: "nonsense"})
    with pytest.raises(TypeError, match="no_such_setting"):
        cls([w], no_such_setting=1)
    opt = cls([w])
    with pytest.raises(ValueError, match=r"^lr=-1"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": -1})
    with pytest.raises(ValueError, match=r"^fused=True in a parameter group"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "fused": True})
    assert len(opt.param_groups) == 1
    with pytest.raises(ValueError, match="empty parameter list"):
        cls([])


def test_callables_stay_out_of_checkpoints() -> None:
    def halve(s: Tensor) -> Tensor:
        return 0.5 * (1 - s)

    w = nn.Parameter(torch.zeros(2))
    opt = fallline.CoolMomentum([w], schedule=halve, cool_steps=10)
    opt.load_state_dict(reloaded(opt.state_dict()))
    assert opt.param_groups[0]["schedule"] is halve
    koala = fallline.VanillaKOALA([w], target=halve)
    koala.load_state_dict(reloaded(koala.state_dict()))
    assert koala.param_groups[0]["target"] is halve
