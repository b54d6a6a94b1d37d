# mypy: allow-untyped-defs, no-check-untyped-defs
"""Groups of parameters: each with settings of its own, joining and leaving while a run goes on."""

import torch

from fallline.bench.check.promises._promise import promise


@promise(may_refuse=True)
def two_alike_are_one(Optimizer, settings, step):
    """Two groups with the same settings train as one, or are refused in words.

    Splitting off the biases should not change a run before their settings are changed.
    """
    a, b = (torch.nn.Parameter(torch.randn(3, 3).double()) for _ in range(2))
    c, d = (torch.nn.Parameter(p.detach().clone()) for p in (a, b))
    one = Optimizer([a, b], **settings)
    two = Optimizer([{"params": [c]}, {"params": [d]}], **settings)
    step(one, lambda: (a @ b - 1).square(), times=5)
    step(two, lambda: (c @ d - 1).square(), times=5)
    torch.testing.assert_close((c, d), (a, b), rtol=1e-9, atol=1e-12)


@promise(may_refuse=True)
def own_lr(Optimizer, settings, step):
    """A group's own learning rate holds for it alone: with 0 it rests while the other moves, or it is refused in words.

    Fine-tuning gives every layer a rate of its own.
    """
    a, b = (torch.nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    before = a.detach().clone(), b.detach().clone()
    opt = Optimizer([{"params": [a], "lr": 0.0}, {"params": [b]}], **settings)
    step(opt, lambda: (a @ b - 1).square(), times=20)
    assert torch.equal(a, before[0]), "the group with lr 0 moved"
    assert not torch.equal(b, before[1]), "the other group did not move"


@promise()
def lr_set_by_hand(Optimizer, settings, step):
    """A learning rate written into a group holds from then on.

    It is how schedulers, warm-ups and trainers set it; a copy made in the constructor ignores them.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.zeros(3, 3))], **settings)
    opt.param_groups[0]["lr"] = 0.0
    step(opt, lambda: (w - 1).square(), times=2)
    assert not w.any(), "it moved with the learning rate 0 in its group"


@promise(may_refuse=True)
def joining_in_mid_run(Optimizer, settings, step):
    """A group that is added in mid run trains while the first goes on, or is refused in words.

    Layers are unfrozen one after the other, and networks grow.
    """
    a, b = (torch.nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    opt = Optimizer([a], **settings)
    step(opt, lambda: (a @ b - 1).square(), times=3)
    opt.add_param_group({"params": [b]})
    before = a.detach().clone(), b.detach().clone()
    step(opt, lambda: (a @ b - 1).square(), times=20)
    assert not torch.equal(a, before[0]), "the first group no longer moves"
    assert not torch.equal(b, before[1]), "the group that joined does not move"


@promise()
def frozen_and_thawed(Optimizer, settings, step):
    """A frozen parameter rests and costs no state; thawed, it trains.

    The frozen part of a model is often the largest, and its state would not fit.
    """
    a, b = (torch.nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    opt, before = Optimizer([a, b.requires_grad_(False)], **settings), b.detach().clone()
    step(opt, lambda: (a @ b - 1).square(), times=3)
    assert torch.equal(b, before), "the frozen parameter moved"
    assert not opt.state.get(b), "the frozen parameter has state"
    b.requires_grad_(True)
    step(opt, lambda: (a @ b - 1).square(), times=20)
    assert not torch.equal(b, before), "the thawed parameter does not move"
