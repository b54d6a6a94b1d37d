# mypy: allow-untyped-defs, no-check-untyped-defs
"""What the constructor takes and what it refuses: as everything in torch.optim."""

import torch

from fallline.bench.check.promises._promise import promise


@promise()
def is_an_optimizer(Optimizer, settings):
    """It is a torch.optim.Optimizer, with its settings in every group and in its printed form.

    Schedulers, trainers and checkpoints test for the class, and read nothing but `param_groups`.
    """
    opt = Optimizer([torch.nn.Parameter(torch.ones(3, 3))], **settings)
    assert isinstance(opt, torch.optim.Optimizer), "it is no subclass of torch.optim.Optimizer"
    assert all(name in opt.param_groups[0] for name in settings), "a setting is not in param_groups"
    assert type(opt).__name__ in repr(opt), "its printed form does not name it"


@promise(may_refuse=True)
def lr_in_every_group(Optimizer, settings):
    """Every group has a learning rate under the name `lr`, or several groups are refused in words.

    Every scheduler writes it, and trainers print it: without it they end in KeyError: 'lr'.
    """
    ps = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    opt = Optimizer([{"params": ps[:1]}, {"params": ps[1:]}], **settings)
    assert all("lr" in group for group in opt.param_groups), "a group has no lr"


@promise()
def unknown_settings_refused(Optimizer, settings):
    """A setting that it does not have is refused.

    A misspelled name that is swallowed trains with the default, and nobody notices.
    """
    try:
        Optimizer([torch.nn.Parameter(torch.ones(3, 3))], **settings, no_such_setting=1)
    except Exception:  # mostly Python's own TypeError
        pass
    else:
        raise AssertionError("the setting no_such_setting was taken without a word")


@promise(needs="lr", demands=True)
def negative_lr_refused(Optimizer, settings):
    """A negative learning rate is refused.

    It would climb instead of descending.
    """
    Optimizer([torch.nn.Parameter(torch.ones(3, 3))], **{**settings, "lr": -1.0})
    raise AssertionError("lr=-1.0 was taken without a word")


@promise(needs="lr", demands=True)
def nan_lr_refused(Optimizer, settings):
    """A learning rate that is not a number is refused.

    A search that divides by zero should hear of it at once, and not when all weights are lost.
    """
    Optimizer([torch.nn.Parameter(torch.ones(3, 3))], **{**settings, "lr": float("nan")})
    raise AssertionError("lr=nan was taken without a word")


@promise(demands=True)
def no_parameters_refused(Optimizer, settings):
    """An empty list of parameters is refused.

    It is what a generator that was used up looks like, and a model all of whose layers were filtered out.
    """
    Optimizer([], **settings)
    raise AssertionError("an empty list of parameters was taken without a word")


@promise(demands=True)
def a_parameter_in_two_groups_refused(Optimizer, settings):
    """A parameter that is in two groups is refused.

    It would be stepped twice.
    """
    w = torch.nn.Parameter(torch.ones(3, 3))
    Optimizer([{"params": [w]}, {"params": [w]}], **settings)
    raise AssertionError("a parameter in two groups was taken without a word")


@promise(may_refuse=True)
def a_parameter_listed_twice(Optimizer, settings, step):
    """A parameter that is listed twice in a group is refused, warned of, or stepped once.

    Tied weights get into a list that way, and the second step is one that nobody asked for.
    """
    import warnings

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        twice = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3)), w], **settings)
    once = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    step(twice, lambda: (w - 2).square(), times=3)
    step(once, lambda: (v - 2).square(), times=3)
    assert said or torch.equal(w, v), "a parameter listed twice was stepped twice without a word"


@promise(needs="lr")
def numpy_numbers(Optimizer, settings, step):
    """A learning rate that is a number of numpy's does what Python's does.

    Searches and sweeps draw such numbers.
    """
    import numpy

    for number in (numpy.float64, numpy.float32):
        opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **{**settings, "lr": number(0.125)})
        plain = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **{**settings, "lr": 0.125})
        step(opt, lambda w=w: (w - 2).square(), times=3)
        step(plain, lambda v=v: (v - 2).square(), times=3)
        torch.testing.assert_close(w, v)


@promise()
def named_parameters(Optimizer, settings, step):
    """Named parameters are taken, their names kept, and they train as those without names.

    torch's checkpoints match parameters by these names when the order has changed.
    """
    net, twin = (torch.nn.Linear(4, 3, bias=False) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    named, plain = Optimizer(net.named_parameters(), **settings), Optimizer(twin.parameters(), **settings)
    step(named, lambda: (net.weight - 1).square(), times=3)
    step(plain, lambda: (twin.weight - 1).square(), times=3)
    assert torch.equal(net.weight, twin.weight), "with names other weights come out"
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight"], "the names were not kept"


@promise()
def generators(Optimizer, settings, step):
    """Parameters may come from a generator, which can be read only once.

    `model.parameters()` is one.
    """
    w = torch.nn.Parameter(torch.randn(3, 3))
    opt, before = Optimizer((p for p in [w]), **settings), w.detach().clone()
    step(opt, lambda: (w - 1).square(), times=20)
    assert not torch.equal(w, before), "a parameter from a generator did not move"
