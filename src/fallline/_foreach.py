"""How a kernel of one tensor runs over many: in a loop, or fused into one pass over all elements.

A kernel is a function of one parameter and whatever belongs to it (gradient, state, numbers of its own), in that order,
and of keyword scalars that all tensors share. It ends in ``_`` if it writes; then it writes to its parameter and its
state in place, never to the gradient. It may return a tuple of sums.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._fused import Kernel, Lists, launch
from ._tape import HALF

# Each set of shapes is a graph of its own, and torch's own limit of 8 is soon met by LODO's buckets.
_GRAPHS = 256
_PER_FUNCTION_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters  # torch >= 2.13


def run(kernel: Kernel, lists: Lists, scalars: dict[str, Any], fused: bool) -> Tensor | None:
    """Apply ``kernel`` to the i-th element of every list, for all i; the first list holds the parameters.

    Args:
        lists: equally long: parameters, then gradients, state, 0-D tensors, as the kernel takes them; a list of numbers
            may be a 1-D tensor.
        scalars: numbers, 0-D tensors or None, the same for all tensors.
        fused: one pass over all elements, in code that is made for the kernel and the dtypes.

    Returns:
        The sums that the kernel returns: [tensors, sums], float64 where fused; None if it returns none.

    Raises:
        RuntimeError: ``fused``, and there is no compiler, or none for the device.
    """
    if fused:
        return launch(kernel, lists, scalars)
    rows = zip(*(x.unbind() if isinstance(x, Tensor) else x for x in lists), strict=True)
    sums = [_one(kernel, row, scalars) for row in rows]
    return torch.stack([value for row in sums for value in row]).view(len(sums), -1) if sums[0] else None


def squared_norm(t: Tensor) -> Tensor:
    """Sum of squares, without a temporary of the tensor's size; infinite where it overflows ``t``'s precision."""
    norm: Tensor = torch.linalg.vector_norm(t)
    return norm.square()


def clean(g: Tensor, ok: Tensor | None) -> Tensor:
    """The gradient, or zeros if ``ok`` (0-D bool) is false: a coefficient of 0 would not undo a NaN."""
    return g if ok is None else torch.where(ok, g, 0.0)


def call(function: Kernel, tensors: Sequence[Tensor], scalars: dict[str, Tensor], fused: bool) -> Any:
    """A function of whole tensors, which no loop over elements can do: a graph of :func:`torch.compile` if fused."""
    if not fused:
        return function(*tensors, **scalars)
    if _PER_FUNCTION_LIMIT:
        return _graph(function)(*tensors, **scalars)
    with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
        return _graph(function)(*tensors, **scalars)


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
def _graph(function: Kernel) -> Callable[..., Any]:
    """Compiled at the first call for the shapes at hand, then kept in torch's disk cache."""
    limit: dict[str, Any] = {"recompile_limit": _GRAPHS} if _PER_FUNCTION_LIMIT else {}
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, **limit)
    return compiled
