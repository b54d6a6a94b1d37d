# mypy: allow-untyped-defs, no-check-untyped-defs
"""Two processes: data parallel, and sharded parameters. Run these with `torchrun --nproc-per-node 2`."""

import torch

from fallline.bench.check.promises._promise import promise


@promise(ranks=2)
def data_parallel(Optimizer, settings, step):
    """Under DistributedDataParallel two processes with half of the batch each are one with all of it.

    What is read of the loss or of the data must be averaged as the gradients are, or the processes drift apart.
    """
    import copy

    torch.distributed.init_process_group("gloo")
    x, rank = torch.randn(8, 4).double(), torch.distributed.get_rank()
    one = torch.nn.Linear(4, 3, bias=False).double()
    two = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(one))
    single, parallel = Optimizer(one.parameters(), **settings), Optimizer(two.parameters(), **settings)
    for _ in range(5):
        step(single, lambda: (one(x) - 1).square())
        step(parallel, lambda: (two(x[4 * rank : 4 * rank + 4]) - 1).square())
    torch.testing.assert_close(two.module.weight, one.weight, rtol=1e-9, atol=1e-12)


@promise(ranks=2)
def ranks_alike(Optimizer, settings, step):
    """Under DistributedDataParallel both processes end with the same bits, whatever their own random numbers.

    Nothing brings processes together again that have drifted apart.
    """
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 3, bias=False))
    opt = Optimizer(net.parameters(), **settings)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(rank))
    step(opt, lambda: (net(x) - 1).square(), times=10)
    both = [torch.empty(3, 4) for _ in range(2)]
    torch.distributed.all_gather(both, net.module.weight.detach())
    assert torch.equal(*both), "the two processes have other weights"


@promise(ranks=2)
def sharded(Optimizer, settings, step):
    """Under FSDP2 two processes with a shard each, an empty one among them, are one process.

    A norm of a shard is not the norm of the parameter.
    """
    import copy

    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    net = [torch.nn.Linear(4, 3, bias=False), torch.nn.Tanh(), torch.nn.Linear(3, 1, bias=False)]
    one, x = torch.nn.Sequential(*net).double(), torch.randn(2, 4, 4).double()
    two = fully_shard(copy.deepcopy(one), mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    single, parallel = Optimizer(one.parameters(), **settings), Optimizer(two.parameters(), **settings)
    step(single, lambda: (one(x) - 1).square(), times=5)
    step(parallel, lambda: (two(x[torch.distributed.get_rank()]) - 1).square(), times=5)
    whole = [p.full_tensor() for p in two.parameters()]
    torch.testing.assert_close(whole, list(one.parameters()), rtol=1e-9, atol=1e-12)


@promise(ranks=2)
def sharded_resumes(Optimizer, settings, step):
    """Under FSDP2 the state goes through torch.distributed.checkpoint.state_dict and back.

    A run on many devices is interrupted more often than one on one.
    """
    import copy

    import torch.distributed.checkpoint.state_dict as saved
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    mesh, x = torch.distributed.init_device_mesh("cpu", (2,)), torch.randn(8, 4)
    one, two = (fully_shard(torch.nn.Linear(4, 3, bias=False), mesh=mesh) for _ in range(2))
    step(opt := Optimizer(one.parameters(), **settings), lambda: (one(x) - 1).square(), times=3)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    resumed = Optimizer(two.parameters(), **settings)
    saved.set_optimizer_state_dict(two, resumed, copy.deepcopy(saved.get_optimizer_state_dict(one, opt)))
    step(opt, lambda: (one(x) - 1).square(), times=3)
    step(resumed, lambda: (two(x) - 1).square(), times=3)
    assert torch.equal(one.weight.full_tensor(), two.weight.full_tensor()), "a resumed run takes another path"
