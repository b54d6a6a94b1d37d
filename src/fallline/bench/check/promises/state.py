# mypy: allow-untyped-defs, no-check-untyped-defs
"""What a run remembers survives saving, loading and copying: resumed equals never stopped."""

import torch

from fallline.bench.check.promises._promise import promise


@promise()
def resumes(Optimizer, settings, step):
    """A new optimizer that loads the state goes on to the same bits.

    Otherwise every interruption starts another run.
    """
    import copy

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    resumed = Optimizer([v := torch.nn.Parameter(w.detach().clone())], **settings)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    step(opt, lambda: (w - 1).square(), times=3)
    step(resumed, lambda: (v - 1).square(), times=3)
    assert torch.equal(w, v), "a resumed run takes another path"


@promise()
def resumes_from_a_file(Optimizer, settings, step):
    """The same through `torch.save` and `torch.load(weights_only=True)`.

    Which is torch's default: classes and functions in the state are refused there.
    """
    import io

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    torch.save(opt.state_dict(), file := io.BytesIO())
    resumed = Optimizer([v := torch.nn.Parameter(w.detach().clone())], **settings)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    step(opt, lambda: (w - 1).square(), times=3)
    step(resumed, lambda: (v - 1).square(), times=3)
    assert torch.equal(w, v), "a run resumed from a file takes another path"


@promise()
def resumes_before_the_first_step(Optimizer, settings, step):
    """A state saved before the first step loads, and the run is the same.

    Checkpoint loaders save and load at step 0, and a job may be stopped while it warms up.
    """
    import copy

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    fresh = Optimizer([v := torch.nn.Parameter(w.detach().clone())], **settings)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    step(opt, lambda: (w - 1).square(), times=3)
    step(fresh, lambda: (v - 1).square(), times=3)
    assert torch.equal(w, v), "a run that loaded at its start takes another path"


@promise(may_refuse=True)
def two_groups_resume(Optimizer, settings, step):
    """Two groups with rates of their own go on to the same bits, rates included, or are refused in words.

    The rate at which a run was stopped is part of it.
    """
    import copy

    a, b = (torch.nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    opt = Optimizer([{"params": [a]}, {"params": [b], "lr": 0.125}], **settings)
    step(opt, lambda: (a @ b - 1).square(), times=3)
    c, d = copy.deepcopy((a, b))
    resumed = Optimizer([{"params": [c]}, {"params": [d]}], **settings)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    step(opt, lambda: (a @ b - 1).square(), times=3)
    step(resumed, lambda: (c @ d - 1).square(), times=3)
    assert torch.equal(torch.stack([a, b]), torch.stack([c, d])), "two groups resumed take another path"


@promise()
def bfloat16_state_keeps_its_precision(Optimizer, settings, step):
    """State beside bfloat16 parameters has the same dtypes and bits after a load.

    torch casts state to the parameter's dtype on load: float32 moments lose 16 bits unless a class undoes it.
    """
    import copy

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3).bfloat16())], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    resumed = Optimizer([v := torch.nn.Parameter(w.detach().clone())], **settings)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for name, value in opt.state[w].items():
        if isinstance(value, torch.Tensor):
            loaded = resumed.state[v][name]
            assert loaded.dtype == value.dtype, f"{name} of {value.dtype} came back in {loaded.dtype}"
            assert torch.equal(loaded, value), f"{name} came back with other values"


@promise()
def deepcopies(Optimizer, settings, step):
    """A deep copy goes on as the original, and apart from it.

    Population-based training, and every "what if" in a notebook.
    """
    import copy

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    v, twin = copy.deepcopy((w, opt))
    step(opt, lambda: (w - 1).square(), times=3)
    step(twin, lambda: (v - 1).square(), times=3)
    assert torch.equal(w, v), "a deep copy takes another path"


@promise()
def pickles(Optimizer, settings, step):
    """A pickle goes on as the original.

    It is how optimizers get into other processes.
    """
    import pickle

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    v, twin = pickle.loads(pickle.dumps((w, opt)))
    step(opt, lambda: (w - 1).square(), times=3)
    step(twin, lambda: (v - 1).square(), times=3)
    assert torch.equal(w, v), "a pickle takes another path"


@promise()
def a_load_shares_nothing(Optimizer, settings, step):
    """What was loaded is a copy: training on does not change the state that it came from.

    A "best state so far" that changes under one's hands is worth nothing.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    other = Optimizer([v := torch.nn.Parameter(w.detach().clone())], **settings)
    other.load_state_dict(opt.state_dict())
    before = {name: value.clone() for name, value in opt.state[w].items() if isinstance(value, torch.Tensor)}
    step(other, lambda: (v - 1).square(), times=3)
    for name, value in before.items():
        assert torch.equal(opt.state[w][name], value), f"{name} is shared with the optimizer that it was loaded into"


@promise()
def keys_are_parameters(Optimizer, settings, step):
    """The keys of `optimizer.state` are parameters.

    torch.distributed.checkpoint and FSDP look every key up among the model's.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    assert all(key is w for key in opt.state), "a key of the state is no parameter"


