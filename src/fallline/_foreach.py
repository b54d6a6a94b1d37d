"""How a kernel of one tensor runs over many: in a loop, or as one compiled graph.

A kernel is a function of one parameter and whatever belongs to it (gradient, state, numbers of its own),
in that order, and of keyword scalars that all tensors share. It ends in ``_`` if it writes; then it writes
to its parameter and its state in place, never to the gradient. It may return a tuple of sums.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]
HALF = (torch.float16, torch.bfloat16)

# Each set of tensor shapes is a graph of its own, and torch's own limit of 8 is soon met by parameter groups.
_GRAPHS = 256
_PER_FUNCTION_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters  # torch >= 2.13


def run(kernel: Kernel, lists: Sequence[Sequence[Tensor]], scalars: dict[str, Any], fused: bool) -> list[Any]:
    """Apply ``kernel`` to the i-th element of every list, for all i; the first list holds the parameters.

    Args:
        lists: equally long lists: parameters, then gradients, state, 0-D tensors, as the kernel takes them.
        scalars: numbers, 0-D tensors or None, the same for all tensors.
        fused: one compiled graph for the whole list. Scalars enter as tensors, so their change recompiles nothing.
    """
    if not fused:
        return _loop(kernel, lists, scalars)
    tensors = {k: v if v is None else torch.as_tensor(v, dtype=_wide(v)) for k, v in scalars.items()}
    graph = _compiled(kernel)
    if any(p.dim() == 0 for p in lists[0]):
        # torch 2.13 loses what a graph writes to a 0-D float64 tensor on the CPU: as a vector of one it is kept.
        rows = [[t.view(1) if row[0].dim() == t.dim() == 0 else t for t in row] for row in zip(*lists, strict=True)]
        lists = [list(column) for column in zip(*rows, strict=True)]
    if _PER_FUNCTION_LIMIT:
        return graph(lists, tensors)
    with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
        return graph(lists, tensors)


def squared_norm(t: Tensor) -> Tensor:
    """Sum of squares, without a temporary of the tensor's size; infinite where it overflows ``t``'s precision."""
    norm: Tensor = torch.linalg.vector_norm(t)
    return norm.square()


def clean(g: Tensor, ok: Tensor | None) -> Tensor:
    """The gradient, or zeros if ``ok`` (0-D bool) is false: a coefficient of 0 would not undo a NaN."""
    return g if ok is None else torch.where(ok, g, 0.0)


def _loop(kernel: Kernel, lists: Sequence[Sequence[Tensor]], scalars: dict[str, Any]) -> list[Any]:
    return [_one(kernel, tensors, scalars) for tensors in zip(*lists, strict=True)]


def _one(kernel: Kernel, tensors: tuple[Tensor, ...], scalars: dict[str, Any]) -> Any:
    p = tensors[0]
    if not any(t.dtype in HALF for t in tensors):
        return kernel(*tensors, **scalars)
    wide = [t.float() if t.dtype in HALF else t for t in tensors]  # half precision: arithmetic in float32
    sums = kernel(*wide, **scalars)
    if kernel.__name__.endswith("_") and p.dtype in HALF:  # state is float32 already and was written in place
        p.copy_(wide[0])
    return sums


@functools.cache
def _compiled(kernel: Kernel) -> Callable[..., list[Any]]:
    """One graph over the unrolled list: compiled at the first step, then kept in torch's disk cache."""

    def over_all(lists: Sequence[Sequence[Tensor]], scalars: dict[str, Any]) -> list[Any]:
        return _loop(kernel, lists, scalars)

    limit: dict[str, Any] = {"recompile_limit": _GRAPHS} if _PER_FUNCTION_LIMIT else {}
    compiled: Callable[..., list[Any]] = torch.compile(over_all, fullgraph=True, dynamic=False, **limit)
    return compiled


def _wide(value: Any) -> torch.dtype | None:
    return torch.float64 if isinstance(value, float) else None
