"""Kernels on a GPU: a tape as Triton, one launch over the blocks of all tensors.

A table on the device says where each tensor lies and which piece of which tensor a block is; it is copied again only
when an address has changed. Sums are taken block by block, then tensor by tensor, always in the same order.
"""

import importlib.util
from array import array
from collections import OrderedDict
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from .cache import kept
from .tape import AFTER, BEFORE, INSIDE, REDUCTIONS, SALT, Op, Tape, indent
from .tape import FORMULAS as ALIKE

NO_TRITON = "fused=True needs Triton on a GPU, and it cannot be imported: pip install triton, or leave fused=False"
BLOCK = 2048  # elements of a block
TABLES = 16  # tables that a program keeps: of its parameter groups

TYPES = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
    torch.bool: "tl.int1",
    torch.int64: "tl.int64",
}
FORMULAS = ALIKE | {
    "abs": "tl.abs({})",
    "sqrt": "tl.sqrt({})",
    "exp": "tl.exp({})",
    "log": "tl.log({})",
    "maximum": "larger({}, {})",
    "minimum": "tl.minimum({}, {}, propagate_nan=tl.PropagateNan.ALL)",
    "where": "tl.where({}, {}, {})",
    "logical_not": "{} == 0",
}
HEAD = '''\
"""{name}"""

import triton
import triton.language as tl


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def plus(a, b):
    return a + b


@triton.jit
def load(pointers, inside, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointers, mask=inside, other=0)
    else:
        return tl.load(pointers)


@triton.jit
def store(pointers, values, inside, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointers, values, mask=inside)
    else:
        tl.store(pointers, values)


@triton.jit
def narrow_stochastically(f, salt):  # as fallline._engine.run
    bits = f.to(tl.uint32, bitcast=True)
    h = bits ^ (salt.to(tl.uint32) * 0x5BD1E995)
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97
    h = h ^ (h >> 15)
    high = tl.where(f == f, (bits + (h >> 16)) >> 16, 0x7FC0)
    return high.to(tl.uint16).to(tl.bfloat16, bitcast=True)


'''
WORK = """\
@triton.jit
def work(order, columns, sizes, owners, starts, scalars, partials, n, {vectors}
         BLOCK: tl.constexpr, MASKED: tl.constexpr, ALIGNED: tl.constexpr):
    block = tl.load(order + tl.program_id(0))
    k = tl.load(owners + block)
    i = tl.multiple_of(tl.load(starts + block), BLOCK) + tl.arange(0, BLOCK)
    inside = i < tl.load(sizes + k)
"""
FINISH = """\


@triton.jit
def finish(columns, first, scalars, partials, sums, n, {vectors}BLOCK: tl.constexpr):
    k = tl.program_id(0)
    at = tl.load(first + k)
    end = tl.load(first + k + 1)
"""
LOOP = """\
    while at < end:
        block = at + tl.arange(0, BLOCK)
"""


def source(tape: Tape) -> str:
    """A Python module with the Triton functions ``work`` and ``finish``."""
    reductions = tape.reductions
    pointers, numbers, loads = [], [], []
    vectors = ""
    for i, column in enumerate(tape.columns):
        real = TYPES[tape.dtypes[f"x{i}"]]
        pointer = f"tl.pointer_type({'tl.int8' if column.dtype == torch.bool else TYPES[column.dtype]})"
        if column.together:
            vectors += f"v{i}, "
            numbers.append(f"x{i} = tl.load(v{i} + k).to({real})")
        elif not column.elements:
            numbers.append(f"x{i} = tl.load(tl.load(columns + {i} * n + k).to({pointer})).to({real})")
        elif i in tape.touched:
            pointers += [f"c{i} = tl.load(columns + {i} * n + k).to({pointer})", "if ALIGNED:"]
            pointers.append(f"    c{i} = tl.multiple_of(c{i}, 16)")
            loads.append(f"x{i} = load(c{i} + i, inside, MASKED).to({real})")
    for j, (name, dtype) in enumerate(tape.scalars.items()):
        numbers.append(
            f"s_{name} = tl.load(scalars + {j})" + (" != 0" if dtype == torch.bool else f".to({TYPES[dtype]})")
        )
    numbers += [_statement(op, tape) for op in tape.at(BEFORE)]

    neutral = {op.out: "float('-inf')" if op.word == "amax" else "0.0" for op in reductions}
    join = {op.out: "larger" if op.word == "amax" else "plus" for op in reductions}
    inside = []
    for op in tape.at(INSIDE):
        if op.word in REDUCTIONS:
            x = f"tl.where(inside, {op.args[0]}, {neutral[op.out]})"  # where all are inside it costs nothing
            inside.append(f"{op.out} = tl.reduce({x}, 0, {join[op.out]})")
            part = f"partials + block * {len(reductions)} + {reductions.index(op)}"
            inside.append(f"tl.store({part}, {op.out}.to(tl.float64))")
        else:
            inside.append(_statement(op, tape))
    for i, stored in tape.stores.items():
        narrow = f"{stored}.to({TYPES[tape.columns[i].dtype]})"
        if SALT in tape.scalars and not i and tape.columns[i].dtype == torch.bfloat16:
            narrow = f"narrow_stochastically({stored}, s_{SALT})"
        inside.append(f"store(c{i} + i, {narrow}, inside, MASKED)")

    code = HEAD.format(name=tape.name) + WORK.format(vectors=vectors) + indent(pointers + numbers + loads + inside)
    if reductions:
        code += FINISH.format(vectors=vectors) + indent(numbers)
        code += indent(f"{op.out}_total = tl.full((), {neutral[op.out]}, tl.float64)" for op in reductions) + LOOP
        for r, op in enumerate(reductions):
            part = f"tl.load(partials + block * {len(reductions)} + {r}, mask=block < end, other={neutral[op.out]})"
            joined = f"{join[op.out]}({op.out}_total, tl.reduce({part}, 0, {join[op.out]}))"
            code += indent([f"    {op.out}_total = {joined}"])
        code += indent(["    at += BLOCK", *(f"{op.out} = {op.out}_total.to({TYPES[op.dtype]})" for op in reductions)])
        code += indent(_statement(op, tape) for op in tape.at(AFTER))
        results = enumerate(tape.results)
        code += indent(f"tl.store(sums + k * {len(tape.results)} + {r}, ({t}).to(tl.float64))" for r, t in results)
    return code


