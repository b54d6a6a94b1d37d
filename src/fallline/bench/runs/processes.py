"""The processes of a run: which one this is, how a model is spread over them, and what they must agree on."""

import os
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

GRACE = 60.0
"""Seconds that processes have to end by themselves once one of them has failed."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    ranks: int = 1
    device: str = "cpu"
    """Where this one trains, such as `cuda:3`."""

    words: "dist.ProcessGroup | None" = None
    """Over which they agree: on the CPU, so that no accelerator waits. None: the default group."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are set in some process; the same answer in all."""
        if self.ranks == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.words)
        return tuple(bool(flag) for flag in told.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes; the tensor itself where there is one."""
        if self.ranks == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.ranks

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks; in the first process alone."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.gather_object(value, values if self.leads else None, group=self.words)
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.ranks > 1:
            dist.barrier(group=self.words)

    def spread(self, model: nn.Module, fsdp: bool) -> nn.Module:
        """What takes the place of the model in forward passes: its copy under DDP, or itself, sharded in place."""
        if fsdp:
            from torch.distributed.device_mesh import init_device_mesh

            shard(model, init_device_mesh(torch.device(self.device).type, (self.ranks,)))
            return model
        if self.ranks == 1:
            return model
        ids = [torch.device(self.device).index] if self.device != "cpu" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def shard(model: nn.Module, mesh: Any) -> None:
    """FSDP2: each block of the model's lists and sequences by itself, then the rest.

    A block whose weights are used elsewhere too (tied embeddings) goes with the rest.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    def uses(module: nn.Module) -> Counter[int]:
        return Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))

    everywhere = uses(model)
    for block in list(blocks(model)):
        here = uses(block)
        if here and not isinstance(block, FSDPModule) and all(everywhere[p] == times for p, times in here.items()):
            fully_shard(block, mesh=mesh)
    # KOALA-M evaluates elsewhere than it trains, and the root would keep the weights that it has gathered.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a model's lists and sequences, as far out as they are found, those of nested ones too."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) or not isinstance(module, nn.ModuleList | nn.Sequential):
            yield from blocks(child)
        else:
            yield child


@contextmanager
def joined(device: str, patience: float = 1800.0) -> Iterator[Processes]:
    """Take one's place among the processes that torchrun, or `launch`, has started; alone if nobody has.

    Args:
        device: `cpu` or `cuda`.
        patience: seconds after which a process that waits for another gives up.
    """
    if not started_by_others():
        yield Processes(device=device)
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device != "cpu":
        device = f"{device}:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(seconds=patience))
    try:
        yield Processes(rank, ranks, device, None if device == "cpu" else dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def started_by_others() -> bool:
    """Whether torchrun has started this process, as one of several or as the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(work: Callable[..., int], arguments: tuple[Any, ...], ranks: int) -> int:
    """Run `work(*arguments)` in so many processes of this machine, and return the exit code.

    Args:
        work: a function of a module; returns an exit code.
        arguments: what pickles.
        ranks: how many.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.spawn(_work, (work, arguments, ranks, port), nprocs=ranks, join=False)  # type: ignore[attr-defined, no-untyped-call]
    left = list(context.processes)
    patience: float | None = None
    while left:
        try:
            ended = wait([process.sentinel for process in left], patience)
        except KeyboardInterrupt:  # a terminal's Ctrl-C reaches every process: they save and end, and this one waits
            continue
        if not ended:
            for process in left:
                process.kill()
        left = [process for process in left if process.is_alive()]
        if any(process.exitcode for process in context.processes):
            patience = GRACE
    codes = [process.exitcode or 0 for process in context.processes]
    return next((code for code in codes if code), 0)


def _work(rank: int, work: Callable[..., int], arguments: tuple[Any, ...], ranks: int, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    try:
        code = work(*arguments)
    except KeyboardInterrupt:  # the second
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)
