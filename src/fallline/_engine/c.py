"""Kernels on the CPU: a tape as C, one loop over the elements of all tensors, compiled in a fraction of a second.

The code depends on the kernel and on dtypes, never on shapes or on the number of tensors: nothing is compiled twice,
and libraries are kept on disk for the next process.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from array import array
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import kept
from .tape import AFTER, BEFORE, INSIDE, SALT, Op, Tape, indent
from .tape import FORMULAS as ALIKE

NO_COMPILER = (
    "fused=True needs a C compiler, and there is none: install gcc or clang (Debian and Ubuntu: apt install gcc "
    "libc6-dev; macOS: xcode-select --install), name one in the variable CC, or leave fused=False"
)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-x", "c")
PIECE = 1 << 16  # elements that a thread takes at once
BLOCK = 4096  # elements that are summed in their own precision, before the sum goes on in double
STREAMS = 4  # places of memory that a sum reads at once: of a single one a processor fetches a third less
PARTS = 128  # bytes of partial sums: enough to keep the adders busy, few enough to stay in registers

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "_Float16",
    torch.bool: "_Bool",
    torch.int64: "int64_t",
}
FORMULAS = ALIKE | {
    "abs": "fabs{f}({})",
    "sqrt": "sqrt{f}({})",
    "exp": "exp{f}({})",
    "log": "log{f}({})",
    "maximum": "LARGER({}, {})",
    "minimum": "SMALLER({}, {})",
    "maximum of a number": "{0} < {1} ? {1} : {0}",
    "minimum of a number": "{0} > {1} ? {1} : {0}",
    "where": "{} ? {} : {}",
    "pick": "pick_{kind}({}, {}, {})",
    "logical_not": "!{}",
}
HEAD = """\
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A NaN stays: comparisons with it are false. */
#define LARGER(a, b) ((a) < (b)) | ((b) != (b)) ? (b) : (a)
#define SMALLER(a, b) ((a) > (b)) | ((b) != (b)) ? (b) : (a)

typedef struct { uint16_t bits; } bf16;

static inline float widen(bf16 h) {
    uint32_t bits = (uint32_t)h.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* c ? a : b of a c that is the same for all elements: GCC does not vectorize a loop that has several of the former. */
static inline float pick_float(_Bool c, float a, float b) {
    uint32_t mask = -(uint32_t)c, x, y;
    memcpy(&x, &a, 4), memcpy(&y, &b, 4);
    x = (x & mask) | (y & ~mask);
    memcpy(&a, &x, 4);
    return a;
}

static inline double pick_double(_Bool c, double a, double b) {
    uint64_t mask = -(uint64_t)c, x, y;
    memcpy(&x, &a, 8), memcpy(&y, &b, 8);
    x = (x & mask) | (y & ~mask);
    memcpy(&a, &x, 8);
    return a;
}

static inline bf16 narrow(float f) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (bf16){f == f ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0};
}

static inline bf16 narrow_stochastically(float f, uint32_t salt) { /* as fallline._engine.run */
    uint32_t bits, h;
    memcpy(&bits, &f, 4);
    h = bits ^ salt * 0x5bd1e995u;
    h = (h ^ h >> 16) * 0x21f0aaadu;
    h = (h ^ h >> 15) * 0x735a2d97u;
    h ^= h >> 15;
    return (bf16){f == f ? (bits + (h >> 16)) >> 16 : 0x7fc0};
}
"""
MAP = """\
    _Pragma("omp simd")
    for (int64_t i = begin; i < end; i++) { ELEMENT(i, 0) }
"""
SUM = """\
    const int64_t run = (end - begin) / (STREAMS * LANES) * LANES; /* what each stream reads */
    %(declare)s
    for (int64_t start = 0; start < run; start += BLOCK) {
        const int64_t stop = start + BLOCK < run ? start + BLOCK : run;
        for (int j = 0; j < STREAMS * LANES; j++) { %(clear)s }
        for (int64_t at = start; at < stop; at += LANES)
            for (int stream = 0; stream < STREAMS; stream++) {
                _Pragma("omp simd")
                for (int lane = 0; lane < LANES; lane++) {
                    const int64_t i = begin + stream * run + at + lane;
                    const int j = stream * LANES + lane;
                    ELEMENT(i, j)
                }
            }
        for (int j = 0; j < STREAMS * LANES; j++) { %(fold)s }
    }
    for (int j = 0; j < LANES; j++) { %(clear)s }
    for (int64_t i = begin + STREAMS * run; i < end; i++) { const int j = i %% LANES; ELEMENT(i, j) }
    for (int j = 0; j < LANES; j++) { %(fold)s }