@promise()
def hooks(Optimizer, settings):
    """The hooks of state_dict and load_state_dict run, and what they return counts.

    Libraries wrap, shard and rename state with them.
    """
    opt, notes = Optimizer([torch.nn.Parameter(torch.ones(3, 3))], **settings), []
    opt.register_state_dict_post_hook(lambda _, state: {**state, "note": "seen"})
    opt.register_load_state_dict_pre_hook(lambda _, state: (notes.append(state["note"]), state)[1])
    opt.register_load_state_dict_post_hook(lambda _: notes.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert notes == ["seen", "loaded"], f"of the hooks of saving and loading these ran: {notes}"


@promise(demands=True)
def another_shape_refused(Optimizer, settings):
    """The state of a run with another number of parameters is refused.

    It belongs to another model.
    """
    ps = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(3)]
    one, two = Optimizer(ps[:1], **settings), Optimizer(ps[1:], **settings)
    one.load_state_dict(two.state_dict())
    raise AssertionError("the state of two parameters was loaded for one without a word")


@promise(demands=True)
def other_sizes_refused(Optimizer, settings, step):
    """The state of parameters of other sizes is refused in words when it is loaded.

    It ends in an obscure error later, or is broadcast to what fits.
    """
    import copy

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    other = Optimizer([torch.nn.Parameter(torch.randn(5, 4))], **settings)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    like = [v for v in opt.state[w].values() if isinstance(v, torch.Tensor) and v.shape == w.shape]
    assert not like, "the state of a parameter of 3 x 3 was loaded for one of 5 x 4 without a word"


@promise(demands=True)
def garbage_refused(Optimizer, settings, step):
    """A state that is text where a parameter's tensors should be is refused in words when it is loaded.

    A file of another program, or of another version, is loaded by mistake; the run should not begin.
    """
    import copy

    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    state = copy.deepcopy(opt.state_dict())
    state["state"][0] = "garbage"
    opt.load_state_dict(state)
    raise AssertionError("a state that is text was loaded without a word")


@promise()
def a_refused_load_changes_nothing(Optimizer, settings, step):
    """Where `load_state_dict` raises, the optimizer is as before.

    Who catches the error and trains on has an optimizer that is half of one run and half of another.
    """
    import copy

    for wrong in (str, lambda state: None, lambda state: dict.fromkeys(state, torch.ones(5, 4))):
        opt = Optimizer([a := torch.nn.Parameter(torch.eye(3)), b := torch.nn.Parameter(torch.ones(3, 3))], **settings)
        step(opt, lambda a=a, b=b: (a @ b - 2).square(), times=3)
        state = copy.deepcopy(opt.state_dict())
        step(opt, lambda a=a, b=b: (a @ b - 2).square(), times=3)
        before = repr(opt.state_dict())
        try:
            opt.load_state_dict({**state, "state": {**state["state"], 1: wrong(state["state"].get(1, {}))}})
        except Exception:
            assert repr(opt.state_dict()) == before, "a load that was refused has changed the optimizer"


@promise()
def distributed_checkpoint(Optimizer, settings, step):
    """The state goes through torch.distributed.checkpoint.state_dict and back.

    FSDP, torchtitan and most trainers save so, with parameters by name.
    """
    import copy

    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net = torch.nn.Linear(4, 3, bias=False)
    step(opt := Optimizer(net.parameters(), **settings), lambda: (net.weight - 1).square(), times=3)
    other = copy.deepcopy(net)
    resumed = Optimizer(other.parameters(), **settings)
    set_optimizer_state_dict(other, resumed, copy.deepcopy(get_optimizer_state_dict(net, opt)))
    step(opt, lambda: (net.weight - 1).square(), times=3)
    step(resumed, lambda: (other.weight - 1).square(), times=3)
    assert torch.equal(net.weight, other.weight), "a run resumed by torch.distributed.checkpoint takes another path"


@promise()
def distributed_checkpoint_flat(Optimizer, settings, step):
    """The same with the state flattened, one entry a parameter and setting.

    The form in which a checkpoint may be read on another number of processes.
    """
    import copy

    import torch.distributed.checkpoint.state_dict as saved

    flat = saved.StateDictOptions(flatten_optimizer_state_dict=True)
    net = torch.nn.Linear(4, 3, bias=False)
    step(opt := Optimizer(net.parameters(), **settings), lambda: (net.weight - 1).square(), times=3)
    other = copy.deepcopy(net)
    resumed = Optimizer(other.parameters(), **settings)
    state = copy.deepcopy(saved.get_optimizer_state_dict(net, opt, options=flat))
    saved.set_optimizer_state_dict(other, resumed, state, options=flat)
    step(opt, lambda: (net.weight - 1).square(), times=3)
    step(resumed, lambda: (other.weight - 1).square(), times=3)
    assert torch.equal(net.weight, other.weight), "a run resumed from a flat state takes another path"


@promise()
def in_another_order(Optimizer, settings, step):
    """Through torch.distributed.checkpoint.state_dict the state finds parameters in another order, by their names.

    A model whose layers are defined or grouped in another order is the same model.
    """
    import copy

    import torch.distributed.checkpoint.state_dict as saved

    net, x = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(2))).double(), torch.eye(3).double()
    step(opt := Optimizer(net.parameters(), **settings), lambda: (net(x) - 1).square(), times=3)
    other = copy.deepcopy(net)
    resumed = Optimizer([*other.parameters()][::-1], **settings)
    saved.set_optimizer_state_dict(other, resumed, copy.deepcopy(saved.get_optimizer_state_dict(net, opt)))
    step(opt, lambda: (net(x) - 1).square(), times=3)
    step(resumed, lambda: (other(x) - 1).square(), times=3)
    torch.testing.assert_close(list(net.parameters()), list(other.parameters()), rtol=1e-5, atol=1e-5)
