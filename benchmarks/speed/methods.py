"""Whose step is measured: torch's own and ours, each with the words that it must move.

A word is one number of a tensor, read or written. What a method must move at the least is what its passes read and
write when nothing between them is: temporaries live in registers. Our state is float32 also where parameters are
bfloat16, so words of weights (parameters and gradients) and of state are counted apart.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import fallline
from fallline.bench.common.names import unknown

Mode = Literal["eager", "fused", "foreach", "plain", "captured"]
"""How a step runs: our kernels one tensor at a time, or in one pass over all; torch's over lists; as the authors write
it; or the fused step as a CUDA graph."""

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Words:
    """Words that a step must read and write for each parameter."""

    weights: float
    """Of parameters and gradients, in the parameters' dtype."""

    state: float
    """Of the optimizer's state, in the state's dtype."""

    @property
    def total(self) -> float:
        """Both."""
        return self.weights + self.state

    def bytes(self, weight: float, state: float) -> float:
        """Bytes a parameter, from the bytes of a number of each kind."""
        return self.weights * weight + self.state * state


@dataclass(frozen=True)
class Method:
    """An optimizer in one of its forms."""

    name: str
    """What `--only` takes."""

    label: str
    """For tables, without the mode."""

    make: Make
    """From parameters to an optimizer. Learning rates are so small that weights stay finite for any number of steps."""

    mode: Mode
    words: Words | None
    """Of a step at its least; None where something else than traffic bounds it."""

    state: float
    """Words of state a parameter, to know beforehand what fits into memory."""

    against: str | None = None
    """The method that it is timed beside, by name."""

    target: float | None = None
    """The largest share of that method's time that it may take: for float32 on the CPU."""

    loss: bool = False
    """Whether `step` wants the loss."""

    sets: tuple[str, ...] = ()
    """The only parameter sets that it is measured on; none: on all."""

    apart: bool = False
    """Measured only where `--only` names it: its first step takes minutes, or any step seconds."""

    @property
    def title(self) -> str:
        """The label, with the mode."""
        return f"{self.label}, {self.mode}"


SGD, ADAMW = Words(weights=3, state=2), Words(weights=3, state=4)
"""Parameter read and written, gradient read; each tensor of state read and written."""

RATE = 1e-9
"""Nobody moves a weight by more than its last digits."""


def _torch() -> Iterable[Method]:
    """torch's own, the yardsticks."""
    for mode in ("fused", "foreach"):
        run: dict[str, Any] = {mode: True}
        sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9, **run)
        yield Method(f"sgd-{mode}", "SGD", sgd, mode, SGD, 1)
        yield Method(f"adamw-{mode}", "AdamW", partial(torch.optim.AdamW, lr=RATE, **run), mode, ADAMW, 2)


def _both(
    name: str,
    label: str,
    make: Callable[..., torch.optim.Optimizer],
    words: Words | None,
    state: float,
    *,
    against: str | None = None,
    target: float | None = None,
    per_word: bool = True,
    loss: bool = False,
    sets: tuple[str, ...] = (),
    apart: bool = False,
) -> Iterable[Method]:
    """A method of ours, fused and eager.

    Args:
        against, target: of the fused form.
        per_word: whether the eager form is to cost no more a word than AdamW over lists does.
    """
    more: dict[str, Any] = dict(loss=loss, sets=sets, apart=apart)
    yield Method(
        f"{name}-fused", label, partial(make, fused=True), "fused", words, state, against=against, target=target, **more
    )
    yardstick: dict[str, Any] = {}
    if words is not None:
        yardstick = dict(against="adamw-foreach", target=words.total / ADAMW.total if per_word else None)
    yield Method(f"{name}-eager", label, make, "eager", words, state, **yardstick, **more)


