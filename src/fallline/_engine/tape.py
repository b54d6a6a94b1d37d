"""A kernel as a tape: what it does to one element, in a small vocabulary, for the engines that turn it into code.

A kernel is run once, on tensors of one element, and what it asks of torch is written down. What depends on shared
numbers alone is done before the loop over the elements, what depends on sums after it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALF = (torch.float16, torch.bfloat16)
SALT = "salt"  # the scalar that says which random numbers parameters in bfloat16 are rounded with; no kernel sees it
BEFORE, INSIDE, AFTER = range(3)
REDUCTIONS = ("sum", "amax")

# Operations under the name that the vocabulary has for them; what follows from others is spelled out in `_spell`.
WORDS = ("mul", "div", "maximum", "minimum", "where", "neg", "abs", "sqrt", "exp", "log", *REDUCTIONS)
SAME = {word: word for word in WORDS}
SAME |= {word: word for word in ("gt", "ge", "lt", "le", "eq", "ne", "logical_not", "logical_and", "logical_or")}
SAME |= {"__and__": "logical_and", "__or__": "logical_or", "__invert__": "logical_not", "bitwise_not": "logical_not"}
SAME |= {"__rmul__": "mul", "true_divide": "div", "__rtruediv__": "rdiv", "__rdiv__": "rdiv"}
SAME |= {"multiply": "mul", "divide": "div", "subtract": "sub", "negative": "neg", "absolute": "abs", "clip": "clamp"}

# What a kernel may call, for the sentence that refuses anything else.
KNOWN = (
    "+ - * / ** (with 2, 3, 0.5, -0.5 or -1), comparisons, & | ~, abs, add, addcdiv, addcmul, amax, clamp, clamp_max, "
    "clamp_min, clone, copy_, div, dot, exp, fill_, isfinite, isnan, lerp, log, maximum, minimum, mul, neg, ones_like, "
    "pow, reciprocal, rsqrt, sign, sqrt, square, sub, sum, to, torch.linalg.vector_norm, where, zero_, zeros_like"
)
# What a kernel may ask of a tensor: the same of all elements. `largest` asks for `nbytes`: whether there are any.
ABOUT = ("dtype", "device", "requires_grad", "is_complex", "is_floating_point", "nbytes")

# The words that C and Triton write alike.
FORMULAS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "neg": "-{}",
    "logical_and": "{} & {}",
    "logical_or": "{} | {}",
    "cast": "{}",
}


class Column(NamedTuple):
    """A positional argument of a kernel: a tensor, or a number, for each parameter."""

    dtype: torch.dtype  # in memory
    elements: bool  # a tensor of the parameter's size; else a number
    together: bool = False  # numbers side by side in one tensor; else each in a tensor of its own


class Op(NamedTuple):
    """``out = word(*args)``: args are names or numbers, taken in ``inner``, the precision of the computation."""

    out: str
    word: str
    args: tuple[str | float, ...]
    dtype: torch.dtype
    inner: torch.dtype
    place: int


@dataclass
class Tape:
    """What a kernel does. Column i is ``x{i}``, the scalar ``rho`` is ``s_rho``."""

    name: str
    columns: list[Column]
    scalars: dict[str, torch.dtype]
    ops: list[Op] = field(default_factory=list)
    stores: dict[int, str] = field(default_factory=dict)
    """By column, what is written to it."""

    results: list[str] = field(default_factory=list)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def at(self, place: int) -> list[Op]:
        """The operations before, inside or after the loop; a reduction is inside, its sum after."""
        return [op for op in self.ops if op.place == place]

    @property
    def touched(self) -> list[int]:
        """The columns of tensors that are read or written."""
        names = {name for op in self.ops for name in op.args} | set(self.stores.values())
        return [i for i, c in enumerate(self.columns) if c.elements and (f"x{i}" in names or i in self.stores)]

    @property
    def uniform(self) -> set[str]:
        """The names that are the same for all elements."""
        numbers = {f"x{i}" for i, column in enumerate(self.columns) if not column.elements}
        return numbers | {f"s_{name}" for name in self.scalars} | {op.out for op in self.at(BEFORE)}

    @property
    def reductions(self) -> list[Op]:
        """What is summed, or of what the maximum is taken."""
        return [op for op in self.ops if op.word in REDUCTIONS]


def record(kernel: Callable[..., Any], columns: Sequence[Column], scalars: dict[str, torch.dtype | None]) -> Tape:
    """Run ``kernel`` once and write down what it does; half precision is computed in float32.

    Args:
        columns: what its positional arguments are.
        scalars: dtypes of its keyword arguments; None where the argument is None. With ``SALT`` among them the engines
            round parameters in bfloat16 stochastically.

    Raises:
        NotImplementedError: the kernel leaves the vocabulary, or takes two passes.
    """
    used = {name: dtype for name, dtype in scalars.items() if dtype is not None}
    tape = Tape(name_of(kernel), list(columns), used)
    recorder = _Recorder(tape)
    inputs = [
        recorder.argument(f"x{i}", torch.float32 if c.dtype in HALF else c.dtype, INSIDE if c.elements else BEFORE)
        for i, c in enumerate(columns)
    ]
    shared = {name: recorder.argument(f"s_{name}", dtype, BEFORE) for name, dtype in used.items() if name != SALT}
    with recorder, torch.no_grad():
        results = sums_of(kernel, kernel(*inputs, **{**dict.fromkeys(scalars.keys() - {SALT}), **shared}))
    tape.results = [recorder.name(t) for t in results]
    if any(recorder.place(t) == INSIDE for t in results):
        raise NotImplementedError(f"{tape.name} {NO_SUM}")
    changed = {i: recorder.name(t) for i, t in enumerate(inputs) if recorder.name(t) != f"x{i}"}
    for i in changed:
        if not columns[i].elements:
            raise NotImplementedError(f"{tape.name} writes to argument {i}, which is a number")
    for name, value in shared.items():
        if recorder.name(value) != f"s_{name}":
            raise NotImplementedError(f"{tape.name} writes to {name}, which all tensors share")
    tape.stores = changed
    return tape


NO_SUM = "returns a value for each element, where a sum is due: a kernel returns nothing, or a tuple of sums"


def sums_of(kernel: Callable[..., Any], returned: Any) -> Sequence[Tensor]:
    """What a kernel returns, after a look at its kind."""
    if returned is None:
        return ()
    if not isinstance(returned, tuple | list) or not all(isinstance(one, Tensor) for one in returned):
        raise NotImplementedError(
            f"{name_of(kernel)} returns a {type(returned).__name__}: a kernel writes to its parameter and its state in "
            "place, and returns nothing, or a tuple of sums"
        )
    return returned


def name_of(kernel: Callable[..., Any]) -> str:
    """What a kernel is called."""
    name: str = getattr(kernel, "__name__", type(kernel).__name__)
    return name


class _Recorder(TorchFunctionMode):
    """Does what it is asked for, so that torch decides on dtypes, and writes it down."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        # By id: what a tensor is called now, where that is known, and the tensor itself, so that no other gets its id.
        self.values: dict[int, tuple[str, int, Tensor]] = {}

    def argument(self, name: str, dtype: torch.dtype, place: int) -> Tensor:
        t = torch.ones((1,) if place == INSIDE else (), dtype=dtype, device="cpu")
        self.tape.dtypes[name] = dtype
        self.values[id(t)] = name, place, t
        return t

    def name(self, t: Tensor) -> str:
        return self._known(t)[0]

    def place(self, t: Tensor) -> int:
        return self._known(t)[1]

    def _known(self, t: Tensor) -> tuple[str, int]:
        if id(t) not in self.values:  # it was made outside
            raise NotImplementedError(
                f"{self.tape.name} uses a tensor that it was not given: hand it on as an argument, or leave fused=False"
            )
        return self.values[id(t)][:2]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        word = func.__name__
        if word == "__get__":  # a property
            word = func.__self__.__name__
        if not isinstance(out, Tensor) and args and isinstance(args[0], Tensor) and word not in ABOUT:
            raise NotImplementedError(
                f"{self.tape.name}: {word} is not in the vocabulary of fused kernels. A kernel sees one element at a "
                "time, and no tensor's size, shape or value on the host: write a branch as torch.where, hand a size on "
                "as an argument, or leave fused=False"
            )
        if word == "flatten":
            self.values[id(out)] = (*self.values[id(args[0])][:2], out)
        elif isinstance(out, Tensor) and (word.endswith("_") or not any(out is a for a in args)):  # not t.to() itself
            self.values[id(out)] = (*self._spell(word if word in SAME else word.strip("_"), args, kwargs, out), out)
        return out

    def _spell(self, word: str, args: Any, kwargs: dict[str, Any], out: Tensor) -> tuple[str, int]:
        """An operation of torch in the vocabulary: the name of its value, and where that is known."""

        def say(word: str, *args: Any, inner: torch.dtype = out.dtype) -> tuple[str, int]:
            return self._say(word, args, out.dtype, inner)

        match SAME.get(word, word), *args:
            case ("gt" | "ge" | "lt" | "le" | "eq" | "ne") as word, a, b:
                return say(word, a, b, inner=torch.result_type(a, b))
            case ("sum" | "amax") as word, a if not kwargs:
                return say(word, a)
            case ("add" | "radd" | "sub" | "rsub") as word, a, b:
                alpha = kwargs.get("alpha", 1)
                b = b if alpha == 1 else say("mul", b, alpha)
                return say("sub", b, a) if word == "rsub" else say("sub" if word == "sub" else "add", a, b)
            case ("addcmul" | "addcdiv") as word, a, b, c:
                b, value = say("mul" if word == "addcmul" else "div", b, c), kwargs.get("value", 1)
                return say("add", a, b if value == 1 else say("mul", b, value))
            case "lerp", a, b, float(weight) | int(weight):
                way = say("sub", b, a)
                if weight < 0.5:
                    return say("add", a, say("mul", weight, way))
                return say("sub", b, say("mul", way, 1 - weight))
            case "lerp", a, b, weight:  # in two forms, as torch does: exact at both ends
                way, rest = say("sub", b, a), say("sub", 1, weight)
                near, far = say("add", a, say("mul", weight, way)), say("sub", b, say("mul", way, rest))
                return say("where", self._say("lt", [weight, 0.5], torch.bool, weight.dtype), near, far)
            case "dot", a, b:
                return say("sum", say("mul", a, b))
            case ("square", a) | ("pow", a, 2):
                return say("mul", a, a)
            case "pow", a, 3:
                return say("mul", say("mul", a, a), a)
            case "pow", a, 0.5:
                return say("sqrt", a)
            case ("rsqrt", a) | ("pow", a, -0.5):
                return say("div", 1, say("sqrt", a))
            case "sign", a:
                negative, positive = (self._say(word, [a, 0], torch.bool, out.dtype) for word in ("lt", "gt"))
                return say("where", positive, 1, say("where", negative, -1, 0))
            case "isnan", a:
                return say("ne", a, a, inner=a.dtype)
            case "isfinite", a:
                return say("eq", self._say("sub", [a, a], a.dtype, a.dtype), 0, inner=a.dtype)
            case ("reciprocal", a) | ("pow", a, -1):
                return say("div", 1, a)
            case "rdiv", a, b:
                return say("div", b, a)
            case "clamp_min", a, low:
                return say("maximum", a, low)
            case "clamp_max", a, high:
                return say("minimum", a, high)
            case "clamp", a, *bounds:
                low, high = [*bounds, None, None][:2]
                low, high = kwargs.get("min", low), kwargs.get("max", high)
                above = say("cast", a) if low is None else say("maximum", a, low)
                return above if high is None else say("minimum", above, high)
            case (("copy" | "fill"), _, new):
                return say("cast", new)
            case ("zero" | "zeros_like" | "ones_like") as word, _:
                return say("cast", 1 if word == "ones_like" else 0)
            case (("float" | "double" | "to" | "clone"), a, *_):
                return say("cast", a)
            case "linalg_vector_norm", a if not kwargs:
                return say("sqrt", say("sum", say("mul", a, a)))
            case word, *_ if word in SAME and not kwargs:
                return say(word, *args)
        raise NotImplementedError(
            f"{self.tape.name}: {word} with {len(args)} arguments, {kwargs}, is not in the vocabulary of fused "
            f"kernels: {KNOWN}. Write it in these, or leave fused=False"
        )

    def _say(self, word: str, args: Sequence[Any], dtype: torch.dtype, inner: torch.dtype) -> tuple[str, int]:
        """Write an operation down, unless it was done before."""
        known = [self._known(a) if isinstance(a, Tensor) else a for a in args]
        if word == "cast" and isinstance(known[0], tuple) and self.tape.dtypes[known[0][0]] == dtype:
            return known[0]
        names = tuple(a[0] if isinstance(a, tuple) else float(a) for a in known)
        places = {a[1] for a in known if isinstance(a, tuple)}
        if {INSIDE, AFTER} <= places:
            raise NotImplementedError(f"{self.tape.name} takes two passes: it needs a sum for an element")
        place = max(places, default=BEFORE)
        out = next((op.out for op in self.tape.ops if op[1:] == (word, names, dtype, inner, place)), None)
        if out is None:
            out = f"t{len(self.tape.ops)}"
            self.tape.ops.append(Op(out, word, names, dtype, inner, place))
            self.tape.dtypes[out] = dtype
        return out, AFTER if word in REDUCTIONS else place


def indent(lines: Iterable[str]) -> str:
    """Lines of code, one step to the right."""
    return "".join(f"    {line}\n" for line in lines)
