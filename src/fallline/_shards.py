"""Tensors that lie in pieces on several ranks: local pieces, sums over the pieces, means over the ranks."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def local(ts: Sequence[Tensor], like: Sequence[Tensor] | None = None, *, real: bool = False) -> list[Tensor]:
    """What this rank holds of each tensor, as a real tensor that shares its memory.

    Gradients are laid out ``like`` their parameters: backward leaves that of a replicated weight as a sum yet to be
    taken over the ranks, where these saw different positions of a sequence. ``real``: none of the tensors is complex.
    """
    if _any_sharded(ts):
        ts = [
            t if (shard := _sharded(t)) is None else _laid_out(shard, p).to_local()
            for t, p in zip(ts, like or ts, strict=True)
        ]
    if not real and any(map(Tensor.is_complex, ts)):
        ts = [torch.view_as_real(t if like is None else t.resolve_conj()) if t.is_complex() else t for t in ts]
    return list(ts)


def whole(t: Tensor) -> Tensor:
    """All of ``t`` on every rank, as a real tensor."""
    shard = _sharded(t)
    if shard is not None:
        t = shard.full_tensor()
    return torch.view_as_real(t) if t.is_complex() else t


def gathered(t: Tensor, p: Tensor) -> Tensor:
    """The whole of a tensor that is laid out as ``p``, and of which ``t`` is what this rank holds."""
    shard = _sharded(p)
    if shard is None:
        return t
    from torch.distributed.tensor import DTensor

    shape = torch.Size((*p.shape, 2) if p.is_complex() else p.shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(t, shard.device_mesh, shard.placements, shape=shape, stride=stride).full_tensor()


def part(t: Tensor, p: Tensor) -> Tensor:
    """What this rank holds of ``p``, out of a flat real tensor that has its :func:`size`, the same on every rank."""
    t = t.view((*p.shape, 2) if p.is_complex() else p.shape)
    shard = _sharded(p)
    if shard is not None:
        from torch.distributed.tensor import distribute_tensor

        t = distribute_tensor(t, shard.device_mesh, shard.placements, src_data_rank=None).to_local()
    return t


def size(p: Tensor) -> int:
    """Real numbers in ``p``, over all shards."""
    return p.numel() * (2 if p.is_complex() else 1)


def over_shards(rows: Tensor, params: Sequence[Tensor], maxima: int = 0) -> Tensor:
    """Complete sums taken over local pieces: ``rows`` is [tensors, sums], ``params`` the tensors they belong to.

    The last ``maxima`` columns are completed as maxima.
    """
    if not _any_sharded(params):
        return rows
    sharded: dict[dist.ProcessGroup, list[int]] = {}
    for i, p in enumerate(params):
        shard = _sharded(p)
        if shard is not None:
            for dim, placement in enumerate(shard.placements):
                if not placement.is_replicate():  # two kinds of shards: FSDP2 beside tensor parallelism has its own
                    sharded.setdefault(shard.device_mesh.get_group(dim), []).append(i)
    for group, index in sharded.items():
        sums, largest = rows[index].tensor_split([rows.shape[1] - maxima], dim=1)
        sums, largest = sums.contiguous(), largest.contiguous()
        dist.all_reduce(sums, group=group)
        if maxima:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        rows[index] = torch.cat([sums, largest], dim=1)
    return rows


def mean_over_ranks(t: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Average over the ranks of a group, by default all; the identity in a single process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(t, group=group)
        t = t / dist.get_world_size(group)
    return t


def gather_anew(model: torch.nn.Module) -> None:
    """For parameters that were moved between two passes: FSDP2 keeps what the root gathered until a backward pass."""
    module: Any = sys.modules.get("torch.distributed.fsdp")
    if module is not None:
        for part in model.modules():
            if isinstance(part, module.FSDPModule):
                part.reshard()


def _laid_out(t: "DTensor", p: Tensor) -> "DTensor":
    shard = _sharded(p)
    if shard is None or shard.placements == t.placements:
        return t
    return t.redistribute(shard.device_mesh, shard.placements)


def _any_sharded(ts: Sequence[Tensor]) -> bool:
    return not set(map(type, ts)) <= {Tensor, Parameter}


def _sharded(t: Tensor) -> "DTensor | None":
    # Importing DTensor costs as much time as torch itself; where nobody has imported it there are none.
    module: Any = sys.modules.get("torch.distributed.tensor")
    return t if module is not None and isinstance(t, module.DTensor) else None
