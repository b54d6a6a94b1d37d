"""Fused kernels: one pass over all elements of all tensors, in code made from the kernel's tape.

A program is made for a kernel and the dtypes of its arguments, once a process: other shapes, more tensors, a gradient
that is missing or a changed scalar are other tables for the same program.

A program trusts addresses. So every launch goes through :func:`launch`, and nothing passes but plain tensors that have
memory, lie where their parameter lies and are shaped like it. The rest runs as without ``fused``, or is refused.
"""

import functools
import operator
from collections.abc import Callable, Container, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import c as _c
from . import triton as _triton
from .tape import HALF, SALT, Column, name_of, record

Kernel = Callable[..., Any]
Lists = Sequence[Sequence[Tensor] | Tensor]
Eager = Callable[[Lists], Tensor | None]

PLAIN = frozenset({Tensor, Parameter})  # a subclass may have no memory, or another view of what is in it
ENGINES = ("cpu", "cuda")


class Misfit(RuntimeError):
    """A tensor that a kernel cannot take.

    Attributes:
        column: the number of the argument, or the name of a scalar.
        tensor: the parameter that it belongs to.
        what: the rest of a sentence that begins with the tensor's name.
    """

    def __init__(self, kernel: Kernel, column: int | str, tensor: Tensor | None, what: str) -> None:
        super().__init__(f"{name_of(kernel)}: argument {column} {what}")
        self.column, self.tensor, self.what = column, tensor, what


@dataclass(slots=True, eq=False)
class Known:
    """What a look at the tensors of a list has found. It holds while they have the same addresses."""

    addresses: list[int]
    sizes: list[int]
    """Elements, of parameters alone."""

    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    kinds: set[torch.dtype]
    devices: set[int]
    strides: list[tuple[int, ...]] | None
    """Unless all lie row by row."""

    apart: dict[tuple[tuple[int, bool], ...], list["Known"]] = field(default_factory=dict)
    """Of parameters: columns, read or written, that share no memory in a way that counts; what was known of them."""

    parts: dict[tuple[int, ...], "Known"] = field(default_factory=dict)
    """The same of some of the tensors."""


class Tensors(list[Tensor]):
    """A list that keeps what is known of it, for another look at a thousand tensors is seen in a step's time."""

    known: Known | None = None
    stays = False  # the same tensors at every step, as parameters and state are


def launch(kernel: Kernel, lists: Lists, scalars: dict[str, Any], salt: Tensor | None, eager: Eager) -> Tensor | None:
    """Apply ``kernel`` to every row of ``lists``, as :func:`fallline._engine.run.run` says; sums are float64.

    Args:
        eager: the same without a program, for rows that none can take.

    Raises:
        Misfit: a tensor has another shape than its parameter, or elements that share memory and are to be written.
        RuntimeError: no compiler is there, or none for the device.
    """
    device = lists[0][0].device
    if device.type not in ENGINES:
        raise RuntimeError(
            f"fused=True makes code for the CPU and for CUDA, not for {device.type!r}: leave fused=False there"
        )
    if not all(type(value) in PLAIN for value in scalars.values() if isinstance(value, Tensor)):
        return eager(lists)
    known = _alike(lists)
    if known is not None and all(len(k.kinds) == 1 for k in known):
        return _launch(kernel, lists, known, scalars, salt, eager)

    # Weights in half precision beside norms in float32, say: a launch for each kind of row.
    kinds: list[Hashable]
    if known is None:
        kinds = [_kind(row) for row in rows_of(kernel, lists)]
    else:
        n = len(lists[0])
        kinds = list(zip(*(k.dtypes if len(k.dtypes) == n else k.dtypes * n for k in known), strict=True))

    def act(kind: Hashable, rows: list[int], some: Lists) -> Tensor | None:
        if kind is None:
            return eager(some)
        return _launch(kernel, some, _some(known, rows, some), scalars, salt, eager)

    return _by(kinds, lists, act)


def rows_of(kernel: Kernel, lists: Lists) -> list[tuple[Tensor, ...]]:
    """A parameter and what belongs to it, for each.

    Raises:
        Misfit: a tensor has another shape than its parameter, or no memory, in which torch itself would crash.
    """
    columns = [x.unbind() if isinstance(x, Tensor) else x for x in lists]
    rows = list(zip(*columns, strict=True))
    shapes = [p.shape for p in columns[0]]
    for i, x in enumerate(columns):
        if _usual(x, shapes):
            continue
        for p, shape, t in zip(columns[0], shapes, x, strict=True):
            if not isinstance(t, Tensor):
                raise Misfit(kernel, i, p, f"is no tensor, but a {type(t).__name__}")
            if _freed(t):
                raise Misfit(kernel, i, p, f"has no memory: its storage was freed (shape {tuple(t.shape)})")
            if t.shape != shape and t.dim():
                what = f"has the shape {tuple(t.shape)}, and the parameter has {tuple(shape)}"
                raise Misfit(kernel, i, p, what)
    return rows