"""
RUN = """\
/* Columns: tables of n addresses; sizes: n; sums: n rows of what the kernel returns, or none. 1: out of memory. */
int run(int64_t n, void *const *columns, const int64_t *sizes, void *const *scalars, double *sums, int threads) {
    int64_t *first = malloc((n + 1) * sizeof *first);
    if (!first) return 1;
    first[0] = 0;
    for (int64_t k = 0; k < n; k++) first[k + 1] = first[k] + (sizes[k] + PIECE - 1) / PIECE;
    double *partials = malloc((first[n] * SUMS + 1) * sizeof *partials);
    if (!partials) { free(first); return 1; }
    #pragma omp parallel num_threads(threads) if(threads > 1)
    {
        int64_t k = 0;
        #pragma omp for schedule(static)
        for (int64_t piece = 0; piece < first[n]; piece++) {
            while (first[k + 1] <= piece) k++;
            const int64_t begin = (piece - first[k]) * PIECE, end = begin + PIECE < sizes[k] ? begin + PIECE : sizes[k];
            work(n, k, columns, scalars, begin, end, partials + piece * SUMS);
        }
    }
    if (sums) /* in order, so that the number of threads changes nothing */
        for (int64_t k = 0; k < n; k++)
            finish(n, k, columns, scalars, partials + first[k] * SUMS, first[k + 1] - first[k], sums);
    free(partials);
    free(first);
    return 0;
}
"""


def source(tape: Tape) -> str:
    """A C program with the function ``run``."""
    reductions = tape.reductions
    numbers, pointers, loads = [], [], []
    for i, column in enumerate(tape.columns):
        kind, real = TYPES[column.dtype], TYPES[tape.dtypes[f"x{i}"]]
        if i in tape.touched:
            written = "" if i in tape.stores else "const "
            pointers.append(f"{written}{kind} *restrict const c{i} = columns[{i} * n + k];")
            loads.append(f"const {real} x{i} = {_widened(f'c{i}[i]', column.dtype)};")
        elif not column.elements:
            place = f"columns[{i} * n])[k]" if column.together else f"columns[{i} * n + k])[0]"
            numbers.append(f"const {real} x{i} = {_widened(f'((const {kind} *){place}', column.dtype)};")
    for j, (name, dtype) in enumerate(tape.scalars.items()):
        numbers.append(f"const {TYPES[dtype]} s_{name} = *(const {TYPES[dtype]} *)scalars[{j}];")
    numbers += [_statement(op, tape) for op in tape.at(BEFORE)]

    larger = "{0} = LARGER({0}, {1});"
    joins = [larger if op.word == "amax" else "{0} += {1};" for op in reductions]
    starts = ["-INFINITY" if op.word == "amax" else "0" for op in reductions]
    inside = [
        joins[reductions.index(op)].format(f"{op.out}_part[j]", op.args[0])
        if op in reductions
        else _statement(op, tape)
        for op in tape.at(INSIDE)
    ]
    stores = [f"c{i}[i] = {_narrowed(name, i, tape)};" for i, name in tape.stores.items()]
    parts = [f"{op.out}_part" for op in reductions]
    loop = MAP
    if reductions:
        loop = SUM % dict(
            declare=" ".join(f"{TYPES[op.dtype]} {op.out}_part[STREAMS * LANES];" for op in reductions),
            clear=" ".join(f"{part}[j] = {start};" for part, start in zip(parts, starts, strict=True)),
            fold=" ".join(join.format(f"partial[{r}]", f"{parts[r]}[j]") for r, join in enumerate(joins)),
        )
    streams = max(1, STREAMS // max(len(tape.touched), 1))
    together = PARTS if len(reductions) < 3 else PARTS // 2  # of one sum
    lanes = together // max([op.dtype.itemsize for op in reductions], default=8) // streams
    sizes = dict(SUMS=len(reductions), PIECE=PIECE, BLOCK=BLOCK, STREAMS=streams, LANES=lanes)
    zeros = indent(f"partial[{r}] = {start};" for r, start in enumerate(starts))

    totals = [f"double {op.out}_total = {start};" for op, start in zip(reductions, starts, strict=True)]
    joined = [
        join.format(f"{op.out}_total", f"partial[{r}]")
        for r, (op, join) in enumerate(zip(reductions, joins, strict=True))
    ]
    results = [f"const {TYPES[op.dtype]} {op.out} = ({TYPES[op.dtype]}){op.out}_total;" for op in reductions]
    results += [_statement(op, tape) for op in tape.at(AFTER)]
    results += [f"sums[k * {len(tape.results)} + {r}] = (double){name};" for r, name in enumerate(tape.results)]
    arguments = "int64_t n, int64_t k, void *const *columns, void *const *scalars"
    return (
        f"/* {tape.name} */\n{HEAD}\nenum {{ {', '.join(f'{name} = {size}' for name, size in sizes.items())} }};\n\n"
        + " \\\n".join(["#define ELEMENT(i, j)", *("    " + line for line in loads + inside + stores)])
        + f"\n\nstatic void work({arguments}, int64_t begin, int64_t end, double *partial) {{\n"
        + indent(pointers + numbers)
        + zeros
        + loop
        + f"}}\n\nstatic void finish({arguments}, const double *partial, int64_t pieces, double *sums) {{\n"
        + indent(numbers + totals)
        + "    for (int64_t piece = 0; piece < pieces; piece++, partial += SUMS) {\n"
        + "".join(f"        {line}\n" for line in joined)
        + "    }\n"
        + indent(results)
        + "}\n\n"
        + RUN
    )


def _statement(op: Op, tape: Tape) -> str:
    """One operation as a declaration."""

    def value(a: str | float) -> str:
        if isinstance(a, float):
            return f"({TYPES[op.inner]}){a!r}"
        return a if tape.dtypes[a] in (op.inner, torch.bool) else f"({TYPES[op.inner]}){a}"

    kind = TYPES[op.inner]
    uniform = op.word == "where" and op.place == INSIDE and op.args[0] in tape.uniform and kind in ("float", "double")
    formula = FORMULAS["pick" if uniform else op.word]
    if isinstance(op.args[-1], float):
        formula = FORMULAS.get(f"{op.word} of a number", formula)
    expression = formula.format(*map(value, op.args), f="f" if kind == "float" else "", kind=kind)
    return f"const {TYPES[op.dtype]} {op.out} = {expression};"


def _widened(element: str, dtype: torch.dtype) -> str:
    return f"widen({element})" if dtype == torch.bfloat16 else element


def _narrowed(name: str, i: int, tape: Tape) -> str:
    dtype = tape.columns[i].dtype
    if dtype == torch.bfloat16:
        salted = SALT in tape.scalars and not i  # state is rounded to nearest
        return f"narrow_stochastically({name}, (uint32_t)s_{SALT})" if salted else f"narrow({name})"
    return name if tape.dtypes[name] == dtype else f"({TYPES[dtype]}){name}"


class Program:
    """A tape that runs over many tensors.

    Raises:
        RuntimeError: there is no C compiler, or what it makes can neither be kept nor loaded.
    """

    def __init__(self, tape: Tape) -> None:
        self.results, self.stores, self.touched = len(tape.results), tape.stores, tape.touched
        self.idle = {i for i, c in enumerate(tape.columns) if c.elements and i not in tape.touched}
        try:
            self.function = ctypes.CDLL(str(compiled(source(tape)))).run
        except OSError as error:
            raise RuntimeError(
                f"fused=True cannot keep or load its compiled code: {error}. Name a folder with room, from which "
                "programs may run, in the variable FALLLINE_CACHE, or leave fused=False"
            ) from error
        self.function.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4, ctypes.c_int]

    def __call__(
        self, columns: Any, addresses: list[list[int]], sizes: list[int], scalars: list[Tensor]
    ) -> Tensor | None:
        """Columns: a list of tensors without gaps each, or a vector, and where they lie; sizes: of the parameters.

        What is returned is [tensors, results], float64.
        """
        n = len(sizes)
        table = array("q")
        for i, places in enumerate(addresses):
            # Of a vector there is one address; what is not touched need not be there.
            table.extend([0] * n if i in self.idle else places if len(places) == n else places * n)
        lengths, shared = array("q", sizes), array("q", map(Tensor.data_ptr, scalars))
        sums = torch.empty(n, self.results, dtype=torch.float64, device="cpu") if self.results else None
        tables = (one.buffer_info()[0] for one in (table, lengths, shared))
        if self.function(n, *tables, 0 if sums is None else sums.data_ptr(), torch.get_num_threads()):
            raise MemoryError("no memory is left for the tables of a fused kernel")
        return sums


def compiled(code: str) -> Path:
    """The shared library of a program, out of the cache or into it."""
    compiler = _compiler(os.environ.get("CC", ""))
    key = "\n".join([code, *compiler, *FLAGS, _processor()])

    def compile_to(path: Path) -> None:
        command = [*compiler, *FLAGS, "-", "-o", str(path), "-lm"]
        try:
            done = subprocess.run(command, input=code, capture_output=True, text=True)
        except OSError as error:
            failure = str(error)
        else:
            if not done.returncode and path.exists():
                return
            failure = done.stderr[-2000:] or f"it ends with {done.returncode} and says nothing"
        raise RuntimeError(f"{NO_COMPILER}. The one that is there, {shlex.join(compiler)}, fails:\n{failure}")

    return kept(hashlib.sha256(key.encode()).hexdigest()[:32], ".so", compile_to)


@functools.cache
def _compiler(named: str) -> list[str]:
    """The command's words: of ``named``, the variable CC, which may hold flags or a launcher, or the usual ones."""
    if named.strip():
        try:
            words = [named] if shutil.which(named) else shlex.split(named)  # a path may have blanks
            program, why = shutil.which(words[0]), f"there is no program {words[0]!r}"
        except ValueError as error:
            program, why = None, str(error)
        if program is None:
            raise RuntimeError(
                f"fused=True needs a C compiler, and CC={named!r} is none: {why}. Name one there, take CC away, or "
                "leave fused=False"
            )
        return [program, *words[1:]]
    for name in ("cc", "gcc", "clang"):
        program = shutil.which(name)
        if program:
            return [program]
    raise RuntimeError(NO_COMPILER)


@functools.cache
def _processor() -> str:
    """What -march=native stands for here: machines may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.node()} {platform.machine()}"
