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
from weakref import WeakSet

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .fused import PLAIN, Kernel, Lists, launch, rows_of
from .tape import HALF, NO_SUM, Column, name_of, record, sums_of

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
    sums: list[Any] = []
    counts: list[int] = []
    for row in rows_of(kernel, lists):
        blocks = _blocks(kernel, row, scalars)
        try:
            sums += [_one(kernel, block, scalars, salt) for block in blocks]
            if not counts and any(value.dim() for value in sums_of(kernel, sums[0])):
                raise NotImplementedError(f"{name_of(kernel)} {NO_SUM}")
        except Exception as error:
            p = row[0]
            error.add_note(f"in {name_of(kernel)}, of a {type(p).__name__} of shape {tuple(p.shape)} and {p.dtype}")
            raise
        counts.append(len(blocks))
    if not sums[0]:
        return None
    table = torch.stack([value for row in sums for value in row]).view(len(sums), -1)
    return table if len(table) == len(counts) else _joined(table, counts, maxima)


def _blocks(kernel: Kernel, row: tuple[Tensor, ...], scalars: dict[str, Any]) -> Sequence[tuple[Tensor, ...]]:
    """A large tensor piece by piece: what is computed on the way stays in the cache and is not paged in anew."""
    p = row[0]
    if p.numel() <= BLOCK or p.device.type != "cpu" or not PLAIN.issuperset(map(type, row)):
        return [row]
    if not all(t.is_contiguous() for t in row):
        return [row]
    columns = tuple(Column(t.dtype, bool(t.dim())) for t in row)
    if not _by_elements(kernel, columns, tuple((name, _type(value)) for name, value in scalars.items())):
        return [row]
    n = -(-p.numel() // BLOCK)
    return list(zip(*(t.view(-1).split(BLOCK) if t.dim() else [t] * n for t in row), strict=True))


@functools.lru_cache(maxsize=1024)
def _by_elements(kernel: Kernel, columns: tuple[Column, ...], types: tuple[tuple[str, Any], ...]) -> bool:
    """Whether a kernel is sure to do the same to pieces of a tensor as to the whole: one that takes a norm is not."""
    try:
        record(kernel, columns, dict(types))
    except Exception:  # what is wrong with the kernel itself shows where it runs
        return False
    return True


def _type(value: Any) -> torch.dtype | None:
    if isinstance(value, Tensor):
        return value.dtype
    return None if value is None else torch.float64 if isinstance(value, float) else torch.int64


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
    if kernel in _TRIED:
        sums = kernel(*wide, **scalars)
    else:
        with _Versions(kernel):
            sums = kernel(*wide, **scalars)
        _TRIED.add(kernel)
    for i, version in zip(halves, versions, strict=True):
        if wide[i]._version != version:  # what the kernel wrote to, parameter or state
            drawn = salt if not i and tensors[i].dtype == torch.bfloat16 else None
            tensors[i].copy_(wide[i] if drawn is None else stochastically(wide[i], drawn))
    return sums


_TRIED: WeakSet[Kernel] = WeakSet()


class _Versions(TorchFunctionMode):
    """Refuses what writes to a tensor behind its version: in half precision nothing would be written back."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is Tensor.data:
            raise RuntimeError(f"{name_of(self.kernel)} uses .data: write to the tensor itself, as in p.add_(...)")
        return func(*args, **(kwargs or {}))


@functools.cache
def _graph(function: Kernel) -> Callable[..., Any]:
    """Compiled at the first call for the shapes at hand, then kept in torch's disk cache."""
    limit: dict[str, Any] = {"recompile_limit": _GRAPHS} if _PER_FUNCTION_LIMIT else {}
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, **limit)
    return compiled