def _by(
    keys: Sequence[Hashable], lists: Lists, act: Callable[[Hashable, list[int], Lists], Tensor | None]
) -> Tensor | None:
    """Act on the rows of one key at a time; sums come back in the order of rows."""
    columns = [x.unbind() if isinstance(x, Tensor) else x for x in lists]
    sums: dict[int, Tensor] = {}
    for key in dict.fromkeys(keys):
        rows = [i for i, other in enumerate(keys) if other == key]
        chosen = [[x[i] for i in rows] for x in columns]  # not by an index, which a GPU would wait for
        together = [torch.stack(x) if isinstance(whole, Tensor) else x for x, whole in zip(chosen, lists, strict=True)]
        some = act(key, rows, together)
        if some is not None:
            sums |= zip(rows, some.double().unbind(), strict=True)
    return torch.stack([sums[i] for i in sorted(sums)]) if sums else None


# -- the guard -------------------------------------------------------------------------------------------------------


def _alike(lists: Lists) -> list[Known] | None:
    """What is known of each list, if a program can take all rows, perhaps dtype by dtype; else None."""
    found = []
    for i, x in enumerate(lists):
        known = _known([x] if isinstance(x, Tensor) else x, parameters=not i)
        if known is None:
            return None
        found.append(known)
    first, n = found[0], len(lists[0])
    shaped = any(first.shapes)
    if len(first.devices) > 1:
        return None
    for x, known in zip(lists, found, strict=True):
        if known.devices != first.devices:
            return None
        if isinstance(x, Tensor):
            if x.shape != (n,):
                return None
        elif known.shapes is not first.shapes:
            if known.shapes == first.shapes:
                known.shapes = first.shapes  # the next time it is the same
            elif len(x) != n or not shaped or any(known.shapes):
                return None
    return found


def _known(ts: Sequence[Tensor], parameters: bool) -> Known | None:
    """What there is to know of tensors; None if one has no memory that a program can read."""
    if not PLAIN.issuperset(map(type, ts)):
        return None
    try:
        addresses = list(map(Tensor.data_ptr, ts))
        sizes = list(map(Tensor.numel, ts)) if parameters else []
        strides = None if all(map(Tensor.is_contiguous, ts)) else list(map(Tensor.stride, ts))
        old = ts.known if isinstance(ts, Tensors) else None
        if old is not None and addresses == old.addresses and strides == old.strides and sizes == old.sizes:
            return old
        shapes, dtypes = [t.shape for t in ts], [t.dtype for t in ts]
    except RuntimeError:  # sparse, nested, of a transform
        return None
    kinds = set(dtypes)
    if not kinds <= _c.TYPES.keys() or any(map(Tensor.is_neg, ts)):
        return None
    if 0 in addresses and any(not a and s.numel() for a, s in zip(addresses, shapes, strict=True)):
        return None
    known = Known(addresses, sizes, shapes, dtypes, kinds, set(map(Tensor.get_device, ts)), strides)
    if isinstance(ts, Tensors):
        ts.known = known
    return known


def _usual(ts: Sequence[Tensor], shapes: list[torch.Size]) -> bool:
    """Whether a short look is enough: plain tensors of these shapes that have memory."""
    try:
        return PLAIN.issuperset(map(type, ts)) and all(map(Tensor.data_ptr, ts)) and [t.shape for t in ts] == shapes
    except RuntimeError:
        return False


def _freed(t: Tensor) -> bool:
    try:
        if type(t) not in PLAIN or t.data_ptr():
            return False
        return bool(t.numel() and t.device.type in ENGINES and not t._is_zerotensor())
    except RuntimeError:  # there is none by its nature
        return False


def _kind(row: tuple[Tensor, ...]) -> Hashable:
    """Of a row that a program can take: rows of one kind can be taken together. None of any other."""
    known = _known(row, parameters=False)
    if known is None or len(known.devices) > 1:
        return None
    return tuple(known.devices), tuple(known.dtypes), tuple(map(bool, known.shapes))


def _some(known: list[Known] | None, rows: Sequence[int], lists: Lists) -> list[Known]:
    """What is known of some of the rows, of which ``lists`` was made."""
    key, found = tuple(rows), []
    for i, x in enumerate(lists):
        whole = None if known is None or isinstance(x, Tensor) else known[i]
        one = None if whole is None else whole.parts.get(key)
        if one is None:
            one = _known([x] if isinstance(x, Tensor) else x, parameters=not i)
            assert one is not None, i
            if whole is not None:
                whole.parts[key] = one
        found.append(one)
    return found


