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

BLOCK = 1 << 18  # elements that an eager kernel takes at once on the CPU

# Each set of shapes is a graph of its own, and torch's own limit of 8 is soon met by LODO's buckets.
_GRAPHS = 256
_PER_FUNCTION_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters  # torch >= 2.13


def run(
    kernel: Kernel, lists: Lists, scalars: dict[str, Any], fused: bool, maxima: int = 0, salt: Tensor | None = None
) -> Tensor | None:
    """Apply ``kernel`` to the i-th element of every list, for all i; the first list holds the parameters.

    Args:
        lists: equally long: parameters, then gradients, state, 0-D tensors, as the kernel takes them; a list of numbers
            may be a 1-D tensor.
        scalars: numbers, 0-D tensors or None, the same for all tensors.
        fused: one pass over all elements, in code that is made for the kernel and the dtypes.
        maxima: how many of the sums, the last ones, are maxima.
        salt: 0-D int64 tensor; with it, parameters in bfloat16 are rounded as :func:`stochastically` does.

    Returns:
        The sums that the kernel returns: [tensors, sums], float64 where fused; None if it returns none.

    Raises:
        RuntimeError: ``fused``, and there is no compiler, or none for the device.
    """
    if fused:
        return launch(kernel, lists, scalars, salt)
    sums, counts = [], []
    for row in zip(*(x.unbind() if isinstance(x, Tensor) else x for x in lists), strict=True):
        blocks = _blocks(row)
        sums += [_one(kernel, block, scalars, salt) for block in blocks]
        counts.append(len(blocks))
    if not sums[0]:
        return None
    table = torch.stack([value for row in sums for value in row]).view(len(sums), -1)
    return table if len(table) == len(counts) else _joined(table, counts, maxima)


def squared_norm(t: Tensor) -> Tensor:
    """Sum of squares, without a temporary of the tensor's size; infinite where it overflows ``t``'s precision."""
    norm: Tensor = torch.linalg.vector_norm(t)
    return norm.square()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, without a temporary of the tensors' size."""
    return torch.dot(a.flatten(), b.flatten())


def clean(g: Tensor, ok: Tensor | None) -> Tensor:
    """The gradient, or zeros if ``ok`` (0-D bool) is false: a coefficient of 0 would not undo a NaN."""
    return g if ok is None else torch.where(ok, g, 0.0)


def stochastically(t: Tensor, salt: Tensor) -> Tensor:
    """Float32 rounded to a neighbour in bfloat16, up or down, so that the expectation over salts is ``t`` itself.

    The random numbers are a hash of a weight's 32 bits and of the salt (a 0-D int64 tensor): the same on all ranks and
    however weights are sharded, with no state but a counter. The constants are hash-prospector's (public domain).
    """
    bits = t.view(torch.int32).long() & 0xFFFFFFFF
    h = bits ^ ((salt & 0xFFFFFFFF) * 0x5BD1E995 & 0xFFFFFFFF)
    h = (h ^ (h >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
    h = (h ^ (h >> 15)) * 0x735A2D97 & 0xFFFFFFFF
    h = (h ^ (h >> 15)) >> 16
    high = (bits + h) >> 16 << 16
    high = torch.where(high >= 1 << 31, high - (1 << 32), high)  # the sign bit of an int32
    return torch.where(t.isnan(), t, high.int().view(torch.float32)).bfloat16()


def call(function: Kernel, tensors: Sequence[Tensor], scalars: dict[str, Tensor], fused: bool) -> Any:
    """A function of whole tensors, which no loop over elements can do: a graph of :func:`torch.compile` if fused."""
    if not fused:
        return function(*tensors, **scalars)
    if _PER_FUNCTION_LIMIT:
        return _graph(function)(*tensors, **scalars)
    with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
        return _graph(function)(*tensors, **scalars)


def _blocks(row: tuple[Tensor, ...]) -> Sequence[tuple[Tensor, ...]]:
    """A large tensor piece by piece: what is computed on the way stays in the cache and is not paged in anew."""
    p = row[0]
    if p.device.type != "cpu" or p.numel() <= BLOCK or not all(t.is_contiguous() for t in row):
        return [row]
    n = -(-p.numel() // BLOCK)
    return list(zip(*(t.view(-1).split(BLOCK) if t.dim() else [t] * n for t in row), strict=True))


def _joined(table: Tensor, counts: list[int], maxima: int) -> Tensor:
    """Sums and maxima of blocks, [blocks, any], as those of tensors."""
    parts = table.split(counts)
    last = table.shape[1] - maxima
    return torch.stack([torch.cat([part[:, :last].sum(0), part[:, last:].amax(0)]) for part in parts])


def _one(kernel: Kernel, tensors: tuple[Tensor, ...], scalars: dict[str, Any], salt: Tensor | None) -> Any:
    p = tensors[0]
    if not any(t.dtype in HALF for t in tensors):
        return kernel(*tensors, **scalars)
    wide = [t.float() if t.dtype in HALF else t for t in tensors]  # half precision: arithmetic in float32
    sums = kernel(*wide, **scalars)
    if kernel.__name__.endswith("_") and p.dtype in HALF:  # state is float32 already and was written in place
        p.copy_(wide[0] if salt is None or p.dtype != torch.bfloat16 else stochastically(wide[0], salt))
    return sums


@functools.cache
def _graph(function: Kernel) -> Callable[..., Any]:
    """Compiled at the first call for the shapes at hand, then kept in torch's disk cache."""
    limit: dict[str, Any] = {"recompile_limit": _GRAPHS} if _PER_FUNCTION_LIMIT else {}
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, **limit)
    return compiled
