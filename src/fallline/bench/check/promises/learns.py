# mypy: allow-untyped-defs, no-check-untyped-defs
"""The loss falls: without this nothing else matters."""

import torch

from fallline.bench.check.promises._promise import promise


@promise()
def in_float32(Optimizer, settings, step, value):
    """The loss of a small regression falls, in float32.

    An optimizer that raises the loss under its own settings has a wrong sign, a wrong scale or a wrong default.
    """
    x, net = torch.randn(16, 5), torch.nn.Linear(5, 3, bias=False)
    y = x @ torch.randn(5, 3)
    opt = Optimizer(net.parameters(), **settings)
    before = (net(x) - y).square().mean().item()
    step(opt, lambda: (net(x) - y).square(), times=50)
    after = value(opt, lambda: (net(x) - y).square())
    assert after < before, f"the loss went from {before:.6g} to {after:.6g} in 50 steps"


@promise()
def in_float64(Optimizer, settings, step, value):
    """The loss of a small regression falls, in float64.

    Constants made as float32 tensors, and buffers of a fixed dtype, raise here or round.
    """
    x, net = torch.randn(16, 5).double(), torch.nn.Linear(5, 3, bias=False).double()
    y = x @ torch.randn(5, 3).double()
    opt = Optimizer(net.parameters(), **settings)
    before = (net(x) - y).square().mean().item()
    step(opt, lambda: (net(x) - y).square(), times=50)
    after = value(opt, lambda: (net(x) - y).square())
    assert after < before, f"the loss went from {before:.6g} to {after:.6g} in 50 steps"


@promise(may_refuse=True)
def a_network(Optimizer, settings, step, value):
    """The loss of a network with biases and a normalisation falls.

    Real models have parameters of one dimension too; a class for matrices alone should say so when it is made.
    """
    x, y = torch.randn(16, 5), torch.randn(16, 3)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    opt = Optimizer(net.parameters(), **settings)
    before = (net(x) - y).square().mean().item()
    step(opt, lambda: (net(x) - y).square(), times=50)
    after = value(opt, lambda: (net(x) - y).square())
    assert after < before, f"the loss went from {before:.6g} to {after:.6g} in 50 steps"


@promise()
def the_same_twice(Optimizer, settings, step):
    """Two runs from the same seed end in the same bits.

    A run that cannot be repeated cannot be debugged, and a comparison over seeds loses its pairs.
    """
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        net, x = torch.nn.Linear(5, 3, bias=False), torch.randn(16, 5)
        opt = Optimizer(net.parameters(), **settings)
        step(opt, lambda net=net, x=x: (net(x) - 1).square(), times=5)
        ends.append(net.weight.detach())
    assert torch.equal(*ends), "the same seed led to other weights"
