"""Fused kernels: one pass over all elements of all tensors, in code made from the kernel's tape.

A program is made for a kernel and the dtypes of its arguments, once a process: other shapes, more tensors, a gradient
that is missing or a changed scalar are other tables for the same program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _c, _triton
from ._tape import SALT, Column, record

Kernel = Callable[..., Any]
Lists = Sequence[Sequence[Tensor] | Tensor]


def launch(kernel: Kernel, lists: Lists, scalars: dict[str, Any], salt: Tensor | None = None) -> Tensor | None:
    """Apply ``kernel`` to every row of ``lists``, as :func:`fallline._foreach.run` says; sums are float64.

    Raises:
        RuntimeError: no compiler is there, or none for the device.
    """
    kinds = [[x.dtype] if isinstance(x, Tensor) else list({t.dtype for t in x}) for x in lists]
    if all(len(kind) == 1 for kind in kinds):
        return _launch(kernel, lists, [kind[0] for kind in kinds], scalars, salt)

    # Weights in half precision beside norms in float32, say: a launch for each kind of row.
    columns = [x.unbind() if isinstance(x, Tensor) else x for x in lists]
    kind_of = [tuple(t.dtype for t in row) for row in zip(*columns, strict=True)]
    sums: dict[int, Tensor] = {}
    for kind in dict.fromkeys(kind_of):
        rows = [i for i, other in enumerate(kind_of) if other == kind]
        chosen = [[x[i] for i in rows] for x in columns]  # not by an index, which a GPU would wait for
        together = [torch.stack(x) if isinstance(whole, Tensor) else x for x, whole in zip(chosen, lists, strict=True)]
        some = _launch(kernel, together, kind, scalars, salt)
        if some is not None:
            sums |= zip(rows, some.unbind(), strict=True)
    return torch.stack([sums[i] for i in sorted(sums)]) if sums else None


def _launch(
    kernel: Kernel, lists: Lists, dtypes: Sequence[torch.dtype], scalars: dict[str, Any], salt: Tensor | None
) -> Tensor | None:
    device, params = lists[0][0].device, lists[0]
    if salt is not None and dtypes[0] == torch.bfloat16 and kernel.__name__.endswith("_"):
        scalars = {**scalars, SALT: salt}
    shared = {name: _tensor(value, device) for name, value in scalars.items() if value is not None}
    types = tuple((name, shared[name].dtype if name in shared else None) for name in scalars)
    shaped = any(p.dim() for p in params)
    columns = []
    for x, dtype in zip(lists, dtypes, strict=True):
        together = isinstance(x, Tensor)
        columns.append(Column(dtype, not (together or (shaped and all(t.dim() == 0 for t in x))), together))
    program = _program(kernel, tuple(columns), types, device.type)
    flat, copies = _flat(lists, columns, program.touched)
    sums: Tensor | None = program(flat, list(shared.values()))
    for i, t, copy in copies:
        if i in program.stores:
            t.copy_(copy)
    for i in program.stores:
        torch.autograd.graph.increment_version(lists[i])  # a graph that saved them must not be differentiated any more
    return sums


def _flat(lists: Lists, columns: Any, touched: Any) -> tuple[Lists, list[tuple[int, Tensor, Tensor]]]:
    """Lists whose rows lie alike in memory, without gaps; and the copies made for that: column, tensor, its copy."""
    if all(all(map(Tensor.is_contiguous, (x,) if isinstance(x, Tensor) else x)) for x in lists):
        return lists, []
    flat = [x.contiguous() if isinstance(x, Tensor) else list(x) for x in lists]
    copies = []
    for k in range(len(lists[0])):
        row = {i: lists[i][k] for i in touched}
        if len({t.stride() for t in row.values()}) > 1 or not all(map(_without_gaps, row.values())):
            for i, t in row.items():
                if not t.is_contiguous():
                    flat[i][k] = t.contiguous()
                    copies.append((i, t, flat[i][k]))
    return flat, copies


def _without_gaps(t: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, in whatever order: channels last, say."""
    size = 1
    for stride, length in sorted(zip(t.stride(), t.shape, strict=True)):
        if length > 1:
            if stride != size:
                return False
            size *= length
    return True


def _tensor(value: Any, device: torch.device) -> Tensor:
    """A number on the device, without a copy from the host, which would wait."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=torch.float64 if isinstance(value, float) else None, device=device)


@functools.cache
def _program(kernel: Kernel, columns: tuple[Column, ...], types: Any, device: str) -> Any:
    tape = record(kernel, columns, dict(types))
    if device == "cpu":
        return _c.Program(tape)
    if device == "cuda":
        return _triton.Program(tape)
    raise RuntimeError(f"fused=True makes code for the CPU and for CUDA, not for {device!r}: leave fused=False there")