def _statement(op: Op, tape: Tape) -> str:
    """One operation as an assignment."""

    def value(a: str | float) -> str:
        if isinstance(a, float):
            return f"tl.full((), {a!r}, {TYPES[op.inner]})"
        return a if tape.dtypes[a] == op.inner or a in masks else f"{a}.to({TYPES[op.inner]})"

    # A truth value is a number elsewhere, as in 1 - (x > 0).
    masks = {a for a in op.args if op.word.startswith("logical") or (op.word == "where" and a == op.args[0])}

    return f"{op.out} = {FORMULAS[op.word].format(*map(value, op.args))}"


class Program:
    """A tape that runs over many tensors of one device.

    Raises:
        RuntimeError: Triton cannot be imported.
    """

    def __init__(self, tape: Tape) -> None:
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError(NO_TRITON)
        code = source(tape)
        name = f"{tape.name.strip('<>')}_{sha256(code.encode()).hexdigest()[:32]}"
        path = kept(
            name, ".py", lambda path: path.write_text(code, encoding="utf-8")
        )  # Triton reads source from a file
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.stores, self.touched = tape.stores, tape.touched
        self.results, self.sums = len(tape.results), len(tape.reductions)
        self.addressed = [i for i, c in enumerate(tape.columns) if not c.together]
        self.vectors = [i for i, c in enumerate(tape.columns) if c.together]
        self.tables: OrderedDict[bytes, _Table] = OrderedDict()
        self.captured: list[_Table] = []

    def __call__(
        self, columns: Any, addresses: list[list[int]], sizes: list[int], scalars: list[Tensor]
    ) -> Tensor | None:
        """Columns: a list of tensors without gaps each, or a vector, and where they lie; sizes: of the parameters.

        What is returned is [tensors, results], float64.
        """
        n, device = len(sizes), columns[0][0].device
        places = array("q")
        for i, column in enumerate(addresses):
            places.extend(column if i in self.addressed else [0] * n)
        table = self._table(places, array("q", sizes), device)
        vectors = [columns[i].view(torch.int8) if columns[i].dtype == torch.bool else columns[i] for i in self.vectors]
        numbers = torch.stack([s.to(torch.float64) for s in scalars]) if scalars else table.first
        partials = torch.empty(max(table.blocks * self.sums, 1), dtype=torch.float64, device=device)
        known = (table.columns, table.sizes, table.owners, table.starts, numbers, partials, n, *vectors)
        for order, masked in ((table.full, False), (table.ragged, True)):
            if len(order):
                shape = dict(BLOCK=BLOCK, MASKED=masked, ALIGNED=table.aligned)
                self.module.work[(len(order),)](order, *known, **shape)
        if not self.results:
            return None
        sums = torch.empty(n, self.results, dtype=torch.float64, device=device)
        self.module.finish[(n,)](table.columns, table.first, numbers, partials, sums, n, *vectors, BLOCK=1024)
        return sums

    def _table(self, addresses: array, sizes: array, device: torch.device) -> "_Table":  # type: ignore[type-arg]
        key = addresses.tobytes() + sizes.tobytes()
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = _Table(addresses, sizes, device)
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                self.captured.append(table)  # for as long as the graph may be replayed
            while len(self.tables) > TABLES:
                self.tables.popitem(last=False)
        self.tables.move_to_end(key)
        return table


class _Table:
    """Where tensors lie, and how they are cut into blocks; on the device."""

    def __init__(self, addresses: array, sizes: array, device: torch.device) -> None:  # type: ignore[type-arg]
        size = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        counts = (size + BLOCK - 1) // BLOCK
        owners = torch.repeat_interleave(counts)
        first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        starts = (torch.arange(len(owners), device="cpu") - first[owners]) * BLOCK
        whole = size[owners] - starts >= BLOCK  # needs no mask, with which four elements would not be read at once
        self.blocks = len(owners)
        self.aligned = all(address % 16 == 0 for address in addresses)
        # One copy, from memory that stays: it need not be waited for, and a captured graph may make it again.
        table = torch.tensor(addresses, dtype=torch.int64, device="cpu")
        parts = [table, size, owners, starts, first, whole.nonzero(), (~whole).nonzero()]
        self.host = torch.cat([part.flatten() for part in parts])
        if device.type == "cuda":
            self.host = self.host.pin_memory()
        there = self.host.to(device, non_blocking=True).split([part.numel() for part in parts])
        self.columns, self.sizes, self.owners, self.starts, self.first, self.full, self.ragged = there
