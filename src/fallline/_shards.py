"""Tensors that lie in pieces on several ranks: local pieces, sums over the pieces, means over the ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(t: Tensor) -> Tensor:
    """What this rank holds of ``t``, as a real tensor that shares its memory."""
    if isinstance(t, DTensor):
        t = t.to_local()
    return torch.view_as_real(t) if t.is_complex() else t


def size(p: Tensor) -> int:
    """Real numbers in ``p``, over all shards."""
    return p.numel() * (2 if p.is_complex() else 1)


def sum_over_shards(rows: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Complete sums taken over local pieces: ``rows`` is [tensors, sums], ``params`` the tensors they belong to."""
    sharded: dict[dist.ProcessGroup, list[int]] = {}
    for i, p in enumerate(params):
        if isinstance(p, DTensor):
            for dim, placement in enumerate(p.placements):
                if placement.is_shard():
                    sharded.setdefault(p.device_mesh.get_group(dim), []).append(i)
    for group, index in sharded.items():
        part = rows[index]
        dist.all_reduce(part, group=group)
        rows[index] = part
    return rows


def mean_over_ranks(t: Tensor) -> Tensor:
    """Average over all ranks, each of which saw its share of the batch; the identity in a single process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(t)
        t = t / dist.get_world_size()
    return t
