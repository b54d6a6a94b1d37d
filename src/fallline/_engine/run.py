"""How a kernel of one tensor runs over many: in a loop, or fused into one pass over all elements.

A kernel is a function of one parameter and whatever belongs to it (gradient, state, numbers of its own), in that order,
and of keyword scalars that all tensors share. It may write to its parameter and its state in place, and is then called
something with ``_`` at the end, as in torch; never to the gradient. It may return a tuple of sums.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .fused import PLAIN, Kernel, Lists, launch, name_of, rows_of
from .tape import HALF

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
        Misfit: a tensor has another shape than its parameter.
        RuntimeError: ``fused``, and there is no compiler, or none for the device.
    """
    eager = functools.partial(_eager, kernel, scalars, maxima, salt)
    return launch(kernel, lists, scalars, salt, eager) if fused else eager(lists)


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


def _eager(kernel: Kernel, scalars: dict[str, Any], maxima: int, salt: Tensor | None, lists: Lists) -> Tensor | None:
    sums, counts = [], []
    for row in rows_of(kernel, lists):
        blocks = _blocks(row)
        try:
            sums += [_one(kernel, block, scalars, salt) for block in blocks]
        except Exception as error:
            p = row[0]
            error.add_note(f"in {name_of(kernel)}, of a {type(p).__name__} of shape {tuple(p.shape)} and {p.dtype}")
            raise
        counts.append(len(blocks))
    if not sums[0]:
        return None
    table = torch.stack([value for row in sums for value in row]).view(len(sums), -1)
    return table if len(table) == len(counts) else _joined(table, counts, maxima)


def _blocks(row: tuple[Tensor, ...]) -> Sequence[tuple[Tensor, ...]]:
    """A large tensor piece by piece: what is computed on the way stays in the cache and is not paged in anew."""
    p = row[0]
    if p.numel() <= BLOCK or p.device.type != "cpu" or not PLAIN.issuperset(map(type, row)):
        return [row]
    if not all(t.is_contiguous() for t in row):
        return [row]
    n = -(-p.numel() // BLOCK)
    return list(zip(*(t.view(-1).split(BLOCK) if t.dim() else [t] * n for t in row), strict=True))


def _joined(table: Tensor, counts: list[int], maxima: int) -> Tensor:
    """Sums and maxima of blocks, [blocks, any], as those of tensors."""
    parts = table.split(counts)
    last = table.shape[1] - maxima
    return torch.stack([torch.cat([part[:, :last].sum(0), part[:, last:].amax(0)]) for part in parts])


def _one(kernel: Kernel, tensors: tuple[Tensor, ...], scalars: dict[str, Any], salt: Tensor | None) -> Any:
    halves = [i for i, t in enumerate(tensors) if t.dtype in HALF]
    if not halves:
        return kernel(*tensors, **scalars)
    wide = list(tensors)  # half precision: arithmetic in float32
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():  # there is no version
        for i in halves:
            wide[i] = tensors[i].float()
        versions = [wide[i]._version for i in halves]
    sums = kernel(*wide, **scalars)
    for i, version in zip(halves, versions, strict=True):
        if wide[i]._version != version:  # what the kernel wrote to, parameter or state
            drawn = salt if not i and tensors[i].dtype == torch.bfloat16 else None
            tensors[i].copy_(wide[i] if drawn is None else stochastically(wide[i], drawn))
    return sums


@functools.cache
def _graph(function: Kernel) -> Callable[..., Any]:
    """Compiled at the first call for the shapes at hand, then kept in torch's disk cache."""
    limit: dict[str, Any] = {"recompile_limit": _GRAPHS} if _PER_FUNCTION_LIMIT else {}
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, **limit)
    return compiled
