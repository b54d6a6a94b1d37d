# mypy: allow-untyped-defs, no-check-untyped-defs
"""What makes a step slow without making it wrong: waiting for the device, compiling again, keeping things."""

import torch

from fallline.bench.check.promises._promise import promise


@promise()
def reads_nothing(Optimizer, settings, given):
    """A step reads no tensor's value on the host.

    On a GPU each read waits until all work is done. A counter that is kept on the CPU on purpose counts here as well,
    although reading it waits for nothing; whether the device itself is read, the next promise tells.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        is_infra_mode = classmethod(lambda cls: True)  # so a step that compiles itself runs under it too

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func), "a step reads a tensor's value: .item(), float() or if"
            return func(*args, **(kwargs or {}))

    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    for _ in range(3):
        w.grad = torch.randn(3, 3)
        with Watch():
            opt.step(**given(torch.tensor(1.0)))


@promise(may_refuse=True)
def works_without_values(Optimizer, settings, given):
    """A step runs on torch's `meta` device, whose tensors have no values to read, or refuses it in words.

    So it waits for no GPU, and makes its state where the parameter is.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3, device="meta"))], **settings)
    for _ in range(3):
        w.grad = torch.ones(3, 3, device="meta")
        opt.step(**given(torch.ones((), device="meta")))
    like = [v for v in opt.state[w].values() if isinstance(v, torch.Tensor) and v.shape == w.shape]
    assert all(v.is_meta for v in like), "it makes its state elsewhere than where the parameter is"


@promise()
def keeps_nothing(Optimizer, settings, step):
    """After a few steps, more steps make no more tensors.

    A list that grows, or a graph that is kept, ends in a lack of memory after an hour.
    """
    import gc

    gc.freeze()
    opt, alive = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings), []
    for _ in range(3):
        step(opt, lambda: (w - 2).square(), times=4)
        gc.collect()
        alive.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
    gc.unfreeze()
    assert alive[2] <= alive[1], f"{alive[2] - alive[1]} more tensors are alive after four more steps"


@promise()
def compiles_right(Optimizer, settings, given):
    """`torch.compile(optimizer.step)` takes the same steps, while the learning rate changes.

    What the compiler takes for a constant stays what it was: a schedule is ignored, a counter stands still.
    """
    w, v = (torch.nn.Parameter(torch.ones(3, 3).double()) for _ in range(2))
    opt, plain = Optimizer([w], **settings), Optimizer([v], **settings)
    compiled = torch.compile(opt.step, backend="eager")
    for i in range(6):
        w.grad, v.grad = 2 * (w.detach() - 2), 2 * (v.detach() - 2)
        opt.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 0.1 / (i + 1)
        compiled(**given((w - 2).square()))
        plain.step(**given((v - 2).square()))
    torch.testing.assert_close(w, v, rtol=1e-4, atol=1e-4)


@promise()
def compiles_once(Optimizer, settings, given):
    """`torch.compile(optimizer.step)` compiles nothing more once a few learning rates were seen.

    A Python number that changes with every step has it compiled anew each time, until torch gives up.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    graphs, counts = [], []
    compiled = torch.compile(opt.step, backend=lambda graph, _: (graphs.append(graph), graph)[1])
    for i in range(8):
        w.grad, opt.param_groups[0]["lr"] = torch.randn(3, 3), 0.1 / (i + 1)
        compiled(**given(torch.tensor(1.0)))
        counts.append(len(graphs))
    assert counts[3] == counts[7], f"after each of eight steps so many graphs were compiled: {counts}"
