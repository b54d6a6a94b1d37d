# mypy: allow-untyped-defs, no-check-untyped-defs
"""Gradients as they really come: missing, zero, sparse, strided, shared."""

import torch

from fallline.bench.check.promises._promise import promise


@promise(unless_closure="its closure makes the gradients")
def none_at_all(Optimizer, settings):
    """A step without any gradient does nothing, and asks for nothing.

    Loops call it after a batch that was skipped, and so do tools that only want the hooks to run.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    opt.step()
    assert torch.equal(w, torch.ones(3, 3)), "a step without gradients moved a parameter"


@promise()
def one_missing(Optimizer, settings, given):
    """A parameter without a gradient rests while the others move.

    Branches that a batch did not take, experts that saw no token, heads of other tasks.
    """
    a, b = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    opt = Optimizer([a, b], **settings)
    a.grad, b.grad = torch.randn(3, 3), torch.randn(3, 3)
    opt.step(**given(torch.tensor(1.0)))
    before, b.grad = (a.detach().clone(), b.detach().clone()), None
    for _ in range(20):
        a.grad = torch.randn(3, 3)
        opt.step(**given(torch.tensor(1.0)))
    assert torch.equal(b, before[1]), "a parameter without a gradient moved"
    assert not torch.equal(a, before[0]), "the parameter with a gradient did not move"


@promise()
def zero_gradients_without_a_loss(Optimizer, settings):
    """With zero gradients, lr 0 and `step(closure=None)` it makes its state, and moves nothing.

    torch.distributed.checkpoint calls exactly this before it loads: who demands a loss there cannot be resumed.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    w.grad = torch.zeros(3, 3)
    opt.param_groups[0]["lr"] = 0.0
    opt.step(closure=None)
    assert torch.equal(w, torch.ones(3, 3)), "a step with zero gradients and lr 0 moved a parameter"


@promise()
def never_written(Optimizer, settings, given):
    """A step does not write into gradients, and leaves them where they are.

    They are accumulated on, logged, clipped again, and shared with DDP's buckets.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    for _ in range(3):
        w.grad = g = torch.randn(3, 3)
        before = g.clone()
        opt.step(**given(torch.tensor(1.0)))
        assert torch.equal(g, before), "a step wrote into a gradient"
        assert w.grad is g, "a step took a gradient away"


@promise()
def never_kept(Optimizer, settings, given):
    """A step keeps no gradient: to write over it afterwards changes nothing.

    `zero_grad(set_to_none=False)` and DDP's buckets reuse the memory.
    """
    ends = []
    for spoil in (1.0, 7.0):
        opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
        for i in range(4):
            w.grad = g = torch.arange(9.0).view(3, 3) - i
            opt.step(**given(torch.tensor(1.0)))
            g.fill_(spoil)
        ends.append(w.detach())
    assert torch.equal(*ends), "what was written into the gradient after a step changed the next"


@promise(may_refuse=True)
def sparse(Optimizer, settings, step):
    """A sparse gradient trains as the dense one does, or is refused in words.

    `Embedding(sparse=True)` makes them; the danger is a step that is silently another.
    """
    one, two = (torch.nn.Embedding(4, 3, sparse=is_sparse) for is_sparse in (True, False))
    two.load_state_dict(one.state_dict())
    opts = [Optimizer(net.parameters(), **settings) for net in (one, two)]
    step(opts[0], lambda: (one(torch.tensor([1, 2])) - 1).square(), times=3)
    step(opts[1], lambda: (two(torch.tensor([1, 2])) - 1).square(), times=3)
    torch.testing.assert_close(one.weight, two.weight)


@promise()
def strided(Optimizer, settings, given):
    """A gradient of other strides, such as a transposed or an expanded one, is read right.

    Kernels that walk along the memory read it in the wrong order.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 4))], **settings)
    plain = Optimizer([v := torch.nn.Parameter(torch.ones(3, 4))], **settings)
    for g in (torch.randn(4, 3).t(), torch.randn(3, 1).expand(3, 4)):
        w.grad, v.grad = g, g.contiguous()
        opt.step(**given(torch.tensor(1.0)))
        plain.step(**given(torch.tensor(1.0)))
    torch.testing.assert_close(w, v)


@promise()
def zero_grad(Optimizer, settings):
    """`zero_grad()` leaves None, and `zero_grad(set_to_none=False)` zeros.

    The first frees memory; the second keeps addresses for graphs and buckets.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    (w - 2).square().sum().backward()
    opt.zero_grad(set_to_none=False)
    assert w.grad is not None, "zero_grad(set_to_none=False) leaves None"
    assert not w.grad.any(), "zero_grad(set_to_none=False) does not leave zeros"
    opt.zero_grad()
    assert w.grad is None, "zero_grad() does not leave None"


@promise()
def in_place(Optimizer, settings, step):
    """A parameter stays the same leaf at the same address.

    Tied weights, DDP, exported graphs and the optimizer itself hold on to it.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    address = w.data_ptr()
    step(opt, lambda: (w - 1).square(), times=3)
    assert w.data_ptr() == address, "the parameter has moved to other memory"
    assert w.is_leaf, "the parameter is no leaf any more"
    assert w.requires_grad, "the parameter no longer requires a gradient"


@promise()
def seen_by_autograd(Optimizer, settings, step):
    """A backward pass through weights that a step has changed meanwhile raises.

    Written through `.data` they change behind autograd's back, and the gradient is silently wrong.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
    stale = (w * w).sum()
    step(opt, lambda: (w - 1).square(), times=1)
    try:
        stale.backward()
    except RuntimeError:
        pass
    else:
        raise AssertionError("a stale backward pass used the new weights without a word")
