# mypy: allow-untyped-defs, no-check-untyped-defs
"""Other dtypes and other shapes than a float32 matrix, and numbers that are none."""

import torch

from fallline.bench.check.promises._promise import promise


@promise(may_refuse=True)
def bfloat16(Optimizer, settings, step):
    """Parameters in bfloat16 stay finite and in bfloat16, and move, or are refused in words.

    Half of all models are kept so; an eps or a square that leaves the range shows here.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.zeros(8, 8).bfloat16())], **settings)
    aim = torch.randn(8, 8)
    step(opt, lambda: 64 * (w - aim).square(), times=20)
    assert w.dtype == torch.bfloat16, f"after twenty steps it is of {w.dtype}"
    assert w.isfinite().all(), "after twenty steps it is not finite"
    assert w.any(), "it did not move"


@promise(may_refuse=True)
def float16(Optimizer, settings, step):
    """Parameters in float16 stay finite and in float16, and move, or are refused in words.

    An eps of 1e-8 is zero there, and the square of a gradient of 300 infinite.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.zeros(8, 8).half())], **settings)
    aim = torch.randn(8, 8)
    step(opt, lambda: 64 * (w - aim).square(), times=20)
    assert w.dtype == torch.float16, f"after twenty steps it is of {w.dtype}"
    assert w.isfinite().all(), "after twenty steps it is not finite"
    assert w.any(), "it did not move"


@promise()
def float64_is_not_rounded(Optimizer, settings, given):
    """Parameters in float64 are written, and their state kept, in float64.

    Constants and buffers in float32 take half of the digits.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.zeros(3, 3).double())], **settings)
    for _ in range(20):
        w.grad = torch.randn(3, 3, dtype=torch.float64)
        opt.step(**given(torch.tensor(1.0).double()))
    assert w.any(), "it did not move"
    assert not torch.equal(w, w.float().double()), "what was written was rounded to float32"
    like = [v for v in opt.state[w].values() if isinstance(v, torch.Tensor) and v.shape == w.shape]
    assert all(v.dtype == torch.float64 for v in like if v.is_floating_point()), "the state is of another dtype"


@promise(may_refuse=True)
def complex_numbers(Optimizer, settings, step):
    """Complex parameters train as pairs of reals, or are refused in words.

    Some steps square a complex gradient where they mean its modulus.
    """
    z = torch.nn.Parameter(torch.randn(3, dtype=torch.complex128))
    one = Optimizer([z], **settings)
    two = Optimizer([r := torch.nn.Parameter(torch.view_as_real(z.detach()).clone())], **settings)
    step(one, lambda: (torch.view_as_real(z) - 1).square(), times=3)
    step(two, lambda: (r - 1).square(), times=3)
    torch.testing.assert_close(torch.view_as_real(z), r)


@promise()
def nan_is_guarded_or_seen(Optimizer, settings, step, given):
    """A NaN in a gradient shows in the parameter, or the step changes nothing and the run goes on.

    In between lies the worst: weights that look sound over state that is lost.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    step(opt, lambda: (w - 2).square(), times=2)
    before, w.grad = w.detach().clone(), torch.full((3, 3), torch.nan)
    opt.step(**given(torch.tensor(1.0)))
    if not w.isnan().all():
        assert torch.equal(w, before), "a NaN in the gradient moved the parameter to finite values"
        step(opt, lambda: (w - 2).square(), times=2)
        assert w.isfinite().all(), "the step with the NaN was skipped, and those after it are lost"
        assert not torch.equal(w, before), "the step with the NaN was skipped, and those after it too"


@promise(may_refuse=True)
def scalars(Optimizer, settings, step):
    """A parameter without dimensions trains, or is refused in words.

    Temperatures and scales are such.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.tensor(3.0))], **settings)
    step(opt, lambda: (w - 1).square(), times=20)
    assert w.isfinite(), f"from 3 it went to {w.item()}"
    assert w != 3.0, "it did not move"


@promise(may_refuse=True)
def empty(Optimizer, settings, step):
    """A parameter without elements does no harm, or is refused in words.

    Shards are often empty, and means over nothing are NaN.
    """
    a, b = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.zeros(0, 3))
    with_it = Optimizer([a, b], **settings)
    without = Optimizer([c := torch.nn.Parameter(torch.zeros(3, 3))], **settings)
    step(with_it, lambda: torch.cat([a, b]).sub(1).square(), times=3)
    step(without, lambda: (c - 1).square(), times=3)
    torch.testing.assert_close(a, c)


@promise()
def not_contiguous(Optimizer, settings, step):
    """A parameter that is not contiguous in memory trains as its contiguous copy.

    Transposed and channels-last weights are such; flattened they are copies, and what is written there is lost.
    """
    w = torch.nn.Parameter(torch.randn(4, 3).t())
    opt = Optimizer([w], **settings)
    plain = Optimizer([v := torch.nn.Parameter(w.detach().clone(memory_format=torch.contiguous_format))], **settings)
    before = w.detach().clone()
    step(opt, lambda: (w - 1).square(), times=20)
    step(plain, lambda: (v - 1).square(), times=20)
    assert not torch.equal(w, before), "it did not move"
    torch.testing.assert_close(w, v)


@promise(may_refuse=True)
def made_double_afterwards(Optimizer, settings, step):
    """`model.double()` after the optimizer was made trains as before it was made, or is refused in words.

    Trainers cast the model when all is set up; state in the old dtype takes half of the digits.
    """
    import copy

    net = torch.nn.Linear(3, 3, bias=False)
    twin = copy.deepcopy(net).double()
    opt, plain = Optimizer(net.parameters(), **settings), Optimizer(twin.parameters(), **settings)
    net.double()
    step(opt, lambda: (net.weight - 1).square(), times=3)
    step(plain, lambda: (twin.weight - 1).square(), times=3)
    torch.testing.assert_close(net.weight, twin.weight, rtol=1e-12, atol=1e-12)


@promise(may_refuse=True)
def tensor_subclass(Optimizer, settings, step):
    """A parameter of a subclass that wraps another tensor trains as the plain one, or is refused in words.

    Quantised and sharded weights are such. Their numbers are not where `data_ptr` says.
    """
    from torch.testing._internal.subclasses import WrapperSubclass

    plain = torch.randn(3, 3)
    w, v = torch.nn.Parameter(WrapperSubclass(plain.clone())), torch.nn.Parameter(plain)
    opt, other = Optimizer([w], **settings), Optimizer([v], **settings)
    step(opt, lambda: (w - 1).square(), times=3)
    step(other, lambda: (v - 1).square(), times=3)
    torch.testing.assert_close(w.detach().a, v.detach())