def _strays(kernel: Kernel, lists: Lists, known: list[Known], stores: Container[int]) -> set[int]:
    """Rows with a tensor to write that shares memory with another one: the order of writing counts for them.

    Gradients are not looked at: they are others at every step, and to sort them would cost more than to use them.
    """
    looked = [i for i, x in enumerate(lists) if i in stores or (isinstance(x, Tensors) and x.stays)]
    key = tuple((i, i in stores) for i in looked)
    seen, now = known[0].apart.get(key), [known[i] for i in looked]
    if seen is not None and all(map(operator.is_, seen, now)):
        return set()
    strays, spans = set(), []
    for i in looked:
        for k, (t, start) in enumerate(zip(lists[i], known[i].addresses, strict=True)):
            length = t.numel()
            if length > 1 and not t.is_contiguous():
                length = 1
                for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
                    if size > 1:
                        if not stride and i in stores:
                            what = f"repeats elements (strides {t.stride()}), and is to be written"
                            raise Misfit(kernel, i, lists[0][k], what)
                        if stride < length and i in stores:
                            strays.add(k)
                        length += stride * (size - 1)
            spans.append((start, start + length * t.element_size(), k, i in stores))
    ends = {False: (0, 0), True: (0, 0)}  # how far those before reach, and the row: read and written
    for start, stop, k, written in sorted(spans):
        for other, (end, row) in ends.items():
            if start < end and (written or other):
                strays |= {row, k}
        ends[written] = max(ends[written], (stop, k))
    if not strays:
        known[0].apart[key] = now
    return strays


def _launch(
    kernel: Kernel, lists: Lists, known: list[Known], scalars: dict[str, Any], salt: Tensor | None, eager: Eager
) -> Tensor | None:
    """Rows of one kind."""
    device, shaped = lists[0][0].device, any(known[0].shapes)
    columns = []
    for x, k in zip(lists, known, strict=True):
        together = isinstance(x, Tensor)
        columns.append(Column(k.dtypes[0], not (together or (shaped and not any(k.shapes))), together))
    if salt is not None and columns[0].dtype == torch.bfloat16:
        scalars = {**scalars, SALT: salt}
    shared = {name: _scalar(kernel, name, value, device) for name, value in scalars.items() if value is not None}
    types = tuple((name, shared[name].dtype if name in shared else None) for name in scalars)
    program = _program(kernel, tuple(columns), types, device.type)

    strays = _strays(kernel, lists, known, program.stores)
    if strays:

        def act(stray: Hashable, rows: list[int], some: Lists) -> Tensor | None:
            if stray is True:
                return eager(some)
            return _launch(kernel, some, _some(known, rows, some), scalars, salt, eager)

        return _by([i in strays for i in range(len(lists[0]))], lists, act)

    flat: Lists = lists
    copies: list[tuple[int, Tensor, Tensor]] = []
    addresses = [k.addresses for k in known]
    if any(k.strides for k in known):
        flat, copies = _flat(lists, columns, program.touched)
        addresses = [list(map(Tensor.data_ptr, [x] if isinstance(x, Tensor) else x)) for x in flat]
    sums: Tensor | None = program(flat, addresses, known[0].sizes, list(shared.values()))
    for i, t, copy in copies:
        if i in program.stores:
            t.copy_(copy)
    for i in program.stores:
        torch.autograd.graph.increment_version(lists[i])  # a graph that saved them must not be differentiated any more
    return sums


def _flat(lists: Lists, columns: Any, touched: Any) -> tuple[Lists, list[tuple[int, Tensor, Tensor]]]:
    """Lists whose rows lie alike in memory, without gaps; and the copies made for that: column, tensor, its copy."""
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


def _scalar(kernel: Kernel, name: str, value: Any, device: torch.device) -> Tensor:
    """A number on the device, without a copy from the host, which would wait, unless it lies there."""
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=torch.float64 if isinstance(value, float) else None, device=device)
    if value.numel() != 1 or value.is_complex():
        raise Misfit(kernel, name, None, f"is no real number, but {value.dtype} of shape {tuple(value.shape)}")
    if value.device != device or value.is_neg() or value.dtype not in _c.TYPES or value.dtype in HALF:
        exact = torch.float64 if value.is_floating_point() else torch.int64
        value = value.to(device, exact).resolve_neg()
    number: Tensor = value
    return number


@functools.cache
def _program(kernel: Kernel, columns: tuple[Column, ...], types: Any, device: str) -> Any:
    tape = record(kernel, columns, dict(types))
    return (_c if device == "cpu" else _triton).Program(tape)