def _ours() -> Iterable[Method]:
    """Each word of the comments is one read or write of a full-size tensor."""
    cool = partial(fallline.CoolMomentum, lr=RATE)
    # p, g, displacement; p, displacement. With skip_nonfinite a pass over g before.
    yield from _both("coolmomentum", "CoolMomentum", cool, Words(3, 2), 1, against="sgd-fused", target=1.05)
    skip = partial(cool, skip_nonfinite=True)
    yield from _both(
        "coolmomentum-skip", "CoolMomentum, skip_nonfinite", skip, Words(4, 2), 1, against="sgd-fused", target=1.35
    )

    decay = {"weight_decay": 5e-4}
    vanilla = partial(fallline.VanillaKOALA, lr=RATE)
    known: dict[str, Any] = dict(loss=True, against="sgd-fused", target=1.15)
    # Norms: g, and p with weight decay; then p, g; p.
    yield from _both("koala-v", "VanillaKOALA", vanilla, Words(4, 0), 0, **known)
    yield from _both("koala-v-decay", "VanillaKOALA, weight_decay", partial(vanilla, **decay), Words(5, 0), 0, **known)

    momentum = partial(fallline.MomentumKOALA, lr=RATE)
    known = dict(loss=True, against="adamw-fused", target=1.5)
    # Norms as before; then p, g, velocity, average; p, velocity, average.
    yield from _both("koala-m", "MomentumKOALA", momentum, Words(4, 4), 2, **known)
    yield from _both(
        "koala-m-decay", "MomentumKOALA, weight_decay", partial(momentum, **decay), Words(5, 4), 2, **known
    )
    fixed = partial(momentum, q_rule="fixed")  # without the average
    yield from _both(
        "koala-m-fixed", "MomentumKOALA, q_rule=fixed", fixed, Words(4, 2), 1, loss=True, against="adamw-fused"
    )

    products = partial(fallline.KOALAPlusPlus, lr=RATE)
    # Products: g, v, H; then p, g, v, H; p, v, H.
    known = dict(loss=True, against="adamw-fused", target=1.8)
    yield from _both("koala-pp", "KOALAPlusPlus", products, Words(4, 6), 2, **known)

    metric = partial(fallline.MetricKOALA, lr=RATE)
    # Finite: g. Averages: g and two of state; these. Slope: g and both. Then p, g and both; p.
    yield from _both("koala-metric", "MetricKOALA", metric, Words(6, 8), 2, loss=True, against="adamw-fused")
    # Products of matrices bound it. Beside the averaged gradient, a direction is held until the step is done.
    orthogonal = partial(fallline.OrthogonalKOALA, lr=RATE)
    more: dict[str, Any] = dict(loss=True, apart=True, sets=("resnet18",))
    yield from _both("koala-orthogonal", "OrthogonalKOALA", orthogonal, None, 2, **more)

    arturo = partial(fallline.ArTuRO, lr=RATE)
    # Finite: g. Filter: p, g and six of state; five of them. Move: p, precision, slope, intercept; p, precision.
    known = dict(against="adamw-fused", per_word=False)
    yield from _both("arturo", "ArTuRO", arturo, Words(5, 15), 6, target=3.3, **known)
    # Before it moves, Newton's passes: p, precision, slope, intercept. Eager is slow enough without them.
    newton = partial(arturo, newton_iters=4)
    yield next(iter(_both("arturo-newton", "ArTuRO, newton_iters=4", newton, Words(9, 27), 6, target=5.9, **known)))

    lodo = partial(fallline.LODO, lr=RATE, meta_lr=RATE)
    yield from _both("lodo", "LODO", lodo, None, 417, sets=("resnet18",), apart=True)


METHODS: tuple[Method, ...] = (*_torch(), *_ours())
"""What is measured unless `--only` says otherwise, in the order of the tables."""


def read_methods(path: Path) -> tuple[Method, ...]:
    """The list `METHODS` of a Python file.

    Raises:
        ValueError: the file cannot be imported, or has no such list; the message says which.
    """
    spec = importlib.util.spec_from_file_location(f"methods_of_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for themselves
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file may raise
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, "METHODS", None)
    if not isinstance(found, Sequence) or not found or not all(isinstance(one, Method) for one in found):
        raise ValueError(f"{path} has no list METHODS of speed.Method")
    return tuple(found)


def all_methods(files: Iterable[Path] = ()) -> dict[str, Method]:
    """Ours, torch's and those of the files, by name.

    Raises:
        ValueError: a file is none, two methods have one name, or one is timed beside nobody that there is.
    """
    methods: dict[str, Method] = {}
    for one in (*METHODS, *(one for path in files for one in read_methods(path))):
        if one.name in methods:
            raise ValueError(f"there are two methods of the name {one.name!r}")
        methods[one.name] = one
    for one in methods.values():
        if one.against is not None and (one.against not in methods or one.against == one.name):
            raise ValueError(f"{one.name!r} is timed beside {one.against!r}, which is none of the others")
    return methods


def chosen(methods: dict[str, Method], only: Sequence[str], set_name: str) -> tuple[Method, ...]:
    """Those to measure on a set, with those that they are timed beside, in the order of `methods`.

    Args:
        methods: by name.
        only: names, what names begin with (`koala-v`), or modes (`fused`); none: all that do not stand apart.
        set_name: the parameter set.

    Raises:
        ValueError: a word fits nobody, or nobody is left on this set.
    """

    def fits(one: Method, word: str) -> bool:
        return one.name == word or one.name.startswith(f"{word}-") or one.mode == word

    for word in only:
        if not any(fits(one, word) for one in methods.values()):
            raise unknown("method", word, methods)
    # One that stands apart is named by its own name, not by a mode.
    picked = [
        one
        for one in methods.values()
        if (any(fits(one, w) and not (one.apart and one.mode == w) for w in only) if only else not one.apart)
        and (not one.sets or set_name in one.sets)
    ]
    if not picked:
        raise ValueError(f"there is nothing to measure on {set_name}: {', '.join(only)} is measured elsewhere")
    wanted = {one.name for one in picked}
    for name in (todo := sorted(wanted)):
        beside = methods[name].against
        if beside is not None and beside not in wanted:
            wanted.add(beside)
            todo.append(beside)
    return tuple(one for one in methods.values() if one.name in wanted)
